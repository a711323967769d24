//! Without a certificate only local and trusted peers are served: another user and another host are told why not.

use crate::stage::{Backing, Cluster, Outcome, finish, nobody, path_text, tool};
use crate::support::process::mortal;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A cluster, and the executable where every user can reach it; none where the test cannot become somebody else.
fn stage() -> Option<(Cluster, PathBuf)> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can become somebody else");
        return None;
    }
    let cluster = Cluster::start(Backing::Embedded);
    cluster.ctl().ok("volume create a --size 1M");
    std::fs::set_permissions(cluster.path(), PermissionsExt::from_mode(0o755)).expect("an open directory");
    let program = cluster.path().join("symphony");
    std::fs::copy(env!("CARGO_BIN_EXE_symphony"), &program).expect("a copy of the program");
    Some((cluster, program))
}

#[test]
fn another_user_of_this_host_is_refused_by_the_manager_and_told_why() {
    let Some((cluster, program)) = stage() else { return };
    let address = format!("127.0.0.1:{}", cluster.manager_port);
    for line in ["volume list", "volume remove a", "check", "manager init"] {
        let arguments = ["ctl", "--manager", &address].into_iter().chain(line.split(' '));
        finish(nobody(&program, arguments)).fails(4, &["65534", "root", "control socket"]);
    }
    let service = cluster.service_id();
    let arguments = ["ctl", "--manager", &address, "manager", "remove", &service, "--lost"];
    finish(nobody(&program, arguments)).fails(4, &["65534"]);
    assert_eq!(cluster.ctl().names("volume"), ["a"]);
    assert!(cluster.manager.log().contains("refused a peer"));
    cluster.ctl().check();
}

#[test]
fn another_user_of_this_host_is_refused_the_volumes() {
    let Some((cluster, _)) = stage() else { return };
    let uri = cluster.ctl().uri("a", "nbd");
    finish(nobody("nbdinfo", ["--size", &uri])).fails(1, &["requires TLS"]);
    // qemu shows its user what the server says.
    finish(nobody("qemu-img", ["info", &uri])).fails(1, &["belongs to user 65534", "control socket"]);
    let outcome = finish(nobody("nbdinfo", ["--size", &cluster.ctl().uri("a", "nbd-unix")]));
    assert_ne!(outcome.code, Some(0), "{outcome:?}");
    assert!(cluster.block.log().contains("65534"), "the log says who was refused: {}", cluster.block.log());
    cluster.ctl().check();
}

#[test]
fn control_sockets_and_files_are_closed_to_other_users() {
    let Some((cluster, program)) = stage() else { return };
    for directory in [cluster.manager_dir(), cluster.block_dir()] {
        let socket = directory.join("control.sock");
        let mode = std::fs::metadata(&socket).expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let outcome = finish(nobody(&program, ["ctl", "--socket", path_text(&socket), "volume", "list"]));
        outcome.fails(5, &[path_text(&socket), "ermission denied"]);
        for entry in std::fs::read_dir(&directory).expect("the directory") {
            let entry = entry.expect("an entry");
            let mode = match entry.metadata() {
                Ok(facts) => facts.permissions().mode(),
                // A file that was staged, and has taken its place since.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => panic!("{}: {error}", entry.path().display()),
            };
            assert_eq!(mode & 0o077, 0, "{} is open to others", entry.path().display());
        }
    }
    cluster.ctl().check();
}

#[test]
fn a_server_of_another_user_on_loopback_is_told_nothing() {
    let Some((cluster, program)) = stage() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o777)).expect("an open directory");
    let port = crate::support::ports::free_ports(1)[0].to_string();
    let config = directory.path().join("theirs");
    let arguments = ["manager", "run", "--listen-port", &port, "--config-dir", path_text(&config)];
    let mut command = nobody(&program, arguments);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut theirs = crate::support::process::spawn_for_life(command);
    let address = format!("127.0.0.1:{port}");
    crate::stage::until("a server of another user", || std::net::TcpStream::connect(&address).ok());
    let outcome = finish(crate::stage::symphony(["ctl", "--manager", &address, "volume", "list"]));
    outcome.fails(4, &["65534", "nothing is said to it in plain text"]);
    let (mut block, ctl) = cluster.another_block("block-02");
    ctl.run(&format!("block init {address}")).fails(4, &["65534", "manager token create"]);
    block.assert_alive();
    theirs.kill().expect("kill a child");
    theirs.wait().expect("bury a child");
    cluster.ctl().check();
}

