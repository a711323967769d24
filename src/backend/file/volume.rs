//! One volume: made, grown, opened, removed.
//!
//! ```text
//!   nothing ──▶ image ──▶ image + sidecar ──▶ longer image + sidecar ──▶ longer image + new sidecar
//!                              │
//!                              ▼ (remove)
//!                           sidecar ──▶ nothing
//! ```
//! A process killed anywhere leaves one of the states drawn, and the verb repeated goes on from there. On the way to
//! the right each step reaches the medium before the next is visible. A power cut during a removal may leave either
//! file without the other, and both are for the repeated removal to take.

use super::layout::{Sidecar, copy, image, sidecar};
use super::{FilePool, lock};
use crate::backend::{BackendError, Ensured, Removed, VolumeLayout};
use crate::host::directory::{FileError, PRIVATE};
use crate::host::disk::holds_data;
use crate::host::document::{DocumentError, load, stage};
use crate::io::FileIo;
use crate::model::{ByteSize, Source, VolumeId, VolumeSpec};
use std::fs::File;
use std::sync::Arc;

pub(super) const UNDESCRIBED: &str = "it is there without the sidecar that says what it is";

impl FilePool {
    pub(super) fn keep(&self, layout: &VolumeLayout) -> Result<Ensured, BackendError> {
        if let Some(fault) = VolumeSpec::fault_of_size(layout.size) {
            return Err(BackendError::Refused(format!("volume {} cannot be made: {fault}", layout.id)));
        }
        let _turn = self.turns.take(layout.id);
        let held = self.sidecar(layout.id)?.map(|held| self.swap(held)).transpose()?;
        let held = held.map(|held| self.cut(held)).transpose()?;
        let done = match (held, self.image_length(layout.id)?) {
            (Some(held), Some(length)) => self.follow(layout, &held, length)?,
            (None, Some(length)) if layout.made => self.describe(layout, length)?,
            (None, Some(_)) => self.take_over(layout)?,
            // A sidecar alone is as good a witness of lost bytes as the cluster's own word.
            (Some(_), None) => return Err(self.lost(layout.id)),
            (None, None) if layout.made => return Err(self.lost(layout.id)),
            (None, None) => match layout.source {
                Some(source) => self.create_copy(layout, source)?,
                None => self.create(layout)?,
            },
        };
        self.volumes.settle()?;
        self.show_growth(layout)?;
        Ok(done)
    }

    pub(super) fn destroy(&self, id: VolumeId) -> Result<Removed, BackendError> {
        let _turn = self.turns.take(id);
        let copied = self.volumes.remove_file(&copy(id))?;
        let image = self.volumes.remove_file(&image(id))? || copied;
        let sidecar = self.volumes.remove_file(&sidecar(id))?;
        // Even if both were gone: whoever removed them may have been killed before that was durable.
        self.volumes.sync()?;
        lock(&self.open).remove(&id);
        Ok(if image || sidecar { Removed::Gone } else { Removed::WasAbsent })
    }

    pub(super) fn share(&self, id: VolumeId) -> Result<Arc<FileIo>, BackendError> {
        let _turn = self.turns.take(id);
        if let Some(shared) = self.shared(id) {
            return Ok(shared);
        }
        let Some(length) = self.image_length(id)? else { return Err(self.lost(id)) };
        let size = match self.sidecar(id)? {
            Some(held) if held.swap => return Err(self.damaged(id, "a copy is to take its place, and has not yet")),
            Some(held) if held.cut => return Err(self.damaged(id, "it is being shrunk, and has not been yet")),
            Some(held) => held.size,
            None => return Err(self.damaged(id, UNDESCRIBED)),
        };
        self.check_length(id, size, length)?;
        let file = self.image(id)?;
        // A growth that was cut short has lengthened the image already. It may be given up, and nobody has used it then.
        let opened = FileIo::within(file, size.as_u64(), None);
        let opened = opened.map_err(|error| FileError::new("open", self.image_path(id), error))?;
        let opened = Arc::new(opened);
        lock(&self.open).insert(id, Arc::downgrade(&opened));
        Ok(opened)
    }

    /// The bytes come into being as one hole, then the volume by its sidecar.
    fn create(&self, layout: &VolumeLayout) -> Result<Ensured, BackendError> {
        let file = self.volumes.create_file(&image(layout.id), PRIVATE)?;
        self.finish(layout, &file)
    }

