//! Pools in places that are not theirs.

use crate::stage::{Backing, Cluster, on_each_store, path_text, qemu_io, until};

on_each_store!(a_directory_has_one_pool, a_pool_that_cannot_be_made_says_why_and_can_be_removed);

fn a_directory_has_one_pool(backing: Backing) {
    let cluster = Cluster::start(backing);
    let (ctl, path) = (cluster.ctl(), cluster.pool());
    ctl.ok("volume create a --size 1M");
    qemu_io(&ctl.uri("a", "nbd"), &["write -P 0x42 0 1M", "flush"]).succeeds();
    let pool = path_text(&path).to_owned();
    // The same path, the same directory by another path, and a place within it.
    ctl.run(&format!("pool create second --path {pool}")).fails(4, &[&pool, "'main'"]);
    let link = cluster.path().join("link");
    std::os::unix::fs::symlink(&path, &link).expect("a link");
    for place in [format!("{pool}/."), format!("{pool}//"), path_text(&link).to_owned(), format!("{pool}/volumes/x")] {
        let outcome = ctl.run(&format!("pool create second --path {place}"));
        assert!(matches!(outcome.code, Some(1 | 4)), "{outcome:?}");
        assert!(outcome.stderr.contains("'main'"), "{place}: {}", outcome.stderr);
        if ctl.names("pool").contains(&"second".to_owned()) {
            ctl.ok("pool remove second");
        }
    }
    qemu_io(&ctl.uri("a", "nbd"), &["read -P 0x42 0 1M"]).succeeds();
    assert_eq!(ctl.names("pool"), ["main"]);
    ctl.check();
}

fn a_pool_that_cannot_be_made_says_why_and_can_be_removed(backing: Backing) {
    let cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    let full = cluster.path().join("full");
    std::fs::create_dir(&full).expect("a directory");
    std::fs::write(full.join("letter.txt"), "mine").expect("a file");
    let file = cluster.path().join("file");
    std::fs::write(&file, "mine").expect("a file");
    for (place, said) in [
        (full.clone(), "letter.txt"),
        (file.clone(), "not a directory"),
        (file.join("below"), "file"),
        ("/proc/nowhere".into(), "/proc/nowhere"),
    ] {
        let line = format!("pool create bad --path {}", path_text(&place));
        ctl.run(&line).fails(1, &["'bad'", path_text(&place), said, "pool get bad"]);
        assert_eq!(ctl.text("pool get bad", "/status/phase"), "failed");
        assert!(ctl.text("pool get bad", "/status/message").contains(said));
        ctl.run("volume create v --size 1M --pool bad").fails(4, &["'bad'", "not ready", "pool get bad"]);
        ctl.ok("pool remove bad");
    }
    assert_eq!(std::fs::read_to_string(full.join("letter.txt")).expect("the file"), "mine");
    assert_eq!(std::fs::read_dir(&full).expect("the directory").count(), 1);
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "mine");
    ctl.check();
}

#[test]
fn a_pool_that_could_not_be_made_comes_to_be_once_its_place_is_free() {
    let cluster = Cluster::start(Backing::Embedded);
    let (ctl, place) = (cluster.ctl(), cluster.path().join("later"));
    std::fs::write(&place, "in the way").expect("a file");
    ctl.run(&format!("pool create later --path {}", path_text(&place))).fails(1, &["'later'"]);
    std::fs::remove_file(&place).expect("a free place");
    until("the pool to be ready", || (ctl.text("pool get later", "/status/phase") == "ready").then_some(()));
    ctl.ok("volume create a --size 1M --pool later");
    ctl.check();
}

#[test]
fn a_directory_of_another_cluster_s_pool_is_refused_whether_or_not_that_one_runs() {
    let (mut owner, other) = (Cluster::start(Backing::Embedded), Cluster::start(Backing::Embedded));
    owner.ctl().ok("volume create a --size 1M");
    qemu_io(&owner.ctl().uri("a", "nbd"), &["write -P 0x42 0 1M", "flush"]).succeeds();
    let cluster_id = owner.ctl().text("manager status", "/cluster/id");
    let line = format!("pool create theirs --path {}", path_text(&owner.pool()));
    other.ctl().run(&line).fails(1, &["'theirs'", path_text(&owner.pool()), "'main'", &cluster_id]);
    other.ctl().ok("pool remove theirs");
    owner.block.kill();
    other.ctl().run(&line).fails(1, &["'theirs'", path_text(&owner.pool()), "'main'", &cluster_id]);
    other.ctl().ok("pool remove theirs");
    owner.block.start_serving(&owner.block_ctl().socket);
    owner.ctl().check_when_settled();
    qemu_io(&owner.ctl().uri("a", "nbd"), &["read -P 0x42 0 1M"]).succeeds();
    other.ctl().check();
}

#[test]
fn a_removed_pool_s_directory_stays_and_can_be_used_again() {
    let cluster = Cluster::start(Backing::Embedded);
    let (ctl, path) = (cluster.ctl(), cluster.pool());
    ctl.ok("volume create a --size 1M");
    ctl.ok("volume remove a");
    ctl.ok("pool remove main");
    assert_eq!(std::fs::read_dir(&path).expect("the directory").count(), 0);
    ctl.ok(&format!("pool create again --path {}", path_text(&path)));
    ctl.ok("volume create a --size 1M");
    ctl.check();
}

#[test]
fn a_pool_whose_directory_is_gone_is_lost_and_never_made_anew_in_its_place() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let (ctl, path) = (cluster.ctl(), cluster.pool());
    ctl.ok("volume create a --size 1M");
    qemu_io(&ctl.uri("a", "nbd"), &["write -P 0x42 0 1M", "flush"]).succeeds();
    cluster.block.kill();
    let away = cluster.path().join("unmounted");
    std::fs::rename(&path, &away).expect("a directory that goes away");
    std::fs::create_dir(&path).expect("an empty mount point");
    cluster.block.start_serving(&cluster.block_ctl().socket);
    until("the pool to have failed", || {
        let pool = ctl.json("pool get main");
        (pool["status"]["phase"] == "failed").then_some(())
    });
    assert_eq!(std::fs::read_dir(&path).expect("the mount point").count(), 0, "nothing is written beside the pool");
    let volume = until("the volume to say so", || {
        let volume = ctl.json("volume get a");
        volume["status"]["message"].as_str().map(str::to_owned)
    });
    assert!(volume.contains("pool"), "{volume}");
    std::fs::remove_dir(&path).expect("an empty mount point");
    std::fs::rename(&away, &path).expect("a directory that is back");
    ctl.check_when_settled();
    qemu_io(&ctl.uri("a", "nbd"), &["read -P 0x42 0 1M"]).succeeds();
    ctl.check();
}
