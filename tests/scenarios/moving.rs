//! Volumes that are moved from pool to pool and from host to host, while what has to do with it is killed.

use crate::stage::{
    Backing, Cluster, Control, Daemon, FarBlock, Hosts, client, on_each_store, path_text, qemu_io, secure, until,
};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

on_each_store!(a_volume_is_moved_to_another_host_with_every_byte_and_every_hole,);

/// A cluster with a second block service that has the pool `far`.
fn two_hosts(backing: Backing) -> (Cluster, Daemon, Control, String) {
    let cluster = Cluster::start(backing);
    let (daemon, second) = cluster.another_block("block-02");
    second.ok(&format!("block init 127.0.0.1:{}", cluster.manager_port));
    let other = second.text("block status", "/service/id");
    let place = cluster.path().join("far");
    cluster.ctl().ok(&format!("pool create far --service {other} --path {}", path_text(&place)));
    (cluster, daemon, second, other)
}

/// How much of a disk the files below a directory take.
fn occupied(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries
        .map(|path| if path.is_dir() { occupied(&path) } else { path.metadata().expect("a file").blocks() * 512 })
        .sum()
}

fn a_volume_is_moved_to_another_host_with_every_byte_and_every_hole(backing: Backing) {
    let (cluster, _daemon, second, other) = two_hosts(backing);
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 64M --pool main");
    ctl.ok("volume set db --iops 5000");
    qemu_io(&ctl.uri("db", "nbd"), &["write -P 0x11 0 64k", "write -P 0x22 63M 1M", "flush"]).succeeds();
    let before = ctl.json("volume get db");
    let said = ctl.ok("volume move db --pool far");
    assert!(said.contains("'db' is ready") && said.contains(&other) && said.contains("nbd://"), "{said}");
    assert_eq!(ctl.names("volume"), ["db"]);
    let after = ctl.json("volume get db");
    assert_eq!(after["status"]["placement"][0]["service"], other.as_str());
    for same in ["/spec/size", "/spec/limits/iops", "/meta/created_at"] {
        assert_eq!(after.pointer(same), before.pointer(same), "{same}");
    }
    qemu_io(&ctl.uri("db", "nbd"), &["read -P 0x11 0 64k", "read -P 0 64k 1M", "read -P 0x22 63M 1M"]).succeeds();
    let (here, there) = (occupied(&cluster.pool()), occupied(&cluster.path().join("far")));
    assert!(here < 1 << 20 && there < 8 << 20, "{here} and {there} bytes are taken");
    assert!(client(&cluster.local_uri("db")).is_err(), "it is not served where it was");
    let events = ctl.ok("events");
    assert!(events.contains("volume.move") && events.contains("from pool 'main' to pool 'far'"), "{events}");

    ctl.ok("volume move db --pool far");
    ctl.ok("volume move db --pool main");
    qemu_io(&ctl.uri("db", "nbd"), &["read -P 0x11 0 64k", "read -P 0x22 63M 1M", "write -P 0x33 1M 4k"]).succeeds();
    let beside = cluster.path().join("beside");
    ctl.ok(&format!("pool create beside --service {} --path {}", cluster.service_id(), path_text(&beside)));
    ctl.ok("volume move db --pool beside");
    qemu_io(&ctl.uri("db", "nbd"), &["read -P 0x11 0 64k", "read -P 0x33 1M 4k", "read -P 0x22 63M 1M"]).succeeds();
    assert_eq!(ctl.names("volume"), ["db"]);
    ctl.check();
    assert_eq!(second.text("block status", "/state"), "connected");
}

