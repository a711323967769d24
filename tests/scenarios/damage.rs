//! Files that something has damaged: named, kept byte for byte, and no data touched.

use crate::stage::{Backing, Cluster, Control, client, finish, on_each_store, path_text, qemu_io, symphony, until};
use std::path::Path;

on_each_store!(a_damaged_ledger_is_said_kept_aside_and_made_good_by_the_manager);

/// What can happen to a file, told apart by the number.
fn damage(path: &Path, kind: usize) -> Vec<u8> {
    let mut bytes = std::fs::read(path).expect("a file");
    match kind {
        0 => bytes.clear(),
        1 => bytes.truncate(bytes.len() / 2),
        2 => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x20;
        }
        3 => bytes = b"{}".to_vec(),
        _ => bytes = (0..=255).collect(),
    }
    std::fs::write(path, &bytes).expect("a damaged file");
    bytes
}

#[test]
fn a_start_with_a_damaged_identity_is_refused_and_leaves_the_file_as_it_is() {
    let mut cluster = Cluster::start(Backing::Embedded);
    cluster.ctl().ok("volume create a --size 1M");
    for (role, directory) in [("manager", cluster.manager_dir()), ("block", cluster.block_dir())] {
        let identity = directory.join("identity.json");
        let whole = std::fs::read(&identity).expect("an identity");
        if role == "manager" {
            cluster.manager.kill()
        } else {
            cluster.block.kill()
        }
        for kind in 0..5 {
            let damaged = damage(&identity, kind);
            let mut arguments = vec![role, "run", "--config-dir", path_text(&directory), "--listen-port", "0"];
            if role == "block" {
                arguments.extend(["--nbd-port", "0"]);
            }
            finish(symphony(arguments)).fails(1, &[path_text(&identity), "damaged", "left as it is"]);
            assert_eq!(std::fs::read(&identity).expect("an identity"), damaged);
            std::fs::write(&identity, &whole).expect("an identity that is whole again");
        }
    }
    cluster.manager.start_serving(&cluster.ctl().socket);
    cluster.block.start_serving(&cluster.block_ctl().socket);
    cluster.ctl().check_when_settled();
}

fn a_damaged_ledger_is_said_kept_aside_and_made_good_by_the_manager(backing: Backing) {
    let mut cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 1M");
    qemu_io(&ctl.uri("a", "nbd"), &["write -P 0x42 0 1M", "flush"]).succeeds();
    let ledger = cluster.block_dir().join("ledger.json");
    for kind in 0..5 {
        cluster.block.kill();
        let damaged = damage(&ledger, kind);
        cluster.block.start_serving(&cluster.block_ctl().socket);
        ctl.check_when_settled();
        qemu_io(&ctl.uri("a", "nbd"), &["read -P 0x42 0 1M"]).succeeds();
        let log = cluster.block.log();
        assert!(log.contains("the ledger is damaged"), "{log}");
        let kept = kept_aside(&ledger);
        assert!(kept.contains(&damaged), "the damaged ledger is not kept");
        assert!(kept.len() > kind, "an older damaged ledger was given up for this one");
    }
    ctl.check();
}

/// What the files hold that a damaged one was put aside as.
fn kept_aside(path: &Path) -> Vec<Vec<u8>> {
    let stem = path.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
    let entries = std::fs::read_dir(path.parent().expect("a directory")).expect("the directory");
    let files = entries.map(|entry| entry.expect("an entry"));
    let kin = files.filter(|entry| entry.file_name().to_string_lossy().starts_with(&stem) && *entry.path() != *path);
    kin.map(|entry| std::fs::read(entry.path()).expect("a file")).collect()
}

