//! Pools: capacity on one block service.

use super::{
    ByteSize, ClusterId, Generation, Level, Meta, Phase, PoolId, PoolMetadata, PoolRules, Room, ServiceId, Timestamp,
    room_of,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// LVM's extents, as long as a block service has not said how large they are.
const USUAL_EXTENT: ByteSize = ByteSize::mib(4);
/// More disks than one host has for one pool.
const MOST_DEVICES: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    pub meta: Meta<PoolId>,
    pub spec: PoolSpec,
    pub status: PoolStatus,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpec {
    /// The block service that owns the pool's devices.
    pub service: ServiceId,
    pub driver: Driver,
    /// How its space is promised: the managers' business alone, so that a change of it is no new generation.
    #[serde(default)]
    pub rules: PoolRules,
    /// The cluster whose mark it may still bear on its host: it was adopted from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formerly: Option<ClusterId>,
}

/// How a pool keeps its volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Driver {
    /// Sparse files in a directory of the block service's host.
    File {
        /// Absolute.
        path: PathBuf,
        /// How much of the file system the pool may promise; absent: all that is free.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<ByteSize>,
    },
    /// Logical volumes in a volume group of the pool's own, each with all of its space.
    Lvm(Devices),
    /// Logical volumes that share a thin pool.
    LvmThin(Devices),
}

/// What a pool is made of on the block service's host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Devices {
    /// Absolute paths, in the user's words.
    pub devices: Vec<PathBuf>,
    /// Those of them that may lose what they carry when they enter the pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wipe: Vec<PathBuf>,
    /// Of a thin pool: it begins small and is extended as it fills up, to so much data at most. Absent: it has all that
    /// its devices hold from the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<ByteSize>,
}

impl Driver {
    /// Whether volumes take space when they are written, and not when they are made.
    pub fn fills_as_written(&self) -> bool {
        match self {
            Driver::File { .. } | Driver::LvmThin(_) => true,
            Driver::Lvm(_) => false,
        }
    }

    /// Whether a volume that has snapshots can change its size. LVM keeps the origin of a classic snapshot as it is.
    pub fn resizes_beside_snapshots(&self) -> bool {
        match self {
            Driver::File { .. } | Driver::LvmThin(_) => true,
            Driver::Lvm(_) => false,
        }
    }

    pub fn as_str(&self) -> &'static str {
        match self {
            Driver::File { .. } => "file",
            Driver::Lvm(_) => "lvm",
            Driver::LvmThin(_) => "lvm-thin",
        }
    }

    pub fn devices(&self) -> Option<&Devices> {
        match self {
            Driver::File { .. } => None,
            Driver::Lvm(devices) | Driver::LvmThin(devices) => Some(devices),
        }
    }

    /// Where it keeps its bytes, for people.
    pub fn place(&self) -> String {
        match self {
            Driver::File { path, .. } => path.display().to_string(),
            Driver::Lvm(Devices { devices, .. }) | Driver::LvmThin(Devices { devices, .. }) => {
                devices.iter().map(|device| device.display().to_string()).collect::<Vec<_>>().join(", ")
            }
        }
    }

    /// What no pool can be made of, for people; none if all is well as far as the words go.
    pub fn fault(&self) -> Option<String> {
        match self {
            Driver::File { path, .. } => fault_of_path(path),
            Driver::Lvm(Devices { ceiling: Some(_), .. }) => Some(
                "a ceiling is for the driver lvm-thin: a pool of driver lvm gives its volumes what they take at once"
                    .into(),
            ),
            Driver::Lvm(devices) | Driver::LvmThin(devices) => devices.fault(),
        }
    }
}

