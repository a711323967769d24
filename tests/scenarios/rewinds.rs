//! A store that is put back in time beneath a cluster: seen, said, and nothing is destroyed.

use crate::stage::{Backing, Cluster, Control, bundle, client, nbd_size, until, wait};
use serde_json::Value;
use std::path::Path;

/// Volumes, and who may use them, before the state is copied.
pub fn before(cluster: &Cluster) {
    let ctl = cluster.ctl();
    for name in ["kept", "gone", "grown", "shrunk", "limited"] {
        ctl.ok(&format!("volume create {name} --size 4M"));
    }
    for name in ["stays", "leaves", "comes"] {
        bundle(&ctl, cluster.path(), name, "data");
    }
    ctl.ok("volume attach kept --client stays --shared");
    ctl.ok("volume attach kept --client leaves --shared");
    ctl.ok("manager token create --uses 5");
}

/// What happens after the state was copied.
pub fn after(cluster: &Cluster) {
    let ctl = cluster.ctl();
    ctl.ok("volume create late --size 2M");
    ctl.ok("volume remove gone");
    ctl.ok("volume resize grown --size 8M");
    ctl.ok("volume resize grown --size 16M");
    ctl.ok("volume resize shrunk --size 2M --allow-shrink");
    ctl.ok("volume set limited --iops 100");
    ctl.ok("volume detach kept --client leaves");
    ctl.ok("volume attach kept --client comes --shared");
    client(&cluster.local_uri("late")).expect("a connection").write(0, &[7; 4096], true).expect("a write");
}

fn settled(ctl: &Control, volume: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    until(&format!("volume '{volume}' to be as it should"), || {
        let outcome = ctl.run(&format!("volume get {volume} -o json"));
        let found: Value = serde_json::from_slice(&outcome.stdout).ok()?;
        wanted(&found).then_some(found)
    })
}

/// What a cluster is like whose state is that of `before` and whose devices are as after `after`.
pub fn assert_carried_over(cluster: &Cluster, ctl: &Control) {
    let epoch = until("a new history", || {
        let outcome = ctl.run("manager status -o json");
        let status: Value = serde_json::from_slice(&outcome.stdout).ok()?;
        (status["state"] == "member" && status["history"]["rewound"].is_string())
            .then(|| status["history"]["epoch"].as_u64())?
    });
    assert!(epoch > 0);
    assert!(ctl.ok("manager status").contains("Put back"));
    let is_ready =
        |volume: &Value| volume["status"]["phase"] == "ready" && volume["spec"]["size"] == volume["status"]["size"];
    settled(ctl, "kept", is_ready);
    settled(ctl, "grown", |volume| is_ready(volume) && volume["spec"]["size"] == 16 << 20);
    settled(ctl, "shrunk", |volume| is_ready(volume) && volume["spec"]["size"] == 4 << 20);
    settled(ctl, "limited", |volume| is_ready(volume) && volume["spec"]["limits"]["iops"].is_null());
    let gone = settled(ctl, "gone", |volume| volume["status"]["phase"] == "failed");
    assert!(gone["status"]["message"].as_str().expect("a message").contains("missing"), "{gone}");
    assert_eq!(nbd_size(&cluster.local_uri("grown")), 16 << 20, "nothing was cut off");
    until("who was cut off to be out of the record", || (ctl.names("attachment") == ["kept/stays"]).then_some(()));
    // It says that something is missing, and ends accordingly.
    let outcome = ctl.run("check -o json");
    let found: Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
    let lines = |field: &str| {
        let list = found[field].as_array().cloned().unwrap_or_default();
        list.iter().map(|line| line.as_str().expect("a sentence").to_owned()).collect::<Vec<_>>()
    };
    let orphan = lines("remarks").iter().any(|line| line.contains("orphan") && line.contains("'late'"));
    assert!(orphan, "{found}");
    assert!(lines("faults").iter().all(|line| line.contains("'gone'")), "{found}");
    ctl.run("volume get late").fails(3, &["'late'"]);
    // Again as any other cluster: everything can be changed, and what is missing can be given up.
    ctl.ok("volume resize grown --size 20M");
    ctl.ok("volume set limited --iops 50");
    ctl.ok("volume remove gone");
    ctl.ok("volume create gone --size 1M");
    ctl.ok("volume attach kept --client comes --shared");
    ctl.ok("volume detach kept --client stays");
    ctl.check_when_settled();
    let record = ctl.json("events");
    let told = |action: &str| record.as_array().expect("a list").iter().any(|event| event["action"] == action);
    assert!(told("cluster.rewind") && told("service.carry"), "{record}");
}

