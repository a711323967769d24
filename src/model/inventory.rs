//! What lies on a block service's devices, assigned or not, as the block service finds it there.

use super::{ByteSize, ClusterId, Driver, Generation, PoolId, SnapshotId, Timestamp, VolumeId};
use serde::{Deserialize, Serialize};

/// Everything on a block service's devices that calls itself symphony's, assigned or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    pub pools: Vec<InventoryPool>,
    pub volumes: Vec<InventoryVolume>,
    #[serde(default)]
    pub snapshots: Vec<InventorySnapshot>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryPool {
    pub id: PoolId,
    /// The generation that the service was told last, if it holds the pool; else zero.
    #[serde(default)]
    pub told: Generation,
    /// Of a pool that was this host's once and is not assigned to the service now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<PoolPlace>,
    /// Why the pool could not be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Where a pool lies on its host, and whose it was last: enough to find it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolPlace {
    pub cluster: ClusterId,
    pub name: String,
    pub driver: Driver,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryVolume {
    pub id: VolumeId,
    pub pool: PoolId,
    pub name: String,
    pub size: ByteSize,
    pub generation: Generation,
    /// The generation that the service was told last, if it holds the volume; else zero. Not all of them reach the disk.
    #[serde(default)]
    pub told: Generation,
    /// Whether clients can reach it now.
    pub exported: bool,
    /// It never came to be, or is half destroyed: nobody's bytes are in it.
    #[serde(default)]
    pub unfinished: bool,
    /// What it occupies; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<ByteSize>,
    /// Why what describes the volume cannot be trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

impl InventoryVolume {
    /// A volume of which nothing is known yet but that it is there.
    pub fn bare(id: VolumeId, pool: PoolId) -> Self {
        Self {
            id,
            pool,
            name: String::new(),
            size: ByteSize::ZERO,
            generation: Generation::default(),
            told: Generation::default(),
            exported: false,
            unfinished: false,
            data: None,
            damage: None,
        }
    }

    /// What a manager may build on: on disk or only told, a later generation than any that was ever in force here.
    pub fn latest(&self) -> Generation {
        self.generation.max(self.told)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventorySnapshot {
    pub id: SnapshotId,
    pub pool: PoolId,
    pub volume: VolumeId,
    pub name: String,
    pub size: ByteSize,
    /// When it was taken, by the block service's clock.
    pub at: Timestamp,
    /// The generation that the service was told last, if it holds the snapshot; else zero.
    #[serde(default)]
    pub told: Generation,
    /// What it occupies, shared blocks included; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<ByteSize>,
    /// What it has for changes of its volume, where that was set aside for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<ByteSize>,
    /// Why what describes the snapshot cannot be trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}
