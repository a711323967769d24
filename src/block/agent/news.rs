//! What was seen, and is worth telling: reports that differ from the last ones by more than a trifle.

use super::Agent;
use crate::backend::lvm::SnapshotFill;
use crate::model::*;
use crate::reconcile::Progress;

impl Agent {
    /// A report on a volume or a snapshot that is being worked on, if that is worth a write to the store.
    pub(super) fn progress_report(&self, id: AssignedId, progress: crate::model::Progress) -> Option<Report> {
        let Some(Progress::Running { task, .. }) = self.world.held.get(&id) else { return None };
        let last = self.reports.get(&id);
        match task {
            Assigned::Volume(task) => {
                let last = last.and_then(|last| if let Report::Volume(last) = last { Some(last) } else { None });
                work_report(task, last, progress).map(Report::Volume)
            }
            Assigned::Snapshot(task) => {
                let last = last.and_then(|last| if let Report::Snapshot(last) = last { Some(last) } else { None });
                wipe_report(task, last, progress).map(Report::Snapshot)
            }
            Assigned::Pool(_) | Assigned::Attachment(_) => None,
        }
    }

    /// A report on a snapshot whose room was looked at, if that is worth a write to the store.
    pub(super) fn fill_report(&self, seen: &SnapshotFill) -> Option<Report> {
        let snapshot = self.assigned.snapshots.get(&seen.id).filter(|snapshot| !snapshot.removed)?;
        let Some(Report::Snapshot(last)) = self.reports.get(&seen.id.into()) else { return None };
        room_report(snapshot, last, seen)
    }

    /// Volumes and snapshots whose pool cannot be used, or whose bytes are to come from what cannot be made, say so.
    pub(super) fn report_waiting(&self) -> Vec<Report> {
        let volumes = self.assigned.volumes.values();
        let snapshots = self.assigned.snapshots.values();
        let copies = volumes.filter_map(|it| self.waiting_report(it, it.pool, it.source, "copied from"));
        let taken = snapshots.filter_map(|it| {
            let volumes = it.set.iter().map(|member| member.volume).chain([it.volume]);
            self.waiting_report(it, it.pool, volumes, "taken of")
        });
        copies.chain(taken).collect()
    }

    fn waiting_report<A: Assignment>(
        &self,
        object: &A,
        pool: PoolId,
        sources: impl IntoIterator<Item = impl Into<AssignedId>>,
        made: &str,
    ) -> Option<Report> {
        // One that is as it should be does not wait for its pool to become what it is to be next.
        if matches!(self.world.held.get(&object.id().into()), Some(Progress::Done(_))) {
            return None;
        }
        let report = |why| Some(object.clone().into().unknown(why));
        if let Some((_, why)) = self.fault_of(pool.into()) {
            return report(format!("its pool cannot be used: {why}"));
        }
        let (source, why) = sources.into_iter().find_map(|id| self.fault_of(id.into()))?;
        if object.is_removed() || object.clone().made().is_some_and(|made| *made) {
            return None;
        }
        report(format!("{source}, which it is to be {made}, is not ready: {why}"))
    }

    /// What has failed, and why.
    fn fault_of(&self, id: AssignedId) -> Option<(&Assigned, &str)> {
        let Some(Progress::Failed { tried, .. }) = self.world.held.get(&id) else { return None };
        Some((tried, self.reports.get(&id)?.failure()?))
    }

    /// The last report on a pool.
    pub(super) fn pool_report(&self, id: PoolId) -> Option<&PoolReport> {
        match self.reports.get(&AssignedId::Pool(id))? {
            Report::Pool(report) => Some(report),
            Report::Volume(_) | Report::Snapshot(_) | Report::Attachment(_) => None,
        }
    }
}

/// A report on a volume with which `task` is being done, from the last one on it, if there is one: it has come a hundredth
/// further than was told.
fn work_report(
    task: &VolumeAssignment,
    last: Option<&VolumeReport>,
    progress: crate::model::Progress,
) -> Option<VolumeReport> {
    let (id, generation) = (task.id, task.generation);
    let unknown = VolumeReport { id, generation, volume: Observed::Unknown, progress: None, failure: None };
    // One that is served goes on being served.
    let is_served = |last: &&VolumeReport| !task.removed && matches!(last.volume, Observed::Known(_));
    let mut report = last.filter(is_served).cloned().unwrap_or(unknown);
    let told = last.filter(|last| last.generation == report.generation).and_then(|last| last.progress);
    report.progress = Some(progress);
    (told.map(crate::model::Progress::percent) != Some(progress.percent())).then_some(report)
}

