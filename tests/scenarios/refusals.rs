//! Bad input: a clear error that names the object and the next step, its own exit code, and nothing changed.

use crate::stage::{Backing, Cluster, Control, finish, on_each_store, path_text, symphony};
use serde_json::Value;

on_each_store!(
    malformed_sizes_are_refused_in_words,
    malformed_names_are_refused_in_words,
    what_does_not_exist_is_named_and_where_to_look,
    what_the_present_state_forbids_is_refused_and_changes_nothing,
);

fn state(ctl: &Control) -> (Value, Value, Value) {
    (ctl.json("volume list"), ctl.json("pool list"), ctl.json("service list"))
}

fn cluster_with_a_volume(backing: Backing) -> Cluster {
    let cluster = Cluster::start(backing);
    cluster.ctl().ok("volume create a --size 64MiB");
    cluster
}

fn malformed_sizes_are_refused_in_words(backing: Backing) {
    let cluster = cluster_with_a_volume(backing);
    let ctl = cluster.ctl();
    let before = state(&ctl);
    for (size, said) in [
        ("0", "zero"),
        ("0GiB", "zero"),
        ("-1", "negative"),
        ("-5GiB", "negative"),
        ("513", "512"),
        ("1000", "512"),
        ("18446744073709551615", "limit"),
        ("18446744073709551616", "limit"),
        ("99999999999999999999999999PiB", "limit"),
        ("8191PiB1", "8191PiB1"),
        ("ten", "ten"),
        ("10XB", "10XB"),
        ("1.3GiB", "1.3GiB"),
        ("GiB", "GiB"),
        ("0x10", "0x10"),
    ] {
        for line in [format!("volume create new --size {size}"), format!("volume resize a --size {size}")] {
            ctl.run(&line).fails(2, &[said]);
        }
    }
    for (limit, said) in [("0", "zero"), ("-1", "negative"), ("18446744073709551616", "limit"), ("ten", "ten")] {
        let line = format!("pool create new --path {}/new --limit={limit}", path_text(cluster.path()));
        ctl.run(&line).fails(2, &[said]);
    }
    ctl.run_words(["volume", "create", "new", "--size", ""]).fails(2, &["--size"]);
    ctl.run("volume create new --size 1PiB").fails(4, &["1PiB", "'main'", "ask for less"]);
    ctl.run("volume create new --size 1PiB --pool main").fails(4, &["1PiB", "'main'", "ask for less"]);
    ctl.run("volume resize a --size 1PiB").fails(4, &["'main'"]);
    assert_eq!(state(&ctl), before);
    ctl.check();
}

fn malformed_names_are_refused_in_words(backing: Backing) {
    let cluster = cluster_with_a_volume(backing);
    let ctl = cluster.ctl();
    let before = state(&ctl);
    let long = "n".repeat(300);
    let path = cluster.path().join("other");
    for name in ["with space", "ümlaut", "slash/ed", "", ".", "..", "-", "a\nb", "%2e", &long] {
        ctl.run_words(["volume", "create", "--size", "1M", "--", name]).fails(2, &["name"]);
        ctl.run_words(["pool", "create", "--path", path_text(&path), "--", name]).fails(2, &["name"]);
    }
    // A name that reads as an id could stand for two objects.
    let id = ctl.text("volume get a", "/meta/id");
    ctl.run(&format!("volume create {id} --size 1M")).fails(2, &["name"]);
    assert!(!path.exists());
    assert_eq!(state(&ctl), before);
    ctl.check();
}

fn what_does_not_exist_is_named_and_where_to_look(backing: Backing) {
    let cluster = cluster_with_a_volume(backing);
    let ctl = cluster.ctl();
    let (before, file) = (state(&ctl), cluster.path().join("file"));
    for reference in ["nosuch", "00000000-0000-0000-0000-000000000000", "not/a/name", "01a204a9-1ebd-730f"] {
        for line in [
            format!("volume get {reference}"),
            format!("volume resize {reference} --size 1G"),
            format!("volume remove {reference}"),
            format!("volume upload {reference} {}", path_text(&file)),
            format!("volume download {reference} {}", path_text(&file)),
        ] {
            ctl.run(&line).fails(3, &[&format!("volume '{reference}'"), "volume list"]);
        }
        ctl.run(&format!("pool get {reference}")).fails(3, &[&format!("pool '{reference}'"), "pool list"]);
        ctl.run(&format!("pool remove {reference}")).fails(3, &[&format!("pool '{reference}'"), "pool list"]);
        ctl.run(&format!("volume create b --size 1M --pool {reference}")).fails(3, &[reference, "pool list"]);
        ctl.run(&format!("service get {reference}")).fails(3, &[reference, "service list"]);
        ctl.run(&format!("manager remove {reference}")).fails(3, &[reference, "service list"]);
        let line = format!("pool create b --path {}/b --service {reference}", path_text(cluster.path()));
        ctl.run(&line).fails(3, &[reference, "service list"]);
    }
    assert!(!file.exists(), "a download of nothing must not make a file");
    assert_eq!(state(&ctl), before);
    ctl.check();
}

