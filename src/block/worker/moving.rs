//! Volumes that are being moved: held while they are copied, their copies filled. See [`Moving`] for the whole.

use super::{TaskError, Worker, failed};
use crate::backend::{Backend, VolumeLayout};
use crate::model::*;
use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

impl Worker {
    pub(super) fn withheld(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Name>> {
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that nobody uses a volume that is one end of a move.
    ///
    /// # Errors
    /// If somebody does: nobody is cut off for that.
    pub(super) fn hold_for_move(&self, volume: &VolumeAssignment) -> Result<(), TaskError> {
        if volume.moving.is_none() || !self.served().contains_key(&volume.id) {
            return Ok(());
        }
        let users = self.exports.users(volume.name.as_str()).unwrap_or_default();
        if users > 0 {
            return Err(TaskError::InUse { volume: volume.name.clone(), users });
        }
        self.retire(volume.id);
        Ok(())
    }

    /// What is to be done before one end of a move is as it should be: what clients wrote is on the medium; the copy is filled.
    pub(super) fn ensure_moved(
        &self,
        volume: &VolumeAssignment,
        moving: &Moving,
        backend: &dyn Backend,
        layout: &VolumeLayout,
    ) -> Result<(), TaskError> {
        match moving {
            Moving::Arriving { supply, .. } if !volume.made => self.fill(volume, supply, backend, layout),
            Moving::Leaving { .. } => backend.open_volume(volume.id)?.flush().map_err(TaskError::Medium),
            Moving::Arriving { .. } | Moving::Left { .. } => Ok(()),
        }
    }

    /// Whether the volume is one end of a move, and so nobody's to use. Its copy can read it then; who else looks for it is
    /// told why it is not there.
    pub(super) fn keep_for_copy(&self, volume: &VolumeAssignment) -> bool {
        if let Some(Moving::Leaving { .. }) = volume.moving.as_deref() {
            self.images.hand_over(volume);
            let name = &volume.name;
            let reason = format!(
                "it is being moved to another pool; `symphony ctl volume get {name}` shows how far that is, and `symphony \
                 ctl volume move {name} --cancel` calls it off"
            );
            self.exports.withhold(name.as_str(), Some(reason));
            self.withheld().insert(volume.id, name.clone());
        } else {
            if !volume.image.as_deref().is_some_and(ImageTie::is_kept_from_clients) {
                self.images.withdraw(volume.id);
            }
            self.withhold_no_longer(volume.id);
        }
        volume.moving.is_some()
    }

    pub(super) fn withhold_no_longer(&self, id: VolumeId) {
        if let Some(name) = self.withheld().remove(&id) {
            self.exports.withhold(name.as_str(), None);
        }
    }

    /// How an object stands that something could not be done to.
    pub(super) fn failed(&self, object: &Assigned, error: &TaskError) -> Report {
        let mut report = failed(object, error);
        // Whoever uses what is to be moved goes on with it.
        if let (Report::Volume(report), TaskError::InUse { volume, .. }, Assigned::Volume(assigned)) =
            (&mut report, error, object)
            && assigned.moving.is_some()
            && let Some(size) = self.served().get(&report.id).map(|served| served.size)
        {
            report.volume = Observed::Known(ServedVolume { size, exports: self.exports_of(volume) });
        }
        report
    }
}