impl Devices {
    fn fault(&self) -> Option<String> {
        let Self { devices, wipe, ceiling } = self;
        if *ceiling == Some(ByteSize::ZERO) {
            return Some("a pool's ceiling must not be zero".to_owned());
        }
        if devices.is_empty() {
            return Some("a pool of this driver needs a device at least".to_owned());
        }
        if devices.len() > MOST_DEVICES {
            return Some(format!("a pool has {MOST_DEVICES} devices at most, these are {}", devices.len()));
        }
        if let Some(fault) = devices.iter().chain(wipe).find_map(|path| fault_of_path(path)) {
            return Some(fault);
        }
        let twice = |paths: &[PathBuf]| {
            let again = paths.iter().enumerate().find(|(number, path)| paths[..*number].contains(path));
            again.map(|(_, path)| format!("{} is named twice", path.display()))
        };
        let stranger = || {
            let path = wipe.iter().find(|path| !devices.contains(path))?;
            Some(format!("{} is to be wiped and is none of the pool's devices", path.display()))
        };
        twice(devices).or_else(|| twice(wipe)).or_else(stranger)
    }
}

/// A path of the block service's host that leads where it says.
fn fault_of_path(path: &Path) -> Option<String> {
    let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    let text = path.as_os_str().as_encoded_bytes();
    let good = path.is_absolute() && plain && text.len() <= 3000 && !text.contains(&0);
    (!good).then(|| format!("'{}' is not an absolute path without '..'", path.display()))
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// `capacity`, `used`, `metadata`, `extent`, `size`, `message` and `observed_generation` are the block service's words, `level` is what they
/// amount to; `reserved` is the placer's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    pub phase: Phase,
    pub observed_generation: Generation,
    /// How much the pool can hold: what its volumes occupy and what is still free. Absent until it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<ByteSize>,
    /// What its volumes occupy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<ByteSize>,
    /// Of a thin pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<PoolMetadata>,
    #[serde(default)]
    pub level: Level,
    /// Its space is taken in whole pieces of this size. Absent: by the byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extent: Option<ByteSize>,
    /// How large it is now, if it is extended as it fills up: `capacity` is what it can become.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// Whether snapshots and copies can be made in it. Absent until it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copies: Option<bool>,
    /// What its volumes were promised: the sum of their sizes, changed in the transaction that places or removes one.
    pub reserved: ByteSize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Pool {
    pub fn new(meta: Meta<PoolId>, spec: PoolSpec) -> Self {
        let status = PoolStatus {
            phase: Phase::Pending,
            observed_generation: Generation::default(),
            capacity: None,
            used: None,
            metadata: None,
            level: Level::Ok,
            extent: None,
            size: None,
            copies: None,
            reserved: ByteSize::ZERO,
            message: None,
        };
        Self { meta, spec, status }
    }

    /// What of the pool's space something of that size takes, and is promised.
    pub fn takes(&self, size: ByteSize) -> ByteSize {
        match &self.spec.driver {
            Driver::File { .. } | Driver::LvmThin(_) => size,
            Driver::Lvm(_) => {
                let extent = self.extent().as_u64().max(1);
                ByteSize::bytes(size.as_u64().div_ceil(extent).saturating_mul(extent))
            }
        }
    }

    /// The room that a snapshot of a volume of that size has for changes, by the user's words; none where snapshots take
    /// space as something changes.
    pub fn room(&self, words: Option<Room>, volume: ByteSize) -> Option<ByteSize> {
        match &self.spec.driver {
            Driver::File { .. } | Driver::LvmThin(_) => None,
            Driver::Lvm(_) => Some(room_of(words, self.takes(volume), self.extent())),
        }
    }

    fn extent(&self) -> ByteSize {
        self.status.extent.unwrap_or(USUAL_EXTENT)
    }

    /// What may still be promised; unknown until the block service has looked.
    pub fn free(&self) -> Option<ByteSize> {
        self.promisable().map(|promisable| promisable.saturating_sub(self.status.reserved))
    }

    /// What may be promised in all: no more than there is room for and can be remembered, but for the overcommit.
    pub fn promisable(&self) -> Option<ByteSize> {
        let remembered = self.status.metadata.map_or(ByteSize::MAX, |metadata| metadata.holds());
        self.status.capacity.map(|capacity| self.spec.rules.promisable(capacity.min(remembered)))
    }

    /// How full it is now, by the rules that it has now.
    pub(super) fn measured(&self) -> Level {
        let (Some(capacity), Some(used)) = (self.status.capacity, self.status.used) else { return self.status.level };
        if !self.spec.driver.fills_as_written() {
            return Level::Ok;
        }
        let level = |used, of| self.spec.rules.level(used, of, self.status.level);
        let of_metadata = self.status.metadata.map(|metadata| match self.is_short_of_metadata() {
            true => Level::Full,
            false => level(metadata.used, metadata.capacity),
        });
        level(used, capacity).max(of_metadata.unwrap_or_default())
    }

    /// Whether LVM makes nothing new in it, whatever its rules say: see [`PoolMetadata::is_short`].
    pub fn is_short_of_metadata(&self) -> bool {
        self.status.metadata.is_some_and(|metadata| metadata.is_short(self.status.level))
    }

    /// Takes other rules over; says whether they are other ones.
    pub fn rule(&mut self, rules: PoolRules, now: Timestamp) -> bool {
        if self.spec.rules == rules {
            return false;
        }
        self.spec.rules = rules;
        self.meta.updated_at = now;
        self.status.level = self.measured();
        true
    }

    /// Sets the tombstone; says whether that was new.
    pub fn bury(&mut self, now: Timestamp) -> bool {
        let new = self.meta.bury(now);
        self.status.phase = Phase::Removing;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(devices: &[&str], wipe: &[&str]) -> Driver {
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
        Driver::LvmThin(Devices { devices: paths(devices), wipe: paths(wipe), ceiling: None })
    }

    #[test]
    fn a_ceiling_is_a_thin_pool_s_and_not_nothing() {
        let with = |ceiling| Devices { devices: vec!["/dev/vdb".into()], ceiling, ..Devices::default() };
        let some = Some(ByteSize::mib(1));
        assert_eq!(Driver::LvmThin(with(some)).fault(), None);
        assert!(Driver::Lvm(with(some)).fault().is_some_and(|fault| fault.contains("lvm-thin")));
        assert!(Driver::LvmThin(with(Some(ByteSize::ZERO))).fault().is_some_and(|fault| fault.contains("zero")));
    }

    #[test]
    fn devices_that_no_pool_can_have_are_named() {
        assert_eq!(of(&["/dev/vdb", "/dev/vdc"], &["/dev/vdc"]).fault(), None);
        let many: Vec<String> = (0..65).map(|number| format!("/dev/d{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        for (driver, word) in [
            (of(&[], &[]), "needs a device"),
            (of(&many, &[]), "64 devices at most"),
            (of(&["vdb"], &[]), "'vdb'"),
            (of(&["/dev/../etc/vdb"], &[]), "'..'"),
            (of(&["/dev/vdb", "/dev/vdb"], &[]), "named twice"),
            (of(&["/dev/vdb"], &["/dev/vdb", "/dev/vdb"]), "named twice"),
            (of(&["/dev/vdb"], &["/dev/vdc"]), "/dev/vdc is to be wiped"),
        ] {
            let fault = driver.fault().unwrap();
            assert!(fault.contains(word), "{fault}");
        }
    }

    #[test]
    fn drivers_are_written_down_as_their_users_name_them() {
        let json = serde_json::to_string(&of(&["/dev/vdb"], &[])).unwrap();
        assert_eq!(json, r#"{"type":"lvm-thin","devices":["/dev/vdb"]}"#);
        assert_eq!(serde_json::from_str::<Driver>(&json).unwrap(), of(&["/dev/vdb"], &[]));
        let older: Driver = serde_json::from_str(r#"{"type":"file","path":"/srv"}"#).unwrap();
        assert_eq!(older, Driver::File { path: "/srv".into(), limit: None });
    }
}
