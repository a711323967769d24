//! What a host keeps: pools and volumes with their bytes, changed a step at a time, so that a crash may come between any
//! two of them. It watches over what no step may do, whoever asked for it.

use crate::model::{Assigned, ByteSize, Generation, PoolAssignment, PoolId, VolumeAssignment, VolumeId};
use crate::reconcile::Task;
use std::collections::{BTreeMap, BTreeSet};

/// A volume on disk. One that is not described yet, or not any more, is no volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnDisk {
    pub described: bool,
    pub generation: Generation,
    pub size: ByteSize,
    pub pool: PoolId,
    /// The number of the last write.
    pub bytes: u64,
}

#[derive(Default)]
pub struct Disk {
    pub pools: BTreeSet<PoolId>,
    pub volumes: BTreeMap<VolumeId, OnDisk>,
    /// Volumes that somebody else took away.
    pub lost: BTreeSet<VolumeId>,
}

/// What a step came to.
#[derive(Debug)]
pub enum Step {
    More,
    Done,
    Failed(String),
}

/// What nobody may do.
pub type Violation = String;

impl Disk {
    /// One more step of a task; `buried` are the volumes that have had a tombstone in the store.
    pub fn step(&mut self, task: &Task, buried: &BTreeSet<VolumeId>) -> Result<Step, Violation> {
        match task {
            Task::Ensure(Assigned::Pool(pool)) => Ok(self.ensure_pool(pool)),
            Task::Ensure(Assigned::Volume(volume)) => self.ensure_volume(volume),
            Task::Remove(Assigned::Pool(pool)) => Ok(self.remove_pool(pool)),
            Task::Remove(Assigned::Volume(volume)) => self.destroy(volume.id, buried),
            Task::Drop(_) | Task::Ensure(_) | Task::Remove(_) => Ok(Step::Done),
        }
    }

    fn ensure_pool(&mut self, pool: &PoolAssignment) -> Step {
        match (self.pools.contains(&pool.id), pool.made) {
            (true, _) => Step::Done,
            (false, true) => Step::Failed("the pool is lost".into()),
            (false, false) => {
                self.pools.insert(pool.id);
                Step::More
            }
        }
    }

    fn remove_pool(&mut self, pool: &PoolAssignment) -> Step {
        if self.volumes.values().any(|volume| volume.pool == pool.id) {
            return Step::Failed("the pool is not empty".into());
        }
        self.pools.remove(&pool.id);
        Step::Done
    }

    fn ensure_volume(&mut self, volume: &VolumeAssignment) -> Result<Step, Violation> {
        let (id, generation, size) = (volume.id, volume.generation, volume.size);
        let Some(held) = self.volumes.get_mut(&id) else {
            if volume.made {
                return Ok(Step::Failed("the volume is lost".into()));
            }
            if self.lost.contains(&id) {
                return Err(format!(
                    "volume {} was lost, and was made anew as if it had never held bytes",
                    volume.name
                ));
            }
            let new = OnDisk { described: false, generation: Generation::default(), size, pool: volume.pool, bytes: 0 };
            self.volumes.insert(id, new);
            return Ok(Step::More);
        };
        if held.described && generation < held.generation {
            return Err(format!(
                "volume {} goes back from {:?} to {generation:?} on disk",
                volume.name, held.generation
            ));
        }
        if held.size < size {
            held.size = size;
            return Ok(Step::More);
        }
        if (held.generation, held.described) != (generation, true) {
            held.generation = generation;
            held.described = true;
            return Ok(Step::More);
        }
        Ok(Step::Done)
    }

    /// First it is no volume any more, then its bytes go.
    pub fn destroy(&mut self, id: VolumeId, buried: &BTreeSet<VolumeId>) -> Result<Step, Violation> {
        if !buried.contains(&id) && self.volumes.contains_key(&id) {
            return Err(format!("volume {id} is destroyed without a tombstone"));
        }
        match self.volumes.get_mut(&id) {
            Some(held) if held.described => {
                held.described = false;
                Ok(Step::More)
            }
            Some(_) => {
                self.volumes.remove(&id);
                Ok(Step::More)
            }
            None => Ok(Step::Done),
        }
    }
}
