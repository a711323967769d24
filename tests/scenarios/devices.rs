//! Pools of devices, as users make them, on loop devices: volume groups need no device-mapper, their volumes do.

use crate::stage::{Backing, Cluster, Control, on_each_store, path_text, tool};
use crate::support::loops::Loops;
use serde_json::Value;
use std::path::{Path, PathBuf};

on_each_store!(a_pool_of_devices_is_made_extended_shown_and_let_go_of);

/// Disks, if this machine lets us have them.
fn disks(count: usize) -> Option<Loops> {
    tool("lvm", &["version"]).succeeds();
    Loops::new(count)
}

fn device_list(ctl: &Control, options: &str) -> Vec<Value> {
    ctl.json(&format!("device list {options}")).as_array().expect("a list").clone()
}

fn find<'v>(devices: &'v [Value], path: &Path) -> &'v Value {
    let is_it = |device: &&Value| device["path"] == path_text(path);
    devices.iter().find(is_it).unwrap_or_else(|| panic!("{} is not among {devices:?}", path.display()))
}

fn a_pool_of_devices_is_made_extended_shown_and_let_go_of(backing: Backing) {
    let Some(loops) = disks(3) else { return };
    let cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    let [one, two, three] = loops.devices.as_slice() else { panic!("three disks") };
    let [a, b, c] = [one, two, three].map(|path| path_text(path));
    tool("mke2fs", &["-q", "-t", "ext4", b]).succeeds();
    let line = format!("pool create fast --driver lvm --device {a} --device {b}");
    ctl.run(&line).fails(1, &["'fast'", b, "ext4", "--wipe"]);
    assert_eq!(ctl.text("pool get fast", "/status/phase"), "failed");
    assert_eq!(find(&device_list(&ctl, ""), one)["carries"], Value::Null, "nothing was begun");
    ctl.ok("pool remove fast");
    ctl.ok(&format!("{line} --wipe {b}"));
    let shown = ctl.ok("pool get fast");
    assert!(shown.contains("Devices") && shown.contains(a) && shown.contains(b), "{shown}");
    assert!(ctl.ok("pool list -o wide").contains(a));
    let capacity = |ctl: &Control| ctl.json("pool get fast")["status"]["capacity"].clone();
    let before = capacity(&ctl);
    // Devices that are a pool's already, and one that cannot be taken and is given up again.
    ctl.run(&format!("pool create other --driver lvm-thin --device {b}")).fails(4, &[b, "pool 'fast'"]);
    ctl.run(&format!("pool extend fast --device {a}")).fails(4, &[a, "pool 'fast'"]);
    ctl.run("pool extend fast --device /dev/nowhere").fails(1, &["/dev/nowhere"]);
    ctl.ok("pool extend fast --cancel /dev/nowhere");
    assert_eq!(capacity(&ctl), before);
    ctl.ok(&format!("pool extend fast --device {c}"));
    assert_ne!(capacity(&ctl), before);
    let said = find(&device_list(&ctl, ""), three)["carries"].clone();
    assert!(said.as_str().is_some_and(|said| said.contains("LVM")), "{said}");
    ctl.ok("pool remove fast");
    let after = device_list(&ctl, "");
    assert!(loops.devices.iter().all(|path| find(&after, path)["carries"] == Value::Null), "{after:?}");
    ctl.check();
}

#[test]
fn words_that_name_no_possible_pool_are_refused_before_anything_is_asked() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    for (words, said) in [
        ("--driver lvm", "needs a device"),
        ("--driver lvm-thin --device vdb", "'vdb' is not an absolute path"),
        ("--driver lvm --device /dev/../dev/vdb", "'..'"),
        ("--driver lvm --device /dev/vdb --device /dev/vdb", "named twice"),
        ("--driver lvm --device /dev/vdb --wipe /dev/vdc", "/dev/vdc is to be wiped"),
        ("--driver lvm --device /dev/vdb --path /srv", "--path"),
        ("--driver lvm-thin --device /dev/vdb --limit 5GiB", "--limit"),
        ("--path /srv --device /dev/vdb", "--device"),
        ("", "--path"),
    ] {
        ctl.run(&format!("pool create odd {words}")).fails(2, &[said]);
    }
    ctl.run("pool extend main --device vdb").fails(2, &["'vdb'"]);
    ctl.run("pool extend main --device /dev/vdb").fails(4, &["'main'", "files"]);
    ctl.run("pool extend nobody --device /dev/vdb").fails(3, &["nobody"]);
    assert_eq!(ctl.names("pool"), ["main"]);
}

#[test]
fn devices_that_are_used_small_or_not_there_fail_a_pool_with_the_reason_and_lose_nothing() {
    let Some(loops) = disks(2) else { return };
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    let [mounted, read_only] = loops.devices.as_slice() else { panic!("two disks") };
    tool("mke2fs", &["-q", "-t", "ext4", path_text(mounted)]).succeeds();
    let place = cluster.path().join("mounted");
    std::fs::create_dir(&place).expect("a directory");
    tool("mount", &[path_text(mounted), path_text(&place)]).succeeds();
    std::fs::write(place.join("letter"), "mine").expect("a file");
    tool("blockdev", &["--setro", path_text(read_only)]).succeeds();
    let file = cluster.path().join("file");
    std::fs::write(&file, "mine").expect("a file");
    let nowhere = PathBuf::from("/dev/nowhere");
    for (device, said) in
        [(mounted, "mounted at"), (read_only, "read-only"), (&nowhere, "no device"), (&file, "no device")]
    {
        let device = path_text(device);
        let line = format!("pool create bad --driver lvm --device {device} --wipe {device}");
        ctl.run(&line).fails(1, &["'bad'", device, said, "pool get bad"]);
        ctl.ok("pool remove bad");
    }
    assert_eq!(std::fs::read_to_string(place.join("letter")).expect("the file"), "mine");
    let devices = device_list(&ctl, "");
    let uses = find(&devices, mounted)["uses"].to_string();
    assert!(uses.contains(path_text(&place)), "{uses}");
    assert_eq!(find(&devices, read_only)["read_only"], true);
    tool("umount", &[path_text(&place)]).succeeds();
    tool("blockdev", &["--setrw", path_text(read_only)]).succeeds();
    ctl.check();
}

#[test]
fn devices_are_listed_by_each_way_of_asking() {
    let Some(loops) = disks(1) else { return };
    let cluster = Cluster::start(Backing::Embedded);
    let (ctl, own, disk) = (cluster.ctl(), cluster.block_ctl(), &loops.devices[0]);
    let id = cluster.service_id();
    for listed in [device_list(&ctl, ""), device_list(&ctl, &format!("--service {id}")), device_list(&own, "")] {
        let seen = find(&listed, disk);
        assert_eq!((seen["size"].as_u64(), seen["carries"].is_null()), (Some(256 << 20), true), "{seen}");
        assert_eq!(seen["uses"], Value::Array(Vec::new()));
    }
    assert_eq!(find(&device_list(&ctl, ""), disk)["service"], id.as_str());
    assert!(ctl.names("device").contains(&path_text(disk).to_owned()));
    let shown = ctl.ok("device list -o wide");
    assert!(shown.contains("CARRIES") && shown.contains(path_text(disk)), "{shown}");
    ctl.run("device list --service nobody").fails(3, &["nobody"]);
}
