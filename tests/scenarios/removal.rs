//! Taking services out of the cluster: refused while they hold something, told when it is so, and back under a new id.

use crate::stage::{Backing, Cluster, client, on_each_store, path_text, qemu_io, until};
use nix::sys::signal::Signal;

on_each_store!(
    a_removed_block_service_is_told_stops_serving_and_may_init_again_under_a_new_id,
    a_service_that_holds_volumes_is_not_removed_and_they_are_listed,
    a_lost_service_s_volumes_are_closed_and_its_data_stays_as_orphans,
    a_manager_that_removes_itself_finds_everything_again_when_it_joins_anew,
);

fn a_manager_that_removes_itself_finds_everything_again_when_it_joins_anew(backing: Backing) {
    let cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    ctl.ok("volume create kept --size 1M");
    let old = ctl.json("manager status");
    ctl.ok(&format!("manager remove {}", old["service"]["id"].as_str().expect("an id")));
    until("the manager to learn of it", || (ctl.text("manager status", "/state") == "uninitialised").then_some(()));
    client(&cluster.local_uri("kept")).expect("still served");
    let done = ctl.json("manager init");
    assert_eq!(done["created"], false, "{done}");
    assert_eq!(done["cluster"]["id"], old["cluster"]["id"]);
    assert_ne!(done["service"]["id"], old["service"]["id"]);
    ctl.check_when_settled();
    assert_eq!(ctl.names("volume"), ["kept"]);
    ctl.ok("volume resize kept --size 2M");
    ctl.check();
}

fn a_removed_block_service_is_told_stops_serving_and_may_init_again_under_a_new_id(backing: Backing) {
    let cluster = Cluster::join(backing, "");
    let (ctl, block, old) = (cluster.ctl(), cluster.block_ctl(), cluster.service_id());
    ctl.ok(&format!("manager remove {old}"));
    let message = until("the block service to learn of it", || {
        let status = block.json("block status");
        (status["state"] == "uninitialised").then(|| status["message"].to_string())
    });
    assert!(message.contains(&old) && message.contains("removed"), "{message}");
    assert_eq!(ctl.service_state(&old), "removed");
    cluster.init_block();
    let new = cluster.service_id();
    assert_ne!(new, old);
    assert_eq!(ctl.service_state(&new), "ready");
    ctl.ok(&format!("pool create main --path {}", path_text(&cluster.pool())));
    ctl.ok("volume create a --size 1M");
    ctl.check();
}

fn a_service_that_holds_volumes_is_not_removed_and_they_are_listed(backing: Backing) {
    let cluster = Cluster::start(backing);
    let (ctl, id) = (cluster.ctl(), cluster.service_id());
    ctl.ok("volume create precious --size 1M");
    ctl.run(&format!("manager remove {id}")).fails(4, &["'precious'", "'main'", "--lost"]);
    client(&ctl.uri("precious", "nbd")).expect("still served");
    ctl.ok("volume remove precious");
    ctl.run(&format!("manager remove {id}")).fails(4, &["'main'", "--lost"]);
    ctl.ok("pool remove main");
    ctl.ok(&format!("manager remove {id}"));
    ctl.check();
}

