//! What one block service must hold, and how such a set changes from one message to the next.

use super::{ByteSize, Driver, Generation, Name, Pool, PoolId, ServiceId, Volume, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolAssignment {
    pub id: PoolId,
    pub name: Name,
    pub generation: Generation,
    pub driver: Driver,
    /// The pool has been set up once; a directory without its marker is then an error, never a fresh start.
    pub made: bool,
    /// Tombstone: let go of the pool and report it absent.
    pub removed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeAssignment {
    pub id: VolumeId,
    pub name: Name,
    pub generation: Generation,
    pub pool: PoolId,
    pub size: ByteSize,
    /// The volume has held bytes once; a missing backing file is then an error, never a fresh start.
    pub made: bool,
    /// Tombstone: permission to destroy the volume's data.
    pub removed: bool,
}

/// Everything a block service must hold. Absence from the set is never permission to destroy anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentSet {
    pub pools: BTreeMap<PoolId, PoolAssignment>,
    pub volumes: BTreeMap<VolumeId, VolumeAssignment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assigned {
    Pool(PoolAssignment),
    Volume(VolumeAssignment),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Hold this from now on.
    Put(Assigned),
    /// No longer assigned here: stop serving it, keep its data.
    DropPool(PoolId),
    DropVolume(VolumeId),
}

pub type Changes = Vec<Change>;

impl From<&Pool> for PoolAssignment {
    fn from(pool: &Pool) -> Self {
        Self {
            id: pool.meta.id,
            name: pool.meta.name.clone(),
            generation: pool.meta.generation,
            driver: pool.spec.driver.clone(),
            made: pool.status.capacity.is_some(),
            removed: pool.meta.is_removed(),
        }
    }
}

impl VolumeAssignment {
    /// What `service` must hold of `volume`; none if nothing of it is placed there.
    pub fn of(volume: &Volume, service: ServiceId) -> Option<Self> {
        let replica = volume.status.placement.iter().find(|replica| replica.service == service)?;
        Some(Self {
            id: volume.meta.id,
            name: volume.meta.name.clone(),
            generation: volume.meta.generation,
            pool: replica.pool,
            size: volume.spec.size,
            made: volume.status.size.is_some(),
            removed: volume.meta.is_removed(),
        })
    }

    /// Whether `newer` may replace `self`: a later generation, or the same one with the same body.
    fn admits(&self, newer: &Self) -> bool {
        let body = |a: &Self| Self { made: true, ..a.clone() };
        newer.generation > self.generation || body(newer) == body(self)
    }
}

impl PoolAssignment {
    fn admits(&self, newer: &Self) -> bool {
        let body = |a: &Self| Self { made: true, ..a.clone() };
        newer.generation > self.generation || body(newer) == body(self)
    }
}

impl AssignmentSet {
    /// What must be said to a holder of `self` so that it holds `next`.
    pub fn changes_to(&self, next: &Self) -> Changes {
        let mut changes = Changes::new();
        for (id, pool) in &next.pools {
            if self.pools.get(id) != Some(pool) {
                changes.push(Change::Put(Assigned::Pool(pool.clone())));
            }
        }
        for (id, volume) in &next.volumes {
            if self.volumes.get(id) != Some(volume) {
                changes.push(Change::Put(Assigned::Volume(volume.clone())));
            }
        }
        changes
            .extend(self.volumes.keys().filter(|id| !next.volumes.contains_key(id)).map(|id| Change::DropVolume(*id)));
        changes.extend(self.pools.keys().filter(|id| !next.pools.contains_key(id)).map(|id| Change::DropPool(*id)));
        changes
    }

    /// Adds what only `other` names.
    pub fn fill_from(&mut self, other: &Self) {
        for (id, pool) in &other.pools {
            self.pools.entry(*id).or_insert_with(|| pool.clone());
        }
        for (id, volume) in &other.volumes {
            self.volumes.entry(*id).or_insert_with(|| volume.clone());
        }
    }

    /// Takes `changes` over. An entry that is older than what is held, or differs under the same generation, is left
    /// out and named in the answer; the rest is taken.
    pub fn apply(&mut self, changes: Changes) -> Vec<String> {
        let mut refused = Vec::new();
        for change in changes {
            match change {
                Change::Put(Assigned::Pool(mut pool)) => match self.pools.get(&pool.id) {
                    Some(held) if !held.admits(&pool) => {
                        refused.push(refusal("pool", &pool.id, held.generation, pool.generation))
                    }
                    held => {
                        pool.made |= held.is_some_and(|held| held.made);
                        self.pools.insert(pool.id, pool);
                    }
                },
                Change::Put(Assigned::Volume(mut volume)) => match self.volumes.get(&volume.id) {
                    Some(held) if !held.admits(&volume) => {
                        refused.push(refusal("volume", &volume.id, held.generation, volume.generation));
                    }
                    held => {
                        volume.made |= held.is_some_and(|held| held.made);
                        self.volumes.insert(volume.id, volume);
                    }
                },
                Change::DropPool(id) => drop(self.pools.remove(&id)),
                Change::DropVolume(id) => drop(self.volumes.remove(&id)),
            }
        }
        refused
    }

    /// Takes a COMPLETE set over under the same rule as [`Self::apply`]; what `next` does not name is dropped.
    pub fn replace(&mut self, next: Self) -> Vec<String> {
        let changes = self.changes_to(&next);
        self.apply(changes)
    }
}

fn refusal(kind: &str, id: &impl std::fmt::Display, held: Generation, offered: Generation) -> String {
    format!("{kind} {id}: generation {} does not follow the held generation {}", offered.as_u64(), held.as_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(generation: u64, size: u64) -> VolumeAssignment {
        VolumeAssignment {
            id: VolumeId::from_bytes([1; 16]),
            name: "v".parse().unwrap(),
            generation: Generation::new(generation),
            pool: PoolId::from_bytes([2; 16]),
            size: ByteSize::mib(size),
            made: false,
            removed: false,
        }
    }

    fn set(volume: VolumeAssignment) -> AssignmentSet {
        AssignmentSet { volumes: [(volume.id, volume)].into(), ..AssignmentSet::default() }
    }

    #[test]
    fn changes_lead_from_one_set_to_the_next_and_none_lead_nowhere() {
        let (one, two) = (set(volume(1, 1)), set(volume(2, 2)));
        let mut held = one.clone();
        assert_eq!(held.apply(one.changes_to(&two)), Vec::<String>::new());
        assert_eq!(held, two);
        assert!(two.changes_to(&two).is_empty());
        held.apply(two.changes_to(&AssignmentSet::default()));
        assert_eq!(held, AssignmentSet::default());
    }

    #[test]
    fn an_older_generation_and_another_body_under_the_same_one_are_refused() {
        let mut held = set(volume(2, 2));
        let before = held.clone();
        assert_eq!(held.replace(set(volume(1, 1))).len(), 1);
        assert_eq!(held.replace(set(volume(2, 3))).len(), 1);
        assert_eq!(held, before);
    }

    #[test]
    fn what_was_made_once_stays_made() {
        let mut held = set(VolumeAssignment { made: true, ..volume(1, 1) });
        held.replace(set(volume(2, 1)));
        assert!(held.volumes.values().all(|volume| volume.made));
    }
}
