//! The store gone for good: a new cluster of what two hosts have on their disks, which serve on meanwhile.

use crate::orphans::{holds, orphan, write};
use crate::stage::{Backing, Cluster, Hosts, Image, client, compare, on_each_store, path_text, qemu_io, sha256, until};
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

#[test]
fn a_host_recovers_into_a_cluster_elsewhere_with_a_token_and_not_without_one() {
    let Some(mut hosts) = Hosts::start(["block"], "") else { return };
    let block = hosts.joined_block("block");
    let (ctl, address) = (hosts.ctl(), hosts.address("manager"));
    ctl.ok("volume create db --size 1M");
    let local = format!("nbd+unix:///db?socket={}", path_text(&block.directory.join("nbd.sock")));
    qemu_io(&local, &["write -P 5 0 1M", "flush"]).succeeds();
    let (service, volume) = (block.id(), ctl.text("volume get db", "/meta/id"));
    let stale = hosts.token("");

    hosts.manager.kill();
    std::fs::remove_file(hosts.path().join("manager/store.redb")).expect("a store");
    hosts.manager.start_serving(&ctl.socket);
    until("the manager to find nothing", || (ctl.text("manager status", "/state") == "stranded").then_some(()));
    ctl.ok("manager recover");
    until("the old cluster to be missed", || {
        (block.control.text("block status", "/state") != "connected").then_some(())
    });
    block.control.run(&format!("block init {address} --recover")).fails(4, &["token"]);
    block.control.run(&format!("block init {address} --recover --token {stale}")).fails(4, &[]);
    assert_eq!(block.id(), service, "the old membership goes on");
    client(&local).expect("served after every refusal");
    let token = hosts.token("");
    block.control.ok(&format!("block init {address} --recover --token {token}"));
    assert_ne!(block.id(), service);
    until("the volume to be back", || {
        let outcome = ctl.run("volume get db -o json");
        let found: serde_json::Value = serde_json::from_slice(&outcome.stdout).ok()?;
        (found["meta"]["id"].as_str()? == volume && found["status"]["phase"] == "ready").then_some(())
    });
    qemu_io(&local, &["read -P 5 0 1M"]).succeeds();
    ctl.ok("manager recover --finish");
    ctl.check_when_settled_somewhere();
}

#[test]
fn an_image_s_content_outlives_the_store_and_is_made_an_image_again() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let (ctl, manager, image) = (cluster.ctl(), cluster.manager_port, Image::new(24, 13));
    let (file, digest) = (image.path(), sha256(&image.bytes()));
    ctl.ok(&format!("image import {} --name noble", path_text(&file)));
    let base = ctl.text("image get noble", "/status/bases/0");
    ctl.ok("volume create web --image noble");
    cluster.manager.kill();
    lose_the_store(&cluster);
    cluster.manager.start_serving(&ctl.socket);
    until("the manager to find nothing", || (ctl.text("manager status", "/state") == "stranded").then_some(()));
    ctl.ok("manager recover");
    let block = cluster.block_ctl();
    until("the old cluster to be missed", || (block.text("block status", "/state") != "connected").then_some(()));
    block.ok(&format!("block init 127.0.0.1:{manager} --recover"));
    until("its volume to be back", || (ctl.json("manager recover --status")["volumes"] == 1).then_some(()));
    ctl.check_when_settled();
    compare(&file, &ctl.uri("web", "nbd"));
    assert!(ctl.names("image").is_empty());
    let ended = ctl.json("manager recover --finish");
    assert!(ended["remarks"].to_string().contains("kept an image's content"), "{ended}");

    // As the README says where the file is gone.
    let found = orphan(&ctl, "volume", &format!("image-{base}"));
    assert_eq!((found["id"].as_str(), &found["standing"]), (Some(base.as_str()), &"image-base".into()));
    ctl.ok(&format!("orphans adopt {base} --name was-noble"));
    let saved = cluster.path().join("saved.raw");
    ctl.ok(&format!("volume download was-noble {}", path_text(&saved)));
    assert_eq!(sha256(&std::fs::read(&saved).expect("the content")), digest);
    ctl.ok(&format!("image import {} --name noble", path_text(&saved)));
    ctl.ok("volume remove was-noble");
    assert_eq!(ctl.text("image get noble", "/spec/sha256"), digest);
    ctl.ok("volume create another --image noble");
    compare(&file, &ctl.uri("another", "nbd"));
    assert!(ctl.names("orphans").is_empty());
    ctl.check();
}
