//! A disk that fills while volumes are written.

use crate::stage::{Backing, Cluster, client, path_text, qemu_io, tool, until};
use std::path::{Path, PathBuf};

/// A small file system of its own, gone with the test.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn new(path: PathBuf, options: &str) -> Option<Self> {
        std::fs::create_dir(&path).expect("a directory");
        let mounted = tool("mount", &["-t", "tmpfs", "-o", options, "tmpfs", path_text(&path)]);
        if mounted.code != Some(0) {
            eprintln!("skipped: this user may not mount: {}", mounted.stderr);
            return None;
        }
        Some(Self { path })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: processes of a test that failed may still be in there.
        let removed = tool("umount", &["-l", path_text(&self.path)]);
        assert!(removed.code == Some(0) || std::thread::panicking(), "{removed:?}");
    }
}

/// Takes all the space that is left.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).expect("a file");
    let error = loop {
        if let Err(error) = file.write_all(&[0xff; 65_536]) {
            break error;
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
}

#[test]
fn a_disk_that_fills_fails_writes_and_nothing_else() {
    let mut cluster = Cluster::join(Backing::Embedded, "");
    let Some(disk) = SmallDisk::new(cluster.path().join("small"), "size=32m") else { return };
    let ctl = cluster.ctl();
    ctl.ok(&format!("pool create small --path {}", path_text(&disk.path)));
    ctl.ok(&format!("pool create main --path {}", path_text(&cluster.pool())));
    for (volume, pool) in [("thin", "small"), ("settled", "small"), ("elsewhere", "main")] {
        ctl.ok(&format!("volume create {volume} --size 8M --pool {pool}"));
    }
    qemu_io(&ctl.uri("settled", "nbd"), &["write -P 0x11 0 8M", "flush"]).succeeds();
    // Somebody else's file takes what the pool has promised.
    let ballast = disk.path.join("ballast");
    fill(&ballast);
    let mut connected = client(&ctl.uri("thin", "nbd")).expect("a connection");
    let error = connected.write(0, &[1; 1 << 20], false).expect_err("no space");
    assert!(error.to_string().contains("space"), "{error}");
    let outcome = qemu_io(&ctl.uri("thin", "nbd"), &["write -P 0x22 0 1M"]);
    let said = format!("{}{}", String::from_utf8_lossy(&outcome.stdout), outcome.stderr);
    assert!(said.contains("No space left on device"), "{said}");
    cluster.block.assert_alive();
    // What has its space already, and what lives elsewhere, is not disturbed; nor is the connection.
    qemu_io(&ctl.uri("settled", "nbd"), &["read -P 0x11 0 8M", "write -P 0x12 0 8M", "flush"]).succeeds();
    qemu_io(&ctl.uri("elsewhere", "nbd"), &["write -P 0x33 0 8M", "flush"]).succeeds();
    let mut seen = vec![9; 4096];
    connected.read(4 << 20, &mut seen).expect("a read");
    assert_eq!(seen, vec![0; 4096]);

    std::fs::remove_file(&ballast).expect("space again");
    connected.write(0, &[0x44; 1 << 20], true).expect("a write on the same connection");
    qemu_io(&ctl.uri("thin", "nbd"), &["read -P 0x44 0 1M", "write -P 0x55 0 8M", "flush"]).succeeds();
    qemu_io(&ctl.uri("settled", "nbd"), &["read -P 0x12 0 8M"]).succeeds();
    ctl.check();
    ctl.ok("volume remove thin");
    ctl.ok("volume remove settled");
    ctl.ok("pool remove small");
    ctl.check();
}

#[test]
fn an_upload_onto_a_disk_that_fills_says_so() {
    let cluster = Cluster::join(Backing::Embedded, "");
    let Some(disk) = SmallDisk::new(cluster.path().join("small"), "size=16m") else { return };
    let ctl = cluster.ctl();
    ctl.ok(&format!("pool create small --path {}", path_text(&disk.path)));
    ctl.ok("volume create thin --size 8M");
    let file = cluster.path().join("file");
    std::fs::write(&file, vec![7; 8 << 20]).expect("a file");
    let ballast = disk.path.join("ballast");
    fill(&ballast);
    ctl.run(&format!("volume upload thin {}", path_text(&file))).fails(1, &["'thin'", "space"]);
    std::fs::remove_file(&ballast).expect("space again");
    ctl.ok(&format!("volume upload thin {}", path_text(&file)));
    crate::stage::compare(&file, &ctl.uri("thin", "nbd"));
    ctl.check();
}

#[test]
fn a_volume_that_cannot_be_made_for_want_of_space_comes_to_be_when_there_is_some() {
    let cluster = Cluster::join(Backing::Embedded, "");
    let Some(disk) = SmallDisk::new(cluster.path().join("small"), "size=16m") else { return };
    let ctl = cluster.ctl();
    ctl.ok(&format!("pool create small --path {}", path_text(&disk.path)));
    let ballast = disk.path.join("ballast");
    fill(&ballast);
    ctl.run("volume create late --size 1M").fails(1, &["'late'", "space", "volume get late"]);
    std::fs::remove_file(&ballast).expect("space again");
    crate::stage::until("the volume to be ready", || {
        (ctl.text("volume get late", "/status/phase") == "ready").then_some(())
    });
    ctl.check();
}

/// A cluster whose block service keeps its ledger on a small disk of its own, with a volume `a` of 1 MiB.
fn with_a_small_ledger() -> Option<(Cluster, SmallDisk)> {
    let mut cluster = Cluster::bare(Backing::Embedded);
    let disk = SmallDisk::new(cluster.block_dir(), "size=8m,mode=700")?;
    cluster.manager.start_serving(&cluster.ctl().socket);
    cluster.block.start_serving(&cluster.block_ctl().socket);
    cluster.init_manager("");
    cluster.init_block();
    cluster.ctl().ok(&format!("pool create main --path {}", path_text(&cluster.pool())));
    cluster.ctl().ok("volume create a --size 1M");
    Some((cluster, disk))
}

#[test]
fn a_ledger_that_the_disk_does_not_take_delays_and_loses_nothing() {
    let Some((mut cluster, disk)) = with_a_small_ledger() else { return };
    let ctl = cluster.ctl();
    qemu_io(&ctl.uri("a", "nbd"), &["write -P 0x42 0 1M", "flush"]).succeeds();
    let ballast = disk.path.join("ballast");
    fill(&ballast);
    ctl.run("volume create b --size 1M --timeout 2s");
    ctl.run("volume remove a --timeout 2s");
    cluster.block.assert_alive();
    std::fs::remove_file(&ballast).expect("space again");
    crate::stage::until("what was asked for to be so", || (ctl.names("volume") == ["b"]).then_some(()));
    ctl.check_when_settled();
    cluster.restart_block();
    ctl.check_when_settled();
    // The directory is in use until the process is gone.
    cluster.block.kill();
}

#[test]
fn a_change_that_the_ledger_does_not_hold_keeps_no_volume_from_being_served_after_a_reboot() {
    let Some((mut cluster, disk)) = with_a_small_ledger() else { return };
    let ctl = cluster.ctl();
    let uri = ctl.uri("a", "nbd-unix");
    qemu_io(&uri, &["write -P 0x42 0 1M", "flush"]).succeeds();
    let ballast = disk.path.join("ballast");
    fill(&ballast);
    assert_ne!(ctl.run("volume resize a --size 2M --timeout 2s").code, Some(0), "what may be lost is not done");
    cluster.manager.kill();
    cluster.block.kill();
    std::fs::remove_file(&ballast).expect("space again");
    cluster.block.start_serving(&cluster.block_ctl().socket);
    let served = || (qemu_io(&uri, &["read -P 0x42 0 1M"]).code == Some(0)).then_some(());
    crate::stage::until("the volume, without any manager", served);
    cluster.manager.start_serving(&cluster.ctl().socket);
    crate::stage::until("the volume to grow", || {
        // The manager may be starting still.
        let volume: serde_json::Value = serde_json::from_slice(&ctl.run("volume get a -o json").stdout).ok()?;
        (volume.pointer("/status/size")?.as_u64()? == 2 << 20).then_some(())
    });
    ctl.check_when_settled();
    cluster.block.kill();
}

#[test]
fn a_move_to_a_disk_that_fills_says_so_and_can_be_called_off_or_goes_on_when_there_is_room() {
    let cluster = Cluster::join(Backing::Embedded, "");
    let Some(disk) = SmallDisk::new(cluster.path().join("small"), "size=32m") else { return };
    let ctl = cluster.ctl();
    ctl.ok(&format!("pool create main --path {}", path_text(&cluster.pool())));
    let rules = "--overcommit 4 --warn-at 100 --refuse-at 100";
    ctl.ok(&format!("pool create small --path {} {rules}", path_text(&disk.path)));
    ctl.ok("volume create hog --size 24M --pool small");
    qemu_io(&ctl.uri("hog", "nbd"), &["write -P 0x11 0 24M", "flush"]).succeeds();
    ctl.ok("volume create db --size 16M --pool main");
    qemu_io(&ctl.uri("db", "nbd"), &["write -P 0x22 0 16M", "flush"]).succeeds();

    ctl.run("volume move db --pool small").fails(1, &["space", "--cancel"]);
    ctl.ok("volume move db --cancel");
    qemu_io(&ctl.uri("db", "nbd"), &["read -P 0x22 0 16M", "write -P 0x33 0 4k", "flush"]).succeeds();
    qemu_io(&ctl.uri("hog", "nbd"), &["read -P 0x11 0 24M"]).succeeds();

    // A look at the disk while the copy filled it would have the move refused as for a pool that is full.
    until("the pool to have room again", || (ctl.text("pool get small", "/status/level") == "ok").then_some(()));
    ctl.run("volume move db --pool small").fails(1, &["space", "--cancel"]);
    ctl.ok("volume remove hog");
    let small = ctl.text("pool get small", "/meta/id");
    until("the volume to be moved", || (ctl.text("volume get db", "/status/placement/0/pool") == small).then_some(()));
    ctl.check_when_settled();
    qemu_io(&ctl.uri("db", "nbd"), &["read -P 0x33 0 4k", "read -P 0x22 4k 16380k"]).succeeds();
    ctl.check();
}
