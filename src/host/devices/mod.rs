//! The block devices of this host: what they are, what they carry, who uses them, and whether a pool may have them.
//!
//! Facts come from sysfs and from the devices' own bytes; no other program is asked. Looking is cheap and changes
//! nothing. Logical volumes and network block devices are listed but never read: what is on them was written by
//! whoever uses them, and could pretend to be anything.
//!
//! Limitations: mounts of other mount namespaces are not seen by name, but a device mounted there is still found to be
//! in use. Stable paths come from udev; a host without it has none.

mod claims;
mod judge;
mod label;
mod scan;
mod signature;
mod stable;
mod sysfs;
mod wipe;

pub use claims::Claim;
pub use judge::{Refused, SMALLEST, judge};
pub use label::PvLabel;
pub use scan::{Roots, Scanner};
pub use signature::{Content, Finding, Range, identify};
pub use wipe::{WipeError, blank, wipe};

use crate::model::ByteSize;
use std::fmt;
use std::path::PathBuf;

/// Major and minor.
pub type DeviceNumber = (u64, u64);

/// One block device as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The kernel's word: `vdb`, `nvme0n1p1`.
    pub name: String,
    /// The kernel's node: `/dev/vdb`.
    pub path: PathBuf,
    /// A path that stays when names are given out in another order at the next boot.
    pub stable_path: Option<PathBuf>,
    pub number: DeviceNumber,
    pub size: ByteSize,
    pub model: Option<String>,
    pub serial: Option<String>,
    /// It has a spinning disk, as far as the kernel knows.
    pub rotational: bool,
    pub read_only: bool,
    pub removable: bool,
    pub kind: Kind,
    pub carries: Carries,
    /// Who uses it now; empty if nobody does.
    pub claims: Vec<Claim>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Disk,
    /// Of the disk of that name.
    Partition {
        of: String,
    },
    /// A file as a device; the file is unknown where the kernel does not tell.
    Loop {
        file: Option<PathBuf>,
    },
    /// A device-mapper device that is no logical volume: multipath, encryption.
    Mapped {
        called: String,
    },
    /// Of LVM: somebody's volume, perhaps one of ours.
    LogicalVolume {
        called: String,
    },
    /// A remote device over NBD: somebody's volume as well.
    Network,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Disk => f.write_str("disk"),
            Kind::Partition { of } => write!(f, "partition of {of}"),
            Kind::Loop { file: Some(file) } => write!(f, "loop over {}", file.display()),
            Kind::Loop { file: None } => f.write_str("loop"),
            Kind::Mapped { called } => write!(f, "mapped as {called}"),
            Kind::LogicalVolume { called } => write!(f, "logical volume {called}"),
            Kind::Network => f.write_str("remote volume over NBD"),
        }
    }
}

/// What is on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carries {
    /// Empty: nothing at all.
    Known(Vec<Finding>),
    /// Why nobody can tell.
    Unknown(String),
    /// It is not for us to look.
    NotLookedAt,
}

impl Device {
    /// What it carries in words, none if it carries nothing.
    pub fn carried(&self) -> Option<String> {
        match &self.carries {
            Carries::Known(findings) if findings.is_empty() => None,
            Carries::Known(findings) => {
                Some(findings.iter().map(|finding| finding.content.to_string()).collect::<Vec<_>>().join(", "))
            }
            Carries::Unknown(reason) => Some(format!("nobody knows what: {reason}")),
            Carries::NotLookedAt => Some("somebody's volume".to_owned()),
        }
    }

    /// The label of the LVM physical volume on it, if it carries one.
    pub fn pv(&self) -> Option<&PvLabel> {
        let Carries::Known(findings) = &self.carries else { return None };
        findings.iter().find_map(|finding| match &finding.content {
            Content::Pv(label) => Some(label),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests;
