//! The command lines of `lvm`, as pure functions.
//!
//! Every call carries its own configuration and the list of devices that it may see: neither what the host's
//! administrator wrote into lvm.conf, nor a devices file, nor a disk of somebody else, nor a volume group inside a
//! guest's volume has a part in it. LVM makes its device nodes itself, so that it works with and without udev.

use super::report::{GROUP_FIELDS, LV_FIELDS, PV_FIELDS, SEGMENT_FIELDS};
use crate::model::CHANGE_CHUNK;
use std::path::{Path, PathBuf};

/// Four things: no part in it for udev; no daemons; no copies of metadata below /etc; reports as they are by default.
const CONFIG: &str = "\
activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 } \
devices { obtain_device_list_from_udev=0 external_device_info_source=\"none\" multipath_component_detection=0 \
use_devicesfile=0 global_filter=[\"a|.*|\"] filter=[\"a|.*|\"] } \
global { event_activation=0 use_lvmpolld=0 use_lvmlockd=0 } \
backup { backup=0 archive=0 } \
report { list_item_separator=\",\" }";

/// What LVM is to be told besides its command line: to read no configuration of the host, and to speak one language.
pub const ENVIRONMENT: &[(&str, &str)] = &[
    ("LC_ALL", "C"),
    ("LVM_SUPPRESS_FD_WARNINGS", "1"),
    ("LVM_SYSTEM_DIR", ""),
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
];

/// Room for metadata on each physical volume: some eight thousand volumes with their tags.
pub const METADATA_AREA: u64 = 16 << 20;

/// One call of `lvm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Without the program's name; the verb comes first.
    pub arguments: Vec<String>,
    /// Whether it only looks.
    pub looks: bool,
}

impl Call {
    pub fn verb(&self) -> &str {
        self.arguments.first().map_or("", String::as_str)
    }

    /// The call without its configuration, for people.
    pub fn shown(&self) -> String {
        let mut words = vec!["lvm"];
        let mut rest = self.arguments.iter();
        while let Some(word) = rest.next() {
            match word.as_str() {
                "--config" | "--options" | "--configreport" => drop(rest.next()),
                word => words.push(word),
            }
        }
        words.join(" ")
    }
}

/// Which volumes of a thin pool's making to say how large, in extents and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThinPoolSize {
    pub data_extents: u64,
    pub metadata_bytes: u64,
    pub chunk_bytes: u64,
}

/// The devices that calls may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices(String);

impl Devices {
    /// None if a path cannot be part of a list: LVM knows no way to write a comma in one.
    pub fn new(nodes: &[PathBuf]) -> Option<Self> {
        let names: Option<Vec<&str>> = nodes.iter().map(|node| node.to_str()).collect();
        let names = names?;
        let sound = |name: &&str| name.starts_with('/') && !name.contains([',', ' ', '\n']);
        names.iter().all(sound).then(|| Self(names.join(",")))
    }

    fn call(&self, verb: &str, looks: bool, arguments: &[&str]) -> Call {
        let head = [verb, "--config", CONFIG, "--devices", &self.0];
        Call { arguments: head.iter().chain(arguments).map(|word| (*word).to_owned()).collect(), looks }
    }

    fn change(&self, verb: &str, arguments: &[&str]) -> Call {
        self.call(verb, false, arguments)
    }

    /// Everything on the devices at one glance. It takes no lock: it neither waits for a change that hangs, nor does
    /// it mind one under way, which LVM publishes in one stroke.
    pub fn report(&self) -> Call {
        let sections = [
            ("vg", GROUP_FIELDS),
            ("pv", PV_FIELDS),
            ("lv", LV_FIELDS),
            ("seg", SEGMENT_FIELDS),
            // Nobody reads these, but they cannot be left out.
            ("pvseg", "pvseg_start"),
        ];
        let mut arguments = vec!["--nolocking", "--reportformat", "json", "--units", "b", "--nosuffix", "--all"];
        for (section, fields) in sections {
            arguments.extend(["--configreport", section, "--options", fields]);
        }
        self.call("fullreport", true, &arguments)
    }

    /// Without `--yes`: where LVM finds something on the device that we do not know of, it asks, and nobody says yes.
    pub fn make_pv(&self, device: &Path, uuid: &str) -> Call {
        let area = format!("{METADATA_AREA}b");
        let device = device.display().to_string();
        self.change("pvcreate", &["--uuid", uuid, "--norestorefile", "--metadatasize", &area, &device])
    }

    /// Its volumes are never activated by the host, only by us.
    pub fn make_group(&self, group: &str, devices: &[PathBuf], tags: &[String]) -> Call {
        let mut arguments = vec!["--setautoactivation", "n"];
        arguments.extend(tags.iter().flat_map(|tag| ["--addtag", tag]));
        arguments.push(group);
        let devices: Vec<String> = devices.iter().map(|device| device.display().to_string()).collect();
        arguments.extend(devices.iter().map(String::as_str));
        self.change("vgcreate", &arguments)
    }

