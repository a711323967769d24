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

#[cfg(test)]
pub(super) mod tests {
    use super::super::pool::OpenPool;
    use super::super::{Doors, Peers};
    use super::*;
    use crate::backend::lvm::Kind as PoolKind;
    use crate::backend::lvm::tests::machine::{Machine, layout, snapshot_of};
    use crate::block::places::Places;
    use crate::export::ExportTable;
    use crate::model::{ClusterId, Generation, Observed, Report};
    use crate::reconcile::Task;
    use std::fs::File;

    pub fn worker(runtime: &tokio::runtime::Runtime, scratch: &std::path::Path) -> Worker {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let peers = Peers { runtime: runtime.handle().clone(), client: Arc::new(client) };
        let places = Places::open(scratch.join("places.json")).unwrap();
        let doors = Doors::at(None, scratch.join("nbd.sock"));
        Worker::new(ClusterId::generate(), ExportTable::new(), doors, peers, Arc::new(places))
    }

    #[test]
    fn a_snapshot_is_wiped_where_its_tombstone_says_so_and_one_that_cannot_be_names_the_way_out() {
        let (scratch, runtime) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
        let (machine, worker) = (Machine::new(PoolKind::Thick), worker(&runtime, scratch.path()));
        let (pool, of) = (Arc::new(machine.open(false)), layout(3));
        worker.pools().insert(machine.identity.pool, OpenPool::Lvm(pool.clone()));
        pool.ensure_volume(&of).unwrap();
        pool.open_volume(of.id).unwrap().write(b"old", 0, true).unwrap();
        let buried = |wipe| {
            let snapshot = snapshot_of(of.id);
            pool.stage_snapshot(&snapshot, Timestamp::EPOCH).unwrap();
            pool.settle_snapshot(snapshot.id).unwrap();
            SnapshotAssignment {
                id: snapshot.id,
                name: snapshot.name,
                generation: Generation::new(2),
                volume: of.id,
                pool: machine.identity.pool,
                set: Vec::new(),
                room: None,
                wipe,
                made: true,
                removed: true,
            }
        };
        let remove = |snapshot: &SnapshotAssignment| match worker.perform(Task::Remove(snapshot.clone().into())).report
        {
            Some(Report::Snapshot(report)) => report,
            other => panic!("{other:?}"),
        };
        let emptied = |snapshot: &SnapshotAssignment| machine.model.state().emptied[&format!("s-{}", snapshot.id)];
        for wipe in [true, false] {
            let snapshot = buried(wipe);
            assert_eq!(remove(&snapshot).snapshot, Observed::Absent);
            assert_eq!(emptied(&snapshot), wipe, "only where it was asked for");
            assert_eq!(remove(&snapshot).snapshot, Observed::Absent, "said again, it is done already");
        }
        let snapshot = buried(true);
        pool.wipe_snapshot(snapshot.id).unwrap();
        let node = machine.model.node(&machine.group(), &format!("s-{}", snapshot.id));
        machine.model.state().groups.get_mut(&machine.group()).unwrap().lvs.values_mut().for_each(|lv| {
            lv.tags.retain(|tag| !tag.starts_with("symphony.wiped"));
        });
        File::options().write(true).open(node).unwrap().set_len(1 << 20).unwrap();
        let report = remove(&snapshot);
        let why = report.failure.unwrap();
        assert!(report.snapshot == Observed::Unknown && why.contains("cannot wipe"), "{why}");
        assert!(why.contains(&format!("snapshot remove {} --no-wipe", snapshot.name)), "{why}");
        let given_up = SnapshotAssignment { wipe: false, generation: snapshot.generation.next(), ..snapshot };
        assert_eq!(remove(&given_up).snapshot, Observed::Absent);
    }
}
