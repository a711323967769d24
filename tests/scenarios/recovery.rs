//! The store gone for good: a new cluster of what two hosts have on their disks, which serve on meanwhile.

use crate::orphans::{holds, write};
use crate::stage::{Backing, Cluster, client, on_each_store, path_text, until};
use crate::support::process::mortal;

on_each_store!(a_cluster_whose_store_is_gone_is_made_anew_of_its_disks);

/// Everything in the store is lost.
fn lose_the_store(cluster: &Cluster) {
    match &cluster.etcd {
        None => std::fs::remove_file(cluster.manager_dir().join("store.redb")).expect("a store"),
        // The same members with empty data directories look like this to their clients.
        Some(etcd) => {
            let mut command = mortal("etcdctl");
            command
                .env("ETCDCTL_API", "3")
                .arg("--endpoints")
                .arg(etcd.endpoints().join(","))
                .args(["del", "--prefix", "/"]);
            let gone = command.output().expect("etcdctl");
            assert!(gone.status.success(), "{}", String::from_utf8_lossy(&gone.stderr));
        }
    }
}

fn a_cluster_whose_store_is_gone_is_made_anew_of_its_disks(backing: Backing) {
    let mut cluster = Cluster::start(backing);
    let (ctl, manager) = (cluster.ctl(), cluster.manager_port);
    let (mut second, far) = cluster.another_block("block-02");
    far.ok(&format!("block init 127.0.0.1:{manager}"));
    let other = far.text("block status", "/service/id");
    ctl.ok(&format!("pool create spare --service {other} --path {}", path_text(&cluster.path().join("spare"))));
    for (name, pool, pattern) in [("db", "main", 1), ("web", "main", 2), ("log", "spare", 3)] {
        ctl.ok(&format!("volume create {name} --size 1M --pool {pool}"));
        write(&ctl, name, pattern);
    }
    // A generation that no disk knows of.
    ctl.ok("volume set db --iops 100000");
    let before = ["db", "web", "log"].map(|name| ctl.text(&format!("volume get {name}"), "/meta/id"));
    let old = ctl.text("manager status", "/cluster/id");
    cluster
        .block_ctl()
        .run(&format!("block init 127.0.0.1:{manager} --recover"))
        .fails(4, &["nothing to recover from"]);

    cluster.manager.kill();
    lose_the_store(&cluster);
    cluster.manager.start_serving(&ctl.socket);
    until("the manager to find nothing", || (ctl.text("manager status", "/state") == "stranded").then_some(()));
    ctl.run("volume list").fails(4, &["the store holds no cluster"]);
    let done = ctl.json("manager recover");
    assert_eq!(done["created"], true, "{done}");
    assert_ne!(done["cluster"]["id"], old.as_str());
    client(&cluster.local_uri("db")).expect("served without any cluster");

    for block in [cluster.block_ctl(), far.clone()] {
        until("the old cluster to be missed", || (block.text("block status", "/state") != "connected").then_some(()));
        block.ok(&format!("block init 127.0.0.1:{manager} --recover"));
        client(&cluster.local_uri("db")).expect("served while it changes hands");
    }
    until("all volumes to be back", || {
        let told = ctl.json("manager recover --status");
        (told["recovering"] == true && told["volumes"] == 3 && told["pools"] == 2).then_some(())
    });
    ctl.check_when_settled();
    let after = ["db", "web", "log"].map(|name| ctl.text(&format!("volume get {name}"), "/meta/id"));
    assert_eq!(after, before);
    for (name, pattern) in [("db", 1), ("web", 2), ("log", 3)] {
        holds(&ctl, name, pattern);
    }

    // A host that is killed in the middle of it comes back as what it has become.
    cluster.block.kill();
    cluster.block.start_serving(&cluster.block_ctl().socket);
    ctl.check_when_settled();
    let ended = ctl.json("manager recover --finish");
    assert_eq!((&ended["recovering"], &ended["remarks"]), (&false.into(), &serde_json::json!([])), "{ended}");
    ctl.run("manager recover --finish").fails(4, &["is not recovering"]);
    ctl.check_when_settled();
    cluster.restart_block();
    second.kill();
    second.start_serving(&far.socket);
    cluster.restart_manager();
    ctl.check_when_settled();
    for (name, pattern) in [("db", 1), ("web", 2), ("log", 3)] {
        holds(&ctl, name, pattern);
    }
    ctl.ok("volume resize db --size 2M");
    ctl.ok("volume remove web");
    ctl.check();
}
