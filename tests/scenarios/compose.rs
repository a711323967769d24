//! The topology of docker-compose.yml without an engine: every container of its profile `cluster` as a network namespace
//! and a root directory with nothing in it but the executable, run with the very commands and environments of the file.

use crate::stage::{Daemon, Host, Network, Outcome, finish, path_text, tool, until};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The file, and what its containers run on.
struct Compose {
    file: Value,
    network: Network,
    scratch: tempfile::TempDir,
    daemons: Vec<(String, Daemon)>,
}

/// The file as an engine reads it, its merged keys in their places.
fn read_compose() -> Value {
    let mut file: serde_norway::Value =
        serde_norway::from_str(include_str!("../../docker-compose.yml")).expect("valid YAML");
    // What is merged may bring merge keys of its own.
    for _ in 0..2 {
        file.apply_merge().expect("valid merge keys");
    }
    serde_json::to_value(file).expect("a document that JSON can hold")
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

impl Compose {
    fn read() -> Option<Self> {
        let file = read_compose();
        let names: Vec<String> = file["services"].as_object().expect("services").keys().cloned().collect();
        let network = Network::of(names.iter().map(String::as_str).chain(["operator"]))?;
        let scratch = tempfile::tempdir().expect("a directory");
        Some(Self { file, network, scratch, daemons: Vec::new() })
    }

    fn host(&self, name: &str) -> &Host {
        self.network.host(name)
    }

    /// A named volume.
    fn volume(&self, name: &str) -> PathBuf {
        let path = self.scratch.path().join("volumes").join(name);
        fs::create_dir_all(&path).expect("a volume");
        path
    }

    /// `FROM scratch`: the executable, what the engine puts beside it, and the libraries that a static one has inside.
    fn root(&self, name: &str) -> PathBuf {
        let root = self.scratch.path().join("roots").join(name);
        if root.exists() {
            return root;
        }
        for directory in ["etc", "proc", "dev", "tmp"] {
            fs::create_dir_all(root.join(directory)).expect("a root");
        }
        let executable = env!("CARGO_BIN_EXE_symphony");
        fs::copy(executable, root.join("symphony")).expect("the executable");
        for library in tool("ldd", &[executable]).succeeds().split_whitespace().filter(|word| word.starts_with('/')) {
            let place = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(place.parent().expect("a directory")).expect("a directory");
            fs::copy(library, place).expect("a library");
        }
        fs::write(root.join("etc/hosts"), self.network.names()).expect("names");
        fs::write(root.join("etc/hostname"), name).expect("a name");
        root
    }

    /// How `/symphony` is run in a container: on its host, in its root, with its volumes mounted.
    fn program(&self, name: &str) -> impl Fn() -> Command + Send + Sync + 'static {
        let root = self.root(name);
        let mut script = String::from("set -e\n");
        for mount in texts(&self.file["services"][name]["volumes"]) {
            let mut parts = mount.split(':');
            let (volume, place) = (parts.next().expect("a volume"), parts.next().expect("a place"));
            let place = root.join(place.trim_start_matches('/'));
            fs::create_dir_all(&place).expect("a place to mount at");
            let volume = self.volume(volume);
            script += &format!("mount --bind {} {}\n", path_text(&volume), path_text(&place));
        }
        let root = path_text(&root).to_owned();
        script += &format!("mount -t proc proc {root}/proc\nhostname {name}\nexec chroot {root} /symphony \"$@\"\n");
        let host = self.host(name).clone();
        move || {
            let mut command = host.command("unshare");
            command.args(["--mount", "--uts", "sh", "-c", &script, "symphony"]);
            command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
            command
        }
    }

    fn command_of(&self, name: &str) -> Vec<String> {
        texts(&self.file["services"][name]["command"]).into_iter().map(str::to_owned).collect()
    }

    fn start(&mut self, name: &str) {
        let arguments = self.command_of(name);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut daemon = Daemon::of(name, self.scratch.path(), self.program(name), &arguments);
        daemon.start();
        self.daemons.push((name.to_owned(), daemon));
    }

    /// A member of etcd, told by the file's environment what it is.
    fn start_etcd(&mut self, name: &str) {
        let host = self.host(name).clone();
        let data = self.volume(name);
        let hosts = self.scratch.path().join("hosts");
        fs::write(&hosts, self.network.names()).expect("names");
        let environment = self.file["services"][name]["environment"].clone();
        let etcd = std::env::var("SYMPHONY_TEST_ETCD").unwrap_or_else(|_| "etcd".into());
        let program = move || {
            let mut command = host.command("unshare");
            let script = format!("mount --bind {} /etc/hosts && exec {etcd}", path_text(&hosts));
            command.args(["--mount", "sh", "-c", &script]);
            for (variable, value) in environment.as_object().expect("an environment") {
                command.env(variable, value.as_str().expect("a text"));
            }
            // Where the image keeps its volume, and what the file's later etcd does not need to be told.
            command.env("ETCD_DATA_DIR", &data).env("ETCD_LOGGER", "zap").env("ETCD_LOG_LEVEL", "error");
            command
        };
        let mut daemon = Daemon::of(name, self.scratch.path(), program, &[]);
        daemon.start();
        self.daemons.push((name.to_owned(), daemon));
    }

    fn daemon(&mut self, name: &str) -> &mut Daemon {
        let found = self.daemons.iter_mut().find(|(found, _)| found == name);
        &mut found.unwrap_or_else(|| panic!("'{name}' was not started")).1
    }

    /// Runs `/symphony ARGUMENTS` in a container, as `docker compose exec` does.
    fn exec(&self, name: &str, arguments: &[&str]) -> Outcome {
        let mut command = self.program(name)();
        command.args(arguments);
        finish(command)
    }

    fn ctl(&self, manager: &str, line: &str) -> Outcome {
        let words = ["ctl", "--socket=/var/lib/symphony/control.sock"].into_iter().chain(line.split_whitespace());
        self.exec(manager, &words.collect::<Vec<_>>())
    }

    /// Until the container's own health check passes.
    fn wait_until_healthy(&self, name: &str) {
        let test = texts(&self.file["services"][name]["healthcheck"]["test"]);
        assert_eq!(test[..2], ["CMD", "/symphony"], "{name} is looked after by the executable itself");
        until(&format!("{name} to be healthy"), || (self.exec(name, &test[2..]).code == Some(0)).then_some(()));
    }
}

