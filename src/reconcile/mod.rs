//! What to do next, purely: from what is assigned and what was achieved to the tasks that close the gap.
//!
//! Nothing here touches a device or a clock. Each object has at most one task at a time; a failed one is tried again
//! after a growing pause, or at once when its assignment changes.
//!
//! ```text
//!   (none) ──task──▶ Running ──ok──▶ Done(assignment) ──newer assignment──▶ Running
//!                     ├──error──▶ Failed(retry at) ──time, or newer assignment──▶ Running
//!                     └──looked for in vain──▶ Missing ──what it is made of is there──▶ Running
//! ```
//!
//! Who may use a volume is settled before the volume is served for the first time: after a reboot nobody slips in
//! beside a client that is to be alone. See `doors` for the rules, and `lineage` for those of snapshots and copies.

mod doors;
mod lineage;

use crate::model::{Assigned, AssignedId, Assignment, AssignmentSet, Generation, PoolId};
use doors::Doors;
use lineage::Lineage;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// One thing to do on this host. Each is idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Make the pool usable; make the volume exist as assigned, and serve it; let the attachment's client in.
    Ensure(Assigned),
    /// See whether the copy or snapshot, whose source cannot be had, is whole on its medium already. Nothing is made or
    /// changed.
    Find(Assigned),
    /// Tombstone: let go of the pool on disk; stop serving the volume, then destroy its data; cut the client off.
    Remove(Assigned),
    /// No longer assigned: close the pool, stop serving the volume, cut the client off. Data are left alone, and there
    /// is nobody to tell.
    Drop(Assigned),
}

/// Where one object stands on this host. An object without progress was never tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// With the failures in a row before it.
    Running {
        task: Assigned,
        attempts: u32,
    },
    Done(Assigned),
    Failed {
        tried: Assigned,
        attempts: u32,
        retry_at: Instant,
    },
    /// Looked for, and not there: it waits for what it is to be made of.
    Missing(Assigned),
}

/// Where everything stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    pub held: BTreeMap<AssignedId, Progress>,
}

/// How many volumes and snapshots are overwritten at a time before they go: what takes hours must not keep everything else
/// waiting.
const WIPES: usize = 4;
const RETRY_FLOOR: Duration = Duration::from_millis(500);
const RETRY_CEILING: Duration = Duration::from_secs(30);

impl Task {
    pub fn object(&self) -> &Assigned {
        match self {
            Task::Ensure(object) | Task::Find(object) | Task::Remove(object) | Task::Drop(object) => object,
        }
    }

    /// Whether the ledger holds what it is about before it is begun. Whoever starts anew with a ledger from before would miss
    /// bytes that are gone on purpose, or find a volume that is newer on its disk than he may serve.
    pub fn follows_the_ledger(&self) -> bool {
        match self {
            Task::Remove(object) => !matches!(object, Assigned::Attachment(_)),
            // A new one is nobody's yet.
            Task::Ensure(Assigned::Volume(volume)) => volume.generation > Generation::FIRST,
            Task::Ensure(_) | Task::Find(_) | Task::Drop(_) => false,
        }
    }
}

impl Progress {
    /// What was asked for when a task was last started.
    pub fn object(&self) -> &Assigned {
        match self {
            Progress::Running { task: object, .. }
            | Progress::Done(object)
            | Progress::Missing(object)
            | Progress::Failed { tried: object, .. } => object,
        }
    }

    /// Whether a task for `wanted` should start now.
    fn is_due<A: Assignment>(&self, wanted: &A, now: Instant) -> bool {
        let same =
            |held: &Assigned| (held.generation(), held.is_removed()) == (wanted.generation(), wanted.is_removed());
        match self {
            Progress::Running { .. } => false,
            Progress::Missing(_) => true,
            Progress::Done(done) => !same(done),
            Progress::Failed { tried, retry_at, .. } => !same(tried) || *retry_at <= now,
        }
    }