fn what_the_present_state_forbids_is_refused_and_changes_nothing(backing: Backing) {
    let cluster = cluster_with_a_volume(backing);
    let ctl = cluster.ctl();
    let before = state(&ctl);
    ctl.run("volume create a --size 1M").fails(4, &["volume named 'a'", "exists already"]);
    let other = cluster.path().join("other");
    ctl.run(&format!("pool create main --path {}", path_text(&other))).fails(4, &["pool named 'main'"]);
    ctl.run("pool remove main").fails(4, &["'main'", "'a'", "volume remove"]);
    ctl.run("volume resize a --size 1M").fails(2, &["'a'", "shrink", "64MiB"]);
    ctl.run("volume remove a --wipe").fails(4, &["'a'", "'main'", "driver file", "without --wipe"]);
    ctl.run("snapshot create a s --room 20%").fails(2, &["'main'", "20%", "driver lvm"]);
    ctl.run("snapshot create a s --room 101%").fails(2, &["101%", "100%"]);
    ctl.run("pool set main --ceiling 1GiB").fails(2, &["'main'", "lvm-thin"]);
    let line = format!("pool create new --path {} --ceiling 1GiB", path_text(&other));
    ctl.run(&line).fails(2, &["--ceiling", "--limit"]);
    ctl.run("pool create rel --path relative/path").fails(2, &["--path", "absolute", "relative/path"]);
    assert_eq!(state(&ctl), before);
    ctl.check();
}

#[test]
fn a_volume_without_any_pool_says_how_to_make_one() {
    let cluster = Cluster::join(Backing::Embedded, "");
    let ctl = cluster.ctl();
    ctl.run("volume create a --size 1M").fails(4, &["pool create"]);
    ctl.check();
}

#[test]
fn a_pool_without_any_block_service_says_how_to_join_one() {
    let mut cluster = Cluster::bare(Backing::Embedded);
    cluster.manager.start_serving(&cluster.ctl().socket);
    cluster.init_manager("");
    let line = format!("pool create main --path {}", path_text(&cluster.pool()));
    cluster.ctl().run(&line).fails(4, &["no block service", "block init"]);
    cluster.ctl().check();
}

#[test]
fn a_socket_where_nobody_answers_is_named_with_how_to_start_somebody() {
    let scratch = tempfile::tempdir().expect("a directory");
    let missing = Control { socket: scratch.path().join("manager/control.sock") };
    missing.run("volume list").fails(5, &[path_text(&missing.socket), "manager run", "symphony dev", "--socket"]);
    missing.run("check").fails(5, &[path_text(&missing.socket)]);
    let block = Control { socket: scratch.path().join("block/control.sock") };
    block.run("block init 127.0.0.1").fails(5, &[path_text(&block.socket), "block run"]);
    // Where a dead process left its socket behind, and where there is no socket at all.
    let left = Control { socket: scratch.path().join("left.sock") };
    drop(std::os::unix::net::UnixListener::bind(&left.socket).expect("a socket"));
    left.run("volume list").fails(5, &[path_text(&left.socket)]);
    let file = Control { socket: scratch.path().join("file.sock") };
    std::fs::write(&file.socket, "no socket").expect("a file");
    file.run("volume list").fails(5, &[path_text(&file.socket)]);
    let port = crate::support::ports::free_ports(1)[0];
    let line = ["ctl", "--manager", &format!("127.0.0.1:{port}"), "volume", "list"];
    finish(symphony(line)).fails(5, &["no manager answers", &port.to_string()]);
}

#[test]
fn the_wrong_kind_of_socket_is_told_apart() {
    let cluster = Cluster::start(Backing::Embedded);
    cluster.ctl().run("block status").fails(1, &["not belong to a block service", "--socket"]);
    cluster.ctl().run("block init 127.0.0.1").fails(1, &["not belong to a block service", "--socket"]);
    let block = cluster.block_ctl();
    for line in ["volume list", "manager status", "manager init", "check", "pool create p --path /p"] {
        block.run(line).fails(1, &["not belong to a manager", "--socket"]);
    }
    let nbd = Control { socket: cluster.block_dir().join("nbd.sock") };
    let said = nbd.run("volume list");
    assert!(matches!(said.code, Some(1 | 5)), "{said:?}");
    let port = cluster.block_ctl().text("block status", "/addresses/rpc");
    finish(symphony(["ctl", "--manager", &port, "volume", "list"])).fails(1, &["not belong to a manager"]);
    cluster.ctl().check();
}
