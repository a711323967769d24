//! Volumes: named, sized block devices in pools.

use super::{
    ByteSize, Generation, ImageTie, Limits, Meta, Moving, Phase, PoolId, Progress, Revert, ServiceId, Source,
    Timestamp, VolumeId,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Volumes are a whole number of sectors of this many bytes.
pub const SECTOR: u64 = 512;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub meta: Meta<VolumeId>,
    pub spec: VolumeSpec,
    pub status: VolumeStatus,
}

/// What the user asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    pub size: ByteSize,
    /// The pool the user named; absent: the placer chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolId>,
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// Absent: it began as zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// The last time that it was put back to a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revert: Option<Revert>,
    /// The generation in which it was last allowed to become smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shrunk: Option<Generation>,
    /// Of volumes that keep an image's bytes, or were made of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Box<ImageTie>>,
    /// Of a volume that is being moved, and of its copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Box<Moving>>,
    /// With the tombstone: its bytes are overwritten before its space is given back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wipe: bool,
}

/// `placement`, `promised` and `left` are the placer's words, the rest the block service's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    pub phase: Phase,
    pub observed_generation: Generation,
    /// Where the volume's copies are. One today; a list from day one.
    pub placement: Vec<Replica>,
    /// What each of its pools promises it now; absent: as much as it is to be large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promised: Option<ByteSize>,
    /// What keeps its former bytes, elsewhere, until it has been served where it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<VolumeId>,
    /// The size that clients see now; absent until the volume has been made. Once known, a missing backing file is an
    /// error and never made anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    #[serde(default)]
    pub exports: Vec<Export>,
    /// Of what takes long and is under way: filling it, or overwriting it before it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    pub pool: PoolId,
    pub service: ServiceId,
}

/// How clients reach a volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Export {
    pub protocol: Protocol,
    /// As in the NBD URI specification: works as it stands with qemu, libnbd and fio.
    pub uri: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// NBD over TCP.
    Nbd,
    /// NBD over TCP with TLS.
    NbdTls,
    /// NBD over a unix socket of the block service's host.
    NbdUnix,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Nbd => "nbd",
            Protocol::NbdTls => "nbd-tls",
            Protocol::NbdUnix => "nbd-unix",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl VolumeSpec {
    /// An empty volume of that size, wherever there is room, without limits.
    pub fn of_size(size: ByteSize) -> Self {
        Self {
            size,
            pool: None,
            limits: Limits::NONE,
            source: None,
            revert: None,
            shrunk: None,
            image: None,
            moving: None,
            wipe: false,
        }
    }

    /// Says what is wrong with a size asked for, if anything.
    pub fn fault_of_size(size: ByteSize) -> Option<String> {
        let bytes = size.as_u64();
        if bytes == 0 {
            return Some("a volume's size must not be zero".into());
        }
        if size > ByteSize::MAX {
            return Some(format!("{bytes} bytes are more than any device holds: the limit is {}", ByteSize::MAX));
        }
        if !bytes.is_multiple_of(SECTOR) {
            let next = bytes.next_multiple_of(SECTOR);
            return Some(format!("a volume's size must be a multiple of {SECTOR} bytes: {bytes} is not, {next} is"));
        }
        None
    }
}

impl Volume {
    pub fn new(meta: Meta<VolumeId>, spec: VolumeSpec, placement: Vec<Replica>) -> Self {
        let status = VolumeStatus {
            phase: Phase::Pending,
            observed_generation: Generation::default(),
            placement,
            promised: None,
            left: None,
            size: None,
            exports: Vec::new(),
            progress: None,
            message: None,
        };
        Self { meta, spec, status }
    }

    /// What each of its pools promises it now.
    pub fn promised(&self) -> ByteSize {
        self.status.promised.unwrap_or(self.spec.size)
    }

    pub fn is_on(&self, service: ServiceId) -> bool {
        self.status.placement.iter().any(|replica| replica.service == service)
    }

    pub fn is_in(&self, pool: PoolId) -> bool {
        self.status.placement.iter().any(|replica| replica.pool == pool)
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

    #[test]
    fn sizes_that_no_device_can_have_are_named() {
        for bytes in [0, 1, 511, 513, u64::MAX, 1 << 63] {
            assert!(VolumeSpec::fault_of_size(ByteSize::bytes(bytes)).is_some(), "{bytes}");
        }
        assert_eq!(VolumeSpec::fault_of_size(ByteSize::mib(1)), None);
    }
}
