//! A cluster whose members and users are on hosts of their own, where only certificates and tokens let in.

use super::cluster::Control;
use super::command::{Outcome, finish, path_text, words};
use super::daemon::Daemon;
use super::network::{Host, Network};
use super::patience::until;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A manager on the host `manager`; whoever else is needed is started on other hosts. Files are the same on all.
pub struct Hosts {
    // The processes end before their hosts do.
    pub manager: Daemon,
    pub network: Network,
    scratch: tempfile::TempDir,
}

/// A block service on a host.
pub struct FarBlock {
    pub daemon: Daemon,
    pub control: Control,
    pub directory: PathBuf,
    pub host: Host,
}

/// symphony on a host, with nothing of the surrounding environment that could change what it does.
pub fn symphony_on(host: &Host, home: &Path) -> Command {
    let mut command = host.command(env!("CARGO_BIN_EXE_symphony"));
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", home);
    command
}

impl Hosts {
    /// A manager that is initialised with `options`, and hosts for others; none where this system has no namespaces.
    pub fn start<'n>(others: impl IntoIterator<Item = &'n str>, options: &str) -> Option<Self> {
        let network = Network::of(["manager"].into_iter().chain(others))?;
        let scratch = tempfile::tempdir().expect("a directory");
        let manager = manager_daemon(&network, scratch.path(), "manager");
        let mut hosts = Self { manager, network, scratch };
        hosts.manager.start_serving(&hosts.ctl().socket);
        initialise(&hosts.ctl(), options);
        Some(hosts)
    }

    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    pub fn host(&self, name: &str) -> &Host {
        self.network.host(name)
    }

    /// The manager's own socket.
    pub fn ctl(&self) -> Control {
        Control::of(&self.path().join("manager"))
    }

    /// Where the manager of a host listens.
    pub fn address(&self, host: &str) -> String {
        format!("{}:15760", self.host(host).address)
    }

    /// The manager of another cluster, on a host.
    pub fn foreign_manager(&self, host: &str) -> (Daemon, Control) {
        let mut daemon = manager_daemon(&self.network, self.path(), host);
        let control = Control::of(&self.path().join(host));
        daemon.start_serving(&control.socket);
        initialise(&control, "--name foreign");
        (daemon, control)
    }

    /// A block service on a host, running, not yet a member.
    pub fn block(&self, host: &str) -> FarBlock {
        let directory = self.path().join(host);
        let (far, home) = (self.host(host).clone(), self.path().to_owned());
        let place = far.clone();
        let arguments =
            ["block", "run", "--config-dir", path_text(&directory), "--advertise-address", far.address.as_str()];
        let program = move || symphony_on(&place, &home);
        let mut daemon = Daemon::of(host, self.path(), program, &arguments);
        let control = Control::of(&directory);
        daemon.start_serving(&control.socket);
        FarBlock { daemon, control, directory, host: far }
    }

    /// A block service that joined by token, with a pool of its host's name.
    pub fn joined_block(&self, host: &str) -> FarBlock {
        let block = self.block(host);
        let token = self.token("");
        block.control.ok(&format!("block init {} --token {token}", self.address("manager")));
        let (pool, service) = (self.path().join(format!("{host}-pool")), block.id());
        self.ctl().ok(&format!("pool create {host} --path {} --service {service}", path_text(&pool)));
        block
    }

    /// A token that the manager makes.
    #[track_caller]
    pub fn token(&self, options: &str) -> String {
        self.ctl().text(&format!("manager token create {options}"), "/text")
    }

    /// Runs `symphony ctl LINE` on a host.
    #[track_caller]
    pub fn ctl_on(&self, host: &str, line: &str) -> Outcome {
        let mut command = symphony_on(self.host(host), self.path());
        command.arg("ctl").args(words(line));
        finish(command)
    }

    /// The bundle of a new client, made on the manager's own host.
    #[track_caller]
    pub fn bundle(&self, name: &str, role: &str) -> PathBuf {
        bundle(&self.ctl(), self.path(), name, role)
    }
}

/// The bundle of a new client, in a directory that has its name.
#[track_caller]
pub fn bundle(control: &Control, scratch: &Path, name: &str, role: &str) -> PathBuf {
    let directory = scratch.join(format!("bundle-{name}"));
    control.ok(&format!("manager client create {name} --role {role} --output-dir {}", path_text(&directory)));
    directory
}

/// The URI of an export over TLS, with the certificates of a bundle.
pub fn secure(uri: &str, bundle: &Path) -> String {
    format!("{uri}?tls-certificates={}", path_text(bundle))
}

impl FarBlock {
    #[track_caller]
    pub fn id(&self) -> String {
        self.control.text("block status", "/service/id")
    }

    /// Where a volume is served on the host itself.
    pub fn local_uri(&self, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", path_text(&self.directory.join("nbd.sock")))
    }
}

fn manager_daemon(network: &Network, scratch: &Path, host: &str) -> Daemon {
    let (place, home) = (network.host(host).clone(), scratch.to_owned());
    let (config, address) = (scratch.join(host), format!("{}:15760", place.address));
    let arguments = ["manager", "run", "--config-dir", path_text(&config), "--advertise-address", &address];
    Daemon::of(host, scratch, move || symphony_on(&place, &home), &arguments)
}

fn initialise(control: &Control, options: &str) {
    until("a manager that knows its store", || {
        (control.text("manager status", "/state") == "uninitialised").then_some(())
    });
    control.ok(&format!("manager init {options}"));
}
