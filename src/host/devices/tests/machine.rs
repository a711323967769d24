//! A machine made of directories: what is listed, who uses what, and what a pool may have.

use super::super::{Carries, Claim, Device, Kind, Refused, Roots, SMALLEST, Scanner, judge};
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const SIZE: u64 = 1 << 30;

struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for name in ["sys/class/block", "dev/disk/by-id", "proc/self"] {
            fs::create_dir_all(machine.0.path().join(name)).unwrap();
        }
        machine.set("proc/self/mountinfo", "");
        machine.set("proc/swaps", "Filename Type Size Used Priority\n");
        machine
    }

    fn set(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("dev").join(name)
    }

    /// A device below `parent` of `/sys/devices`, with a file as its node.
    fn add(&self, parent: &str, name: &str, number: &str) {
        let place = self.0.path().join("sys/devices").join(parent).join(name);
        fs::create_dir_all(place.join("holders")).unwrap();
        fs::create_dir_all(place.join("queue")).unwrap();
        for (attribute, value) in [("dev", number), ("ro", "0"), ("removable", "0"), ("queue/rotational", "0")] {
            fs::write(place.join(attribute), format!("{value}\n")).unwrap();
        }
        fs::write(place.join("size"), (SIZE / 512).to_string()).unwrap();
        symlink(&place, self.0.path().join("sys/class/block").join(name)).unwrap();
        fs::File::create(self.path(name)).unwrap().set_len(SIZE).unwrap();
    }

    fn disk(&self, name: &str, number: &str) {
        self.add("", name, number);
    }

    fn partition(&self, disk: &str, name: &str, number: &str) {
        self.add(disk, name, number);
        self.set(&format!("sys/devices/{disk}/{name}/partition"), "1");
    }

    fn write(&self, name: &str, at: u64, bytes: &[u8]) {
        fs::File::options().write(true).open(self.path(name)).unwrap().write_all_at(bytes, at).unwrap();
    }

    fn roots(&self) -> Roots {
        let at = |name: &str| self.0.path().join(name);
        Roots { sys: at("sys"), dev: at("dev"), proc: at("proc") }
    }

    fn scan(&self) -> Vec<Device> {
        Scanner::new(self.roots(), Duration::from_secs(60)).scan().unwrap()
    }

    fn device(&self, name: &str) -> Device {
        self.scan().into_iter().find(|device| device.name == name).unwrap()
    }
}

fn mount(number: &str, at: &str, kind: &str, source: &str) -> String {
    format!("36 35 {number} / {at} rw,noatime shared:1 - {kind} {source} rw\n")
}

#[test]
fn a_disk_is_described_by_what_sysfs_and_udev_know() {
    let machine = Machine::new();
    machine.disk("sdb", "8:16");
    for (name, value) in [
        ("device/vendor", "SEAGATE "),
        ("device/model", "ST1200MM0009 "),
        ("queue/rotational", "1\n"),
        ("removable", "1\n"),
        ("device/vpd_pg80", "\0\u{80}\0\u{8}  WFK012  "),
    ] {
        machine.set(&format!("sys/devices/sdb/{name}"), value);
    }
    for link in ["wwn-0x5000c500a", "scsi-SSEAGATE_ST1200MM0009_WFK012", "lvm-pv-uuid-abc", "scsi-35000c500a"] {
        symlink(machine.path("sdb"), machine.path("disk/by-id").join(link)).unwrap();
    }
    let device = machine.device("sdb");
    assert_eq!(device.path, machine.path("sdb"));
    assert_eq!(device.stable_path, Some(machine.path("disk/by-id/scsi-35000c500a")));
    assert_eq!((device.number, device.size.as_u64()), ((8, 16), SIZE));
    assert_eq!(device.model.as_deref(), Some("SEAGATE ST1200MM0009"));
    assert_eq!((device.rotational, device.removable, device.read_only), (true, true, false));
    assert_eq!((device.kind, device.carries), (Kind::Disk, Carries::Known(vec![])));
}