fn ready(compose: &Compose, manager: &str) -> Vec<String> {
    let outcome = compose.ctl(manager, "service list -o json");
    let services: Value = serde_json::from_slice(&outcome.stdout).unwrap_or(Value::Null);
    let services = services.as_array().cloned().unwrap_or_default();
    let ready = services.iter().filter(|service| service["status"]["state"] == "ready");
    let mut hosts: Vec<String> =
        ready.filter_map(|service| service["status"]["host_name"].as_str().map(str::to_owned)).collect();
    hosts.sort();
    hosts
}

#[test]
fn the_compose_file_s_cluster_joins_by_token_and_serves_a_client_elsewhere() {
    let Some(mut compose) = Compose::read() else { return };
    for member in ["etcd-1", "etcd-2", "etcd-3"] {
        compose.start_etcd(member);
    }
    for manager in ["manager-1", "manager-2", "manager-3"] {
        compose.start(manager);
    }
    compose.wait_until_healthy("manager-1");
    // The container that runs once.
    let invitation = compose.command_of("invitation");
    let invitation: Vec<&str> = invitation.iter().map(String::as_str).collect();
    compose.exec("invitation", &invitation).succeeds();
    for block in ["block-1", "block-2"] {
        compose.start(block);
    }
    let everybody = ["block-1", "block-2", "manager-1", "manager-2", "manager-3"];
    until("all five services to be ready", || (ready(&compose, "manager-2") == everybody).then_some(()));

    // The user's flow, on three hosts: an operator far away, managers, two block services.
    compose.ctl("manager-1", "manager client create ops --role admin --output-dir /var/lib/symphony/ops").succeeds();
    let bundle = compose.volume("manager-1").join("ops");
    let operator = compose.host("operator").clone();
    let home = compose.scratch.path().to_owned();
    let far = |line: &str| {
        let words = ["ctl", "--bundle", path_text(&bundle)].into_iter().chain(line.split_whitespace());
        run_far(&operator, &home, env!("CARGO_BIN_EXE_symphony"), &words.collect::<Vec<_>>())
    };
    for (pool, service, volume) in [("one", "block-1", "a"), ("two", "block-2", "b")] {
        far(&format!("pool create {pool} --path /srv/pool --service {service}")).succeeds();
        far(&format!("volume create {volume} --size 8M --pool {pool}")).succeeds();
        far(&format!("volume attach {volume} --client ops")).succeeds();
        // What `volume get` prints works as it stands, with the client's certificate.
        let found: Value =
            serde_json::from_str(&far(&format!("volume get {volume} -o json")).succeeds()).expect("JSON");
        let exports = found["status"]["exports"].as_array().expect("exports");
        let printed = exports.iter().find(|export| export["protocol"] == "nbd-tls").expect("an export over TLS");
        let uri = format!("{}?tls-certificates={}", printed["uri"].as_str().expect("an URI"), path_text(&bundle));
        run_far(&operator, &home, "nbdinfo", &["--size", &uri]).succeeds();
        let plain = format!("nbd://{service}/{volume}");
        let outcome = run_far(&operator, &home, "nbdinfo", &["--size", &plain]);
        assert_ne!(outcome.code, Some(0), "nothing is served in plain text");
    }

    // Any manager may go: the others serve, and sessions move.
    compose.daemon("manager-1").kill();
    until("the block services to be ready through the others", || {
        let hosts = ready(&compose, "manager-3");
        ["block-1", "block-2"].iter().all(|block| hosts.iter().any(|host| host == block)).then_some(())
    });
    far("volume create c --size 4M --pool two").succeeds();
    for volume in ["a", "b"] {
        far(&format!("volume detach {volume} --client ops")).succeeds();
    }
    let found = compose.ctl("manager-2", "check -o json").succeeds();
    let found: Value = serde_json::from_str(&found).expect("JSON");
    assert_eq!(found["faults"], Value::Array(Vec::new()), "{found}");
}