    /// The state after a failure of `tried`.
    pub fn failed(tried: Assigned, attempts: u32, now: Instant) -> Self {
        let factor = 1u32.checked_shl(attempts.min(16)).unwrap_or(u32::MAX);
        let pause = RETRY_FLOOR.saturating_mul(factor).min(RETRY_CEILING);
        Progress::Failed { tried, attempts: attempts.saturating_add(1), retry_at: now + pause }
    }

    /// Failures in a row.
    fn attempts(&self) -> u32 {
        match self {
            Progress::Running { attempts, .. } | Progress::Failed { attempts, .. } => *attempts,
            Progress::Done(_) | Progress::Missing(_) => 0,
        }
    }

    /// Whether it is being overwritten before it goes.
    fn is_wiping(&self) -> bool {
        self.is_running() && wipes(self.object())
    }

    fn is_running(&self) -> bool {
        matches!(self, Progress::Running { .. })
    }
}

impl World {
    /// The tasks to start now.
    pub fn plan(&self, assigned: &AssignmentSet, now: Instant) -> Vec<Task> {
        let doors = Doors::survey(self, assigned);
        let mut lineage = Lineage::survey(self, assigned);
        let unassigned = self.held.iter().filter(|(id, _)| !assigned.contains(**id));
        let drops = unassigned.filter_map(|(_, progress)| match (progress, progress.object()) {
            (Progress::Running { .. }, _) => None,
            (_, Assigned::Pool(pool)) if !self.is_vacant(pool.id, assigned) => None,
            (_, object) => Some(Task::Drop(object.clone())),
        });
        let mut tasks: Vec<Task> = drops.collect();
        for held in assigned.attachments.values() {
            let admissible = || held.removed || doors.admits(held);
            tasks.extend(self.task_for(held, now).filter(|_| admissible()));
        }
        for pool in assigned.pools.values() {
            let releasable = || !pool.removed || self.is_vacant(pool.id, assigned);
            tasks.extend(self.task_for(pool, now).filter(|_| releasable()));
        }
        let mut more_wipes = WIPES.saturating_sub(self.held.values().filter(|progress| progress.is_wiping()).count());
        // What has to wait for others that are overwritten comes later.
        let mut affordable = |task: &Task| match wipes(task.object()) {
            true => more_wipes.checked_sub(1).map(|left| more_wipes = left).is_some(),
            false => true,
        };
        for volume in assigned.volumes.values() {
            let settled = || volume.removed || doors.are_settled(volume);
            let ready = || self.is_open(volume.pool) && settled() && lineage.admits_volume(volume);
            tasks.extend(self.task_for(volume, now).filter(|_| ready()).filter(&mut affordable));
        }
        tasks.iter().for_each(|task| lineage.note(task.object()));
        // Of those that are started here and now, a volume's own task comes first.
        let begun: BTreeSet<AssignedId> = tasks.iter().map(|task| task.object().id()).collect();
        for snapshot in assigned.snapshots.values().filter(|snapshot| self.is_open(snapshot.pool)) {
            let free = !begun.contains(&snapshot.volume.into());
            let admitted = lineage.admit_snapshot(snapshot).filter(|_| free || snapshot.made);
            tasks.extend(admitted.and_then(|snapshot| self.task_for(&snapshot, now)).filter(&mut affordable));
        }
        let copies = assigned.volumes.values().map(|copy| self.find(&lineage, copy, copy.pool, copy.source, now));
        let snapshots = assigned.snapshots.values().map(|taken| {
            let volumes = taken.set.iter().map(|member| member.volume).chain([taken.volume]);
            self.find(&lineage, taken, taken.pool, volumes, now)
        });
        let begun: BTreeSet<AssignedId> = tasks.iter().map(|task| task.object().id()).collect();
        tasks.extend(copies.chain(snapshots).flatten().filter(|task| !begun.contains(&task.object().id())));
        tasks
    }