#[test]
fn what_is_no_disk_is_not_listed_and_odd_attributes_are_passed_over() {
    let machine = Machine::new();
    for (name, number) in [("ram0", "1:0"), ("zram0", "253:0"), ("sr0", "11:0"), ("loop0", "7:0"), ("vda", "254:0")] {
        machine.disk(name, number);
    }
    machine.disk("nvme0c0n1", "259:1");
    machine.set("sys/devices/nvme0c0n1/hidden", "1\n");
    machine.set("sys/devices/loop0/size", "0\n");
    machine.disk("vdb", "nonsense");
    machine.disk("vdc", "254:32");
    machine.set("sys/devices/vdc/size", "18446744073709551615");
    fs::write(machine.0.path().join("sys/devices/vda/serial"), [0xff, 0xfe, b'x']).unwrap();
    let found = machine.scan();
    let names: Vec<&str> = found.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(names, ["vda"]);
    assert!(found[0].serial.as_deref().unwrap().ends_with('x'));
}

#[test]
fn somebody_s_volumes_are_listed_and_never_read() {
    let machine = Machine::new();
    machine.disk("dm-0", "252:0");
    machine.set("sys/devices/dm-0/dm/uuid", "LVM-abcdef\n");
    machine.set("sys/devices/dm-0/dm/name", "vg-guest\n");
    machine.disk("nbd0", "43:0");
    for name in ["dm-0", "nbd0"] {
        machine.write(name, 512, b"LABELONE");
        let device = machine.device(name);
        assert_eq!(device.carries, Carries::NotLookedAt);
        assert!(matches!(judge(&device, true), Err(Refused::WrongKind { .. })), "{name}");
    }
    machine.disk("dm-1", "252:1");
    machine.set("sys/devices/dm-1/dm/uuid", "mpath-3600\n");
    machine.set("sys/devices/dm-1/dm/name", "mpatha\n");
    assert_eq!(judge(&machine.device("dm-1"), false), Ok(()));
}

#[test]
fn a_device_that_carries_something_is_had_only_if_it_is_named_for_wiping() {
    let machine = Machine::new();
    machine.disk("vdb", "254:16");
    assert_eq!(judge(&machine.device("vdb"), false), Ok(()));
    machine.write("vdb", 0, b"XFSB");
    let refused = judge(&machine.device("vdb"), false).unwrap_err();
    assert!(refused.to_string().contains("carries a file system (xfs)"), "{refused}");
    assert!(refused.to_string().contains("--wipe"), "{refused}");
    assert_eq!(judge(&machine.device("vdb"), true), Ok(()));
}

#[test]
fn a_read_only_device_and_one_that_is_too_small_are_refused_always() {
    let machine = Machine::new();
    machine.disk("vdb", "254:16");
    machine.set("sys/devices/vdb/ro", "1\n");
    assert!(matches!(judge(&machine.device("vdb"), true), Err(Refused::ReadOnly { .. })));
    machine.partition("vdb", "vdb1", "254:17");
    assert!(matches!(judge(&machine.device("vdb1"), true), Err(Refused::ReadOnly { .. })), "a part of it");
    machine.disk("vdc", "254:32");
    machine.set("sys/devices/vdc/size", &(SMALLEST.as_u64() / 512 - 1).to_string());
    let refused = judge(&machine.device("vdc"), true).unwrap_err();
    assert!(matches!(refused, Refused::TooSmall { .. }), "{refused}");
}

/// Refused whatever the user says, with these words.
fn in_use(device: &Device, words: &str) {
    for wipe in [false, true] {
        let refused = judge(device, wipe).unwrap_err();
        assert!(matches!(refused, Refused::InUse { .. }), "{refused}");
        assert!(refused.to_string().contains(words), "{refused}");
    }
}

