//! What a host keeps: pools, volumes and snapshots with their bytes, changed a step at a time, so that a crash may come
//! between any two of them. It watches over what no step may do, whoever asked for it.

use super::Planted;
use super::image::{content, is_as_sealed};
use crate::model::{
    Assigned, ByteSize, Generation, Moving, PoolAssignment, PoolId, SnapshotAssignment, SnapshotId, Source,
    VolumeAssignment, VolumeId,
};
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

/// A snapshot on disk. One that is not described is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub described: bool,
    pub volume: VolumeId,
    pub size: ByteSize,
    pub bytes: u64,
}

/// What has had a tombstone in the store.
#[derive(Default)]
pub struct Buried {
    pub volumes: BTreeSet<VolumeId>,
    pub snapshots: BTreeSet<SnapshotId>,
}

/// What has become of bytes, for whoever knows what must be in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// A volume begins with these, which are another's.
    Born {
        volume: VolumeId,
        of: Source,
        bytes: u64,
    },
    /// A volume begins with what was fetched for it.
    Filled {
        volume: VolumeId,
        bytes: u64,
    },
    Taken {
        snapshot: SnapshotId,
        bytes: u64,
    },
    /// As the generation asked for.
    PutBack {
        volume: VolumeId,
        since: Generation,
        to: SnapshotId,
        bytes: u64,
    },
}

#[derive(Default)]
pub struct Disk {
    pub pools: BTreeSet<PoolId>,
    pub volumes: BTreeMap<VolumeId, OnDisk>,
    pub snapshots: BTreeMap<SnapshotId, Kept>,
    /// Since it was last asked.
    pub news: Vec<News>,
    pub planted: Option<Planted>,
    /// What other hosts hand over to whoever copies it.
    pub offered: BTreeMap<VolumeId, u64>,
    /// Volumes that somebody else took away.
    pub lost: BTreeSet<VolumeId>,
}

/// What a step came to.
#[derive(Debug)]
pub enum Step {
    More,
    Done,
    /// What was looked for is not there.
    Missing,
    Failed(String),
}

/// What nobody may do.
pub type Violation = String;

