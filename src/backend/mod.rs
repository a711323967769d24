//! Backends: where volumes' bytes are kept. One trait, one conformance suite, a module per driver.
//!
//! Everything a backend writes describes itself. Every verb is idempotent, says what it did, and can be killed at any
//! instruction and repeated. A backend never decides what should exist: the reconciler tells it.

pub mod file;
pub mod lvm;

use crate::io::BlockIo;
use crate::model::{
    AssignedId, ByteSize, ClusterId, Generation, InventorySnapshot, InventoryVolume, Name, PoolCapacity, PoolId,
    Progress, Revert, SnapshotId, Source, TakenSnapshot, Timestamp, VolumeId,
};
use std::sync::Arc;

/// Whose pool it is; written into the pool's marker and compared with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolIdentity {
    pub cluster: ClusterId,
    pub pool: PoolId,
    pub name: Name,
}

/// A volume as its backend must keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeLayout {
    pub id: VolumeId,
    pub name: Name,
    pub generation: Generation,
    pub size: ByteSize,
    /// What it is a copy of, if it is not there yet; in the same pool. Absent: it begins as zeros.
    pub source: Option<Source>,
    /// Its bytes are to be put back once, if what is on disk is of a generation before.
    pub revert: Option<Revert>,
    /// It may become smaller once, if what is on disk is of a generation before.
    pub shrunk: Option<Generation>,
    /// The volume has held bytes once: if they are missing that is [`BackendError::Lost`], never a fresh start.
    pub made: bool,
}

/// A snapshot as its backend must keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotLayout {
    pub id: SnapshotId,
    pub name: Name,
    pub volume: VolumeId,
    /// What it is to have for changes of the volume, where it takes room at once; absent: what is usual.
    pub room: Option<ByteSize>,
}

/// What an idempotent verb did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    Unchanged,
    Created,
    Grown,
    /// What was behind the new end is gone. Handles that were open before still show the old size.
    Shrunk,
    /// The bytes are a snapshot's again. Handles that were open before still show the old ones.
    Reverted,
    /// Only what it says of itself was written anew: a name, a generation.
    Updated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    Gone,
    WasAbsent,
}

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("{action}")]
    Io { action: String, source: std::io::Error },
    #[error("{place} belongs to pool {owner}")]
    Taken { place: String, owner: String },
    #[error("{place} is in use by another symphony process, or by this one already")]
    Locked { place: String },
    #[error("{place} is not the pool it was: {reason}")]
    PoolLost { place: String, reason: String },
    #[error("{place} does not answer: {reason}")]
    Unreachable { place: String, reason: String },
    #[error("{program} is not there: {remedy}")]
    Absent { program: &'static str, remedy: &'static str },
    #[error("the data of volume {volume} is missing: {path} is not there")]
    Lost { volume: VolumeId, path: String },
    #[error("volume {volume} is {actual} and cannot shrink to {wanted}")]
    Shrink { volume: VolumeId, actual: ByteSize, wanted: ByteSize },
    #[error("volume {volume} is at generation {} and generation {} is older", held.as_u64(), offered.as_u64())]
    Stale { volume: VolumeId, held: Generation, offered: Generation },
    #[error("snapshot {snapshot} is missing: {path} is not there")]
    SnapshotLost { snapshot: SnapshotId, path: String },
    #[error("snapshot {snapshot} is lost: {reason}")]
    SnapshotSpoilt { snapshot: SnapshotId, reason: String },
    #[error("{path} is damaged: {reason}; it was left as it is")]
    Damaged { path: String, reason: String },
    #[error("{0}")]
    Refused(String),
}