    /// Looks for what may be there already although something that it is made of cannot be had.
    fn find<A: Assignment>(
        &self,
        lineage: &Lineage<'_>,
        wanted: &A,
        pool: PoolId,
        sources: impl IntoIterator<Item = impl Into<AssignedId>>,
        now: Instant,
    ) -> Option<Task> {
        let sought = lineage.is_to_be_found(wanted, sources.into_iter().map(Into::into)) && self.is_open(pool);
        match self.task_for(wanted, now).filter(|_| sought) {
            Some(Task::Ensure(object)) => Some(Task::Find(object)),
            _ => None,
        }
    }

    /// Takes note that a task begins.
    pub fn begin(&mut self, task: &Task) {
        let object = task.object();
        let attempts = self.attempts(object.id());
        self.held.insert(object.id(), Progress::Running { task: object.clone(), attempts });
    }

    /// Takes note of how a task ended.
    pub fn finish(&mut self, task: &Task, failed: bool, now: Instant) {
        let object = task.object();
        let progress = match task {
            Task::Drop(_) => return drop(self.held.remove(&object.id())),
            _ if failed => Progress::failed(object.clone(), self.attempts(object.id()), now),
            // It is known to be made from now on, and is tried at once.
            Task::Find(_) => return drop(self.held.remove(&object.id())),
            Task::Ensure(_) | Task::Remove(_) => Progress::Done(object.clone()),
        };
        self.held.insert(object.id(), progress);
    }

    /// Takes note that what was looked for is not there.
    pub fn miss(&mut self, sought: &Assigned) {
        self.held.insert(sought.id(), Progress::Missing(sought.clone()));
    }

    /// When to plan again although nothing happened. What was due before `now` and was not started waits for
    /// something else to happen.
    pub fn next_retry(&self, now: Instant) -> Option<Instant> {
        self.held.values().filter_map(retry_at).filter(|at| *at > now).min()
    }

    fn attempts(&self, id: AssignedId) -> u32 {
        self.held.get(&id).map_or(0, Progress::attempts)
    }

    /// What an assignment asks for now, whatever it has to wait for.
    fn task_for<A: Assignment>(&self, wanted: &A, now: Instant) -> Option<Task> {
        let due = self.held.get(&wanted.id().into()).is_none_or(|progress| progress.is_due(wanted, now));
        let task = if wanted.is_removed() { Task::Remove } else { Task::Ensure };
        due.then(|| task(wanted.clone().into()))
    }

    fn is_open(&self, pool: PoolId) -> bool {
        matches!(self.held.get(&pool.into()), Some(Progress::Done(pool)) if !pool.is_removed())
    }

    /// Nothing in the pool is assigned, served, or being worked on.
    fn is_vacant(&self, pool: PoolId, assigned: &AssignmentSet) -> bool {
        let wanted = assigned.volumes.values().any(|volume| volume.pool == pool)
            || assigned.snapshots.values().any(|snapshot| snapshot.pool == pool);
        let held = self.held.values().any(|progress| {
            let inside = match progress.object() {
                Assigned::Volume(volume) => volume.pool == pool,
                Assigned::Snapshot(snapshot) => snapshot.pool == pool,
                Assigned::Pool(_) | Assigned::Attachment(_) => false,
            };
            let gone = matches!(progress, Progress::Done(object) if object.is_removed());
            inside && !gone
        });
        !wanted && !held
    }
}

/// Whether it is to be overwritten before it goes.
fn wipes(object: &Assigned) -> bool {
    match object {
        Assigned::Volume(volume) => volume.removed && volume.wipe,
        Assigned::Snapshot(snapshot) => snapshot.removed && snapshot.wipe,
        Assigned::Pool(_) | Assigned::Attachment(_) => false,
    }
}

fn retry_at(progress: &Progress) -> Option<Instant> {
    match progress {
        Progress::Failed { retry_at, .. } => Some(*retry_at),
        Progress::Running { .. } | Progress::Done(_) | Progress::Missing(_) => None,
    }
}

#[cfg(test)]
mod tests;