impl Disk {
    /// One more step of a task.
    pub fn step(&mut self, task: &Task, buried: &Buried) -> Result<Step, Violation> {
        match task {
            Task::Ensure(Assigned::Pool(pool)) => Ok(self.ensure_pool(pool)),
            Task::Ensure(Assigned::Volume(volume)) => self.ensure_volume(volume),
            Task::Find(object) => Ok(self.find(object)),
            Task::Remove(Assigned::Pool(pool)) => Ok(self.remove_pool(pool)),
            Task::Remove(Assigned::Volume(volume)) => self.destroy(volume.id, buried),
            Task::Ensure(Assigned::Snapshot(snapshot)) => Ok(self.ensure_snapshot(snapshot)),
            Task::Remove(Assigned::Snapshot(snapshot)) => self.destroy_snapshot(snapshot.id, buried),
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

    fn find(&self, object: &Assigned) -> Step {
        let whole = match object {
            Assigned::Volume(volume) => self.volumes.get(&volume.id).is_some_and(|held| held.described),
            Assigned::Snapshot(snapshot) => self.snapshots.get(&snapshot.id).is_some_and(|kept| kept.described),
            Assigned::Pool(_) | Assigned::Attachment(_) => false,
        };
        if whole { Step::Done } else { Step::Missing }
    }

    fn ensure_volume(&mut self, volume: &VolumeAssignment) -> Result<Step, Violation> {
        let (id, generation, size) = (volume.id, volume.generation, volume.size);
        if !self.volumes.contains_key(&id) {
            return self.make(volume);
        }
        let back = volume.revert.and_then(|revert| Some((revert, self.kept(revert.to)?)));
        let again = self.planted == Some(Planted::PutBackAgain);
        let Some(held) = self.volumes.get_mut(&id) else { return Ok(Step::Done) };
        if held.described && generation < held.generation {
            return Err(format!(
                "volume {} goes back from {:?} to {generation:?} on disk",
                volume.name, held.generation
            ));
        }
        let due = |since| held.generation < since || again && held.generation == since;
        if volume.revert.is_some_and(|revert| due(revert.since)) {
            let Some((revert, bytes)) = back else { return Ok(Step::Failed("the snapshot is lost".into())) };
            // As both drivers do, it has the size that it is to have from that moment on.
            (held.bytes, held.size, held.generation) = (bytes, size, generation);
            self.news.push(News::PutBack { volume: id, since: revert.since, to: revert.to, bytes });
            return Ok(Step::More);
        }
        if held.size < size {
            held.size = size;
            return Ok(Step::More);
        }
        if held.size > size {
            if volume.shrunk.is_none_or(|since| held.generation >= since) {
                return Ok(Step::Failed("nobody allowed it to shrink".into()));
            }
            (held.size, held.generation) = (size, generation);
            return Ok(Step::More);
        }
        if volume.image.as_ref().is_some_and(|tie| !is_as_sealed(tie, held.bytes, self.planted)) {
            return Ok(Step::Failed("it is not what was sealed".into()));
        }
        if (held.generation, held.described) != (generation, true) {
            held.generation = generation;
            held.described = true;
            return Ok(Step::More);
        }
        Ok(Step::Done)
    }

    fn make(&mut self, volume: &VolumeAssignment) -> Result<Step, Violation> {
        if volume.made {
            return Ok(Step::Failed("the volume is lost".into()));
        }
        if self.lost.contains(&volume.id) {
            return Err(format!("volume {} was lost, and was made anew as if it had never held bytes", volume.name));
        }
        if let Some(Moving::Arriving { supply, .. }) = volume.moving.as_deref() {
            let off = u64::from(self.planted == Some(Planted::FetchAnything));
            let Some(bytes) = self.offered.get(&supply.volume) else {
                return Ok(Step::Failed("nobody hands over what it is a copy of".into()));
            };
            self.begin(volume, bytes + off);
            return Ok(Step::More);
        }
        let supply = volume.image.as_ref().and_then(|tie| tie.supply());
        let off = u64::from(self.planted == Some(Planted::FillAnything));
        let found = match (volume.source, supply) {
            (None, None) => Some((0, volume.size)),
            (None, Some(supply)) => supply.sha256.map(|digest| (content(digest) + off, volume.size)),
            (Some(Source::Volume(id)), _) => {
                self.volumes.get(&id).filter(|it| it.described).map(|it| (it.bytes, it.size))
            }
            (Some(Source::Snapshot(id)), _) => self.kept(id).zip(self.snapshots.get(&id).map(|kept| kept.size)),
        };
        let Some((bytes, size)) = found else { return Ok(Step::Failed("what it is a copy of is lost".into())) };
        if size > volume.size {
            return Ok(Step::Failed("what it is a copy of does not fit".into()));
        }
        if let Some(of) = volume.source {
            self.news.push(News::Born { volume: volume.id, of, bytes });
        } else if supply.is_some() {
            self.news.push(News::Filled { volume: volume.id, bytes });
        }
        self.begin(volume, bytes);
        Ok(Step::More)
    }

    fn begin(&mut self, volume: &VolumeAssignment, bytes: u64) {
        let (size, pool) = (volume.size, volume.pool);
        let begun = OnDisk { described: false, generation: Generation::default(), size, pool, bytes };
        self.volumes.insert(volume.id, begun);
    }

    /// The bytes of a snapshot. A planted bug takes those that its volume has now.
    fn kept(&self, id: SnapshotId) -> Option<u64> {
        let kept = self.snapshots.get(&id).filter(|kept| kept.described)?;
        match (self.planted, self.volumes.get(&kept.volume)) {
            (Some(Planted::CopyLive), Some(volume)) => Some(volume.bytes),
            _ => Some(kept.bytes),
        }
    }

    fn ensure_snapshot(&mut self, wanted: &SnapshotAssignment) -> Step {
        let anew = self.planted == Some(Planted::TakeAnew);
        match self.snapshots.get_mut(&wanted.id) {
            Some(kept) if kept.described && !anew => return Step::Done,
            Some(kept) if !kept.described => {
                kept.described = true;
                self.news.push(News::Taken { snapshot: wanted.id, bytes: kept.bytes });
                return if anew { Step::Done } else { Step::More };
            }
            None if wanted.made => return Step::Failed("the snapshot is lost".into()),
            _ => {}
        }
        let Some(volume) = self.volumes.get(&wanted.volume).filter(|volume| volume.described) else {
            return Step::Failed("its volume is lost".into());
        };
        let kept = Kept { described: false, volume: wanted.volume, size: volume.size, bytes: volume.bytes };
        self.snapshots.insert(wanted.id, kept);
        Step::More
    }

    fn destroy_snapshot(&mut self, id: SnapshotId, buried: &Buried) -> Result<Step, Violation> {
        if !buried.snapshots.contains(&id) && self.snapshots.contains_key(&id) {
            return Err(format!("snapshot {id} is destroyed without a tombstone"));
        }
        match self.snapshots.remove(&id) {
            Some(_) => Ok(Step::More),
            None => Ok(Step::Done),
        }
    }

    /// First it is no volume any more, then its bytes go.
    pub fn destroy(&mut self, id: VolumeId, buried: &Buried) -> Result<Step, Violation> {
        if !buried.volumes.contains(&id) && self.volumes.contains_key(&id) {
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
