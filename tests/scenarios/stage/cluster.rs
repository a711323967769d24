//! A manager, a block service and a store, and the `ctl` of an operator in front of them.

use super::command::{Outcome, finish, path_text, symphony, words};
use super::daemon::Daemon;
use super::image::sha256;
use super::patience::{until, wait};
use super::tools::client;
use crate::support::etcd::{Etcd, EtcdSetup};
use crate::support::ports::free_ports;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Where a cluster keeps its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    Embedded,
    /// One member that does not wait for the disk.
    Etcd,
    /// A quorum that survives the loss of a member.
    ThreeEtcds,
}

/// Makes two tests of a scenario: one on the embedded store, one on etcd.
macro_rules! on_each_store {
    ($($scenario:ident),+ $(,)?) => {
        mod embedded {
            $(#[test] fn $scenario() { super::$scenario(crate::stage::Backing::Embedded); })+
        }
        mod etcd {
            $(#[test] fn $scenario() { super::$scenario(crate::stage::Backing::Etcd); })+
        }
    };
}
pub(crate) use on_each_store;

/// `symphony ctl` against one control socket.
#[derive(Clone, Debug)]
pub struct Control {
    pub socket: PathBuf,
}

impl Control {
    pub fn of(config_dir: &Path) -> Self {
        Self { socket: config_dir.join("control.sock") }
    }

    #[track_caller]
    pub fn run(&self, line: &str) -> Outcome {
        self.run_words(words(line))
    }

    #[track_caller]
    pub fn run_words<'w>(&self, words: impl IntoIterator<Item = &'w str>) -> Outcome {
        let mut command = symphony(["ctl", "--socket", path_text(&self.socket)]);
        command.args(words);
        finish(command)
    }

    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        self.run(line).succeeds()
    }

    #[track_caller]
    pub fn json(&self, line: &str) -> Value {
        let text = self.ok(&format!("{line} -o json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error} in {text}"))
    }

    /// One text in the JSON that a command answers with, by its pointer.
    #[track_caller]
    pub fn text(&self, line: &str, pointer: &str) -> String {
        let document = self.json(line);
        let text = document.pointer(pointer).and_then(Value::as_str);
        text.unwrap_or_else(|| panic!("{line} has no {pointer}: {document}")).to_owned()
    }

    /// How a service stands: `ready`, `down` or `removed`.
    #[track_caller]
    pub fn service_state(&self, id: &str) -> String {
        self.text(&format!("service get {id}"), "/status/state")
    }

    pub fn wait_for_service(&self, id: &str, state: &str) {
        until(&format!("service {id} being {state}"), || {
            // A manager that has only just come back may not answer yet.
            let outcome = self.run(&format!("service get {id} -o json"));
            let found: Value = serde_json::from_slice(&outcome.stdout).ok()?;
            (found.pointer("/status/state")?.as_str()? == state).then_some(())
        });
    }

    /// Where a volume is served: over TCP, or on the unix socket.
    #[track_caller]
    pub fn uri(&self, volume: &str, protocol: &str) -> String {
        let document = self.json(&format!("volume get {volume}"));
        let exports = document.pointer("/status/exports").and_then(Value::as_array).expect("a list of exports");
        let export = exports.iter().find(|export| export["protocol"] == protocol);
        let uri = export.and_then(|export| export["uri"].as_str());
        uri.unwrap_or_else(|| panic!("no {protocol} export in {document}")).to_owned()
    }

    #[track_caller]
    pub fn names(&self, noun: &str) -> Vec<String> {
        self.ok(&format!("{noun} list -o name")).lines().map(str::to_owned).collect()
    }

    /// The consistency check: store, view and devices agree, and every block service was asked.
    #[track_caller]
    pub fn check(&self) {
        let services = self.json("service list");
        let is_member =
            |service: &&Value| service["spec"]["type"] == "block" && service["status"]["state"] != "removed";
        let members = services.as_array().expect("a list").iter().filter(is_member).count();
        let found = self.json("check");
        assert_eq!(found["services_asked"], members, "{found}");
        assert_eq!(found["faults"], Value::Array(Vec::new()), "{found}");
    }

    /// No fault is found, whoever holds the sessions: a manager asks only the block services that are its own.
    #[track_caller]
    pub fn check_when_settled_somewhere(&self) {
        until("a check without faults", || {
            let outcome = self.run("check -o json");
            let found: Value = serde_json::from_slice(&outcome.stdout).ok()?;
            (found["faults"] == Value::Array(Vec::new())).then_some(())
        });
    }

    /// The check, once every service is back and every volume is served again.
    #[track_caller]
    pub fn check_when_settled(&self) {
        until("every service to be ready", || {
            let outcome = self.run("service list -o json");
            let services: Value = serde_json::from_slice(&outcome.stdout).ok()?;
            services.as_array()?.iter().all(|service| service["status"]["state"] != "down").then_some(())
        });
        until("every block service to be asked through this manager", || {
            let outcome = self.run("check -o json");
            let found: Value = serde_json::from_slice(&outcome.stdout).ok()?;
            let says = |list: &str, words: &[&str]| {
                let lines = found[list].as_array()?.iter().filter_map(Value::as_str);
                Some(lines.into_iter().any(|line| words.iter().any(|word| line.contains(word))))
            };
            let passing = ["it is not open", "but not exported", "does not have it"];
            (!says("remarks", &["could not be asked"])? && !says("faults", &passing)?).then_some(())
        });
        for volume in self.names("volume") {
            until(&format!("volume '{volume}' to be served"), || {
                let outcome = self.run(&format!("volume get {volume} -o json"));
                let found: Value = serde_json::from_slice(&outcome.stdout).ok()?;
                let uri = found.pointer("/status/exports/0/uri")?.as_str()?.to_owned();
                (found.pointer("/status/phase")?.as_str()? == "ready").then_some(())?;
                client(&uri).ok()
            });
        }
        self.check();
    }
}

