//! Who is there: heartbeats, leases, restarts, and the way to another manager.

use crate::stage::{Backing, Cluster, client, on_each_store, until};
use nix::sys::signal::Signal;

/// Fast enough that a test can see a lease end.
const FAST: &str = "--heartbeat 500ms --lease 2s";

on_each_store!(
    a_killed_block_service_is_down_until_it_is_back_under_the_same_id_with_other_ports,
    a_block_service_that_hangs_is_down_until_it_goes_on,
    block_services_rejoin_by_themselves_after_the_manager_was_killed,
);

fn a_killed_block_service_is_down_until_it_is_back_under_the_same_id_with_other_ports(backing: Backing) {
    let mut cluster = Cluster::join(backing, FAST);
    let (ctl, id) = (cluster.ctl(), cluster.service_id());
    let before = ctl.text(&format!("service get {id}"), "/status/addresses/nbd");
    // Its ports are somebody else's when it comes back, so that it must take others.
    cluster.block.kill();
    let _port = std::net::TcpListener::bind(before.replace("127.0.0.1", "0.0.0.0")).expect("the port it had");
    ctl.wait_for_service(&id, "down");
    assert!(ctl.ok("service list").contains("down"));
    cluster.block.start_serving(&cluster.block_ctl().socket);
    ctl.wait_for_service(&id, "ready");
    assert_eq!(cluster.service_id(), id);
    assert_ne!(ctl.text(&format!("service get {id}"), "/status/addresses/nbd"), before);
    assert_eq!(ctl.names("service").len(), 2);
    ctl.check();
}

fn a_block_service_that_hangs_is_down_until_it_goes_on(backing: Backing) {
    let cluster = Cluster::join(backing, FAST);
    let (ctl, id) = (cluster.ctl(), cluster.service_id());
    cluster.block.signal(Signal::SIGSTOP);
    ctl.wait_for_service(&id, "down");
    cluster.block.signal(Signal::SIGCONT);
    ctl.wait_for_service(&id, "ready");
    ctl.check();
}

fn block_services_rejoin_by_themselves_after_the_manager_was_killed(backing: Backing) {
    let mut cluster = Cluster::start(backing);
    let (ctl, id) = (cluster.ctl(), cluster.service_id());
    let manager = ctl.text("manager status", "/service/id");
    cluster.restart_manager();
    ctl.wait_for_service(&id, "ready");
    until("the session to be back", || {
        (cluster.block_ctl().text("block status", "/state") == "connected").then_some(())
    });
    assert_eq!(ctl.text("manager status", "/service/id"), manager);
    ctl.ok("volume create a --size 1M");
    ctl.check();
}

#[test]
fn a_volume_s_way_is_told_anew_when_its_service_comes_back_with_other_ports() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 1M");
    let before = ctl.uri("a", "nbd");
    cluster.block.kill();
    let address = before.trim_start_matches("nbd://127.0.0.1:").trim_end_matches("/a");
    let _port = std::net::TcpListener::bind(format!("0.0.0.0:{address}")).expect("the port it had");
    cluster.block.start_serving(&cluster.block_ctl().socket);
    let now = until("another way to the volume", || Some(ctl.uri("a", "nbd")).filter(|uri| *uri != before));
    client(&now).expect("a connection");
    ctl.check();
}

#[test]
fn the_block_service_moves_to_another_manager_when_its_own_is_killed() {
    let mut cluster = Cluster::join(Backing::ThreeEtcds, FAST);
    let first = cluster.ctl();
    let (_second, second) = cluster.another_manager("manager-02");
    until("a second manager that knows its store", || {
        (second.text("manager status", "/state") == "uninitialised").then_some(())
    });
    second.ok("manager init");
    let id = cluster.service_id();
    let pool = cluster.pool();
    first.ok(&format!("pool create main --path {}", pool.display()));
    first.ok("volume create a --size 1M");
    let holder = |control: &crate::stage::Control| control.text(&format!("service get {id}"), "/status/manager");
    let manager = first.text("manager status", "/service/id");
    // Every session begins with the managers that there are.
    cluster.restart_block();
    first.check_when_settled();
    assert_eq!(holder(&first), manager, "the first one it knows is still there");
    let mut connected = client(&first.uri("a", "nbd")).expect("a connection");
    cluster.manager.kill();
    connected.write(0, &[1; 4096], true).expect("a write meanwhile");
    let other = second.text("manager status", "/service/id");
    until("the session to be the second manager's", || (holder(&second) == other).then_some(()));
    second.wait_for_service(&manager, "down");
    second.wait_for_service(&id, "ready");
    second.ok("volume create b --size 1M");
    second.ok("volume resize a --size 2M");
    connected.write(4096, &[2; 4096], true).expect("the same connection");
    second.check();

    cluster.manager.start_serving(&first.socket);
    second.wait_for_service(&manager, "ready");
    until("the first manager to know what happened", || {
        let outcome = first.run("volume list -o name");
        (outcome.code == Some(0) && outcome.succeeds().lines().count() == 2).then_some(())
    });
    second.check();
}

#[test]
fn a_manager_whose_peer_holds_the_session_serves_all_the_same() {
    let cluster = Cluster::start(Backing::Etcd);
    let (_second, second) = cluster.another_manager("manager-02");
    until("a second manager that knows its store", || {
        (second.text("manager status", "/state") == "uninitialised").then_some(())
    });
    second.ok("manager init");
    // The session is the first's; a wait through the second ends all the same.
    second.ok("volume create a --size 1M");
    second.ok("volume resize a --size 2M");
    client(&second.uri("a", "nbd")).expect("a connection");
    second.ok("volume remove a");
    let found = second.json("check");
    assert_eq!(found["faults"], serde_json::json!([]));
    cluster.ctl().check();
}

#[test]
fn two_block_services_are_told_apart_and_placed_on_by_id() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    let (_other, other) = cluster.another_block("block-02");
    other.ok(&format!("block init 127.0.0.1:{}", cluster.manager_port));
    let id = other.text("block status", "/service/id");
    let path = cluster.path().join("pool-02");
    let line = format!("pool create other --path {}", path.display());
    ctl.run(&line).fails(2, &["several block services", "--service"]);
    ctl.ok(&format!("{line} --service {id}"));
    ctl.ok("volume create a --size 1M --pool other");
    assert_eq!(ctl.text("volume get a", "/status/placement/0/service"), id);
    client(&ctl.uri("a", "nbd")).expect("a connection");
    ctl.ok("volume create b --size 1M --pool main");
    ctl.check();
}

#[test]
fn a_block_service_hears_of_managers_that_join_after_it() {
    let mut cluster = Cluster::join(Backing::Etcd, FAST);
    let (_second, second) = cluster.another_manager("manager-02");
    until("a second manager that knows its store", || {
        (second.text("manager status", "/state") == "uninitialised").then_some(())
    });
    second.ok("manager init");
    let (id, other) = (cluster.service_id(), second.text("manager status", "/service/id"));
    until("the first manager to know the second", || (cluster.ctl().names("service").len() == 3).then_some(()));
    // Its session is the same as before, and its own manager does not come back.
    cluster.manager.kill();
    until("the session to be the second manager's", || {
        (second.text(&format!("service get {id}"), "/status/manager") == other).then_some(())
    });
    second.check();
}
