//! Starts that cannot be: ports, directories and identities that are not what they should be.

use crate::stage::{Backing, Cluster, Daemon, finish, nobody, path_text, symphony, until};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can become somebody else");
    }
    root
}

#[test]
fn a_port_that_is_taken_is_named_with_the_option_that_chooses_another() {
    let scratch = tempfile::tempdir().expect("a directory");
    let config = scratch.path().join("config");
    let taken = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    for (role, options, named) in [
        ("manager", vec!["--listen-port", &port], "--listen-port"),
        ("block", vec!["--listen-port", &port, "--nbd-port", "0"], "--listen-port"),
        ("block", vec!["--listen-port", "0", "--nbd-port", &port], "--nbd-port"),
    ] {
        let directory = config.join(role);
        let arguments = [&[role, "run", "--config-dir", path_text(&directory)], &options[..]].concat();
        finish(symphony(arguments)).fails(1, &[&port, "in use", named]);
        // What the attempt made is no obstacle to the next one.
        let mut daemon = Daemon::new(role, scratch.path(), &[role, "run", "--config-dir", path_text(&directory)]);
        daemon.add_arguments(&["--listen-port", "0"]);
        if role == "block" {
            daemon.add_arguments(&["--nbd-port", "0"]);
        }
        daemon.start_serving(&directory.join("control.sock"));
        assert_eq!(daemon.stop().code(), Some(0));
    }
}

#[test]
fn a_directory_that_another_process_holds_is_refused_with_its_pid() {
    let cluster = Cluster::start(Backing::Embedded);
    for (role, directory, holder) in
        [("manager", cluster.manager_dir(), &cluster.manager), ("block", cluster.block_dir(), &cluster.block)]
    {
        let arguments = [role, "run", "--config-dir", path_text(&directory), "--listen-port", "0"];
        finish(symphony(arguments)).fails(1, &[path_text(&directory), "locked", &holder.pid().to_string()]);
    }
    cluster.ctl().check();
}

#[test]
fn a_directory_of_the_other_role_is_refused() {
    let mut cluster = Cluster::start(Backing::Embedded);
    cluster.block.kill();
    let directory = cluster.block_dir();
    let arguments = ["manager", "run", "--config-dir", path_text(&directory), "--listen-port", "0"];
    finish(symphony(arguments)).fails(1, &[path_text(&directory), "block service", "another directory"]);
    cluster.block.start_serving(&cluster.block_ctl().socket);
    cluster.ctl().check_when_settled();
}

/// A directory and an executable that every user can reach.
fn public_stage(scratch: &Path) -> std::path::PathBuf {
    std::fs::set_permissions(scratch, PermissionsExt::from_mode(0o755)).expect("an open directory");
    let program = scratch.join("symphony");
    std::fs::copy(env!("CARGO_BIN_EXE_symphony"), &program).expect("a copy of the program");
    program
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let program = public_stage(scratch.path());
    let foreign = scratch.path().join("foreign");
    std::fs::create_dir(&foreign).expect("a directory");
    for directory in [foreign.clone(), foreign.join("below")] {
        for role in ["manager", "block"] {
            let arguments = [role, "run", "--config-dir", path_text(&directory), "--listen-port", "0"];
            finish(nobody(&program, arguments)).fails(1, &[path_text(&directory), "ermission denied"]);
        }
    }
    assert_eq!(std::fs::read_dir(&foreign).expect("the directory").count(), 0);
}

#[test]
fn a_file_in_the_place_of_the_directory_is_named() {
    let scratch = tempfile::tempdir().expect("a directory");
    let file = scratch.path().join("file");
    std::fs::write(&file, "mine").expect("a file");
    let arguments = ["manager", "run", "--config-dir", path_text(&file), "--listen-port", "0"];
    finish(symphony(arguments)).fails(1, &[path_text(&file)]);
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "mine");
}

#[test]
fn a_manager_whose_store_holds_another_cluster_serves_nothing_and_says_so() {
    let mut cluster = Cluster::start(Backing::Etcd);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 1M");
    // Another cluster, in the same etcd under a prefix.
    let (mut other, other_ctl) = cluster.another_manager("manager-02");
    other.kill();
    other.add_arguments(&["--etcd-prefix", "/lab"]);
    other.start_serving(&other_ctl.socket);
    until("a manager that knows its store", || {
        (other_ctl.text("manager status", "/state") == "uninitialised").then_some(())
    });
    other_ctl.ok("manager init");
    let identity = std::fs::read(cluster.manager_dir().join("identity.json")).expect("an identity");

    cluster.manager.kill();
    let endpoints = cluster.etcd.as_ref().expect("an etcd").endpoints().join(",");
    let (port, directory) = (cluster.manager_port.to_string(), cluster.manager_dir());
    let arguments = ["manager", "run", "--config-dir", path_text(&directory), "--listen-port", &port];
    let mut astray = Daemon::new("astray", cluster.path(), &arguments);
    astray.add_arguments(&["--etcd-endpoints", &endpoints, "--etcd-prefix", "/lab"]);
    astray.start_serving(&ctl.socket);
    until("the manager to notice", || (ctl.text("manager status", "/state") == "stranded").then_some(()));
    for line in ["volume list", "manager init", "check"] {
        ctl.run(line).fails(4, &["another cluster", "config directory"]);
    }
    assert_eq!(std::fs::read(cluster.manager_dir().join("identity.json")).expect("an identity"), identity);
    assert_eq!(other_ctl.names("service").len(), 1);
    other_ctl.check();
    astray.kill();

    cluster.manager.start_serving(&ctl.socket);
    ctl.check_when_settled();
    assert_eq!(ctl.names("volume"), ["a"]);
}

#[test]
fn a_manager_whose_store_is_empty_serves_nothing_and_says_so() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    cluster.manager.kill();
    let store = cluster.manager_dir().join("store.redb");
    let aside = cluster.path().join("store.redb");
    std::fs::rename(&store, &aside).expect("a store that goes away");
    cluster.manager.start_serving(&ctl.socket);
    until("the manager to notice", || (ctl.text("manager status", "/state") == "stranded").then_some(()));
    ctl.run("volume list").fails(4, &["no cluster", "right store"]);
    ctl.run("manager init").fails(4, &["no cluster"]);
    cluster.manager.kill();
    std::fs::rename(&aside, &store).expect("a store that is back");
    cluster.manager.start_serving(&ctl.socket);
    ctl.check_when_settled();
}

#[test]
fn a_block_service_that_finds_another_cluster_s_manager_keeps_serving_and_forgets_nothing() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 1M");
    let identity = cluster.block_dir().join("identity.json");
    let other = Cluster::join(Backing::Embedded, "");
    cluster.manager.kill();
    cluster.block.kill();
    // Another cluster's manager is first on the list, and the only one that answers.
    cluster.block.add_arguments(&["--managers", &format!("127.0.0.1:{}", other.manager_port)]);
    cluster.block.start_serving(&cluster.block_ctl().socket);
    until("the block service to be turned away", || {
        let message = cluster.block_ctl().json("block status")["message"].to_string();
        message.contains("cluster").then_some(())
    });
    assert_eq!(cluster.block_ctl().text("block status", "/state"), "connecting");
    until("the volume to be served from the ledger", || crate::stage::client(&cluster.local_uri("a")).ok());
    assert!(identity.exists());
    other.ctl().check();
    // With its own manager back, it finds its way.
    cluster.manager.start_serving(&ctl.socket);
    ctl.check_when_settled();
}