/// One manager and one block service with the pool `main`.
pub struct Cluster {
    // The processes end before the store and the directory do.
    pub manager: Daemon,
    pub block: Daemon,
    pub etcd: Option<Etcd>,
    pub manager_port: u16,
    scratch: tempfile::TempDir,
}

impl Cluster {
    /// Initialised, joined, with the pool `main` in it.
    pub fn start(backing: Backing) -> Self {
        let cluster = Self::join(backing, "");
        cluster.ctl().ok(&format!("pool create main --path {}", path_text(&cluster.pool())));
        cluster
    }

    /// Initialised with `options` and joined, without a pool.
    pub fn join(backing: Backing, options: &str) -> Self {
        let mut cluster = Self::bare(backing);
        cluster.manager.start_serving(&cluster.ctl().socket);
        cluster.block.start_serving(&cluster.block_ctl().socket);
        cluster.init_manager(options);
        cluster.init_block();
        cluster
    }

    /// Nothing runs but the store.
    pub fn bare(backing: Backing) -> Self {
        let scratch = tempfile::tempdir().expect("a directory");
        let setup = |unsafe_no_fsync| EtcdSetup { unsafe_no_fsync, ..EtcdSetup::default() };
        let etcd = match backing {
            Backing::Embedded => None,
            Backing::Etcd => Some(wait(Etcd::start_with(1, setup(true)))),
            Backing::ThreeEtcds => Some(wait(Etcd::start(3))),
        };
        // Managers keep their address over restarts, as block services look for them there.
        let manager_port = free_ports(1)[0];
        let manager = Self::manager_daemon(scratch.path(), "manager", manager_port, etcd.as_ref());
        let block = Self::block_daemon(scratch.path(), "block");
        Self { manager, block, etcd, manager_port, scratch }
    }

