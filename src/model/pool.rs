//! Pools: capacity on one block service.

use super::{ByteSize, Generation, Meta, Phase, PoolId, ServiceId, Timestamp};
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf};

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
}

impl Driver {
    pub fn as_str(&self) -> &'static str {
        match self {
            Driver::File { .. } => "file",
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// `capacity`, `used`, `message` and `observed_generation` are the block service's words; `reserved` is the placer's.
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
            copies: None,
            reserved: ByteSize::ZERO,
            message: None,
        };
        Self { meta, spec, status }
    }

    /// What may still be promised; unknown until the block service has looked.
    pub fn free(&self) -> Option<ByteSize> {
        self.status.capacity.map(|capacity| capacity.saturating_sub(self.status.reserved))
    }

    /// Sets the tombstone; says whether that was new.
    pub fn bury(&mut self, now: Timestamp) -> bool {
        let new = self.meta.bury(now);
        self.status.phase = Phase::Removing;
        new
    }
}
