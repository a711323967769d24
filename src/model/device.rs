//! Devices: disks and partitions that a block service sees on its host.

use super::ByteSize;
use serde::Serialize;
use std::path::PathBuf;

/// One of them as it is now, in words for people. Nothing is kept of it: what a pool may have is judged when it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceFacts {
    /// The kernel's node.
    pub path: PathBuf,
    /// One that stays when names are given out in another order at the next boot.
    pub stable_path: Option<PathBuf>,
    pub size: ByteSize,
    pub model: Option<String>,
    pub serial: Option<String>,
    pub rotational: bool,
    pub read_only: bool,
    pub removable: bool,
    /// What it is: a disk, a partition of one, somebody's volume.
    pub kind: String,
    /// What it carries; absent: nothing.
    pub carries: Option<String>,
    /// Who uses it; empty: nobody.
    pub uses: Vec<String>,
    /// Why no pool could have it, whatever was wiped; absent: one could.
    pub unfit: Option<String>,
}