    fn manager_daemon(scratch: &Path, name: &str, port: u16, etcd: Option<&Etcd>) -> Daemon {
        let (config, port) = (scratch.join(name), port.to_string());
        let mut daemon = Daemon::new(name, scratch, &["manager", "run", "--config-dir", path_text(&config)]);
        daemon.add_arguments(&["--listen-port", &port]);
        if let Some(etcd) = etcd {
            daemon.add_arguments(&["--etcd-endpoints", &etcd.endpoints().join(",")]);
        }
        daemon
    }

    fn block_daemon(scratch: &Path, name: &str) -> Daemon {
        let config = scratch.join(name);
        let arguments = ["block", "run", "--listen-port", "0", "--nbd-port", "0", "--config-dir", path_text(&config)];
        Daemon::new(name, scratch, &arguments)
    }

    /// A further manager on the same store, running, not yet a member.
    pub fn another_manager(&self, name: &str) -> (Daemon, Control) {
        let mut daemon = Self::manager_daemon(self.path(), name, free_ports(1)[0], self.etcd.as_ref());
        let control = Control::of(&self.path().join(name));
        daemon.start_serving(&control.socket);
        (daemon, control)
    }

    /// A further block service, running, not yet a member.
    pub fn another_block(&self, name: &str) -> (Daemon, Control) {
        let mut daemon = Self::block_daemon(self.path(), name);
        let control = Control::of(&self.path().join(name));
        daemon.start_serving(&control.socket);
        (daemon, control)
    }

    pub fn init_manager(&self, options: &str) {
        until("a manager that knows its store", || {
            let state = self.ctl().text("manager status", "/state");
            (state != "starting").then_some(())
        });
        self.ctl().ok(&format!("manager init {options}"));
    }

    pub fn init_block(&self) {
        self.block_ctl().ok(&format!("block init 127.0.0.1:{}", self.manager_port));
    }

    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    pub fn manager_dir(&self) -> PathBuf {
        self.path().join("manager")
    }

    pub fn block_dir(&self) -> PathBuf {
        self.path().join("block")
    }

    pub fn pool(&self) -> PathBuf {
        self.path().join("pool")
    }

    /// Asks the manager.
    pub fn ctl(&self) -> Control {
        Control::of(&self.manager_dir())
    }

    /// Asks the block service itself.
    pub fn block_ctl(&self) -> Control {
        Control::of(&self.block_dir())
    }

    pub fn service_id(&self) -> String {
        self.block_ctl().text("block status", "/service/id")
    }

    /// The service that a pool is on, by the manager's word: the block service itself may be gone.
    pub fn service_id_of_pool(&self, pool: &str) -> String {
        self.ctl().text(&format!("pool get {pool}"), "/spec/service")
    }

    pub fn restart_manager(&mut self) {
        self.manager.kill();
        self.manager.start_serving(&Control::of(&self.manager_dir()).socket);
    }

    pub fn restart_block(&mut self) {
        self.block.kill();
        self.block.start_serving(&Control::of(&self.block_dir()).socket);
    }

    /// Makes the ledger of the block service, which must not run, that of one that was killed before it could note that
    /// anything was made.
    pub fn forget_what_was_made(&self) {
        let ledger = self.block_dir().join("ledger.json");
        let text = std::fs::read_to_string(&ledger).expect("the ledger");
        let document: Value = serde_json::from_str(&text).expect("a document");
        let unmade = text.replace("\"made\": true", "\"made\": false");
        assert_ne!(unmade, text, "nothing was made");
        // The checksum is over the text with zeros in its place.
        let (digest, zeros) = (document["sha256"].as_str().expect("a checksum"), "0".repeat(64));
        let blank = unmade.replacen(digest, &zeros, 1);
        let whole = blank.replacen(&zeros, &sha256(blank.as_bytes()), 1);
        std::fs::write(&ledger, whole).expect("the ledger");
    }

    /// Where a volume is served on this host, whether or not a manager can be asked.
    pub fn local_uri(&self, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", path_text(&self.block_dir().join("nbd.sock")))
    }
}
