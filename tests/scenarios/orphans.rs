//! What lies on disks and belongs to nobody: shown as what it is, taken back with every byte, destroyed only when told.

use crate::stage::{Backing, Cluster, Control, client, on_each_store, path_text, qemu_io, until};
use crate::support::mounted::Mounted;
use serde_json::Value;

on_each_store!(a_dead_host_s_pool_and_volumes_come_back_with_their_bytes_when_it_joins_anew);

/// The orphan of a kind and a name, once it shows.
pub fn orphan(ctl: &Control, kind: &str, name: &str) -> Value {
    until(&format!("{kind} '{name}' to show as an orphan"), || {
        let outcome = ctl.run("orphans list -o json");
        let found: Value = serde_json::from_slice(&outcome.stdout).ok()?;
        found.as_array()?.iter().find(|orphan| orphan["kind"] == kind && orphan["name"] == name).cloned()
    })
}

fn id(orphan: &Value) -> String {
    orphan["id"].as_str().expect("an id").to_owned()
}

#[track_caller]
pub fn holds(ctl: &Control, volume: &str, pattern: u8) {
    qemu_io(&ctl.uri(volume, "nbd"), &[&format!("read -P {pattern} 0 1M")]).succeeds();
}

#[track_caller]
pub fn write(ctl: &Control, volume: &str, pattern: u8) {
    qemu_io(&ctl.uri(volume, "nbd"), &[&format!("write -P {pattern} 0 1M"), "flush"]).succeeds();
}

fn a_dead_host_s_pool_and_volumes_come_back_with_their_bytes_when_it_joins_anew(backing: Backing) {
    let mut cluster = Cluster::start(backing);
    let (ctl, service) = (cluster.ctl(), cluster.service_id());
    for (name, pattern) in [("one", 1), ("two", 2)] {
        ctl.ok(&format!("volume create {name} --size 1M"));
        write(&ctl, name, pattern);
    }
    let pool = ctl.text("pool get main", "/meta/id");
    let one = ctl.text("volume get one", "/meta/id");
    cluster.block.kill();
    ctl.wait_for_service(&service, "down");
    let said = ctl.run(&format!("manager remove {service} --lost"));
    for words in ["'one', 'two'", "pools 'main'", "No byte is destroyed", "orphans list"] {
        assert!(said.stderr.contains(words), "{words}: {}", said.stderr);
    }
    said.succeeds();
    ctl.check();

    // The host comes back, learns of it, and joins anew.
    cluster.block.start_serving(&cluster.block_ctl().socket);
    until("the block service to learn of it", || {
        (cluster.block_ctl().json("block status")["state"] == "uninitialised").then_some(())
    });
    cluster.init_block();
    ctl.wait_for_service(&cluster.service_id(), "ready");
    let found = orphan(&ctl, "pool", "main");
    assert_eq!(
        (id(&found), &found["origin"], &found["standing"]),
        (pool.clone(), &"removed-service".into(), &"whole".into())
    );
    let found = orphan(&ctl, "volume", "one");
    assert_eq!((id(&found), &found["size"]), (one.clone(), &Value::from(1 << 20)));
    assert!(found["data"].as_u64().expect("a number") > 0, "{found}");
    ctl.check();

    // A volume needs its pool, and a name that nobody has.
    ctl.run(&format!("orphans adopt {one}")).fails(4, &[&pool, "is an orphan, too", "--all"]);
    ctl.run(&format!("orphans purge {pool} --yes")).fails(4, &["holds 2 volumes"]);
    let other = cluster.path().join("other");
    ctl.ok(&format!("pool create other --path {}", path_text(&other)));
    ctl.ok("volume create one --size 2M");
    ctl.ok(&format!("orphans adopt {pool}"));
    assert_eq!(ctl.text("pool get main", "/meta/id"), pool);
    ctl.run(&format!("orphans adopt {one}")).fails(4, &["named 'one' exists already"]);
    let adopted = ctl.json(&format!("orphans adopt {one} --name was-one"));
    assert_eq!(
        (adopted[0]["meta"]["id"].as_str(), &adopted[0]["status"]["phase"]),
        (Some(one.as_str()), &"ready".into())
    );
    holds(&ctl, "was-one", 1);
    ctl.run(&format!("orphans adopt {one}")).fails(4, &["is no orphan"]);
    ctl.ok(&format!("orphans adopt {pool} --all"));
    holds(&ctl, "two", 2);
    assert_eq!(ctl.names("orphans"), Vec::<String>::new());
    ctl.check();
    ctl.ok("volume resize was-one --size 4M");
    cluster.restart_block();
    ctl.check_when_settled();
    holds(&ctl, "was-one", 1);
}

