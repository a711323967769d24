//! Volumes made of other volumes' bytes, and put back to a snapshot's: the file system shares the blocks.
//!
//! ```text
//!   <id>.copy, whole and durable ──▶ sidecar says "swap" ──▶ <id>.copy becomes <id>.img ──▶ sidecar without "swap"
//! ```
//! From the moment the sidecar says so the copy is the volume's bytes; before, it is nothing, and made anew.

use super::FilePool;
use super::layout::{SNAPSHOTS, Sidecar, SnapshotFiles, copy, image};
use crate::backend::{BackendError, VolumeLayout};
use crate::host::directory::{FileError, PRIVATE};
use crate::host::disk::{can_share_blocks, share_blocks};
use crate::model::{ByteSize, SnapshotId, Source};
use std::fs::File;
use std::io;

impl FilePool {
    /// Makes the copy that is to be the volume's bytes, as long as the volume is to be.
    pub(super) fn make_copy(&self, layout: &VolumeLayout, source: Source) -> Result<File, BackendError> {
        self.check_copies()?;
        let name = copy(layout.id);
        let (from, length) = self.source(source)?;
        if length > layout.size {
            let reason =
                format!("{source} has {length}, which does not fit into the {} of volume {}", layout.size, layout.id);
            return Err(BackendError::Refused(reason));
        }
        self.volumes.remove_file(&name)?;
        let made = self.volumes.create_file(&name, PRIVATE)?;
        let failed = |action, error| FileError::new(action, self.volumes.path_of(&name), error);
        share_blocks(&from, &made).map_err(|error| failed("copy into", error))?;
        for size in [length, layout.size] {
            made.set_len(size.as_u64()).map_err(|error| failed("set the size of", error))?;
        }
        made.sync_all().map_err(|error| failed("sync", error))?;
        Ok(made)
    }

    /// The file, and how much of it counts: what a growth that was cut short has added does not.
    fn source(&self, source: Source) -> Result<(File, ByteSize), BackendError> {
        match source {
            Source::Volume(id) => {
                let held = self.sidecar(id)?.ok_or_else(|| self.lost(id))?;
                if held.swap {
                    return Err(BackendError::Refused(format!(
                        "volume {id} is being put back; it is copied after that"
                    )));
                }
                Ok((self.image(id)?, held.size))
            }
            Source::Snapshot(id) => {
                let taken = self.taken(id)?.ok_or_else(|| self.snapshot_lost(id))?;
                let files = SnapshotFiles::of(id);
                let kept = self.snapshots()?.ok_or_else(|| self.snapshot_lost(id))?;
                let file = kept.open_file(&files.image)?.ok_or_else(|| self.snapshot_lost(id))?;
                Ok((file, taken.size))
            }
        }
    }

    /// Lets the copy take the image's place, where the sidecar says so; repeatable. Answers with the sidecar as it is then.
    pub(super) fn swap(&self, held: Sidecar) -> Result<Sidecar, BackendError> {
        if !held.swap {
            return Ok(held);
        }
        let (from, to) = (copy(held.id), image(held.id));
        match self.volumes.rename(&from, &to) {
            Ok(()) => {}
            // It has taken its place in an earlier attempt.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        self.volumes.sync()?;
        let settled = Sidecar { swap: false, ..held };
        self.publish(&settled, None)?;
        Ok(settled)
    }

    /// Whether files here can share blocks. What cannot be found out now is asked again.
    pub(super) fn can_copy(&self) -> bool {
        if let Some(known) = self.copies.get() {
            return *known;
        }
        match can_share_blocks(&self.root) {
            Ok(can) => *self.copies.get_or_init(|| can),
            Err(error) => {
                tracing::warn!(%error, reason = %error.source, "not known whether there can be snapshots");
                false
            }
        }
    }

    /// # Errors
    /// If this file system cannot share blocks: copying all bytes would take long, and hold up whoever writes.
    pub(super) fn check_copies(&self) -> Result<(), BackendError> {
        if self.can_copy() {
            return Ok(());
        }
        let place = self.root.path().display();
        Err(BackendError::Refused(format!(
            "the file system of {place} cannot share blocks between files, so there are no snapshots and copies in this \
             pool: XFS and btrfs can"
        )))
    }

    pub(super) fn snapshot_lost(&self, snapshot: SnapshotId) -> BackendError {
        let path = self.root.path_of(SNAPSHOTS).join(SnapshotFiles::of(snapshot).image).display().to_string();
        BackendError::SnapshotLost { snapshot, path }
    }
}