#[test]
fn a_volume_in_use_is_not_cut_off_and_moves_once_it_is_free_or_not_at_all() {
    let (cluster, _daemon, _second, other) = two_hosts(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 4M --pool main");
    let mut user = client(&ctl.uri("db", "nbd")).expect("a connection");
    user.write(0, &[1; 4096], true).expect("a write");
    ctl.run("volume move db --pool far").fails(1, &["in use by 1 connections", "--cancel"]);
    user.write(4096, &[2; 4096], true).expect("a write while it is to be moved");
    ctl.run("volume resize db --size 8M").fails(4, &["is being moved to pool 'far'", "--cancel"]);
    let said = ctl.ok("volume move db --cancel");
    assert!(said.contains("'db' is ready"), "{said}");
    user.write(8192, &[3; 4096], true).expect("a write after that was called off");
    ctl.run("volume move db --pool far").fails(1, &["in use by 1 connections"]);
    drop(user);
    until("the volume to be moved", || {
        (ctl.text("volume get db", "/status/placement/0/service") == other).then_some(())
    });
    ctl.check_when_settled();
    qemu_io(&ctl.uri("db", "nbd"), &["read -P 1 0 4k", "read -P 2 4k 4k", "read -P 3 8k 4k"]).succeeds();
    ctl.check();
}

#[test]
fn who_looks_for_a_volume_that_is_being_moved_is_told_so_and_the_move_can_be_called_off() {
    let (cluster, mut daemon, second, other) = two_hosts(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 4M --pool main");
    let uri = ctl.uri("db", "nbd");
    qemu_io(&uri, &["write -P 9 0 4M", "flush"]).succeeds();
    daemon.kill();
    ctl.ok("volume move db --pool far --no-wait");
    until("the volume to be held", || {
        let refused = client(&uri).err().map(|error| error.to_string()).unwrap_or_default();
        (refused.contains("is being moved") && refused.contains("--cancel")).then_some(())
    });
    assert!(ctl.ok("volume get db").contains("Moving"));
    ctl.ok("volume move db --cancel");
    qemu_io(&uri, &["read -P 9 0 4M", "write -P 8 0 4k", "flush"]).succeeds();
    daemon.start_serving(&second.socket);
    ctl.wait_for_service(&other, "ready");
    ctl.ok("volume move db --pool far");
    qemu_io(&ctl.uri("db", "nbd"), &["read -P 8 0 4k", "read -P 9 4k 4092k"]).succeeds();
    ctl.check_when_settled();
}

#[test]
fn a_volume_comes_through_its_moves_whoever_is_killed_meanwhile() {
    let (mut cluster, mut daemon, second, _other) = two_hosts(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 96M --pool main");
    qemu_io(&ctl.uri("db", "nbd"), &["write -P 0x55 0 80M", "flush"]).succeeds();
    for round in 0..6u8 {
        let to = if round % 2 == 0 { "far" } else { "main" };
        let home = ctl.text(&format!("pool get {to}"), "/spec/service");
        ctl.ok(&format!("volume move db --pool {to} --no-wait"));
        match round % 3 {
            0 => {
                daemon.kill();
                daemon.start_serving(&second.socket);
            }
            1 => cluster.restart_block(),
            _ => cluster.restart_manager(),
        }
        until("the volume to be moved", || {
            let outcome = ctl.run("volume get db -o json");
            let found: serde_json::Value = serde_json::from_slice(&outcome.stdout).ok()?;
            let there = found.pointer("/status/placement/0/service")?.as_str()? == home;
            (there && found.pointer("/status/phase")?.as_str()? == "ready").then_some(())
        });
        ctl.check_when_settled();
        qemu_io(&ctl.uri("db", "nbd"), &["read -P 0x55 0 80M", "read -P 0 80M 16M"]).succeeds();
    }
    assert_eq!(ctl.names("volume"), ["db"]);
    ctl.check();
}

#[test]
fn a_move_that_cannot_be_is_refused_with_the_reason() {
    let (cluster, _daemon, _second, other) = two_hosts(Backing::Embedded);
    let ctl = cluster.ctl();
    let place = cluster.path().join("small");
    ctl.ok(&format!("pool create small --service {other} --path {} --limit 8M", path_text(&place)));
    ctl.ok("volume create db --size 16M --pool main");
    ctl.run("volume move db --pool small").fails(4, &["small", "16MiB"]);
    ctl.run("volume move db --pool nowhere").fails(3, &["no pool 'nowhere'"]);
    ctl.run("volume move nothing --pool far").fails(3, &["no volume 'nothing'"]);
    ctl.run("volume move db").fails(2, &["--pool"]);
    ctl.ok(&format!("service drain {other} --no-wait"));
    ctl.run("volume move db --pool far").fails(4, &["is being drained"]);
    qemu_io(&ctl.uri("db", "nbd"), &["write -P 1 0 4k"]).succeeds();
    ctl.check();
}

#[test]
fn between_hosts_only_block_services_get_at_a_volume_that_is_being_moved() {
    let Some(hosts) = Hosts::start(["one", "two"], "") else { return };
    let (one, two) = (hosts.joined_block("one"), hosts.joined_block("two"));
    let ctl = hosts.ctl();
    ctl.ok("volume create db --size 8M --pool one");
    let local = |block: &FarBlock| format!("nbd+unix:///db?socket={}", path_text(&block.directory.join("nbd.sock")));
    qemu_io(&local(&one), &["write -P 0x77 0 5M", "flush"]).succeeds();
    let bundle = hosts.bundle("web", "data");
    ctl.ok("volume attach db --client web");
    ctl.run("volume move db --pool two").fails(4, &["attached to 'web'"]);
    ctl.ok("volume detach db --client web");
    ctl.ok("volume move db --pool two");
    qemu_io(&local(&two), &["read -P 0x77 0 5M", "read -P 0 5M 3M"]).succeeds();
    assert!(client(&local(&one)).is_err());
    // It is attached where it is now.
    ctl.ok("volume attach db --client web");
    let uri = secure(&ctl.uri("db", "nbd-tls"), &bundle);
    let size = hosts.host("one").run("nbdinfo", &["--size", &uri]).succeeds();
    assert_eq!(size.trim(), (8 << 20).to_string());
    ctl.check();
}
