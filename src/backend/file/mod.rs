//! The `file` driver: volumes as sparse files in a directory.
//!
//! ```text
//!   <directory>/symphony-pool.json          whose pool it is; there from the first step to the last
//!   <directory>/volumes/<volume id>.img     the bytes; holes where nothing was written
//!   <directory>/volumes/<volume id>.json    the sidecar: what the bytes are; its appearance makes the volume exist
//!   <directory>/snapshots/<snapshot id>.*   images that nothing changes, and what they are, likewise
//! ```
//!
//! A volume's image is durable before its sidecar appears, and only a volume with a sidecar is ever opened. So an image
//! without one has never held bytes, unless the sidecar was lost: it is taken over if it is nothing but a hole, and
//! refused otherwise. Growing lengthens the image before the sidecar says so; removing takes the image first, so that
//! bytes are described for as long as they exist. Every step can be killed and repeated.
//!
//! Never here: what should exist. Nothing is removed but by [`Backend::remove_volume`] and the pool's release.
//!
//! Limitations: images are thin, so a full file system shows as failed writes, not as refused volumes. Pools that lie
//! in one another by way of bind mounts are not told apart; the same directory reached twice is.

mod claim;
mod copy;
mod inventory;
mod layout;
mod snapshot;
mod volume;

use super::{Backend, BackendError, Ensured, PoolIdentity, Removed, SnapshotLayout, VolumeLayout};
use crate::host::directory::{Directory, FileError};
use crate::host::document::DocumentError;
use crate::host::lock::Lock;
use crate::io::{BlockIo, FileIo};
use crate::model::{
    ByteSize, ClusterId, InventorySnapshot, InventoryVolume, Name, PoolCapacity, SnapshotId, TakenSnapshot, Timestamp,
    VolumeId,
};
use crate::runtime::Turns;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// One pool in one directory. There is at most one value of this type per directory, in any process. What it opened
/// lives on when it is dropped; close that before the pool is opened again, or two handles on one volume will not share
/// their failures.
#[derive(Debug)]
pub struct FilePool {
    _lock: Lock,
    root: Directory,
    volumes: Directory,
    /// Whether files here can share blocks, once that could be found out.
    copies: OnceLock<bool>,
    settings: Mutex<Settings>,
    /// The one handle that all users of a volume share while any of them has it open.
    open: Mutex<HashMap<VolumeId, Weak<FileIo>>>,
    /// One verb at a time on one volume; different volumes do not wait for each other.
    turns: Turns<VolumeId>,
    snapshot_turns: Turns<SnapshotId>,
}

#[derive(Clone, Debug)]
struct Settings {
    identity: PoolIdentity,
    limit: Option<ByteSize>,
}

impl FilePool {
    /// Makes the directory this pool's, or finds that it is, and locks it for this process. Without `made` a missing
    /// directory is made and an empty one taken; with it, anything but the pool as it was is an error.
    pub fn ensure(
        identity: &PoolIdentity,
        path: &Path,
        limit: Option<ByteSize>,
        made: bool,
    ) -> Result<(Self, Ensured), BackendError> {
        claim::ensure(identity, path, limit, made)
    }

    /// Lets go of a pool that is not open, so that a release can be repeated after it was cut short: what
    /// [`Backend::release`] does, and nothing where the directory is gone or not this pool's.
    pub fn release_at(identity: &PoolIdentity, path: &Path) -> Result<Removed, BackendError> {
        claim::release_at(identity, path)
    }

    /// Takes over another name and limit while the pool is in use.
    pub fn ensure_settings(&self, name: &Name, limit: Option<ByteSize>) -> Result<Ensured, BackendError> {
        let mut settings = lock(&self.settings);
        let identity = PoolIdentity { name: name.clone(), ..settings.identity.clone() };
        let done = claim::ensure_marker(&self.root, &identity)?;
        *settings = Settings { identity, limit };
        Ok(done)
    }

    /// The cluster whose mark it bears.
    pub fn cluster(&self) -> ClusterId {
        self.settings().identity.cluster
    }

