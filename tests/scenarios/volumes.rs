//! A volume's life, as an operator sees it.

use crate::stage::{Backing, Cluster, client, nbd_size, on_each_store, qemu_io, tool, until};

on_each_store!(
    a_volume_is_made_exported_grown_and_removed,
    a_connected_client_keeps_working_while_its_volume_grows,
    what_is_asked_with_no_wait_is_accepted_and_comes_true_later,
);

fn a_volume_is_made_exported_grown_and_removed(backing: Backing) {
    let cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    let made = ctl.json("volume create db --size 64MiB");
    assert_eq!(made["meta"]["name"], "db");
    assert_eq!(made["spec"]["size"], 64 << 20);
    assert_eq!(made["status"]["phase"], "ready");
    let (tcp, unix) = (ctl.uri("db", "nbd"), ctl.uri("db", "nbd-unix"));
    for uri in [&tcp, &unix] {
        assert_eq!(nbd_size(uri), 64 << 20);
        tool("qemu-img", &["info", uri]).succeeds();
    }
    // A new volume reads as zeros, and one door shows what was written through the other.
    qemu_io(&tcp, &["read -P 0 0 64M", "write -P 0x11 1M 1M", "flush"]).succeeds();
    qemu_io(&unix, &["read -P 0x11 1M 1M", "read -P 0 2M 62M"]).succeeds();
    let document: serde_json::Value =
        serde_json::from_str(&tool("nbdinfo", &["--json", "--list", tcp.trim_end_matches("db")]).succeeds())
            .expect("JSON");
    assert_eq!(document["exports"][0]["export-name"], "db");

    assert_eq!(ctl.json("volume resize db --size 128M")["status"]["size"], 128 << 20);
    assert_eq!(nbd_size(&tcp), 128 << 20);
    qemu_io(&tcp, &["read -P 0x11 1M 1M", "read -P 0 64M 64M", "write -P 0x22 127M 1M", "flush"]).succeeds();
    assert_eq!(ctl.json("volume resize db --size 128M")["status"]["phase"], "ready");

    let id = ctl.text("volume get db", "/meta/id");
    assert_eq!(ctl.text(&format!("volume get {id}"), "/meta/name"), "db");
    ctl.ok("volume remove db");
    assert!(ctl.names("volume").is_empty());
    client(&tcp).expect_err("the export is gone");
    assert!(!cluster.pool().join(format!("volumes/{id}.img")).exists());
    // Its name and its space are free again.
    assert_eq!(ctl.json("pool get main")["status"]["reserved"], 0);
    ctl.ok("volume create db --size 1M");
    qemu_io(&ctl.uri("db", "nbd"), &["read -P 0 0 1M"]).succeeds();
    ctl.check();
}

fn a_connected_client_keeps_working_while_its_volume_grows(backing: Backing) {
    let cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 1M");
    let uri = ctl.uri("db", "nbd");
    let mut connected = client(&uri).expect("a connection");
    connected.write(0, &[7; 4096], true).expect("a write before");
    ctl.ok("volume resize db --size 8M");
    connected.write(4096, &[8; 4096], true).expect("a write after");
    let mut seen = [0; 8192];
    connected.read(0, &mut seen).expect("a read after");
    assert!(seen[..4096] == [7; 4096] && seen[4096..] == [8; 4096]);
    assert_eq!(client(&uri).expect("a new connection").size(), 8 << 20);
    ctl.check();
}

fn what_is_asked_with_no_wait_is_accepted_and_comes_true_later(backing: Backing) {
    let cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    let accepted = ctl.json("volume create db --size 1M --no-wait");
    let id = accepted["meta"]["id"].as_str().expect("an id");
    until("the volume to be ready", || {
        (ctl.text(&format!("volume get {id}"), "/status/phase") == "ready").then_some(())
    });
    let said = ctl.ok("volume remove db --no-wait");
    assert!(said.contains("removing"), "{said}");
    until("the volume to be gone", || ctl.names("volume").is_empty().then_some(()));
    ctl.check();
}

#[test]
fn removing_a_volume_cuts_off_the_client_that_uses_it() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 1M");
    let mut connected = client(&ctl.uri("db", "nbd")).expect("a connection");
    connected.write(0, &[7; 4096], true).expect("a write");
    ctl.ok("volume remove db");
    connected.write(0, &[8; 4096], true).expect_err("the volume is gone");
    ctl.check();
}

#[test]
fn waiting_ends_with_its_own_code_when_the_block_service_is_away() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    cluster.block.kill();
    ctl.run("volume create db --size 1M --pool main --timeout 1s").fails(6, &["'db'", "pending", "volume get db"]);
    cluster.block.start_serving(&cluster.block_ctl().socket);
    until("the volume to be ready", || (ctl.text("volume get db", "/status/phase") == "ready").then_some(()));
    ctl.check();
}

#[test]
fn two_hundred_volumes_live_together_and_are_all_listed() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    for number in 0..200 {
        ctl.ok(&format!("volume create v{number} --size 1M --no-wait"));
    }
    until("all of them to be ready", || {
        let volumes = ctl.json("volume list");
        let ready = volumes.as_array()?.iter().filter(|volume| volume["status"]["phase"] == "ready").count();
        (ready == 200).then_some(())
    });
    assert_eq!(ctl.names("volume").len(), 200);
    ctl.check();
}

#[test]
fn fio_verifies_what_it_wrote_at_random() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create bench --size 16M");
    let uri = format!("--uri={}", ctl.uri("bench", "nbd"));
    let job = ["--name=job", "--ioengine=nbd", &uri, "--rw=randrw", "--bs=4k-64k", "--size=8M", "--iodepth=16"];
    let verify = ["--verify=crc32c", "--randrepeat=1", "--fsync=64", "--verify_state_save=0", "--output=/dev/null"];
    tool("fio", &[&job[..], &verify[..]].concat()).succeeds();
    ctl.check();
}

#[test]
fn a_volume_shrinks_where_that_is_allowed_once_nobody_uses_it() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 8M");
    let uri = ctl.uri("db", "nbd");
    qemu_io(&uri, &["write -P 0x33 0 8M", "flush"]).succeeds();
    ctl.run("volume resize db --size 4M").fails(2, &["lost", "--allow-shrink"]);
    let user = client(&uri).expect("a connection");
    ctl.run("volume resize db --size 4M --allow-shrink").fails(1, &["in use by 1 connections"]);
    ctl.run("volume resize db --size 16M").fails(4, &["being shrunk"]);
    assert_eq!(nbd_size(&uri), 8 << 20, "it is served as it is meanwhile");
    drop(user);
    until("the volume is smaller", || (ctl.text("volume get db", "/status/phase") == "ready").then_some(()));
    assert_eq!((nbd_size(&uri), ctl.json("volume get db")["status"]["size"].as_u64()), (4 << 20, Some(4 << 20)));
    qemu_io(&uri, &["read -P 0x33 0 4M"]).succeeds();
    ctl.ok("volume resize db --size 8M");
    qemu_io(&uri, &["read -P 0x33 0 4M", "read -P 0 4M 4M"]).succeeds();
    ctl.check();
}