#[test]
fn a_mounted_device_a_disk_with_a_mounted_partition_and_a_partition_of_a_mounted_disk_are_refused_always() {
    let machine = Machine::new();
    for disk in ["vda", "vdb", "vdc"] {
        let minor = u32::from(disk.as_bytes()[2] - b'a') * 16;
        machine.disk(disk, &format!("254:{minor}"));
        machine.partition(disk, &format!("{disk}1"), &format!("254:{}", minor + 1));
        machine.partition(disk, &format!("{disk}2"), &format!("254:{}", minor + 2));
    }
    let mounts = [
        mount("254:1", "/with\\040blank", "ext4", "/dev/root"),
        mount("254:16", "/srv", "xfs", "/dev/vdb"),
        "nonsense\n\n- - -\n1 2 x:y / / - a b\n".to_owned(),
    ];
    machine.set("proc/self/mountinfo", &mounts.concat());
    in_use(&machine.device("vda1"), "mounted at /with blank");
    in_use(&machine.device("vda"), "vda1: mounted at /with blank");
    in_use(&machine.device("vdb"), "mounted at /srv");
    in_use(&machine.device("vdb1"), "vdb: mounted at /srv");
    assert_eq!(judge(&machine.device("vda2"), false), Ok(()), "a spare partition beside a mounted one is a device");
    assert_eq!(judge(&machine.device("vdc"), false), Ok(()));
    assert_eq!(machine.device("vdc1").kind, Kind::Partition { of: "vdc".into() });
}

#[test]
fn swap_holders_and_all_devices_of_a_mounted_btrfs_are_in_use() {
    let machine = Machine::new();
    for (name, number) in [("vda", "254:0"), ("vdb", "254:16"), ("vdc", "254:32"), ("vdd", "254:48")] {
        machine.disk(name, number);
    }
    let path = |name| machine.path(name).display().to_string();
    machine.set("proc/swaps", &format!("Filename Type\n{} partition 1 0 -2\n", path("vda")));
    fs::write(machine.0.path().join("sys/devices/vdb/holders/dm-7"), "").unwrap();
    machine.set("proc/self/mountinfo", &mount("0:41", "/data", "btrfs", &path("vdc")));
    let id = "069e0861-8c50-4e8d-8ef3-dd730c93dc4c";
    for name in ["vdc", "vdd"] {
        machine.set(&format!("sys/fs/btrfs/{id}/devices/{name}"), "");
    }
    machine.set("sys/fs/btrfs/features/raid1c34", "0");
    in_use(&machine.device("vda"), "swaps");
    in_use(&machine.device("vdb"), "held by dm-7");
    in_use(&machine.device("vdc"), "mounted at /data");
    in_use(&machine.device("vdd"), id);
    assert_eq!(machine.device("vdd").claims, [Claim::Member { of: id.into() }]);
}

#[test]
fn a_device_that_cannot_be_read_is_not_taken_for_an_empty_one() {
    let machine = Machine::new();
    machine.disk("vdb", "254:16");
    fs::remove_file(machine.path("vdb")).unwrap();
    fs::create_dir(machine.path("vdb")).unwrap();
    let device = machine.device("vdb");
    assert!(matches!(&device.carries, Carries::Unknown(_)), "{device:?}");
    assert!(matches!(judge(&device, true), Err(Refused::Unknown { .. })));
}

#[test]
fn devices_are_found_by_any_path_that_leads_to_them() {
    let machine = Machine::new();
    machine.disk("vdb", "254:16");
    symlink(machine.path("vdb"), machine.path("disk/by-id/virtio-x")).unwrap();
    let scanner = Scanner::new(machine.roots(), Duration::from_secs(60));
    let asked = [machine.path("disk/by-id/virtio-x"), machine.path("none"), machine.path("vdb"), PathBuf::from("/etc")];
    let found = scanner.find(&asked).unwrap();
    let names: Vec<Option<&str>> = found.iter().map(|device| device.as_ref().map(|it| it.name.as_str())).collect();
    assert_eq!(names, [Some("vdb"), None, Some("vdb"), None]);
}

#[test]
fn the_devices_of_this_host_can_be_listed() {
    if !Path::new("/sys/class/block").exists() {
        return eprintln!("skipped: this host shows no sysfs");
    }
    let devices = Scanner::default().scan().unwrap();
    assert!(devices.iter().all(|device| device.path.starts_with("/dev") && device.size.as_u64() > 0));
}