/// A program on a host that is in no container, which finds the others by their names.
fn run_far(host: &Host, home: &Path, program: &str, arguments: &[&str]) -> Outcome {
    let hosts = home.join("hosts");
    let mut command = host.command("unshare");
    let script = format!("mount --bind {} /etc/hosts && exec \"$@\"", path_text(&hosts));
    command.args(["--mount", "sh", "-c", &script, "sh", program]).args(arguments);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", home);
    finish(command)
}

#[test]
fn the_compose_file_is_whole() {
    let file = read_compose();
    let services = file["services"].as_object().expect("services");
    for (name, service) in services {
        for mount in texts(&service["volumes"]) {
            let volume = mount.split(':').next().expect("a volume");
            assert!(file["volumes"].get(volume).is_some(), "{name} mounts {volume}, which is not declared");
        }
        for needed in service["depends_on"].as_object().into_iter().flatten().map(|(needed, _)| needed) {
            let needs =
                services.get(needed).unwrap_or_else(|| panic!("{name} depends on {needed}, which is not there"));
            let waits_for_health = service["depends_on"][needed]["condition"] == "service_healthy";
            assert!(!waits_for_health || needs["healthcheck"]["test"].is_array(), "{needed} has no health check");
        }
    }
    let cluster = services.iter().filter(|(_, service)| service["profiles"] == serde_json::json!(["cluster"]));
    let mut names: Vec<&str> = cluster.map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["block-1", "block-2", "invitation", "manager-1", "manager-2", "manager-3"]);
    let recipe = services["manager-1"]["build"]["dockerfile_inline"].as_str().expect("an inline recipe");
    assert!(recipe.starts_with("FROM scratch\nCOPY target/symphony /symphony\n"), "{recipe}");
    let copied = Path::new(env!("CARGO_MANIFEST_DIR")).join(".dockerignore");
    assert!(fs::read_to_string(copied).expect("a file").contains("!target/symphony"));
}