fn a_lost_service_s_volumes_are_closed_and_its_data_stays_as_orphans(backing: Backing) {
    let mut cluster = Cluster::start(backing);
    let (ctl, id) = (cluster.ctl(), cluster.service_id());
    ctl.ok("volume create kept --size 1M");
    let volume = ctl.text("volume get kept", "/meta/id");
    qemu_io(&ctl.uri("kept", "nbd"), &["write -P 0x5a 0 1M", "flush"]).succeeds();
    ctl.run(&format!("manager remove {id} --lost")).fails(4, &[&id, "connected", "stop it first"]);
    cluster.block.kill();
    ctl.wait_for_service(&id, "down");
    ctl.ok(&format!("manager remove {id} --lost"));
    assert!(ctl.names("volume").is_empty() && ctl.names("pool").is_empty());
    ctl.check();

    // The service comes back and learns that it is no member any more. What it held stays where it was.
    cluster.block.start_serving(&cluster.block_ctl().socket);
    let message = until("the block service to learn of it", || {
        let status = cluster.block_ctl().json("block status");
        (status["state"] == "uninitialised").then(|| status["message"].to_string())
    });
    assert!(message.contains("removed"), "{message}");
    client(&cluster.local_uri("kept")).expect_err("nothing is served");
    let image = cluster.pool().join(format!("volumes/{volume}.img"));
    assert_eq!(std::fs::read(image).expect("the image"), vec![0x5a; 1 << 20]);
    let sidecar = std::fs::read_to_string(cluster.pool().join(format!("volumes/{volume}.json")));
    assert!(sidecar.expect("the sidecar").contains("\"kept\""));

    // Under its new id it does not take the old directory for an empty one.
    cluster.init_block();
    assert_ne!(cluster.service_id(), id);
    let line = format!("pool create again --path {}", path_text(&cluster.pool()));
    ctl.run(&line).fails(1, &["'again'", path_text(&cluster.pool()), "'main'"]);
    ctl.ok("pool remove again");
    ctl.check();
}

#[test]
fn a_lost_service_that_lives_after_all_stops_serving() {
    let cluster = Cluster::start(Backing::Embedded);
    let (ctl, id) = (cluster.ctl(), cluster.service_id());
    ctl.ok("volume create kept --size 1M");
    let volume = ctl.text("volume get kept", "/meta/id");
    cluster.block.signal(Signal::SIGSTOP);
    ctl.wait_for_service(&id, "down");
    ctl.ok(&format!("manager remove {id} --lost"));
    cluster.block.signal(Signal::SIGCONT);
    until("its exports to end", || client(&cluster.local_uri("kept")).err());
    assert!(cluster.pool().join(format!("volumes/{volume}.img")).exists());
    ctl.check();
}

#[test]
fn a_removed_manager_is_told_and_may_init_again_under_a_new_id() {
    let cluster = Cluster::start(Backing::Etcd);
    let (_second, second) = cluster.another_manager("manager-02");
    until("a second manager that knows its store", || {
        (second.text("manager status", "/state") == "uninitialised").then_some(())
    });
    let old = second.text("manager init", "/service/id");
    until("the first manager to know it", || (cluster.ctl().names("service").len() == 3).then_some(()));
    cluster.ctl().ok(&format!("manager remove {old}"));
    let message = until("the manager to learn of it", || {
        let status = second.json("manager status");
        (status["state"] == "uninitialised").then(|| status["message"].to_string())
    });
    assert!(message.contains(&old) && message.contains("removed"), "{message}");
    second.run("volume list").fails(4, &["not initialised", &old]);
    let new = second.text("manager init", "/service/id");
    assert_ne!(new, old);
    second.wait_for_service(&new, "ready");
    cluster.ctl().check();
}

#[test]
fn a_manager_removed_while_it_was_down_learns_of_it_when_it_comes_back() {
    let mut cluster = Cluster::start(Backing::Etcd);
    let (_second, second) = cluster.another_manager("manager-02");
    until("a second manager that knows its store", || {
        (second.text("manager status", "/state") == "uninitialised").then_some(())
    });
    second.ok("manager init");
    // So that the block service hears of the second manager before it is the only one.
    cluster.restart_block();
    cluster.ctl().check_when_settled();
    let old = cluster.ctl().text("manager status", "/service/id");
    cluster.manager.kill();
    second.ok(&format!("manager remove {old}"));
    cluster.manager.start_serving(&cluster.ctl().socket);
    until("the manager to learn of it", || {
        (cluster.ctl().text("manager status", "/state") == "uninitialised").then_some(())
    });
    second.check_when_settled();
}