/// One pool on this host.
pub trait Backend: Send + Sync + 'static {
    /// Makes the volume exist with at least this layout; a new one reads as zeros, or as what it is a copy of, and is
    /// durable when this returns. Nobody may be changing the source of a copy, or be using a volume that is put back or
    /// shrinks.
    fn ensure_volume(&self, volume: &VolumeLayout) -> Result<Ensured, BackendError>;

    /// Sees to it that [`Self::ensure_volume`] can make a volume that is a copy while its source is changed again. Nobody
    /// may be changing the source until this returns, which does not take longer for larger volumes.
    fn begin_copy(&self, volume: &VolumeLayout) -> Result<(), BackendError> {
        self.ensure_volume(volume).map(drop)
    }

    /// Overwrites the volume's bytes, durably, so that nobody who gets its space can read them; it can only be removed
    /// afterwards. Goes on where an earlier call stopped; nothing where there is no such volume. The caller has a tombstone
    /// and has closed every handle.
    ///
    /// # Errors
    /// [`BackendError::Refused`] where overwriting a volume's bytes does not overwrite what the medium holds of them.
    fn wipe_volume(&self, id: VolumeId) -> Result<(), BackendError>;

    /// How far the work on volumes and snapshots is that takes long, as long as it is under way.
    fn progress(&self) -> Vec<(AssignedId, Progress)> {
        Vec::new()
    }

    /// Lets what takes long end soon, unfinished, as if it had been killed: on one object, or on all. What has not been
    /// begun does not hear of it.
    fn abandon(&self, _id: Option<AssignedId>) {}

    /// Destroys the volume's data. The caller has a tombstone and has closed every handle.
    fn remove_volume(&self, id: VolumeId) -> Result<Removed, BackendError>;

    /// A handle for I/O. Handles stay valid and see the new size when the volume grows.
    fn open_volume(&self, id: VolumeId) -> Result<Arc<dyn BlockIo>, BackendError>;

    /// Capacity and use now.
    fn observe_capacity(&self) -> Result<PoolCapacity, BackendError>;

    /// Every volume found on the pool's devices, assigned or not; `exported` is false here.
    fn observe_volumes(&self) -> Result<Vec<InventoryVolume>, BackendError>;

    /// Volumes on the pool's devices that were begun and never came to be, as far as the backend can tell them: there are
    /// nobody's bytes in them, and [`Self::observe_volumes`] leaves them out.
    fn observe_unfinished(&self) -> Result<Vec<InventoryVolume>, BackendError> {
        Ok(Vec::new())
    }

    /// A snapshot that was settled; none if there is no such one.
    fn find_snapshot(&self, id: SnapshotId) -> Result<Option<TakenSnapshot>, BackendError>;

    /// Puts aside the volume's bytes as they are now, durably, without the snapshot existing yet. What an earlier call
    /// put aside is thrown away, so that snapshots of several volumes at one instant can be begun anew. Nobody may be
    /// changing the volume. Must not have been settled.
    fn stage_snapshot(&self, snapshot: &SnapshotLayout, at: Timestamp) -> Result<(), BackendError>;

    /// Makes a staged snapshot exist.
    ///
    /// # Errors
    /// [`BackendError::SnapshotLost`] if it was not staged.
    fn settle_snapshot(&self, id: SnapshotId) -> Result<TakenSnapshot, BackendError>;

    /// Overwrites what the snapshot's own room holds of its volume's former bytes, durably, so that nobody who gets that space
    /// can read them; from its beginning on there is no such snapshot, and it can only be removed. Goes on where an earlier
    /// call stopped; nothing where there is no such snapshot. The caller has a tombstone, and nothing is being copied from it.
    ///
    /// # Errors
    /// [`BackendError::Refused`] where it has no room of its own, or its volume is being put back to it.
    fn wipe_snapshot(&self, id: SnapshotId) -> Result<(), BackendError>;

    /// Destroys a snapshot, staged or settled. Volumes that were made of it keep their bytes.
    fn remove_snapshot(&self, id: SnapshotId) -> Result<Removed, BackendError>;

    /// Every snapshot found on the pool's devices, assigned or not.
    fn observe_snapshots(&self) -> Result<Vec<InventorySnapshot>, BackendError>;

    /// Lets go of the pool: its marker disappears, foreign files stay. Refused while volumes or snapshots are in it, or anything
    /// else where they belong.
    fn release(&self) -> Result<Removed, BackendError>;
}