    pub fn extend_group(&self, group: &str, device: &Path) -> Call {
        self.change("vgextend", &[group, &device.display().to_string()])
    }

    pub fn retag_group(&self, group: &str, (gone, new): &(Vec<String>, Vec<String>)) -> Call {
        self.retag("vgchange", group, gone, new)
    }

    pub fn remove_group(&self, group: &str) -> Call {
        self.change("vgremove", &[group])
    }

    /// A pool that gives space back, and whose new chunks read as zeros.
    pub fn make_thin_pool(&self, group: &str, name: &str, size: ThinPoolSize) -> Call {
        let (extents, metadata) = (size.data_extents.to_string(), format!("{}b", size.metadata_bytes));
        let chunk = format!("{}b", size.chunk_bytes);
        let pool = ["--yes", "--type", "thin-pool", "--name", name, "--extents", &extents];
        let parts = ["--chunksize", &chunk, "--poolmetadatasize", &metadata, "--poolmetadataspare", "y"];
        let manner = ["--discards", "passdown", "--zero", "y", group];
        self.change("lvcreate", &[&pool[..], &parts, &manner].concat())
    }

    /// Writers get an error when the pool is full, at once; `lvcreate` refuses to be told so for a thin pool.
    pub fn refuse_when_full(&self, group: &str, pool: &str) -> Call {
        self.change("lvchange", &["--errorwhenfull", "y", &place(group, pool)])
    }

    pub fn grow(&self, group: &str, name: &str, extents: u64) -> Call {
        self.change("lvextend", &["--extents", &format!("+{extents}"), &place(group, name)])
    }

    /// What was behind the new end is gone; nothing is asked.
    pub fn shrink(&self, group: &str, name: &str, extents: u64) -> Call {
        self.change("lvreduce", &["--yes", "--force", "--extents", &format!("-{extents}"), &place(group, name)])
    }

    pub fn grow_metadata(&self, group: &str, pool: &str, bytes: u64) -> Call {
        self.change("lvextend", &["--poolmetadatasize", &format!("+{bytes}b"), &place(group, pool)])
    }

    /// What lies there is not touched: its maker overwrites all of it.
    pub fn make_thick(&self, group: &str, name: &str, extents: u64, tags: &[String]) -> Call {
        let extents = extents.to_string();
        let mut arguments = vec!["--yes", "--type", "linear", "--extents", &extents, "--name", name];
        arguments.extend(["--zero", "n", "--wipesignatures", "n"]);
        arguments.extend(tags.iter().flat_map(|tag| ["--addtag", tag]));
        arguments.push(group);
        self.change("lvcreate", &arguments)
    }

    pub fn make_thin(&self, group: &str, pool: &str, name: &str, bytes: u64, tags: &[String]) -> Call {
        let size = format!("{bytes}b");
        let mut arguments = vec!["--yes", "--type", "thin", "--virtualsize", &size, "--thinpool", pool, "--name", name];
        arguments.extend(tags.iter().flat_map(|tag| ["--addtag", tag]));
        arguments.push(group);
        self.change("lvcreate", &arguments)
    }

    /// A snapshot in the origin's thin pool. It is not active, and nothing but ourselves makes it so.
    pub fn share_thin(&self, group: &str, origin: &str, name: &str, tags: &[String]) -> Call {
        let origin = place(group, origin);
        let mut arguments = vec!["--yes", "--snapshot", "--setactivationskip", "y", "--name", name];
        arguments.extend(tags.iter().flat_map(|tag| ["--addtag", tag]));
        arguments.push(&origin);
        self.change("lvcreate", &arguments)
    }

    /// A classic snapshot with so many extents for what its origin was before it changed.
    pub fn share_thick(&self, group: &str, origin: &str, name: &str, extents: u64, tags: &[String]) -> Call {
        let (origin, extents) = (place(group, origin), extents.to_string());
        let chunk = format!("{CHANGE_CHUNK}b");
        let mut arguments = vec!["--yes", "--snapshot", "--extents", &extents, "--chunksize", &chunk, "--name", name];
        arguments.extend(tags.iter().flat_map(|tag| ["--addtag", tag]));
        arguments.push(&origin);
        self.change("lvcreate", &arguments)
    }

    pub fn rename(&self, group: &str, from: &str, to: &str) -> Call {
        self.change("lvrename", &[group, from, to])
    }

    pub fn retag_volume(&self, group: &str, name: &str, (gone, new): &(Vec<String>, Vec<String>)) -> Call {
        self.retag("lvchange", &place(group, name), gone, new)
    }

    pub fn activate(&self, group: &str, name: &str) -> Call {
        self.change("lvchange", &["--activate", "y", "--ignoreactivationskip", &place(group, name)])
    }

