//! What is in the pool: room, and volumes, whole or damaged.

use super::FilePool;
use super::layout::{Part, image, part, snapshot_of};
use super::volume::UNDESCRIBED;
use crate::backend::BackendError;
use crate::host::disk::capacity_of;
use crate::model::{ByteSize, InventoryVolume, PoolCapacity, PoolId, VolumeId};
use std::collections::BTreeSet;

impl FilePool {
    /// One look at each image's inode; no file is opened.
    pub(super) fn capacity(&self) -> Result<PoolCapacity, BackendError> {
        let mut used = ByteSize::ZERO;
        let images = |name: &str| matches!(part(name), Some((_, Part::Image)));
        let snapshots = |name: &str| snapshot_of(name).is_some();
        let kept = self.snapshots()?;
        let kept = kept.iter().map(|kept| (kept, &snapshots as &dyn Fn(&str) -> bool));
        for (directory, counts) in kept.chain([(&self.volumes, &images as &dyn Fn(&str) -> bool)]) {
            for name in directory.names()?.into_iter().filter(|name| counts(name)) {
                // Gone since it was listed: removed.
                let Some(facts) = directory.facts(&name)? else { continue };
                used = used.saturating_add(facts.allocated);
            }
        }
        let room = capacity_of(&self.volumes)?.available.saturating_add(used);
        let capacity = self.settings().limit.map_or(room, |limit| limit.min(room));
        Ok(PoolCapacity { capacity, used, copies: self.can_copy(), ..PoolCapacity::default() })
    }

    pub(super) fn inventory(&self) -> Result<Vec<InventoryVolume>, BackendError> {
        let pool = self.settings().identity.pool;
        let found: BTreeSet<VolumeId> =
            self.volumes.names()?.iter().filter_map(|name| part(name)).map(|(id, _)| id).collect();
        let look = |id| self.look(pool, id).transpose();
        found.into_iter().filter_map(look).collect()
    }

    /// What [`Self::inventory`] leaves out: volumes that were begun and never came to be.
    pub(super) fn unfinished(&self) -> Result<Vec<InventoryVolume>, BackendError> {
        let pool = self.settings().identity.pool;
        let found: BTreeSet<VolumeId> =
            self.volumes.names()?.iter().filter_map(|name| part(name)).map(|(id, _)| id).collect();
        let mut begun = Vec::new();
        for id in found {
            if self.look(pool, id)?.is_none() {
                begun.push(InventoryVolume { unfinished: true, ..InventoryVolume::bare(id, pool) });
            }
        }
        Ok(begun)
    }

    /// One volume as it lies there; none if it is gone since it was listed, or has never come into being.
    fn look(&self, pool: PoolId, id: VolumeId) -> Result<Option<InventoryVolume>, BackendError> {
        let _turn = self.turns.take(id);
        let mut seen = InventoryVolume::bare(id, pool);
        if let Ok(facts) = self.volumes.facts(&image(id)) {
            seen.data = facts.map(|facts| facts.allocated);
        }
        let length = self.image_length(id);
        if let Ok(Some(length)) = length {
            seen.size = length;
        }
        let damage = match (self.sidecar(id), length) {
            (Ok(Some(held)), length) => {
                seen = InventoryVolume { name: held.name.into(), size: held.size, generation: held.generation, ..seen };
                match length {
                    Ok(Some(length)) => self.check_length(id, held.size, length).err(),
                    // A copy that is to take its place is there.
                    Ok(None) if held.swap => None,
                    Ok(None) => Some(self.lost(id)),
                    Err(error) => Some(error),
                }
            }
            (Ok(None), Ok(None)) => return Ok(None),
            (Ok(None), Ok(Some(_))) => match self.image(id).and_then(|file| self.is_blank(id, &file)) {
                Ok(true) => return Ok(None),
                Ok(false) => Some(self.damaged(id, UNDESCRIBED)),
                Err(error) => Some(error),
            },
            (Ok(None), Err(error)) | (Err(error), _) => Some(error),
        };
        seen.damage = damage.map(|error| match error {
            BackendError::Io { action, source } => format!("{action}: {source}"),
            other => other.to_string(),
        });
        Ok(Some(seen))
    }
}
