//! What is there already, without being made: of copies and snapshots whose source cannot be had.

use super::{TaskError, Worker};
use crate::model::Assigned;

impl Worker {
    /// Whether a volume or a snapshot is on its medium with all the bytes that it begins with.
    pub(super) fn find(&self, object: &Assigned) -> Result<bool, TaskError> {
        match object {
            Assigned::Volume(volume) => {
                let seen = self.pool(volume.pool)?.observe_volumes()?;
                Ok(seen.iter().any(|seen| seen.id == volume.id && seen.damage.is_none() && !seen.unfinished))
            }
            Assigned::Snapshot(snapshot) => Ok(self.pool(snapshot.pool)?.find_snapshot(snapshot.id)?.is_some()),
            Assigned::Pool(_) | Assigned::Attachment(_) => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::OpenPool;
    use super::super::snapshot::tests::worker;
    use super::*;
    use crate::backend::lvm::Kind;
    use crate::backend::lvm::tests::machine::{Machine, layout, snapshot_of};
    use crate::backend::{Backend, VolumeLayout};
    use crate::model::{Generation, SnapshotAssignment, Source, Timestamp, VolumeAssignment};
    use crate::reconcile::Task;
    use std::sync::Arc;

    #[test]
    fn a_copy_or_a_snapshot_is_found_once_it_is_whole_and_nothing_is_made_by_looking() {
        let (scratch, runtime) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
        let (machine, worker) = (Machine::new(Kind::Thin), worker(&runtime, scratch.path()));
        let (pool, origin) = (Arc::new(machine.open(false)), layout(3));
        worker.pools().insert(machine.identity.pool, OpenPool::Lvm(pool.clone()));
        let source = Some(Source::Volume(origin.id));
        let copy = VolumeLayout { source, ..layout(4) };
        let missing = |object: Assigned| {
            let outcome = worker.perform(Task::Find(object));
            assert!(outcome.report.is_none() && !outcome.interrupted, "{outcome:?}");
            outcome.missing
        };
        let volume = VolumeAssignment {
            source,
            ..VolumeAssignment::bare(copy.id, copy.name.as_str(), 1, machine.identity.pool, copy.size)
        };
        let kept = snapshot_of(origin.id);
        let snapshot = SnapshotAssignment {
            id: kept.id,
            name: kept.name.clone(),
            generation: Generation::FIRST,
            volume: origin.id,
            pool: machine.identity.pool,
            set: Vec::new(),
            room: None,
            wipe: false,
            made: false,
            removed: false,
        };
        let names = || machine.model.state().groups[&machine.group()].lvs.keys().cloned().collect::<Vec<_>>();
        let before = names();
        assert!(missing(volume.clone().into()) && missing(snapshot.clone().into()));
        assert_eq!(names(), before);
        pool.ensure_volume(&origin).unwrap();
        pool.stage_snapshot(&kept, Timestamp::EPOCH).unwrap();
        assert!(missing(volume.clone().into()) && missing(snapshot.clone().into()), "what is only begun is not there");
        pool.ensure_volume(&copy).unwrap();
        pool.settle_snapshot(kept.id).unwrap();
        pool.remove_volume(origin.id).unwrap();
        assert!(!missing(volume.clone().into()) && !missing(snapshot.clone().into()));
        // With its pool closed nobody knows.
        worker.pools().clear();
        assert!(worker.perform(Task::Find(volume.into())).failure().is_some());
    }
}
