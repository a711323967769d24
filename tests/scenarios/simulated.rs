//! Simulated block services load managers as real ones do: each a member by itself, over one process and its restarts.

use crate::stage::{Backing, Cluster, Control, Daemon, finish, on_each_store, path_text, symphony, until};
use std::collections::BTreeSet;

on_each_store!(simulated_services_are_members_that_pretend_to_hold_what_they_are_given);

/// The block services that are ready.
fn ready(ctl: &Control) -> BTreeSet<String> {
    let services = ctl.json("service list");
    let services = services.as_array().expect("a list").iter();
    let ready = services.filter(|it| it["spec"]["type"] == "block" && it["status"]["state"] == "ready");
    ready.map(|it| it["meta"]["id"].as_str().expect("an id").to_owned()).collect()
}

fn simulated_services_are_members_that_pretend_to_hold_what_they_are_given(backing: Backing) {
    let mut cluster = Cluster::bare(backing);
    let ctl = cluster.ctl();
    cluster.manager.start_serving(&ctl.socket);
    cluster.init_manager("--lease 2s");
    let directory = cluster.path().join("simulated");
    let join = format!("127.0.0.1:{}", cluster.manager_port);
    let arguments = ["block", "run", "--simulate", "3", "--config-dir", path_text(&directory), "--join", &join];
    let mut services = Daemon::new("simulated", cluster.path(), &arguments);
    services.start();
    let members = until("three simulated services", || Some(ready(&ctl)).filter(|ready| ready.len() == 3));
    for (number, member) in members.iter().enumerate() {
        ctl.ok(&format!("pool create pool-{number} --path /nowhere --service {member}"));
        ctl.ok(&format!("volume create volume-{number} --size 1TiB --pool pool-{number}"));
    }
    ctl.ok("snapshot create volume-0 then");
    ctl.check();

    services.kill();
    let gone = members.first().expect("a member");
    ctl.wait_for_service(gone, "down");
    services.start();
    until("the same services", || (ready(&ctl) == members).then_some(()));
    ctl.ok("snapshot remove then");
    ctl.ok("volume resize volume-1 --size 2TiB");
    ctl.ok("volume remove volume-2");
    ctl.check();

    let directory = cluster.path().join("alone");
    let alone = ["block", "run", "--simulate", "1", "--config-dir", path_text(&directory)];
    finish(symphony(alone)).fails(1, &["name one with --join"]);
}
