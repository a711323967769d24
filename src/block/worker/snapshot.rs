//! Snapshots: their volumes are held still together, staged, let go, and settled.
//!
//! All of a set are staged before any is settled. So a set of which one was settled has been staged whole, at one instant;
//! and one of which none was is begun anew, whatever was staged before.

use super::{Served, TaskError, Worker};
use crate::backend::{Backend, BackendError, SnapshotLayout};
use crate::export::Freeze;
use crate::model::{Kind, Name, SnapshotAssignment, SnapshotMember, TakenSnapshot, Timestamp, VolumeId};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long writes that were begun may take to end. Clients notice a pause of this length at most.
const PATIENCE: Duration = Duration::from_secs(5);

/// One of a set, and where it is kept.
struct Member {
    layout: SnapshotLayout,
    backend: Arc<dyn Backend>,
}

impl Worker {
    pub(super) fn ensure_snapshot(&self, snapshot: &SnapshotAssignment) -> Result<TakenSnapshot, TaskError> {
        let own = self.pool(snapshot.pool)?;
        let first = snapshot.set.iter().map(|member| member.snapshot).min().unwrap_or(snapshot.id);
        let _turn = self.taking.take(first);
        if let Some(taken) = own.find_snapshot(snapshot.id)? {
            return Ok(taken);
        }
        if snapshot.made {
            let path = format!("pool {}", snapshot.pool);
            return Err(BackendError::SnapshotLost { snapshot: snapshot.id, path }.into());
        }
        let members = self.members(snapshot)?;
        let mut settled = false;
        for member in &members {
            settled |= member.backend.find_snapshot(member.layout.id)?.is_some();
        }
        if !settled {
            let volumes: Vec<VolumeId> = members.iter().map(|member| member.layout.volume).collect();
            let still = self.freeze(&volumes)?;
            let at = Timestamp::from_system(SystemTime::now());
            for member in &members {
                member.backend.stage_snapshot(&member.layout, at)?;
            }
            drop(still);
        }
        Ok(own.settle_snapshot(snapshot.id)?)
    }

    pub(super) fn remove_snapshot(&self, snapshot: &SnapshotAssignment) -> Result<(), TaskError> {
        let backend = self.pool(snapshot.pool)?;
        if snapshot.wipe {
            let failed = |source| TaskError::Wipe { kind: Kind::Snapshot, name: snapshot.name.clone(), source };
            backend.wipe_snapshot(snapshot.id).map_err(failed)?;
        }
        backend.remove_snapshot(snapshot.id)?;
        Ok(())
    }

    fn members(&self, snapshot: &SnapshotAssignment) -> Result<Vec<Member>, TaskError> {
        let SnapshotAssignment { id, name, volume, pool, room, .. } = snapshot;
        let alone = [SnapshotMember { snapshot: *id, name: name.clone(), volume: *volume, pool: *pool, room: *room }];
        let set = if snapshot.set.is_empty() { &alone[..] } else { &snapshot.set };
        let member = |it: &SnapshotMember| {
            let layout = SnapshotLayout { id: it.snapshot, name: it.name.clone(), volume: it.volume, room: it.room };
            Ok(Member { layout, backend: self.pool(it.pool)? })
        };
        set.iter().map(member).collect()
    }

    /// Holds those of the volumes still that are served; nobody changes the others.
    pub(super) fn freeze(&self, volumes: &[VolumeId]) -> Result<Option<Freeze>, TaskError> {
        let served = self.served();
        let name = |id| served.get(id).map(|served: &Served| served.as_assigned.name.clone());
        let names: Vec<Name> = volumes.iter().filter_map(name).collect();
        drop(served);
        let names: Vec<&str> = names.iter().map(Name::as_str).collect();
        Ok(Some(self.exports.freeze(&names, PATIENCE)?))
    }
}
