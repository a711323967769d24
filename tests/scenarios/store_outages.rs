//! An etcd that is away, at the start and in the middle: no crash, clear words, recovery by itself.

use crate::stage::{Backing, Cluster, Control, Daemon, client, path_text, until, wait};
use crate::support::etcd::{Etcd, EtcdSetup};
use crate::support::ports::free_ports;

#[test]
fn a_manager_waits_for_an_etcd_that_is_not_there_yet() {
    let scratch = tempfile::tempdir().expect("a directory");
    let client_ports = free_ports(1);
    let endpoint = format!("http://127.0.0.1:{}", client_ports[0]);
    let config = scratch.path().join("manager");
    let arguments = ["manager", "run", "--listen-port", "0", "--config-dir", path_text(&config)];
    let mut manager = Daemon::new("manager", scratch.path(), &arguments);
    manager.add_arguments(&["--etcd-endpoints", &endpoint]);
    let ctl = Control::of(&config);
    manager.start_serving(&ctl.socket);
    until("a first vain attempt", || {
        let message = ctl.json("manager status")["message"].to_string();
        message.contains(endpoint.trim_start_matches("http://")).then_some(())
    });
    assert_eq!(ctl.text("manager status", "/state"), "starting");
    ctl.run("volume list").fails(5, &["not serving yet", "etcd"]);
    ctl.run("manager init").fails(5, &["cannot init now", "etcd"]);
    manager.assert_alive();
    let _etcd = wait(Etcd::start_with(1, EtcdSetup { client_ports, unsafe_no_fsync: true, ..EtcdSetup::default() }));
    until("the manager to have found it", || (ctl.text("manager status", "/state") == "uninitialised").then_some(()));
    ctl.ok("manager init");
    manager.assert_alive();
    ctl.check();
}

#[test]
fn a_member_started_without_its_etcd_serves_once_that_is_back() {
    let mut cluster = Cluster::start(Backing::ThreeEtcds);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 1M");
    cluster.manager.kill();
    let etcd = cluster.etcd.as_ref().expect("an etcd");
    (0..3).for_each(|member| etcd.kill(member));
    cluster.manager.start_serving(&ctl.socket);
    until("a first vain attempt", || (ctl.json("manager status")["message"].is_string()).then_some(()));
    ctl.run("volume list").fails(5, &["not serving yet"]);
    (0..3).for_each(|member| etcd.restart(member));
    until("the manager to serve", || (ctl.text("manager status", "/state") == "member").then_some(()));
    cluster.manager.assert_alive();
    ctl.check_when_settled();
}

#[test]
fn losing_all_of_etcd_in_mid_run_stops_changes_and_nothing_else() {
    let mut cluster = Cluster::start(Backing::ThreeEtcds);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 1M");
    let mut connected = client(&ctl.uri("a", "nbd")).expect("a connection");
    let etcd = cluster.etcd.as_ref().expect("an etcd");
    (0..3).for_each(|member| etcd.kill(member));
    ctl.run("volume create b --size 1M --timeout 5s").fails(5, &[]);
    ctl.run("volume remove a --timeout 5s").fails(5, &[]);
    connected.write(0, &[1; 4096], true).expect("a write meanwhile");
    cluster.manager.assert_alive();
    cluster.block.assert_alive();
    let etcd = cluster.etcd.as_ref().expect("an etcd");
    (0..3).for_each(|member| etcd.restart(member));
    (0..3).for_each(|member| wait(etcd.wait_until_healthy(member)));
    until("changes to be possible again", || (ctl.run("volume create c --size 1M").code == Some(0)).then_some(()));
    connected.write(0, &[2; 4096], true).expect("a write on the same connection");
    cluster.manager.assert_alive();
    cluster.block.assert_alive();
    assert!(ctl.names("volume").contains(&"c".to_owned()));
    ctl.check_when_settled();
}

#[test]
fn an_etcd_that_hangs_in_mid_run_is_waited_for() {
    let mut cluster = Cluster::start(Backing::ThreeEtcds);
    let ctl = cluster.ctl();
    let etcd = cluster.etcd.as_ref().expect("an etcd");
    (0..3).for_each(|member| etcd.pause(member));
    ctl.run("volume create a --size 1M --timeout 5s").fails(5, &[]);
    (0..3).for_each(|member| etcd.resume(member));
    (0..3).for_each(|member| wait(etcd.wait_until_healthy(member)));
    until("changes to be possible again", || (ctl.run("volume create c --size 1M").code == Some(0)).then_some(()));
    cluster.manager.assert_alive();
    ctl.check_when_settled();
}

#[test]
fn one_member_of_three_is_not_missed_not_even_the_leader() {
    let cluster = Cluster::start(Backing::ThreeEtcds);
    let ctl = cluster.ctl();
    let etcd = cluster.etcd.as_ref().expect("an etcd");
    let leader = wait(etcd.leader());
    etcd.kill(leader);
    let made = until("a volume to be made", || {
        let outcome = ctl.run("volume create a --size 1M");
        // A create whose outcome was lost with the leader may have happened.
        (outcome.code == Some(0) || outcome.stderr.contains("exists already")).then_some(outcome)
    });
    assert!(!made.stderr.contains("panicked"));
    until("the volume to be ready", || (ctl.text("volume get a", "/status/phase") == "ready").then_some(()));
    etcd.restart(leader);
    wait(etcd.wait_until_healthy(leader));
    ctl.ok("volume remove a");
    ctl.check_when_settled();
}