    /// Lets the pool, while it is in use, bear the mark of another cluster than the one that it was opened for.
    pub fn pass_on(&self, cluster: ClusterId) -> Result<Ensured, BackendError> {
        let mut settings = lock(&self.settings);
        let to = PoolIdentity { cluster, ..settings.identity.clone() };
        let done = claim::pass_on(&self.root, &settings.identity, &to)?;
        settings.identity = to;
        Ok(done)
    }

    /// The same for a pool that is not open: what bears `from`'s mark bears `to`'s from then on.
    pub fn pass_on_at(from: &PoolIdentity, to: &PoolIdentity, path: &Path) -> Result<Ensured, BackendError> {
        claim::pass_on_at(from, to, path)
    }

    /// Whose mark the directory bears, if that can be told; nothing is opened or changed.
    pub fn find(path: &Path) -> Result<Option<PoolIdentity>, BackendError> {
        claim::find(path)
    }

    fn settings(&self) -> Settings {
        lock(&self.settings).clone()
    }
}

impl Backend for FilePool {
    fn ensure_volume(&self, volume: &VolumeLayout) -> Result<Ensured, BackendError> {
        self.keep(volume)
    }

    fn wipe_volume(&self, id: VolumeId) -> Result<(), BackendError> {
        Err(BackendError::Refused(format!(
            "volume {id} cannot be wiped: where a file is overwritten, its file system may write elsewhere and leave what was \
             there, and blocks may be shared with snapshots and copies; remove it without"
        )))
    }

    fn remove_volume(&self, id: VolumeId) -> Result<Removed, BackendError> {
        self.destroy(id)
    }

    fn open_volume(&self, id: VolumeId) -> Result<Arc<dyn BlockIo>, BackendError> {
        Ok(self.share(id)?)
    }

    fn observe_capacity(&self) -> Result<PoolCapacity, BackendError> {
        self.capacity()
    }

    fn observe_volumes(&self) -> Result<Vec<InventoryVolume>, BackendError> {
        self.inventory()
    }

    fn observe_unfinished(&self) -> Result<Vec<InventoryVolume>, BackendError> {
        self.unfinished()
    }

    fn find_snapshot(&self, id: SnapshotId) -> Result<Option<TakenSnapshot>, BackendError> {
        self.taken(id)
    }

    fn stage_snapshot(&self, snapshot: &SnapshotLayout, at: Timestamp) -> Result<(), BackendError> {
        self.stage(snapshot, at)
    }

    fn settle_snapshot(&self, id: SnapshotId) -> Result<TakenSnapshot, BackendError> {
        self.settle(id)
    }

    fn wipe_snapshot(&self, id: SnapshotId) -> Result<(), BackendError> {
        Err(BackendError::Refused(format!(
            "snapshot {id} cannot be wiped: it shares its blocks with its volume and copies, and its file system may keep what \
             was there elsewhere"
        )))
    }

    fn remove_snapshot(&self, id: SnapshotId) -> Result<Removed, BackendError> {
        self.destroy_snapshot(id)
    }

    fn observe_snapshots(&self) -> Result<Vec<InventorySnapshot>, BackendError> {
        self.snapshot_inventory()
    }

    fn release(&self) -> Result<Removed, BackendError> {
        claim::release(&self.root)
    }
}

/// No code panics between two changes of what these locks guard, so what a panicking thread leaves is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl From<FileError> for BackendError {
    fn from(error: FileError) -> Self {
        BackendError::Io { action: error.to_string(), source: error.source }
    }
}

impl From<DocumentError> for BackendError {
    fn from(error: DocumentError) -> Self {
        match error {
            DocumentError::File(error) => error.into(),
            DocumentError::Encode { source, .. } => {
                BackendError::Io { action: "cannot put a document into words".to_owned(), source: source.into() }
            }
            DocumentError::Damaged { path, reason } => {
                BackendError::Damaged { path: path.display().to_string(), reason }
            }
            DocumentError::Foreign { path, found, expected } => BackendError::Damaged {
                path: path.display().to_string(),
                reason: format!("it holds a '{found}' where a '{expected}' belongs"),
            },
            DocumentError::Newer { path, found, known } => BackendError::Damaged {
                path: path.display().to_string(),
                reason: format!("a newer symphony wrote it (version {found}, this one reads up to {known})"),
            },
        }
    }
}
