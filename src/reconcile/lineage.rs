//! What must be there before it is copied, and what must hold still meanwhile.
//!
//! 1. A snapshot is taken of a volume that is as it should be, while nothing else is done to that volume. All of a set are
//!    taken together, without those that are to go already.
//! 2. A volume that is a copy, or is put back, waits for what its bytes come from. One that was put back to a snapshot once
//!    does not wait for the end of that.
//! 3. A snapshot is not destroyed while it is being copied, nor while its set is being taken. Nothing is done to its volume
//!    meanwhile, unless its room is overwritten: that takes long, and the volume has nothing to do with it.
//! 4. A copy or a snapshot whose source has failed may be there already, from before a crash: it is looked for once, and goes
//!    on without its source if it is whole.

use super::{Progress, World, wipes};
use crate::model::{
    Assigned, AssignedId, Assignment, AssignmentSet, SnapshotAssignment, SnapshotId, Source, VolumeAssignment, VolumeId,
};
use std::collections::BTreeSet;

/// What a plan has to know of all copies together.
pub struct Lineage<'w> {
    world: &'w World,
    assigned: &'w AssignmentSet,
    /// Volumes that are being taken a snapshot of, or copied.
    read: BTreeSet<VolumeId>,
    /// Snapshots that are being copied from, or whose set is being taken.
    used: BTreeSet<SnapshotId>,
}

impl<'w> Lineage<'w> {
    pub fn survey(world: &'w World, assigned: &'w AssignmentSet) -> Self {
        let mut this = Self { world, assigned, read: BTreeSet::new(), used: BTreeSet::new() };
        let running = world.held.values().filter(|progress| progress.is_running());
        running.for_each(|progress| this.note(progress.object()));
        this
    }

    /// Takes note of what a task that runs, or begins now, reads.
    pub fn note(&mut self, object: &Assigned) {
        match object {
            Assigned::Snapshot(_) if wipes(object) => {}
            Assigned::Snapshot(snapshot) => {
                self.read.insert(snapshot.volume);
                self.read.extend(snapshot.set.iter().map(|member| member.volume));
                self.used.extend(snapshot.set.iter().map(|member| member.snapshot));
            }
            Assigned::Volume(volume) => {
                match volume.source {
                    Some(Source::Volume(id)) if !volume.made => drop(self.read.insert(id)),
                    Some(Source::Snapshot(id)) if !volume.made => drop(self.used.insert(id)),
                    _ => {}
                }
                self.used.extend(volume.revert.map(|revert| revert.to));
            }
            Assigned::Pool(_) | Assigned::Attachment(_) => {}
        }
    }

    /// Whether the volume may be worked on now.
    pub fn admits_volume(&self, volume: &VolumeAssignment) -> bool {
        let source = volume.source.filter(|_| !volume.made).map(Into::into);
        // Managers let no snapshot go to which a volume is still to be put back.
        let goes = |id: &SnapshotId| self.assigned.snapshots.get(id).is_some_and(|snapshot| snapshot.removed);
        let revert = volume.revert.map(|revert| revert.to).filter(|to| !goes(to)).map(Into::into);
        let ready = source.into_iter().chain(revert).all(|id| self.is_ready(id));
        !self.read.contains(&volume.id) && (volume.removed || ready)
    }

    /// Whether something that was never seen whole may be so already, while one of those that it is to be made of cannot be
    /// had.
    pub fn is_to_be_found<A: Assignment>(&self, object: &A, sources: impl IntoIterator<Item = AssignedId>) -> bool {
        let held = |id: AssignedId| self.world.held.get(&id);
        sources.into_iter().any(|id| matches!(held(id), Some(Progress::Failed { .. })))
            && !matches!(held(object.id().into()), Some(Progress::Missing(_)))
            && !object.is_removed()
            && !object.clone().made().is_some_and(|made| *made)
    }

    /// The snapshot as it may be taken or destroyed now; none if it has to wait.
    pub fn admit_snapshot(&self, snapshot: &SnapshotAssignment) -> Option<SnapshotAssignment> {
        if snapshot.removed {
            return (!self.used.contains(&snapshot.id)).then(|| snapshot.clone());
        }
        let goes = |id: SnapshotId| self.assigned.snapshots.get(&id).is_none_or(|member| member.removed);
        let mut set = snapshot.set.clone();
        set.retain(|member| !goes(member.snapshot));
        let volumes = set.iter().map(|member| member.volume).chain([snapshot.volume]);
        let ready = snapshot.made || volumes.into_iter().all(|id| self.is_ready(id.into()));
        ready.then(|| SnapshotAssignment { set, ..snapshot.clone() })
    }

    /// Whether it is as it should be; what is not assigned here is not waited for.
    fn is_ready(&self, id: AssignedId) -> bool {
        let done = matches!(self.world.held.get(&id), Some(Progress::Done(object)) if !object.is_removed());
        done || !self.assigned.contains(id)
    }
}
