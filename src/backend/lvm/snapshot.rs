//! Snapshots: what is planned for them, carried out; and an eye on how full classic ones are.

use super::plan::snapshot::{fill, inventory, plan_find, plan_remove, plan_settle, plan_split, plan_stage, volume_of};
use super::plan::wipe::plan_wipe_room;
use super::plan::{Sight, names};
use super::tags::Kind;
use super::{LvmPool, lock};
use crate::backend::{BackendError, Removed, SnapshotLayout};
use crate::model::{Fill, InventorySnapshot, SnapshotId, TakenSnapshot, Timestamp};
use std::collections::HashMap;

/// Hundredths of a classic snapshot's room at which people are warned.
const WARNINGS: [u64; 3] = [70, 85, 95];
const OVERFLOWED: u64 = 101;

/// How full a classic snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotFill {
    pub id: SnapshotId,
    pub fill: Fill,
    /// It had no room any more for what its volume was before.
    pub spoilt: bool,
}

fn hundredths(fill: Fill) -> u64 {
    let used = u128::from(fill.used.as_u64()) * 100 / u128::from(fill.room.as_u64().max(1));
    u64::try_from(used).unwrap_or(u64::MAX)
}

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

    pub(super) fn overwrite_room(&self, id: SnapshotId) -> Result<(), BackendError> {
        let of = self.plan(|sight| Ok(volume_of(sight, id)))?;
        // Nobody is to begin to put the volume back to it before it says that it is a snapshot no more.
        let volume = of.map(|of| self.turns.take(of));
        let _turn = self.snapshot_turns.take(id);
        let underway = self.efforts.begin(id);
        let steps = self.plan(|sight| plan_split(sight, id))?;
        self.carry_out_all(&steps)?;
        drop(volume);
        lock(&self.watched).remove(&id);
        let steps = self.plan(|sight| plan_wipe_room(sight, id))?;
        self.carry_out_with(&steps, &underway.effort)
    }

    pub(super) fn destroy_snapshot(&self, id: SnapshotId) -> Result<Removed, BackendError> {
        let _turn = self.snapshot_turns.take(id);
        let steps = self.plan(|sight| plan_remove(sight, id))?;
        self.carry_out_all(&steps)?;
        lock(&self.watched).remove(&id);
        Ok(if steps.is_empty() { Removed::WasAbsent } else { Removed::Gone })
    }

    pub(super) fn snapshot_inventory(&self) -> Result<Vec<InventorySnapshot>, BackendError> {
        let seen = self.look()?;
        let sight = self.sight(&seen)?;
        let pool = self.settings().identity.pool;
        self.watch_fill(&sight);
        Ok(seen.lvs_of(&sight.group.name).filter_map(|lv| inventory(&sight, pool, lv)).collect())
    }

    /// How full classic snapshots were when somebody last looked at the pool.
    pub fn fills(&self) -> Vec<SnapshotFill> {
        lock(&self.watched).values().copied().collect()
    }

    /// Remembers how full classic snapshots are, and says once for each mark that they fill up: nobody can say it when they
    /// are lost.
    pub(super) fn watch_fill(&self, sight: &Sight) {
        if self.kind == Kind::Thin {
            return;
        }
        let mut seen = HashMap::new();
        for lv in sight.seen.lvs_of(&sight.group.name) {
            let Some(names::Role::Snapshot(id)) = names::Role::of(&lv.name) else { continue };
            if let Some(fill) = fill(sight, lv) {
                seen.insert(id, SnapshotFill { id, fill, spoilt: lv.overflowed });
            }
        }
        let before = std::mem::replace(&mut *lock(&self.watched), seen.clone());
        for SnapshotFill { id, fill, spoilt } in seen.into_values() {
            let percent = hundredths(fill);
            let mark = |percent: u64, spoilt: bool| {
                let marks = WARNINGS.iter().copied().filter(|mark| percent >= *mark);
                marks.chain(spoilt.then_some(OVERFLOWED)).max().unwrap_or_default()
            };
            let passed = before.get(&id).map_or(0, |before| mark(hundredths(before.fill), before.spoilt));
            if mark(percent, spoilt) > passed {
                tracing::warn!(snapshot = %id, percent, room = %fill.room,
                    "a classic snapshot fills up; when it is full it is lost, and its volume is not harmed");
            }
        }
    }
}