#[test]
fn a_volume_that_was_closed_is_destroyed_only_when_told_and_a_purge_survives_kills() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let (ctl, service) = (cluster.ctl(), cluster.service_id());
    for name in ["kept", "dead", "last"] {
        ctl.ok(&format!("volume create {name} --size 1M"));
        write(&ctl, name, 7);
    }
    let dead = ctl.text("volume get dead", "/meta/id");
    ctl.run("volume remove dead --lost").fails(4, &["'dead' is not lost", "connected"]);
    cluster.block.kill();
    ctl.wait_for_service(&service, "down");
    let said = ctl.run("volume remove dead --lost");
    assert!(said.stderr.contains("volumes 'dead'") && said.stderr.contains("No byte is destroyed"), "{}", said.stderr);
    said.succeeds();
    ctl.ok("volume remove last --lost --yes");
    assert_eq!(ctl.names("volume"), ["kept"]);
    cluster.block.start_serving(&cluster.block_ctl().socket);
    ctl.check_when_settled();
    let found = orphan(&ctl, "volume", "dead");
    assert_eq!((id(&found), &found["origin"]), (dead.clone(), &"in-pool".into()));
    until("it to be served no more", || client(&cluster.local_uri("dead")).err());

    let image = cluster.pool().join(format!("volumes/{dead}.img"));
    ctl.run(&format!("orphans purge {dead}")).fails(2, &["for ever", "--yes"]);
    assert!(image.exists());
    // Everybody is killed right behind the commit; the tombstone is gone on with.
    ctl.ok(&format!("orphans purge {dead} --yes --no-wait"));
    cluster.block.kill();
    cluster.restart_manager();
    cluster.block.start_serving(&cluster.block_ctl().socket);
    until("the bytes to be gone", || (!image.exists()).then_some(()));
    until("the record to be gone", || ctl.run(&format!("volume get {dead}")).code.filter(|code| *code == 3));
    ctl.check_when_settled();

    // An adoption and a purge at once: one of them has it.
    let last = id(&orphan(&ctl, "volume", "last"));
    let (adopts, purges) = std::thread::scope(|scope| {
        let adopts = scope.spawn(|| ctl.run(&format!("orphans adopt {last}")));
        let purges = scope.spawn(|| ctl.run(&format!("orphans purge {last} --yes")));
        (adopts.join().expect("an adoption"), purges.join().expect("a purge"))
    });
    let won = [adopts.code == Some(0), purges.code == Some(0)];
    assert_eq!(won.iter().filter(|won| **won).count(), 1, "{} {}", adopts.stderr, purges.stderr);
    assert_eq!(ctl.names("volume").contains(&"last".to_owned()), won[0]);
    assert_eq!(ctl.names("orphans"), Vec::<String>::new());
    holds(&ctl, "kept", 7);
    ctl.check();
}

#[test]
fn a_volume_comes_back_with_its_snapshots() {
    let Ok(mounted) = Mounted::xfs().inspect_err(|why| eprintln!("skipped: no XFS here: {why}")) else { return };
    let mut cluster = Cluster::join(Backing::Embedded, "");
    let ctl = cluster.ctl();
    ctl.ok(&format!("pool create shares --path {}", path_text(&mounted.path().join("pool"))));
    ctl.ok("volume create db --size 8M");
    write(&ctl, "db", 1);
    ctl.ok("snapshot create db monday");
    let taken = ctl.text("snapshot get monday", "/status/taken_at");
    write(&ctl, "db", 2);
    ctl.ok("snapshot create db tuesday");
    let volume = ctl.text("volume get db", "/meta/id");
    cluster.block.kill();
    ctl.wait_for_service(&cluster.service_id_of_pool("shares"), "down");
    let said = ctl.run("volume remove db --lost");
    assert!(said.stderr.contains("snapshots 'monday', 'tuesday'"), "{}", said.stderr);
    said.succeeds();
    cluster.block.start_serving(&cluster.block_ctl().socket);
    ctl.check_when_settled();
    let monday = id(&orphan(&ctl, "snapshot", "monday"));
    ctl.run(&format!("orphans adopt {monday}")).fails(4, &[&volume, "come with it"]);
    let adopted = ctl.json(&format!("orphans adopt {volume}"));
    assert_eq!(adopted.as_array().map(Vec::len), Some(3), "{adopted}");
    assert_eq!(ctl.text("snapshot get monday", "/status/taken_at"), taken);
    ctl.ok("volume revert db --to monday");
    holds(&ctl, "db", 1);
    ctl.ok("snapshot remove monday");
    ctl.check();

    // Gone again, it is destroyed with the snapshot that is left.
    cluster.block.kill();
    ctl.wait_for_service(&cluster.service_id_of_pool("shares"), "down");
    ctl.ok("volume remove db --lost");
    cluster.block.start_serving(&cluster.block_ctl().socket);
    ctl.check_when_settled();
    orphan(&ctl, "snapshot", "tuesday");
    ctl.ok(&format!("orphans purge {volume} --yes"));
    assert_eq!(ctl.names("orphans"), Vec::<String>::new());
    ctl.ok("pool remove shares");
    ctl.check();
}
