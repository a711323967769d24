//! Snapshots: what is planned for them, carried out; and an eye on how full classic ones are.

use super::plan::snapshot::{inventory, plan_find, plan_remove, plan_settle, plan_stage};
use super::plan::{Sight, names};
use super::tags::Kind;
use super::{LvmPool, lock};
use crate::backend::{BackendError, Removed, SnapshotLayout};
use crate::model::{InventorySnapshot, SnapshotId, TakenSnapshot, Timestamp};

/// Hundredths of a classic snapshot's room at which people are warned.
const WARNINGS: [u64; 3] = [70, 85, 95];
const OVERFLOWED: u64 = 101;

impl LvmPool {
    pub(super) fn stage(&self, snapshot: &SnapshotLayout, at: Timestamp) -> Result<(), BackendError> {
        // Nobody is to remove or replace the volume meanwhile. Always in this order.
        let _volume = self.turns.take(snapshot.volume);
        let _turn = self.snapshot_turns.take(snapshot.id);
        let steps = self.plan(|sight| plan_stage(sight, snapshot, at))?;
        self.flush(snapshot.volume)?;
        self.carry_out_all(&steps)
    }

    pub(super) fn settle(&self, id: SnapshotId) -> Result<TakenSnapshot, BackendError> {
        let _turn = self.snapshot_turns.take(id);
        let (steps, taken) = self.plan(|sight| plan_settle(sight, id))?;
        self.carry_out_all(&steps)?;
        Ok(taken)
    }

    pub(super) fn find(&self, id: SnapshotId) -> Result<Option<TakenSnapshot>, BackendError> {
        let _turn = self.snapshot_turns.take(id);
        let (steps, taken) = self.plan(|sight| plan_find(sight, id))?;
        if steps.is_empty() {
            return Ok(taken);
        }
        self.carry_out_all(&steps)?;
        self.plan(|sight| plan_find(sight, id)).map(|(_, taken)| taken)
    }

    pub(super) fn destroy_snapshot(&self, id: SnapshotId) -> Result<Removed, BackendError> {
        let _turn = self.snapshot_turns.take(id);
        let steps = self.plan(|sight| plan_remove(sight, id))?;
        self.carry_out_all(&steps)?;
        lock(&self.warned).remove(&id);
        Ok(if steps.is_empty() { Removed::WasAbsent } else { Removed::Gone })
    }

    pub(super) fn snapshot_inventory(&self) -> Result<Vec<InventorySnapshot>, BackendError> {
        let seen = self.look()?;
        let sight = self.sight(&seen)?;
        let pool = self.settings().identity.pool;
        self.warn_of_fill(&sight);
        Ok(seen.lvs_of(&sight.group.name).filter_map(|lv| inventory(&sight, pool, lv)).collect())
    }

    /// The classic snapshots that had overflowed when somebody last looked at the pool.
    pub fn overflowed(&self) -> Vec<SnapshotId> {
        lock(&self.warned).iter().filter(|(_, mark)| **mark == OVERFLOWED).map(|(id, _)| *id).collect()
    }

    /// Says once for each mark how full classic snapshots have become: nobody can say it when they are lost.
    pub(super) fn warn_of_fill(&self, sight: &Sight) {
        if self.kind == Kind::Thin {
            return;
        }
        for lv in sight.seen.lvs_of(&sight.group.name) {
            let (Some(names::Role::Snapshot(id)), Some(part)) = (names::Role::of(&lv.name), lv.data) else { continue };
            let percent = part.whole();
            let marks = WARNINGS.iter().copied().filter(|mark| percent >= *mark);
            let passed = marks.chain(lv.overflowed.then_some(OVERFLOWED)).max().unwrap_or_default();
            let before = lock(&self.warned).insert(id, passed).unwrap_or_default();
            if passed > before {
                let volume = lv.origin.as_deref().unwrap_or_default();
                tracing::warn!(snapshot = %id, volume, percent, room = %lv.size,
                    "a classic snapshot fills up; when it is full it is lost, and its volume is not harmed");
            }
        }
    }
}