/// Restarts the block service on a damaged file, expects `complain` to become true, and that all is well once the file
/// is as it was.
fn heals(cluster: &mut Cluster, file: &Path, complain: impl Fn(&Control, &str) -> bool) {
    let ctl = cluster.ctl();
    for kind in 0..3 {
        cluster.block.kill();
        let whole = std::fs::read(file).expect("a file");
        let damaged = damage(file, kind);
        cluster.block.start_serving(&cluster.block_ctl().socket);
        until("the damage to be told", || complain(&ctl, path_text(file)).then_some(()));
        ctl.run("check").fails(1, &["fault"]);
        assert_eq!(std::fs::read(file).expect("a file"), damaged, "a damaged file was changed");
        std::fs::write(file, &whole).expect("a file that is whole again");
        ctl.check_when_settled();
    }
}

#[test]
fn a_damaged_pool_marker_is_named_and_the_pool_is_back_when_it_is_repaired() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 1M");
    qemu_io(&ctl.uri("a", "nbd"), &["write -P 0x42 0 1M", "flush"]).succeeds();
    let marker = cluster.pool().join("symphony-pool.json");
    heals(&mut cluster, &marker, |ctl, file| {
        let pool = ctl.json("pool get main");
        pool["status"]["phase"] == "failed" && pool["status"]["message"].to_string().contains(file)
    });
    qemu_io(&ctl.uri("a", "nbd"), &["read -P 0x42 0 1M"]).succeeds();
    ctl.check();
}

#[test]
fn a_damaged_sidecar_is_named_and_harms_no_other_volume() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    for volume in ["a", "b"] {
        ctl.ok(&format!("volume create {volume} --size 1M"));
        qemu_io(&ctl.uri(volume, "nbd"), &["write -P 0x42 0 1M", "flush"]).succeeds();
    }
    let id = ctl.text("volume get a", "/meta/id");
    let (sidecar, other) = (cluster.pool().join(format!("volumes/{id}.json")), cluster.local_uri("b"));
    heals(&mut cluster, &sidecar, |ctl, file| {
        let volume = ctl.json("volume get a");
        let told = volume["status"]["phase"] == "failed" && volume["status"]["message"].to_string().contains(file);
        told && client(&other).is_ok()
    });
    for volume in ["a", "b"] {
        qemu_io(&ctl.uri(volume, "nbd"), &["read -P 0x42 0 1M"]).succeeds();
    }
    ctl.check();
}

#[test]
fn a_missing_image_is_an_error_and_never_made_anew_as_zeros() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 1M");
    qemu_io(&ctl.uri("a", "nbd"), &["write -P 0x42 0 1M", "flush"]).succeeds();
    let id = ctl.text("volume get a", "/meta/id");
    let image = cluster.pool().join(format!("volumes/{id}.img"));
    cluster.block.kill();
    let away = cluster.path().join("image");
    std::fs::rename(&image, &away).expect("an image that goes away");
    cluster.block.start_serving(&cluster.block_ctl().socket);
    until("the volume to have failed", || (ctl.text("volume get a", "/status/phase") == "failed").then_some(()));
    assert!(!image.exists(), "an image was made anew");
    client(&cluster.local_uri("a")).expect_err("nothing is served in its place");
    ctl.run("check").fails(1, &["fault"]);
    std::fs::rename(&away, &image).expect("an image that is back");
    ctl.check_when_settled();
    qemu_io(&ctl.uri("a", "nbd"), &["read -P 0x42 0 1M"]).succeeds();
    ctl.check();
}

#[test]
fn a_damaged_store_ends_the_start_and_is_named_and_kept() {
    let mut cluster = Cluster::start(Backing::Embedded);
    cluster.ctl().check();
    cluster.manager.kill();
    let (store, directory) = (cluster.manager_dir().join("store.redb"), cluster.manager_dir());
    for kind in [1, 4] {
        let whole = std::fs::read(&store).expect("a store");
        let damaged = damage(&store, kind);
        let arguments = ["manager", "run", "--config-dir", path_text(&directory), "--listen-port", "0"];
        finish(symphony(arguments)).fails(1, &["store.redb"]);
        assert!(std::fs::read(&store).expect("a store") == damaged, "a damaged store was changed");
        std::fs::write(&store, whole).expect("a store that is whole again");
    }
    cluster.manager.start_serving(&cluster.ctl().socket);
    cluster.ctl().check_when_settled();
}
