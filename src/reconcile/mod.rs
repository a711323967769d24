//! What to do next, purely: from what is assigned and what was achieved to the tasks that close the gap.
//!
//! Nothing here touches a device or a clock. Each object has at most one task at a time; a failed one is tried again
//! after a growing pause, or at once when its assignment changes.
//!
//! ```text
//!   (none) ──task──▶ Running ──ok──▶ Done(assignment) ──newer assignment──▶ Running
//!                     └──error──▶ Failed(retry at) ──time, or newer assignment──▶ Running
//! ```

use crate::model::{AssignmentSet, PoolAssignment, PoolId, VolumeAssignment, VolumeId};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// One thing to do on this host. Each is idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Make the pool usable.
    EnsurePool(PoolAssignment),
    /// Tombstone: let go of the pool on disk.
    ReleasePool(PoolAssignment),
    /// No longer assigned: close the pool, leave the disk alone.
    ClosePool(PoolId),
    /// Make the volume exist as assigned, and serve it.
    EnsureVolume(VolumeAssignment),
    /// Tombstone: stop serving, then destroy the data.
    RemoveVolume(VolumeAssignment),
    /// No longer assigned: stop serving, leave the data alone.
    RetireVolume(VolumeAssignment),
}

/// Where one object stands on this host. An object without progress was never tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress<A> {
    /// With the failures in a row before it.
    Running {
        attempts: u32,
    },
    Done(A),
    Failed {
        tried: A,
        attempts: u32,
        retry_at: Instant,
    },
}

/// Where everything stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    pub pools: BTreeMap<PoolId, Progress<PoolAssignment>>,
    pub volumes: BTreeMap<VolumeId, Progress<VolumeAssignment>>,
}

const RETRY_FLOOR: Duration = Duration::from_millis(500);
const RETRY_CEILING: Duration = Duration::from_secs(30);

impl<A: Clone + PartialEq> Progress<A> {
    /// Whether a task for `wanted` should start now. `same` tells whether two assignments ask for the same.
    fn is_due(&self, wanted: &A, now: Instant, same: impl Fn(&A, &A) -> bool) -> bool {
        match self {
            Progress::Running { .. } => false,
            Progress::Done(done) => !same(done, wanted),
            Progress::Failed { tried, retry_at, .. } => !same(tried, wanted) || *retry_at <= now,
        }
    }

    /// The state after a failure of `tried`.
    pub fn failed(tried: A, attempts: u32, now: Instant) -> Self {
        let factor = 1u32.checked_shl(attempts.min(16)).unwrap_or(u32::MAX);
        let pause = RETRY_FLOOR.saturating_mul(factor).min(RETRY_CEILING);
        Progress::Failed { tried, attempts: attempts.saturating_add(1), retry_at: now + pause }
    }

    /// Failures in a row.
    pub fn attempts(&self) -> u32 {
        match self {
            Progress::Running { attempts } | Progress::Failed { attempts, .. } => *attempts,
            Progress::Done(_) => 0,
        }
    }
}

fn same_pool(a: &PoolAssignment, b: &PoolAssignment) -> bool {
    (a.generation, a.removed) == (b.generation, b.removed)
}

fn same_volume(a: &VolumeAssignment, b: &VolumeAssignment) -> bool {
    (a.generation, a.removed) == (b.generation, b.removed)
}

impl World {
    /// The tasks to start now.
    pub fn plan(&self, assigned: &AssignmentSet, now: Instant) -> Vec<Task> {
        let mut tasks = Vec::new();
        self.plan_pools(assigned, now, &mut tasks);
        self.plan_volumes(assigned, now, &mut tasks);
        tasks
    }

    /// When to plan again although nothing happened. What was due before `now` and was not started waits for
    /// something else to happen.
    pub fn next_retry(&self, now: Instant) -> Option<Instant> {
        let pools = self.pools.values().filter_map(retry_at);
        let volumes = self.volumes.values().filter_map(retry_at);
        pools.chain(volumes).filter(|at| *at > now).min()
    }

    fn plan_pools(&self, assigned: &AssignmentSet, now: Instant, tasks: &mut Vec<Task>) {
        for (id, pool) in &assigned.pools {
            if !self.pools.get(id).is_none_or(|progress| progress.is_due(pool, now, same_pool)) {
                continue;
            }
            if !pool.removed {
                tasks.push(Task::EnsurePool(pool.clone()));
            } else if self.is_vacant(*id, assigned) {
                tasks.push(Task::ReleasePool(pool.clone()));
            }
        }
        for (id, progress) in &self.pools {
            let idle = !matches!(progress, Progress::Running { .. });
            if idle && !assigned.pools.contains_key(id) && self.is_vacant(*id, assigned) {
                tasks.push(Task::ClosePool(*id));
            }
        }
    }

    /// No volume of the pool is assigned, served, or being worked on.
    fn is_vacant(&self, pool: PoolId, assigned: &AssignmentSet) -> bool {
        let wanted = assigned.volumes.values().any(|volume| volume.pool == pool);
        let held = self.volumes.values().any(|progress| match progress {
            Progress::Done(volume) => volume.pool == pool && !volume.removed,
            Progress::Failed { tried, .. } => tried.pool == pool,
            // Which pool a running task works on is not known here: wait for it.
            Progress::Running { .. } => true,
        });
        !wanted && !held
    }

    fn plan_volumes(&self, assigned: &AssignmentSet, now: Instant, tasks: &mut Vec<Task>) {
        for (id, volume) in &assigned.volumes {
            let open = matches!(self.pools.get(&volume.pool), Some(Progress::Done(pool)) if !pool.removed);
            if open && self.volumes.get(id).is_none_or(|progress| progress.is_due(volume, now, same_volume)) {
                tasks.push(match volume.removed {
                    true => Task::RemoveVolume(volume.clone()),
                    false => Task::EnsureVolume(volume.clone()),
                });
            }
        }
        let unassigned = self.volumes.iter().filter(|(id, _)| !assigned.volumes.contains_key(id));
        tasks.extend(unassigned.filter_map(|(_, progress)| match progress {
            Progress::Running { .. } => None,
            Progress::Done(volume) | Progress::Failed { tried: volume, .. } => Some(Task::RetireVolume(volume.clone())),
        }));
    }
}

fn retry_at<A>(progress: &Progress<A>) -> Option<Instant> {
    match progress {
        Progress::Failed { retry_at, .. } => Some(*retry_at),
        Progress::Running { .. } | Progress::Done(_) => None,
    }
}

#[cfg(test)]
mod tests;
