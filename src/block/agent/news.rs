//! What was seen, and is worth telling: reports that differ from the last ones by more than a trifle.

use super::Agent;
use crate::backend::lvm::SnapshotFill;
use crate::model::*;
use crate::reconcile::Progress;

impl Agent {
    /// A report on a volume that is being worked on, if that is worth a write to the store.
    pub(super) fn progress_report(&self, id: VolumeId, progress: crate::model::Progress) -> Option<Report> {
        let Some(Progress::Running { task: Assigned::Volume(task), .. }) = self.world.held.get(&id.into()) else {
            return None;
        };
        let last = match self.reports.get(&id.into()) {
            Some(Report::Volume(last)) => Some(last),
            _ => None,
        };
        let unknown =
            VolumeReport { id, generation: task.generation, volume: Observed::Unknown, progress: None, failure: None };
        // One that is served goes on being served.
        let is_served = |last: &&VolumeReport| !task.removed && matches!(last.volume, Observed::Known(_));
        let mut report = last.filter(is_served).cloned().unwrap_or(unknown);
        let told = last.filter(|last| last.generation == report.generation).and_then(|last| last.progress);
        report.progress = Some(progress);
        (told.map(crate::model::Progress::percent) != Some(progress.percent())).then_some(Report::Volume(report))
    }

    /// A report on a snapshot whose room was looked at, if that is worth a write to the store: it moved by a hundredth, or
    /// did not suffice.
    pub(super) fn fill_report(&self, seen: &SnapshotFill) -> Option<Report> {
        let snapshot = self.assigned.snapshots.get(&seen.id).filter(|snapshot| !snapshot.removed)?;
        let Some(Report::Snapshot(last)) = self.reports.get(&seen.id.into()) else { return None };
        let mut report = last.clone();
        match (&mut report.snapshot, seen.spoilt) {
            _ if last.spoilt => return None,
            (_, true) => {
                let why = "it is spoilt: more of its volume was changed than it had room for; the volume is not harmed";
                return match Assigned::from(snapshot.clone()).unknown(why.to_owned()) {
                    Report::Snapshot(lost) => Some(Report::Snapshot(SnapshotReport { spoilt: true, ..lost })),
                    other => Some(other),
                };
            }
            (Observed::Known(taken), false) => {
                let hundredth = seen.fill.room.as_u64() / 100;
                let same = |told: Fill| {
                    told.room == seen.fill.room && told.used.as_u64().abs_diff(seen.fill.used.as_u64()) <= hundredth
                };
                if taken.fill.is_some_and(same) {
                    return None;
                }
                taken.fill = Some(seen.fill);
            }
            (Observed::Unknown | Observed::Absent, false) => return None,
        }
        Some(Report::Snapshot(report))
    }

    /// The last report on a pool.
    pub(super) fn pool_report(&self, id: PoolId) -> Option<&PoolReport> {
        match self.reports.get(&AssignedId::Pool(id))? {
            Report::Pool(report) => Some(report),
            Report::Volume(_) | Report::Snapshot(_) | Report::Attachment(_) => None,
        }
    }
}

/// A report on a pool that was looked at again, from the last one on it, if that is worth a write to the
/// store: it failed, recovered, or moved by a hundredth of its capacity.
pub(super) fn look_report(last: &PoolReport, seen: Result<PoolCapacity, String>) -> Option<Report> {
    let mut report = last.clone();
    match (seen, &last.capacity) {
        (Ok(seen), Observed::Known(known)) => {
            let moved = |a: ByteSize, b: ByteSize, of: ByteSize| a.as_u64().abs_diff(b.as_u64()) > of.as_u64() / 100;
            let metadata_moved = match (seen.metadata, known.metadata) {
                (Some(seen), Some(known)) => {
                    seen.capacity != known.capacity || moved(seen.used, known.used, known.capacity)
                }
                (seen, known) => seen != known,
            };
            let same = !moved(seen.capacity, known.capacity, known.capacity)
                && !moved(seen.used, known.used, known.capacity)
                && !metadata_moved
                && (seen.copies, seen.extent, seen.size) == (known.copies, known.extent, known.size);
            if same && last.failure.is_none() {
                return None;
            }
            report.capacity = Observed::Known(seen);
            report.failure = None;
        }
        (Ok(_), Observed::Absent | Observed::Unknown) => return None,
        (Err(why), Observed::Known(_)) => report.failure = Some(why),
        // It was let go of meanwhile.
        (Err(_), Observed::Absent | Observed::Unknown) => return None,
    }
    Some(Report::Pool(report))
}