#[test]
fn an_etcd_that_is_restored_beneath_two_managers_is_seen_and_nothing_is_destroyed() {
    let mut cluster = Cluster::start(Backing::ThreeEtcds);
    let ctl = cluster.ctl();
    let (_second, second) = cluster.another_manager("manager-02");
    until("a second manager that knows its store", || {
        (second.text("manager status", "/state") == "uninitialised").then_some(())
    });
    before(&cluster);
    let file = cluster.path().join("snapshot");
    let etcd = cluster.etcd.as_ref().expect("an etcd");
    etcd.save(&file);
    // The second manager is unknown to the state that comes back.
    second.ok("manager init");
    after(&cluster);
    let mut connected = client(&cluster.local_uri("kept")).expect("a connection");
    wait(etcd.put_back(&file));
    assert_carried_over(&cluster, &ctl);
    connected.write(0, &[1; 4096], true).expect("the same connection");
    let id = second.text("manager status", "/service/id");
    ctl.wait_for_service(&id, "ready");
    until("the second manager to show the same", || {
        (second.run("volume list -o name").succeeds() == ctl.run("volume list -o name").succeeds()).then_some(())
    });
    cluster.manager.assert_alive();
    cluster.block.assert_alive();
}

#[test]
fn an_etcd_that_is_restored_while_every_manager_is_down_is_seen_at_the_start() {
    let mut cluster = Cluster::start(Backing::Etcd);
    let ctl = cluster.ctl();
    before(&cluster);
    let file = cluster.path().join("snapshot");
    let etcd = cluster.etcd.as_ref().expect("an etcd");
    etcd.save(&file);
    after(&cluster);
    cluster.manager.stop();
    wait(etcd.put_back(&file));
    cluster.manager.start_serving(&ctl.socket);
    assert_carried_over(&cluster, &ctl);
}

fn copy_store(from: &Path, to: &Path) {
    std::fs::copy(from, to).expect("a copy of the store");
}

#[test]
fn an_older_copy_in_the_embedded_store_s_place_is_seen_and_nothing_is_destroyed() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    before(&cluster);
    cluster.manager.stop();
    let (file, copy) = (cluster.manager_dir().join("store.redb"), cluster.path().join("copy"));
    copy_store(&file, &copy);
    cluster.manager.start_serving(&ctl.socket);
    until("the manager to serve", || (ctl.text("manager status", "/state") == "member").then_some(()));
    ctl.check_when_settled();
    after(&cluster);
    let mut connected = client(&cluster.local_uri("kept")).expect("a connection");
    cluster.manager.stop();
    copy_store(&copy, &file);
    cluster.manager.start_serving(&ctl.socket);
    assert_carried_over(&cluster, &ctl);
    connected.write(0, &[1; 4096], true).expect("the same connection");
}

#[test]
fn what_managers_forgot_block_services_remember() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create grown --size 1M");
    cluster.manager.stop();
    let (file, copy) = (cluster.manager_dir().join("store.redb"), cluster.path().join("copy"));
    copy_store(&file, &copy);
    cluster.manager.start_serving(&ctl.socket);
    until("the manager to serve", || (ctl.text("manager status", "/state") == "member").then_some(()));
    ctl.check_when_settled();
    ctl.ok("volume resize grown --size 2M");
    ctl.ok("volume resize grown --size 3M");
    cluster.manager.stop();
    copy_store(&copy, &file);
    std::fs::remove_file(cluster.manager_dir().join("memory.json")).expect("a memory");
    cluster.manager.start_serving(&ctl.socket);
    settled(&ctl, "grown", |volume| volume["spec"]["size"] == 3 << 20 && volume["status"]["phase"] == "ready");
    ctl.check_when_settled();
    let record = ctl.json("events");
    let carried = record.as_array().expect("a list").iter().find(|event| event["action"] == "service.carry").cloned();
    let detail = carried.expect("an entry")["detail"].to_string();
    assert!(detail.contains("it was told of revision"), "{detail}");
}

#[test]
fn a_cluster_that_vanishes_from_its_etcd_is_shown_as_it_was_and_said_to_be_old() {
    let mut cluster = Cluster::start(Backing::Etcd);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 1M");
    let file = cluster.path().join("snapshot");
    let etcd = cluster.etcd.as_ref().expect("an etcd");
    etcd.save(&file);
    let mut connected = client(&cluster.local_uri("a")).expect("a connection");
    wait(etcd.wipe());
    let said = until("the manager to say that its store is not what it was", || {
        let outcome = ctl.run("volume list -o name");
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        outcome.stderr.contains("has not reached its store since").then_some(outcome)
    });
    assert_eq!(said.succeeds(), "a\n");
    ctl.run("volume create b --size 1M --timeout 5s").fails(5, &[]);
    connected.write(0, &[1; 4096], true).expect("a write meanwhile");
    wait(etcd.put_back(&file));
    until("changes to be possible again", || (ctl.run("volume create c --size 1M").code == Some(0)).then_some(()));
    connected.write(0, &[2; 4096], true).expect("the same connection");
    cluster.manager.assert_alive();
    ctl.check_when_settled();
    until("nothing to be said of the store any more", || ctl.run("volume list").stderr.is_empty().then_some(()));
}
