//! Snapshots: images that share their blocks with the volume's until that is changed.
//!
//! ```text
//!   nothing ──stage──▶ .staged + .staged.json ──settle──▶ .img + .staged.json ──▶ .img + .json
//! ```
//! They lie in a directory of their own, made with the first. The appearance of the card makes the snapshot exist. Each step reaches the medium before the next begins.

use super::FilePool;
use super::layout::{Card, SNAPSHOTS, SnapshotFiles, snapshot_of};
use crate::backend::{BackendError, Removed, SnapshotLayout};
use crate::host::directory::{Directory, FileError, PRIVATE};
use crate::host::disk::share_blocks;
use crate::host::document::{load, save};
use crate::model::{ByteSize, Generation, InventorySnapshot, PoolId, SnapshotId, TakenSnapshot, Timestamp};
use std::collections::BTreeSet;
use std::io;

impl FilePool {
    /// Where snapshots lie; none if there was never one.
    pub(super) fn snapshots(&self) -> Result<Option<Directory>, BackendError> {
        Ok(self.root.open_child(SNAPSHOTS)?)
    }

    pub(super) fn taken(&self, id: SnapshotId) -> Result<Option<TakenSnapshot>, BackendError> {
        let Some(kept) = self.snapshots()? else { return Ok(None) };
        let Some(card) = self.card(&kept, id)? else { return Ok(None) };
        self.check_image(&kept, &card)?;
        Ok(Some(TakenSnapshot { size: card.size, at: card.at, fill: None }))
    }

    pub(super) fn stage(&self, snapshot: &SnapshotLayout, at: Timestamp) -> Result<(), BackendError> {
        self.check_copies()?;
        let _turn = self.snapshot_turns.take(snapshot.id);
        let files = SnapshotFiles::of(snapshot.id);
        let kept = self.root.make_child(SNAPSHOTS)?;
        self.root.sync()?;
        if self.card(&kept, snapshot.id)?.is_some() {
            return Err(BackendError::Refused(format!("snapshot {} was taken already", snapshot.id)));
        }
        let held = self.sidecar(snapshot.volume)?.ok_or_else(|| self.lost(snapshot.volume))?;
        let source = self.image(snapshot.volume)?;
        // The card first: bytes are never without it.
        for name in [&files.staged_card, &files.staged, &files.image] {
            kept.remove_file(name)?;
        }
        let target = kept.create_file(&files.staged, PRIVATE)?;
        let failed = |action, error| FileError::new(action, kept.path_of(&files.staged), error);
        share_blocks(&source, &target).map_err(|error| failed("copy into", error))?;
        target.sync_all().map_err(|error| failed("sync", error))?;
        let SnapshotLayout { id, name, volume, room: _ } = snapshot.clone();
        // Saving it makes the directory durable, and with it the image's name.
        Ok(save(&kept, &files.staged_card, &Card { id, name, volume, size: held.size, at })?)
    }

    pub(super) fn settle(&self, id: SnapshotId) -> Result<TakenSnapshot, BackendError> {
        let _turn = self.snapshot_turns.take(id);
        if let Some(taken) = self.taken(id)? {
            // It may have been settled in an attempt that failed just before that was durable.
            self.snapshots()?.map_or(Ok(()), |kept| kept.sync())?;
            return Ok(taken);
        }
        let files = SnapshotFiles::of(id);
        let kept = self.snapshots()?.ok_or_else(|| self.snapshot_lost(id))?;
        let Some(card) = load::<Card>(&kept, &files.staged_card)? else { return Err(self.snapshot_lost(id)) };
        match kept.rename(&files.staged, &files.image) {
            Ok(()) => kept.sync()?,
            // It was renamed in an earlier attempt, or there is nothing, as the next look says.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        self.check_image(&kept, &card)?;
        kept.rename(&files.staged_card, &files.card)?;
        kept.sync()?;
        Ok(TakenSnapshot { size: card.size, at: card.at, fill: None })
    }

    pub(super) fn destroy_snapshot(&self, id: SnapshotId) -> Result<Removed, BackendError> {
        let _turn = self.snapshot_turns.take(id);
        let Some(kept) = self.snapshots()? else { return Ok(Removed::WasAbsent) };
        let files = SnapshotFiles::of(id);
        let mut gone = false;
        // Bytes are described for as long as they exist.
        for name in [&files.staged, &files.image, &files.staged_card, &files.card] {
            gone |= kept.remove_file(name)?;
        }
        kept.sync()?;
        Ok(if gone { Removed::Gone } else { Removed::WasAbsent })
    }

    pub(super) fn snapshot_inventory(&self) -> Result<Vec<InventorySnapshot>, BackendError> {
        let Some(kept) = self.snapshots()? else { return Ok(Vec::new()) };
        let pool = self.settings().identity.pool;
        let found: BTreeSet<SnapshotId> = kept.names()?.iter().filter_map(|name| snapshot_of(name)).collect();
        found.into_iter().filter_map(|id| self.look_at_snapshot(&kept, pool, id).transpose()).collect()
    }

    /// A snapshot as it lies there; none if it is gone since it was listed, or was never settled.
    fn look_at_snapshot(
        &self,
        kept: &Directory,
        pool: PoolId,
        id: SnapshotId,
    ) -> Result<Option<InventorySnapshot>, BackendError> {
        let _turn = self.snapshot_turns.take(id);
        let Some(card) = self.card(kept, id)? else { return Ok(None) };
        let damage = self.check_image(kept, &card).err().map(|error| error.to_string());
        let Card { volume, name, size, at, .. } = card;
        let data = kept.facts(&SnapshotFiles::of(id).image)?.map(|facts| facts.allocated);
        let (name, told) = (name.into(), Generation::default());
        Ok(Some(InventorySnapshot { id, pool, volume, name, size, at, told, data, room: None, damage }))
    }

    fn card(&self, kept: &Directory, id: SnapshotId) -> Result<Option<Card>, BackendError> {
        let name = SnapshotFiles::of(id).card;
        match load::<Card>(kept, &name)? {
            Some(card) if card.id != id => Err(BackendError::Damaged {
                path: kept.path_of(&name).display().to_string(),
                reason: format!("it describes snapshot {}", card.id),
            }),
            card => Ok(card),
        }
    }

    /// # Errors
    /// If the image is not there, or shorter than its card says.
    fn check_image(&self, kept: &Directory, card: &Card) -> Result<(), BackendError> {
        let name = SnapshotFiles::of(card.id).image;
        let facts = kept.facts(&name)?.filter(|facts| facts.regular);
        let length: ByteSize = facts.ok_or_else(|| self.snapshot_lost(card.id))?.length;
        if length < card.size {
            let (length, size) = (length.as_u64(), card.size.as_u64());
            let path = kept.path_of(&name).display().to_string();
            return Err(BackendError::Damaged { path, reason: format!("it has {length} bytes, the snapshot {size}") });
        }
        Ok(())
    }
}