    pub fn deactivate(&self, group: &str, name: &str) -> Call {
        self.change("lvchange", &["--activate", "n", &place(group, name)])
    }

    /// Makes what a classic snapshot has for changes a logical volume of its own, under the snapshot's name; nobody may have
    /// the snapshot open, its origin may be used.
    pub fn split(&self, group: &str, name: &str) -> Call {
        self.change("lvconvert", &["--yes", "--splitsnapshot", &place(group, name)])
    }

    /// Its space is free at once; nobody may have it open.
    pub fn remove(&self, group: &str, name: &str) -> Call {
        self.change("lvremove", &["--yes", &place(group, name)])
    }

    fn retag(&self, verb: &str, place: &str, gone: &[String], new: &[String]) -> Call {
        let gone = gone.iter().flat_map(|tag| ["--deltag", tag.as_str()]);
        let new = new.iter().flat_map(|tag| ["--addtag", tag.as_str()]);
        self.change(verb, &gone.chain(new).chain([place]).collect::<Vec<_>>())
    }
}

fn place(group: &str, name: &str) -> String {
    format!("{group}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> Devices {
        Devices::new(&["/dev/vda".into(), "/dev/vdb".into()]).unwrap()
    }

    fn tail(call: &Call) -> String {
        call.arguments[5..].join(" ")
    }

    #[test]
    fn every_call_carries_its_configuration_and_its_list_of_devices() {
        let (devices, tags) = (devices(), (vec!["a".to_owned()], vec!["b".to_owned()]));
        let size = ThinPoolSize { data_extents: 1, metadata_bytes: 2, chunk_bytes: 3 };
        let calls = [
            devices.report(),
            devices.make_pv(Path::new("/dev/vda"), "u"),
            devices.make_group("g", &["/dev/vda".into()], &["t".into()]),
            devices.extend_group("g", Path::new("/dev/vdb")),
            devices.retag_group("g", &tags),
            devices.remove_group("g"),
            devices.make_thin_pool("g", "p", size),
            devices.refuse_when_full("g", "p"),
            devices.grow("g", "v", 1),
            devices.grow_metadata("g", "p", 1),
            devices.make_thick("g", "v", 1, &[]),
            devices.make_thin("g", "p", "v", 512, &[]),
            devices.share_thin("g", "v", "s", &["t".into()]),
            devices.share_thick("g", "v", "s", 3, &["t".into()]),
            devices.rename("g", "v", "w"),
            devices.retag_volume("g", "v", &tags),
            devices.activate("g", "v"),
            devices.deactivate("g", "v"),
            devices.split("g", "s"),
            devices.remove("g", "v"),
        ];
        for call in calls {
            assert_eq!(call.arguments[1..5], ["--config", CONFIG, "--devices", "/dev/vda,/dev/vdb"], "{call:?}");
            assert_eq!(call.looks, call.verb() == "fullreport");
            assert!(!call.shown().contains("udev") && call.shown().contains("/dev/vda,/dev/vdb"), "{}", call.shown());
        }
    }

    #[test]
    fn only_what_may_be_overwritten_is_made_without_a_question() {
        assert_eq!(
            tail(&devices().make_pv(Path::new("/dev/vda"), "u")),
            "--uuid u --norestorefile --metadatasize 16777216b /dev/vda"
        );
        assert_eq!(
            tail(&devices().make_thick("g", "v", 3, &["t".into()])),
            "--yes --type linear --extents 3 --name v --zero n --wipesignatures n --addtag t g"
        );
        assert_eq!(tail(&devices().remove_group("g")), "g");
    }

    #[test]
    fn a_thin_snapshot_is_not_activated_and_a_classic_one_has_its_room() {
        let tags = ["t".to_owned()];
        assert_eq!(
            tail(&devices().share_thin("g", "v", "s", &tags)),
            "--yes --snapshot --setactivationskip y --name s --addtag t g/v"
        );
        assert_eq!(
            tail(&devices().share_thick("g", "v", "s", 7, &tags)),
            "--yes --snapshot --extents 7 --chunksize 4096b --name s --addtag t g/v"
        );
        assert_eq!(tail(&devices().rename("g", "v", "w")), "g v w");
        assert_eq!(tail(&devices().split("g", "s")), "--yes --splitsnapshot g/s");
    }

    #[test]
    fn tags_are_changed_in_one_call() {
        let tags = (vec!["symphony.state=making".to_owned()], vec!["symphony.state=ready".to_owned()]);
        assert_eq!(
            tail(&devices().retag_volume("g", "v", &tags)),
            "--deltag symphony.state=making --addtag symphony.state=ready g/v"
        );
    }

    #[test]
    fn a_path_that_would_change_the_list_is_refused() {
        for path in ["/dev/a,/dev/b", "vda", "/dev/a b", ""] {
            assert_eq!(Devices::new(&[PathBuf::from(path)]), None, "{path}");
        }
    }
}