/// The same on a snapshot whose room is overwritten.
fn wipe_report(
    task: &SnapshotAssignment,
    last: Option<&SnapshotReport>,
    progress: crate::model::Progress,
) -> Option<SnapshotReport> {
    let (id, generation, spoilt) = (task.id, task.generation, last.is_some_and(|last| last.spoilt));
    let told = last.filter(|last| last.generation == generation).and_then(|last| last.progress);
    let (snapshot, failure) = (Observed::Unknown, None);
    let report = SnapshotReport { id, generation, snapshot, spoilt, progress: Some(progress), failure };
    (told.map(crate::model::Progress::percent) != Some(progress.percent())).then_some(report)
}

/// A report on a snapshot with room of its own, from the last one on it: what it has used moved by a hundredth, or it did
/// not suffice.
fn room_report(snapshot: &SnapshotAssignment, last: &SnapshotReport, seen: &SnapshotFill) -> Option<Report> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> VolumeAssignment {
        VolumeAssignment {
            made: true,
            ..VolumeAssignment::bare(
                VolumeId::from_bytes([1; 16]),
                "db",
                7,
                PoolId::from_bytes([2; 16]),
                ByteSize::mib(1000),
            )
        }
    }

    fn done(mib: u64) -> crate::model::Progress {
        crate::model::Progress { done: ByteSize::mib(mib), of: ByteSize::mib(1000) }
    }

    fn served(generation: u64) -> VolumeReport {
        let served = ServedVolume { size: ByteSize::mib(900), exports: Vec::new() };
        let (id, generation, failure) = (volume().id, Generation::new(generation), Some("what was wrong".into()));
        VolumeReport { id, generation, volume: Observed::Known(served), progress: None, failure }
    }

    #[test]
    fn work_is_told_of_when_it_begins_and_at_every_hundredth_and_not_in_between() {
        let mut last = None;
        let mut told = Vec::new();
        for mib in 0..=1000 {
            if let Some(report) = work_report(&volume(), last.as_ref(), done(mib)) {
                assert_eq!((report.id, report.generation), (volume().id, Generation::new(7)));
                assert_eq!(report.volume, Observed::Unknown, "nobody has seen it whole yet");
                told.push(report.progress.unwrap());
                last = Some(report);
            }
        }
        assert_eq!(told, (0..=100).map(|percent| done(10 * percent)).collect::<Vec<_>>());
    }

    #[test]
    fn a_volume_that_is_served_is_told_of_as_served_while_it_is_worked_on() {
        let report = work_report(&volume(), Some(&served(6)), done(500)).unwrap();
        assert_eq!(report, VolumeReport { progress: Some(done(500)), ..served(6) });
        assert_eq!(work_report(&volume(), Some(&report), done(505)), None);
        let again = work_report(&volume(), Some(&report), done(510)).unwrap();
        assert_eq!(again.progress, Some(done(510)));
    }

    #[test]
    fn the_wiping_of_a_removed_volume_makes_it_unknown_and_old_progress_is_not_taken_for_its_own() {
        let removed = VolumeAssignment { removed: true, ..volume() };
        // Of another piece of work, before the tombstone.
        let before = VolumeReport { progress: Some(done(500)), ..served(6) };
        let report = work_report(&removed, Some(&before), done(500)).unwrap();
        assert_eq!(
            (report.generation, &report.volume, &report.failure),
            (Generation::new(7), &Observed::Unknown, &None)
        );
        assert_eq!(work_report(&removed, Some(&report), done(509)), None);
    }

    #[test]
    fn the_wiping_of_a_snapshot_makes_it_unknown_and_is_told_of_at_every_hundredth() {
        let removed = SnapshotAssignment { removed: true, wipe: true, generation: Generation::new(3), ..snapshot() };
        let (mut last, mut told) = (SnapshotReport { spoilt: true, ..taken(Some(used(50))) }, Vec::new());
        for mib in 0..=1000 {
            let Some(report) = wipe_report(&removed, Some(&last), done(mib)) else { continue };
            assert_eq!((report.id, report.generation, report.spoilt), (removed.id, removed.generation, true));
            assert_eq!((&report.snapshot, &report.failure), (&Observed::Unknown, &None));
            told.push(report.progress.unwrap());
            last = report;
        }
        assert_eq!(told, (0..=100).map(|percent| done(10 * percent)).collect::<Vec<_>>());
        assert!(wipe_report(&removed, None, done(7)).is_some(), "nobody has said anything of it before");
    }

    #[test]
    fn progress_of_nothing_and_beyond_its_end_is_told_once() {
        let (none, beyond) = (done(0), done(2000));
        let nothing = crate::model::Progress { of: ByteSize::ZERO, ..none };
        let report = work_report(&volume(), None, nothing).unwrap();
        assert_eq!(work_report(&volume(), Some(&report), nothing), None);
        let report = work_report(&volume(), None, beyond).unwrap();
        assert_eq!(work_report(&volume(), Some(&report), done(1000)), None, "it is at 100% either way");
    }

    fn snapshot() -> SnapshotAssignment {
        SnapshotAssignment {
            id: SnapshotId::from_bytes([3; 16]),
            name: "monday".parse().unwrap(),
            generation: Generation::new(2),
            volume: volume().id,
            pool: volume().pool,
            set: Vec::new(),
            room: Some(ByteSize::mib(100)),
            wipe: false,
            made: true,
            removed: false,
        }
    }

    fn taken(fill: Option<Fill>) -> SnapshotReport {
        let taken = TakenSnapshot { size: ByteSize::mib(1000), at: Timestamp::EPOCH, fill };
        let (id, generation, spoilt) = (snapshot().id, snapshot().generation, false);
        SnapshotReport { id, generation, snapshot: Observed::Known(taken), spoilt, progress: None, failure: None }
    }

    fn used(mib: u64) -> Fill {
        Fill { room: ByteSize::mib(100), used: ByteSize::mib(mib) }
    }

    fn seen(fill: Fill) -> SnapshotFill {
        SnapshotFill { id: snapshot().id, fill, spoilt: false }
    }

    #[test]
    fn a_snapshot_s_room_is_told_of_first_and_then_when_more_than_a_hundredth_of_it_moved() {
        let told = |last, seen: Fill| room_report(&snapshot(), &taken(last), &self::seen(seen));
        assert_eq!(told(None, used(0)), Some(Report::Snapshot(taken(Some(used(0))))));
        assert_eq!(told(Some(used(40)), used(40)), None);
        assert_eq!(told(Some(used(40)), used(41)), None);
        assert_eq!(told(Some(used(40)), used(42)), Some(Report::Snapshot(taken(Some(used(42))))));
        assert_eq!(told(Some(used(40)), used(38)), Some(Report::Snapshot(taken(Some(used(38))))));
        let larger = Fill { room: ByteSize::mib(200), used: ByteSize::mib(40) };
        assert_eq!(told(Some(used(40)), larger), Some(Report::Snapshot(taken(Some(larger)))));
    }

    #[test]
    fn a_spoilt_snapshot_is_told_of_once_as_lost_with_the_reason_and_never_recovers() {
        let spoilt = SnapshotFill { spoilt: true, ..seen(used(100)) };
        let Some(Report::Snapshot(report)) = room_report(&snapshot(), &taken(Some(used(99))), &spoilt) else {
            panic!("it is to be told of");
        };
        assert!(report.spoilt && report.snapshot == Observed::Unknown, "{report:?}");
        assert!(report.failure.as_deref().is_some_and(|why| why.contains("the volume is not harmed")), "{report:?}");
        assert_eq!(room_report(&snapshot(), &report, &spoilt), None);
        assert_eq!(room_report(&snapshot(), &report, &seen(used(10))), None);
    }

    #[test]
    fn the_room_of_a_snapshot_that_nobody_saw_taken_says_nothing_unless_it_is_spoilt() {
        for observed in [Observed::Unknown, Observed::Absent] {
            let last = SnapshotReport { snapshot: observed, ..taken(None) };
            assert_eq!(room_report(&snapshot(), &last, &seen(used(50))), None);
            let spoilt = SnapshotFill { spoilt: true, ..seen(used(50)) };
            assert!(room_report(&snapshot(), &last, &spoilt).is_some());
        }
    }
}
