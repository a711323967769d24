//! Pools: capacity on one block service.

use super::{ByteSize, Generation, Level, Meta, Phase, PoolId, PoolMetadata, PoolRules, ServiceId, Timestamp};
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
    /// How its space is promised: the managers' business alone, so that a change of it is no new generation.
    #[serde(default)]
    pub rules: PoolRules,
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
    /// Whether volumes take space when they are written, and not when they are made.
    pub fn fills_as_written(&self) -> bool {
        match self {
            Driver::File { .. } => true,
        }
    }

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

/// `capacity`, `used`, `metadata`, `message` and `observed_generation` are the block service's words, `level` is what they
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
            copies: None,
            reserved: ByteSize::ZERO,
            message: None,
        };
        Self { meta, spec, status }
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
        let of_metadata = self.status.metadata.map(|metadata| level(metadata.used, metadata.capacity));
        level(used, capacity).max(of_metadata.unwrap_or_default())
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