    /// The bytes come into being as another volume's or a snapshot's.
    fn create_copy(&self, layout: &VolumeLayout, source: Source) -> Result<Ensured, BackendError> {
        let file = self.make_copy(layout, source)?;
        let made = Sidecar { swap: true, ..Sidecar::from(layout) };
        self.publish(&made, Some(&file))?;
        self.swap(made)?;
        Ok(Ensured::Created)
    }

    /// The bytes become a snapshot's again. Whoever has the volume open still sees what it was.
    fn put_back(&self, layout: &VolumeLayout, next: Sidecar, to: Source) -> Result<Ensured, BackendError> {
        let file = self.make_copy(layout, to)?;
        let next = Sidecar { swap: true, ..next };
        self.publish(&next, Some(&file))?;
        self.swap(next)?;
        lock(&self.open).remove(&layout.id);
        Ok(Ensured::Reverted)
    }

    /// Goes on where an earlier creation stopped, provided that nobody's bytes are in the image.
    fn take_over(&self, layout: &VolumeLayout) -> Result<Ensured, BackendError> {
        let file = self.image(layout.id)?;
        if !self.is_blank(layout.id, &file)? {
            return Err(self.damaged(layout.id, UNDESCRIBED));
        }
        self.finish(layout, &file)
    }

    fn finish(&self, layout: &VolumeLayout, file: &File) -> Result<Ensured, BackendError> {
        self.set_length(layout, file)?;
        self.publish(&Sidecar::from(layout), Some(file))?;
        Ok(Ensured::Created)
    }

    /// A volume that held bytes has lost its sidecar. The image is what matters and it is there, so it is described
    /// anew and not touched. Where it is too short nobody can say whether growth is owed or bytes were lost.
    fn describe(&self, layout: &VolumeLayout, length: ByteSize) -> Result<Ensured, BackendError> {
        self.check_length(layout.id, layout.size, length)?;
        tracing::warn!(volume = %layout.id, pool = %self.root.path().display(), "a lost sidecar is written anew");
        let file = self.image(layout.id)?;
        self.publish(&Sidecar::from(layout), Some(&file))?;
        Ok(Ensured::Updated)
    }

    /// The volume is there as `held`; makes it what `layout` says.
    fn follow(&self, layout: &VolumeLayout, held: &Sidecar, length: ByteSize) -> Result<Ensured, BackendError> {
        let volume = layout.id;
        if layout.generation < held.generation {
            return Err(BackendError::Stale { volume, held: held.generation, offered: layout.generation });
        }
        self.check_length(volume, held.size, length)?;
        let shrinks = layout.size < held.size;
        if shrinks && layout.shrunk.is_none_or(|since| held.generation >= since) {
            return Err(BackendError::Shrink { volume, actual: held.size, wanted: layout.size });
        }
        let next = Sidecar { lineage: held.lineage.clone(), ..Sidecar::from(layout) };
        if next == *held {
            return Ok(Ensured::Unchanged);
        }
        if layout.generation == held.generation {
            let generation = layout.generation.as_u64();
            let reason = format!("volume {volume} is something else on disk under the same generation {generation}");
            return Err(BackendError::Refused(reason));
        }
        if let Some(revert) = layout.revert
            && held.generation < revert.since
        {
            return self.put_back(layout, next, Source::Snapshot(revert.to));
        }
        if shrinks {
            let next = Sidecar { cut: true, ..next };
            self.publish(&next, None)?;
            self.cut(next)?;
            lock(&self.open).remove(&volume);
            return Ok(Ensured::Shrunk);
        }
        if (held.size, length) == (layout.size, layout.size) {
            self.publish(&next, None)?;
            return Ok(Ensured::Updated);
        }
        // A growth that was cut short may have lengthened the image already, to this size, to less or to more.
        let file = self.image(volume)?;
        self.set_length(layout, &file)?;
        self.publish(&next, Some(&file))?;
        Ok(if layout.size == held.size { Ensured::Updated } else { Ensured::Grown })
    }

