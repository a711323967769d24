//! Snapshots, copies and putting back, as users see them.

use crate::stage::{Backing, Cluster, Control, client, nbd_size, on_each_store, path_text, qemu_io, until};
use crate::support::mounted::Mounted;
use std::sync::atomic::{AtomicBool, Ordering};

/// A cluster whose pool shares blocks.
struct Stage {
    cluster: Cluster,
    _mounted: Mounted,
}

fn stage(backing: Backing) -> Option<Stage> {
    let mounted = Mounted::xfs().map_err(|why| eprintln!("skipped: no XFS here: {why}")).ok()?;
    let cluster = Cluster::join(backing, "");
    let place = mounted.path().join("pool");
    cluster.ctl().ok(&format!("pool create shares --path {}", path_text(&place)));
    Some(Stage { cluster, _mounted: mounted })
}

/// Takes a volume's bytes away from a service that does not run.
fn lose(mounted: &Mounted, id: &str) {
    std::fs::remove_file(mounted.path().join(format!("pool/volumes/{id}.img"))).expect("an image");
}

fn holds(ctl: &Control, volume: &str, pattern: u8) {
    qemu_io(&ctl.uri(volume, "nbd"), &[&format!("read -P {pattern} 0 1M")]).succeeds();
}

fn write(ctl: &Control, volume: &str, pattern: u8) {
    qemu_io(&ctl.uri(volume, "nbd"), &[&format!("write -P {pattern} 0 1M"), "flush"]).succeeds();
}

on_each_store!(a_volume_s_past_is_kept_copied_and_put_back);

fn a_volume_s_past_is_kept_copied_and_put_back(backing: Backing) {
    let Some(Stage { _mounted, cluster }) = stage(backing) else { return };
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 8M");
    write(&ctl, "db", 1);
    ctl.ok("snapshot create db monday");
    write(&ctl, "db", 2);
    assert_eq!(ctl.text("snapshot get monday", "/status/phase"), "ready");
    ctl.ok("volume create old --from-snapshot monday");
    ctl.ok("volume create twin --from-volume db --size 16M");
    holds(&ctl, "old", 1);
    holds(&ctl, "twin", 2);
    assert_eq!(nbd_size(&ctl.uri("twin", "nbd")), 16 << 20);
    ctl.run("volume remove db").fails(4, &["has snapshots 'monday'", "snapshot remove"]);
    ctl.ok("volume revert db --to monday");
    holds(&ctl, "db", 1);
    holds(&ctl, "twin", 2);
    assert_eq!(ctl.names("snapshot"), ["monday"]);
    ctl.check();
    ctl.ok("snapshot remove monday");
    ctl.ok("volume remove db");
    holds(&ctl, "old", 1);
    ctl.run("pool remove shares").fails(4, &["holds 'old', 'twin'"]);
    ctl.check();
}

#[test]
fn what_is_to_be_made_of_a_volume_that_is_lost_says_so_at_once() {
    let Some(Stage { _mounted: mounted, mut cluster }) = stage(Backing::Embedded) else { return };
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 8M");
    ctl.ok("snapshot create db monday");
    let id = ctl.text("volume get db", "/meta/id");
    cluster.block.kill();
    lose(&mounted, &id);
    cluster.block.start_serving(&cluster.block_ctl().socket);
    until("the volume to be missed", || (ctl.text("volume get db", "/status/phase") == "failed").then_some(()));
    ctl.run("snapshot create db tuesday")
        .fails(1, &["'tuesday'", "volume 'db', which it is to be taken of", "missing"]);
    ctl.run("volume create twin --from-volume db").fails(1, &["volume 'db', which it is to be copied from", "missing"]);
    assert_eq!(ctl.text("snapshot get tuesday", "/status/phase"), "failed");
    // What was kept before is as good as ever.
    assert_eq!(ctl.text("snapshot get monday", "/status/phase"), "ready");
    ctl.ok("volume create old --from-snapshot monday");
    for gone in ["volume remove twin", "snapshot remove tuesday", "snapshot remove monday", "volume remove db"] {
        ctl.ok(gone);
    }
    ctl.check();
}

#[test]
fn a_copy_that_was_made_just_before_a_crash_is_served_although_its_source_is_lost() {
    let Some(Stage { _mounted: mounted, mut cluster }) = stage(Backing::Embedded) else { return };
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 8M");
    write(&ctl, "db", 7);
    ctl.ok("volume create twin --from-volume db");
    let (id, served) = (ctl.text("volume get db", "/meta/id"), cluster.local_uri("twin"));
    cluster.manager.kill();
    cluster.block.kill();
    cluster.forget_what_was_made();
    lose(&mounted, &id);
    cluster.block.start_serving(&cluster.block_ctl().socket);
    until("the copy to be served", || (qemu_io(&served, &["read -P 7 0 1M"]).code == Some(0)).then_some(()));
    cluster.manager.start_serving(&ctl.socket);
    until("nothing but the source to be missed", || {
        let found: serde_json::Value = serde_json::from_slice(&ctl.run("check -o json").stdout).ok()?;
        let faults = found["faults"].as_array()?;
        let lost = |fault: &serde_json::Value| fault.as_str().is_some_and(|it| it.contains("'db'") || it.contains(&id));
        (!faults.is_empty() && faults.iter().all(lost) && found["services_asked"] == 1).then_some(())
    });
    qemu_io(&served, &["write -P 8 0 1M", "flush"]).succeeds();
}

