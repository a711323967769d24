//! Who uses a device: mounts, swap, devices on top of it, and what that means for its partitions and its disk. Pure.

use super::{Device, DeviceNumber, Kind};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// One use of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    Mounted {
        at: PathBuf,
    },
    /// One of several devices of a mounted btrfs file system.
    Member {
        of: String,
    },
    Swap,
    /// Other devices stand on it, named as the kernel names them.
    Held {
        by: Vec<String>,
    },
    /// Somebody has it for himself, and the kernel does not say who.
    Taken,
    OfPartition {
        partition: PathBuf,
        claim: Box<Claim>,
    },
    OfDisk {
        disk: PathBuf,
        claim: Box<Claim>,
    },
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Claim::Mounted { at } => write!(f, "mounted at {}", at.display()),
            Claim::Member { of } => write!(f, "part of the mounted btrfs file system {of}"),
            Claim::Swap => f.write_str("the kernel swaps to it"),
            Claim::Held { by } => write!(f, "held by {}", by.join(", ")),
            Claim::Taken => f.write_str("some program or the kernel has it for itself"),
            Claim::OfPartition { partition, claim } => write!(f, "its partition {}: {claim}", partition.display()),
            Claim::OfDisk { disk, claim } => write!(f, "its disk {}: {claim}", disk.display()),
        }
    }
}

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub number: DeviceNumber,
    pub at: PathBuf,
    pub kind: String,
    pub source: String,
}

/// Reads `/proc/self/mountinfo` (proc_pid_mountinfo(5)); lines that are not like that are passed over.
pub(super) fn parse_mounts(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (head, tail) = line.split_once(" - ")?;
    let mut head = head.split(' ').skip(2);
    let number = parse_number(head.next()?)?;
    let at = PathBuf::from(unescape(head.nth(1)?));
    let mut tail = tail.split(' ');
    Some(Mount { number, at, kind: tail.next()?.to_owned(), source: unescape(tail.next()?) })
}

/// `254:0`.
pub(super) fn parse_number(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The paths in `/proc/swaps`.
pub(super) fn parse_swaps(text: &str) -> Vec<PathBuf> {
    let path = |line: &str| line.split_whitespace().next().map(|path| PathBuf::from(unescape(path)));
    text.lines().skip(1).filter_map(path).collect()
}

/// Blanks and the like are written as `\040`.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(u8::is_ascii);
        match (code, part.get(3..)) {
            (Some(code), Some(rest)) => {
                plain.push(char::from(code));
                plain.push_str(rest);
            }
            _ => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

/// What the kernel says of uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Uses {
    pub mounts: Vec<Mount>,
    pub swaps: Vec<PathBuf>,
    /// Of mounted btrfs file systems: their ids, and the kernel's names of their devices.
    pub btrfs: BTreeMap<String, Vec<String>>,
}

/// The claims that a device has on its own account. `holders` are the devices on top of it.
pub(super) fn own_claims(name: &str, path: &Path, number: DeviceNumber, holders: &[String], uses: &Uses) -> Vec<Claim> {
    // The mounts of btrfs and of others with devices of no number of their own are known by their source.
    let is_here = |mount: &&Mount| mount.number == number || Path::new(&mount.source) == path;
    let mut claims: Vec<Claim> =
        uses.mounts.iter().filter(is_here).map(|mount| Claim::Mounted { at: mount.at.clone() }).collect();
    if claims.is_empty()
        && let Some((id, _)) = uses.btrfs.iter().find(|(_, devices)| devices.iter().any(|device| device == name))
    {
        claims.push(Claim::Member { of: id.clone() });
    }
    if uses.swaps.iter().any(|swap| swap == path) {
        claims.push(Claim::Swap);
    }
    if !holders.is_empty() {
        claims.push(Claim::Held { by: holders.to_vec() });
    }
    claims
}

/// Hands claims on: a disk is in use while one of its partitions is, and a partition while its whole disk is.
pub(super) fn relate(devices: &mut [Device]) {
    let own: Vec<(String, PathBuf, Option<String>, Vec<Claim>)> = devices
        .iter()
        .map(|device| {
            let parent = if let Kind::Partition { of } = &device.kind { Some(of.clone()) } else { None };
            (device.name.clone(), device.path.clone(), parent, device.claims.clone())
        })
        .collect();
    for device in devices {
        let parent = if let Kind::Partition { of } = &device.kind { Some(of) } else { None };
        for (name, path, of, claims) in &own {
            let handed_on = |claim: &Claim| match (of, parent) {
                (Some(of), _) if *of == device.name => {
                    Some(Claim::OfPartition { partition: path.clone(), claim: Box::new(claim.clone()) })
                }
                (_, Some(parent)) if parent == name => {
                    Some(Claim::OfDisk { disk: path.clone(), claim: Box::new(claim.clone()) })
                }
                _ => None,
            };
            device.claims.extend(claims.iter().filter_map(handed_on));
        }
    }
}