    /// Cuts off what is behind a volume's end, where the sidecar says so; repeatable. It must be gone before the volume can
    /// grow again. Answers with the sidecar as it is then.
    fn cut(&self, held: Sidecar) -> Result<Sidecar, BackendError> {
        if !held.cut {
            return Ok(held);
        }
        let file = self.image(held.id)?;
        if self.image_length(held.id)?.is_some_and(|length| length > held.size) {
            let failed = |error| FileError::new("set the size of", self.image_path(held.id), error);
            file.set_len(held.size.as_u64()).map_err(failed)?;
        }
        let settled = Sidecar { cut: false, ..held };
        self.publish(&settled, Some(&file))?;
        Ok(settled)
    }

    fn set_length(&self, layout: &VolumeLayout, file: &File) -> Result<(), BackendError> {
        let size = layout.size.as_u64();
        Ok(file.set_len(size).map_err(|error| FileError::new("set the size of", self.image_path(layout.id), error))?)
    }

    /// Makes the image durable, then the sidecar visible and durable. The sidecar is staged before the image is synced
    /// so that a journalling file system commits both at once.
    pub(super) fn publish(&self, next: &Sidecar, image: Option<&File>) -> Result<(), BackendError> {
        let staged = stage(&self.volumes, &sidecar(next.id), next)?;
        staged.sync()?;
        if let Some(file) = image {
            file.sync_all().map_err(|error| FileError::new("sync", self.image_path(next.id), error))?;
        }
        staged.publish()?;
        Ok(self.volumes.sync()?)
    }

    /// Lets the volume's users see a size that an ensured layout has brought, now or in an attempt that failed late.
    fn show_growth(&self, layout: &VolumeLayout) -> Result<(), BackendError> {
        let Some(shared) = self.shared(layout.id) else { return Ok(()) };
        let failed = |error| FileError::new("look at", self.image_path(layout.id), error);
        Ok(shared.grow(layout.size.as_u64()).map_err(failed)?)
    }

    fn shared(&self, id: VolumeId) -> Option<Arc<FileIo>> {
        lock(&self.open).get(&id).and_then(std::sync::Weak::upgrade)
    }

    pub(super) fn sidecar(&self, id: VolumeId) -> Result<Option<Sidecar>, BackendError> {
        let name = sidecar(id);
        let remedy = |error| match error {
            DocumentError::Damaged { path, reason } => {
                let reason = format!("{reason} (moved away, it is written anew from what the cluster knows)");
                DocumentError::Damaged { path, reason }
            }
            other => other,
        };
        match load::<Sidecar>(&self.volumes, &name).map_err(remedy)? {
            Some(held) if held.id != id => Err(BackendError::Damaged {
                path: self.volumes.path_of(&name).display().to_string(),
                reason: format!("it describes volume {}", held.id),
            }),
            held => Ok(held),
        }
    }

    /// Whether the image is one hole, as one is whose creation was cut short.
    pub(super) fn is_blank(&self, id: VolumeId, file: &File) -> Result<bool, BackendError> {
        let data =
            holds_data(file, 0).map_err(|error| FileError::new("look for data in", self.image_path(id), error))?;
        Ok(!data)
    }

    pub(super) fn image_length(&self, id: VolumeId) -> Result<Option<ByteSize>, BackendError> {
        match self.volumes.facts(&image(id))? {
            Some(facts) if !facts.regular => Err(self.damaged(id, "it is not a regular file")),
            facts => Ok(facts.map(|facts| facts.length)),
        }
    }

    pub(super) fn image(&self, id: VolumeId) -> Result<File, BackendError> {
        self.volumes.open_file(&image(id))?.ok_or_else(|| self.lost(id))
    }

    pub(super) fn check_length(&self, id: VolumeId, size: ByteSize, length: ByteSize) -> Result<(), BackendError> {
        if length < size {
            let (length, size) = (length.as_u64(), size.as_u64());
            return Err(self.damaged(id, &format!("it has {length} bytes, the volume has {size}")));
        }
        Ok(())
    }

    fn image_path(&self, id: VolumeId) -> std::path::PathBuf {
        self.volumes.path_of(&image(id))
    }

    pub(super) fn lost(&self, volume: VolumeId) -> BackendError {
        BackendError::Lost { volume, path: self.image_path(volume).display().to_string() }
    }

    pub(super) fn damaged(&self, id: VolumeId, reason: &str) -> BackendError {
        BackendError::Damaged { path: self.image_path(id).display().to_string(), reason: reason.to_owned() }
    }
}