#[test]
fn snapshots_at_one_instant_hold_a_writer_s_order_across_volumes() {
    let Some(Stage { _mounted, cluster }) = stage(Backing::Embedded) else { return };
    let ctl = cluster.ctl();
    for volume in ["data", "log"] {
        ctl.ok(&format!("volume create {volume} --size 1M"));
    }
    let (mut data, mut log) = (connected(&ctl, "data"), connected(&ctl, "log"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // The log is always written before the data: no instant has data that the log does not know of.
        scope.spawn(|| {
            for number in 1u64.. {
                log.write(0, &padded(number), false).expect("a write of the log");
                data.write(0, &padded(number), false).expect("a write of the data");
                if stop.load(Ordering::SeqCst) {
                    return;
                }
            }
        });
        for round in 0..8 {
            ctl.ok(&format!("snapshot create --volumes data,log r{round}"));
        }
        stop.store(true, Ordering::SeqCst);
    });
    for round in 0..8 {
        let [data, log] = ["data", "log"].map(|volume| {
            let copy = format!("copy-{volume}-{round}");
            ctl.ok(&format!("volume create {copy} --from-snapshot r{round}-{volume}"));
            let mut bytes = [0; 8];
            connected(&ctl, &copy).read(0, &mut bytes).expect("the copy's bytes");
            u64::from_le_bytes(bytes)
        });
        assert!(log == data || log == data + 1, "round {round}: the log is at {log}, the data at {data}");
    }
    ctl.check();
}

fn connected(ctl: &Control, volume: &str) -> symphony::nbd::Dialled {
    client(&ctl.uri(volume, "nbd")).expect("a connection")
}

fn padded(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

#[test]
fn a_volume_in_use_is_put_back_once_its_users_have_gone() {
    let Some(Stage { _mounted, cluster }) = stage(Backing::Embedded) else { return };
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 1M");
    write(&ctl, "db", 1);
    ctl.ok("snapshot create db then");
    write(&ctl, "db", 2);
    let mut user = connected(&ctl, "db");
    ctl.run("volume revert db --to then").fails(1, &["in use by 1 connections"]);
    // Another change on top does not put it back under its user.
    ctl.run("volume set db --iops 100000").fails(1, &["in use by 1 connections"]);
    user.write(0, &[3; 4096], true).expect("a write");
    qemu_io(&cluster.local_uri("db"), &["read -P 3 0 4k", "read -P 2 4k 1020k"]).succeeds();
    drop(user);
    until("the volume is put back", || (ctl.text("volume get db", "/status/phase") == "ready").then_some(()));
    holds(&ctl, "db", 1);
    ctl.check();
}

#[test]
fn a_block_service_killed_over_and_over_takes_every_snapshot_once() {
    let Some(Stage { _mounted, mut cluster }) = stage(Backing::Embedded) else { return };
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 4M");
    ctl.ok("volume create log --size 4M");
    write(&ctl, "db", 1);
    for round in 0..6 {
        ctl.ok(&format!("snapshot create --volumes db,log r{round} --no-wait"));
        ctl.ok(&format!("volume create c{round} --from-volume db --no-wait"));
        cluster.restart_block();
    }
    for round in 0..6 {
        for name in
            [format!("snapshot get r{round}-db"), format!("snapshot get r{round}-log"), format!("volume get c{round}")]
        {
            until(&name, || (ctl.text(&name, "/status/phase") == "ready").then_some(()));
        }
        // That it is ready may be what the service said before it was killed.
        let copy = cluster.local_uri(&format!("c{round}"));
        until("the copy to be served", || (qemu_io(&copy, &["read -P 1 0 1M"]).code == Some(0)).then_some(()));
        let together = |name: &str| ctl.text(&format!("snapshot get r{round}-{name}"), "/status/taken_at");
        assert_eq!(together("db"), together("log"), "one instant");
    }
    ctl.check_when_settled();
}

#[test]
fn a_snapshot_without_room_of_its_own_is_not_wiped_and_stays() {
    let Some(Stage { _mounted, cluster }) = stage(Backing::Embedded) else { return };
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 1M");
    ctl.ok("snapshot create db monday");
    ctl.run("snapshot remove monday --wipe").fails(4, &["'monday'", "'shares'", "driver file", "without --wipe"]);
    ctl.run("snapshot remove monday --wipe --no-wipe").fails(2, &["--wipe", "--no-wipe"]);
    ctl.run("snapshot remove tuesday --wipe").fails(3, &["no snapshot 'tuesday'"]);
    assert_eq!(ctl.text("snapshot get monday", "/status/phase"), "ready");
    ctl.ok("snapshot remove monday --no-wipe");
    assert!(ctl.names("snapshot").is_empty());
    ctl.check();
}

#[test]
fn what_makes_no_sense_is_refused_with_what_to_do() {
    let cluster = Cluster::join(Backing::Embedded, "");
    let ctl = cluster.ctl();
    ctl.run("snapshot create nothing s").fails(3, &["no volume 'nothing'"]);
    ctl.run("snapshot create lonely").fails(2, &["snapshot create VOLUME NAME"]);
    ctl.run("snapshot get s").fails(3, &["no snapshot 's'"]);
    ctl.run("volume create v --size 1M --from-snapshot s").fails(3, &["no snapshot 's'"]);
    ctl.run("volume create v --from-snapshot s --from-volume w").fails(2, &["cannot be used with"]);
    ctl.run("volume create v").fails(2, &["--size"]);
    ctl.run("volume create v --from-volume w --size 0").fails(2, &["must not be zero"]);
    // A place whose files cannot share blocks.
    let memory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    ctl.ok(&format!("pool create flat --path {}", path_text(&memory.path().join("pool"))));
    ctl.ok("volume create db --size 1M");
    ctl.run("snapshot create db s").fails(4, &["XFS and btrfs"]);
    ctl.run("volume create copy --from-volume db").fails(4, &["XFS and btrfs"]);
    assert!(ctl.names("snapshot").is_empty());
    ctl.check();
}