/// A second host, as far as the network can tell: a network namespace at the end of a cable.
struct OtherHost {
    name: String,
    here: String,
}

impl OtherHost {
    fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Tests may be threads of one process.
        let number = std::process::id().wrapping_mul(4).wrapping_add(NEXT.fetch_add(1, Ordering::SeqCst) % 4);
        let (name, cable, far) = (format!("symphony-{number}"), format!("sy{number}a"), format!("sy{number}b"));
        let (third, fourth) = (number / 64 % 256, number % 64 * 4);
        let (here, there) = (format!("10.213.{third}.{}", fourth + 1), format!("10.213.{third}.{}", fourth + 2));
        let added = tool("ip", &["netns", "add", &name]);
        if added.code != Some(0) {
            eprintln!("skipped: this system makes no network namespaces: {}", added.stderr);
            return None;
        }
        let host = Self { name: name.clone(), here: here.clone() };
        let (here, there) = (format!("{here}/30"), format!("{there}/30"));
        let cabled = tool("ip", &["link", "add", &cable, "type", "veth", "peer", "name", &far, "netns", &name]);
        if cabled.code != Some(0) {
            eprintln!("skipped: this system makes no virtual cables: {}", cabled.stderr);
            return None;
        }
        tool("ip", &["addr", "add", &here, "dev", &cable]).succeeds();
        tool("ip", &["link", "set", &cable, "up"]).succeeds();
        tool("ip", &["-n", &name, "addr", "add", &there, "dev", &far]).succeeds();
        tool("ip", &["-n", &name, "link", "set", &far, "up"]).succeeds();
        Some(host)
    }

    /// Runs a program over there.
    fn run(&self, program: &str, arguments: &[&str]) -> Outcome {
        let mut command = mortal("ip");
        command.args(["netns", "exec", &self.name, program]).args(arguments);
        finish(command)
    }
}

impl Drop for OtherHost {
    fn drop(&mut self) {
        let removed = tool("ip", &["netns", "del", &self.name]);
        if removed.code != Some(0) && !std::thread::panicking() {
            eprintln!("the namespace {} stays: {}", self.name, removed.stderr);
        }
    }
}

#[test]
fn a_peer_on_another_host_is_refused_and_told_why() {
    let Some((cluster, program)) = stage() else { return };
    let Some(other) = OtherHost::new() else { return };
    let program = path_text(&program);
    let address = format!("{}:{}", other.here, cluster.manager_port);
    let outcome = other.run(program, &["ctl", "--manager", &address, "volume", "list"]);
    outcome.fails(4, &["not on this host's loopback", "mutual TLS"]);
    let uri = cluster.ctl().uri("a", "nbd").replace("127.0.0.1", &other.here);
    other.run("qemu-img", &["info", &uri]).fails(1, &["not on this host's loopback", "mutual TLS"]);
    assert!(cluster.block.log().contains("not on this host's loopback"), "{}", cluster.block.log());
    cluster.ctl().check();
}

#[test]
fn a_block_service_of_another_host_cannot_join_without_proof() {
    let Some((cluster, program)) = stage() else { return };
    let Some(other) = OtherHost::new() else { return };
    let directory = cluster.path().join("far");
    let mut command = mortal("ip");
    command.args(["netns", "exec", &other.name]).arg(&program);
    command.args(["block", "run", "--listen-port", "0", "--nbd-port", "0", "--config-dir", path_text(&directory)]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut far = crate::support::process::spawn_for_life(command);
    let far_ctl = crate::stage::Control::of(&directory);
    crate::stage::until("a control socket that answers", || {
        std::os::unix::net::UnixStream::connect(&far_ctl.socket).ok()
    });
    let line = format!("block init {}:{}", other.here, cluster.manager_port);
    far_ctl.run(&line).fails(4, &["not on this host's loopback"]);
    assert_eq!(cluster.ctl().names("service").len(), 2);
    far.kill().expect("kill a child");
    far.wait().expect("bury a child");
    cluster.ctl().check();
}
