//! Stable paths: which of udev's links to a device says best what it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Links that name hardware, the most readable first.
const KNOWN: &[&str] = &["nvme-", "ata-", "virtio-", "scsi-", "mmc-", "usb-", "dm-uuid-mpath-", "wwn-"];
/// Links that name what is on the device, and go when that goes.
const FICKLE: &[&str] = &["lvm-pv-uuid-", "dm-name-", "dm-uuid-LVM-", "md-name-", "md-uuid-"];

/// For each node in `dev` its best link in `dev/disk/by-id`.
pub(super) fn stable_paths(dev: &Path) -> BTreeMap<PathBuf, PathBuf> {
    let directory = dev.join("disk/by-id");
    let mut best: BTreeMap<PathBuf, (usize, usize, String)> = BTreeMap::new();
    for name in super::sysfs::names(&directory) {
        let Ok(node) = directory.join(&name).canonicalize() else { continue };
        let Some(rank) = rank(&name) else { continue };
        let candidate = (rank, name.len(), name);
        match best.get(&node) {
            Some(held) if *held <= candidate => {}
            _ => drop(best.insert(node, candidate)),
        }
    }
    best.into_iter().map(|(node, (_, _, name))| (node, directory.join(name))).collect()
}

fn rank(name: &str) -> Option<usize> {
    // NVMe's links by EUI are as stable as the others and say less.
    if FICKLE.iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    let known = KNOWN.iter().position(|prefix| name.starts_with(prefix)).unwrap_or(KNOWN.len());
    Some(if name.starts_with("nvme-eui.") || name.starts_with("nvme-nvme.") { KNOWN.len() } else { known })
}
