//! Carries tasks out on backends and exports. Runs on blocking threads; decides nothing.

mod failure;
mod find;
mod identity;
mod image;
mod inventory;
mod moving;
mod pool;
mod snapshot;

pub use image::{Content, Peers};

use super::places::Places;
use crate::backend::{Backend, BackendError, Ensured, VolumeLayout};
use crate::export::{Account, ExportTable, Freeze, Grant, ServedExport};
use crate::io::{FaultFile, FaultIo};
use crate::model::*;
use crate::nbd::{Target, Uri};
use crate::reconcile::Task;
use crate::runtime::Turns;
use failure::TaskError;
use identity::bytes_of;
use image::Images;
use pool::OpenPool;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a task came to.
#[derive(Debug)]
pub struct Outcome {
    pub task: Task,
    /// None for what is not assigned any more, and for what was only looked for: there is nobody to tell.
    pub report: Option<Report>,
    /// It was looked for, and is not there.
    pub missing: bool,
    /// It was ended before its end, as somebody here wanted: nothing is wrong, and it is begun again if it is still due.
    pub interrupted: bool,
}

impl Outcome {
    pub fn failure(&self) -> Option<&str> {
        self.report.as_ref()?.failure()
    }
}

/// Where clients find the exports.
#[derive(Clone, Debug)]
pub struct Doors {
    /// `host:port` as local clients are told; absent where they do not get in by it.
    pub tcp: Option<String>,
    /// The same for clients with a certificate; absent where there is no TLS.
    pub tls: Option<String>,
    pub unix: PathBuf,
}

impl Doors {
    /// Of a TCP listener at `address` and a socket. In plain text only this host is let in, by loopback.
    pub fn at(address: Option<String>, unix: PathBuf) -> Self {
        let host =
            |address: &String| address.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']']).to_owned());
        let loopback = |host: String| host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        Self { tcp: address.clone().filter(|address| host(address).is_some_and(loopback)), tls: address, unix }
    }
}

/// A volume in the export table.
struct Served {
    /// What it was last made to be.
    as_assigned: VolumeAssignment,
    size: ByteSize,
}

/// The open pools and the export table of this host.
pub struct Worker {
    cluster: Mutex<ClusterId>,
    pools: Mutex<BTreeMap<PoolId, OpenPool>>,
    exports: Arc<ExportTable>,
    /// Which volumes are in the export table. By id: a name may pass from a volume that goes to one that comes.
    served: Mutex<BTreeMap<VolumeId, Served>>,
    /// Of every volume that has been served, until it is destroyed.
    accounts: Mutex<BTreeMap<VolumeId, Arc<Account>>>,
    /// Whom the export table may let in to what.
    admitted: Mutex<BTreeSet<(Name, ClientId)>>,
    /// One set of snapshots at a time, by its first.
    taking: Turns<SnapshotId>,
    images: Images,
    /// Names under which those are told why who look for a volume that is being moved.
    withheld: Mutex<BTreeMap<VolumeId, Name>>,
    doors: Doors,
    places: Arc<Places>,
    /// A pool is opened by one at a time.
    opening: Turns<PoolId>,
    /// How much of what clients ask for is to fail.
    fault_file: Option<FaultFile>,
}

impl Worker {
    pub fn new(cluster: ClusterId, exports: Arc<ExportTable>, doors: Doors, peers: Peers, places: Arc<Places>) -> Self {
        let (pools, served, admitted) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (accounts, taking) = (Mutex::default(), Turns::default());
        let (images, withheld) = (Images::new(peers), Mutex::default());
        let (cluster, opening) = (Mutex::new(cluster), Turns::default());
        let fault_file = None;
        Self {
            cluster,
            pools,
            exports,
            served,
            accounts,
            admitted,
            taking,
            images,
            withheld,
            doors,
            places,
            opening,
            fault_file,
        }
    }

    /// Fails as much of what clients ask for as the file says.
    pub fn with_fault_file(self, fault_file: Option<FaultFile>) -> Self {
        Self { fault_file, ..self }
    }

    fn cluster(&self) -> ClusterId {
        *self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, pools that are opened or adopted are those of another cluster.
    pub fn belong_to(&self, cluster: ClusterId) {
        *self.cluster.lock().unwrap_or_else(PoisonError::into_inner) = cluster;
    }

    fn pools(&self) -> MutexGuard<'_, BTreeMap<PoolId, OpenPool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn served(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accounts(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Arc<Account>>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admitted(&self) -> MutexGuard<'_, BTreeSet<(Name, ClientId)>> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self, id: PoolId) -> Result<Arc<dyn Backend>, TaskError> {
        self.pools().get(&id).map(OpenPool::backend).ok_or(TaskError::PoolClosed(id))
    }

    /// Blocks until the task has succeeded or failed.
    pub fn perform(&self, task: Task) -> Outcome {
        let (done, missing) = match &task {
            Task::Ensure(object) => (self.ensure(object).map(Some), false),
            Task::Find(object) => match self.find(object) {
                Ok(found) => (Ok(None), !found),
                Err(error) => (Err(error), false),
            },
            Task::Remove(object) => (self.remove(object).map(Some), false),
            Task::Drop(object) => {
                self.drop_object(object);
                (Ok(None), false)
            }
        };
        let interrupted = done.as_ref().is_err_and(TaskError::is_interruption);
        let report = done.unwrap_or_else(|error| Some(self.failed(task.object(), &error)));
        Outcome { task, report, missing, interrupted }
    }

    fn ensure(&self, object: &Assigned) -> Result<Report, TaskError> {
        Ok(match object {
            Assigned::Pool(pool) => pool_report(pool, Observed::Known(self.ensure_pool(pool)?)),
            Assigned::Volume(volume) => volume_report(volume, Observed::Known(self.ensure_volume(volume)?)),
            Assigned::Snapshot(snapshot) => snapshot_report(snapshot, Observed::Known(self.ensure_snapshot(snapshot)?)),
            Assigned::Attachment(held) => {
                self.admit(held)?;
                attachment_report(held, Observed::Known(()))
            }
        })
    }

    fn remove(&self, object: &Assigned) -> Result<Report, TaskError> {
        Ok(match object {
            Assigned::Pool(pool) => {
                self.release_pool(pool)?;
                pool_report(pool, Observed::Absent)
            }
            Assigned::Volume(volume) => {
                self.remove_volume(volume)?;
                volume_report(volume, Observed::Absent)
            }
            Assigned::Snapshot(snapshot) => {
                self.remove_snapshot(snapshot)?;
                snapshot_report(snapshot, Observed::Absent)
            }
            Assigned::Attachment(held) => {
                self.fence(&held.volume_name, held.client);
                attachment_report(held, Observed::Absent)
            }
        })
    }

    fn drop_object(&self, object: &Assigned) {
        match object {
            Assigned::Pool(pool) => drop(self.pools().remove(&pool.id)),
            Assigned::Volume(volume) => {
                self.images.withdraw(volume.id);
                self.withhold_no_longer(volume.id);
                self.retire(volume.id);
            }
            // Nothing of it is open.
            Assigned::Snapshot(_) => {}
            Assigned::Attachment(held) => self.fence(&held.volume_name, held.client),
        }
    }

    fn admit(&self, held: &AttachmentAssignment) -> Result<(), TaskError> {
        // Noted first: what may be in force is taken back at the end.
        self.admitted().insert((held.volume_name.clone(), held.client));
        let grant = Grant {
            client: held.client.as_uuid(),
            client_name: held.client_name.to_string(),
            read_only: held.read_only,
            exclusive: !held.shared,
        };
        self.exports.admit(held.volume_name.as_str(), grant)?;
        Ok(())
    }

    /// Cuts a client off and waits until nothing of it is in flight. It cannot come back.
    fn fence(&self, volume: &Name, client: ClientId) {
        let fenced = self.exports.fence(volume.as_str(), client.as_uuid());
        tracing::debug!(%volume, %client, ?fenced, "a client has no hold on a volume any more");
        self.admitted().remove(&(volume.clone(), client));
    }

    fn ensure_volume(&self, volume: &VolumeAssignment) -> Result<ServedVolume, TaskError> {
        // Before anybody is served; who is served already notices nothing else.
        let account = Arc::clone(self.accounts().entry(volume.id).or_insert_with(Account::new));
        account.limit(volume.limits);
        if let Some(size) = self.follow_limits(volume) {
            return Ok(ServedVolume { size, exports: self.exports_of(&volume.name) });
        }
        let backend = self.pool(volume.pool)?;
        self.make_volume(volume, &*backend)?;
        if let Some(tie) = volume.image.as_ref().filter(|tie| tie.is_kept_from_clients()) {
            self.keep_for_others(volume, tie);
            return Ok(ServedVolume { size: volume.size, exports: Vec::new() });
        }
        if self.keep_for_copy(volume) {
            return Ok(ServedVolume { size: volume.size, exports: Vec::new() });
        }
        let io = backend.open_volume(volume.id)?;
        let size = ByteSize::bytes(io.size());
        if !self.served().contains_key(&volume.id) {
            let description = format!("symphony volume {}", volume.id);
            let name = volume.name.to_string();
            let id = bytes_of(volume);
            let io = match &self.fault_file {
                Some(fault_file) => Arc::new(FaultIo::told_by(io, fault_file.clone())),
                None => io,
            };
            self.exports.publish(ServedExport { name, id, description, io, read_only: false, account })?;
        }
        self.served().insert(volume.id, Served { as_assigned: volume.clone(), size });
        Ok(ServedVolume { size, exports: self.exports_of(&volume.name) })
    }

    /// Makes the volume be on its medium what it is to be, with all the bytes that it begins with.
    fn make_volume(&self, volume: &VolumeAssignment, backend: &dyn Backend) -> Result<(), TaskError> {
        let layout = VolumeLayout {
            id: volume.id,
            name: volume.name.clone(),
            generation: volume.generation,
            size: volume.size,
            source: volume.source,
            revert: volume.revert,
            shrunk: volume.shrunk,
            made: volume.made,
        };
        if let Some(still) = self.hold_still_for(volume)? {
            backend.begin_copy(&layout)?;
            drop(still);
        }
        if let Some(tie) = &volume.image {
            self.ensure_image(volume, tie, backend, &layout)?;
        }
        if let Some(moving) = &volume.moving {
            self.ensure_moved(volume, moving, backend, &layout)?;
        }
        let done = keep(backend, layout)?;
        tracing::debug!(volume = %volume.name, ?done, "a volume is as it should be");
        Ok(())
    }

    /// Keeps everybody from changing what the volume's bytes come from, until the copy has begun. One whose bytes are to be
    /// put back is not served meanwhile.
    fn hold_still_for(&self, volume: &VolumeAssignment) -> Result<Option<Freeze>, TaskError> {
        // What is served was made of an earlier generation: its bytes are about to be replaced or to go, whatever else has
        // changed.
        let earlier =
            |since: Generation| self.served().get(&volume.id).is_some_and(|it| it.as_assigned.generation < since);
        if volume.revert.map(|revert| revert.since).max(volume.shrunk).is_some_and(earlier) {
            let users = self.exports.users(volume.name.as_str()).unwrap_or_default();
            if users > 0 {
                return Err(TaskError::InUse { volume: volume.name.clone(), users });
            }
            self.retire(volume.id);
        }
        self.hold_for_move(volume)?;
        // Another import has taken over, or nobody is to write any more.
        let is_base = volume.image.as_deref().is_some_and(ImageTie::is_base);
        if is_base && self.served().get(&volume.id).is_some_and(|served| served.as_assigned.image != volume.image) {
            self.retire(volume.id);
        }
        match volume.source {
            Some(Source::Volume(source)) if !volume.made => self.freeze(&[source]),
            _ => Ok(None),
        }
    }

    /// Takes note of an assignment that differs from what is served in its limits only; the volume's size then.
    fn follow_limits(&self, volume: &VolumeAssignment) -> Option<ByteSize> {
        let mut served = self.served();
        let Served { as_assigned, size } = served.get_mut(&volume.id)?;
        let VolumeAssignment { generation, limits, made, .. } = *volume;
        let same = VolumeAssignment { generation, limits, made, ..as_assigned.clone() } == *volume;
        same.then(|| {
            *as_assigned = volume.clone();
            *size
        })
    }

    /// How every volume that is served is used, in the order of their names.
    pub fn figures(&self) -> Vec<VolumeFigures> {
        let served = self.served();
        let named = served.iter().map(|(id, served)| (*id, served.as_assigned.name.clone()));
        let accounts = self.accounts();
        let known: Vec<_> = named.filter_map(|(id, name)| Some((id, name, Arc::clone(accounts.get(&id)?)))).collect();
        drop((served, accounts));
        let look = |(id, name, account): (VolumeId, Name, Arc<Account>)| {
            let (limits, figures) = (account.limits(), account.figures());
            VolumeFigures { id, name, limits, figures }
        };
        let mut figures: Vec<VolumeFigures> = known.into_iter().map(look).collect();
        figures.sort_by(|one, other| one.name.cmp(&other.name));
        figures
    }

    fn remove_volume(&self, volume: &VolumeAssignment) -> Result<(), TaskError> {
        let backend = self.pool(volume.pool)?;
        self.retire(volume.id);
        self.images.withdraw(volume.id);
        self.withhold_no_longer(volume.id);
        if volume.wipe {
            let failed = |source| TaskError::Wipe { kind: Kind::Volume, name: volume.name.clone(), source };
            backend.wipe_volume(volume.id).map_err(failed)?;
        }
        backend.remove_volume(volume.id)?;
        self.images.forget(volume.id);
        self.accounts().remove(&volume.id);
        Ok(())
    }

    /// Cuts the clients of a volume, if it is served, and waits until none of their operations is in flight.
    fn retire(&self, id: VolumeId) {
        let name = self.served().get(&id).map(|served| served.as_assigned.name.clone());
        if let Some(name) = name {
            let retired = self.exports.retire(name.as_str());
            tracing::debug!(%name, ?retired, "a volume is served no more");
            self.served().remove(&id);
        }
    }

    fn exports_of(&self, name: &Name) -> Vec<Export> {
        let mut exports = Vec::new();
        if let Some(address) = &self.doors.tcp {
            let uri = format!("nbd://{address}/{name}");
            exports.push(Export { protocol: Protocol::Nbd, uri });
        }
        if let Some(address) = &self.doors.tls {
            let uri = format!("nbds://{address}/{name}");
            exports.push(Export { protocol: Protocol::NbdTls, uri });
        }
        let uri = Uri { target: Target::Unix { socket: self.doors.unix.clone() }, export: name.to_string(), tls: None };
        exports.push(Export { protocol: Protocol::NbdUnix, uri: uri.to_string() });
        exports
    }

    /// Capacity and use of every open pool.
    pub fn capacities(&self) -> Vec<(PoolId, Result<PoolCapacity, String>)> {
        let pools = self.pools().clone();
        let look = |pool: OpenPool| pool.look().map_err(|error| failure_text(&error));
        pools.into_iter().map(|(id, pool)| (id, look(pool))).collect()
    }

    /// Stops serving everything, lets nobody in any more and closes every pool, as after a removal from the cluster.
    pub fn close(&self) {
        let served: Vec<VolumeId> = self.served().keys().copied().collect();
        served.into_iter().for_each(|id| self.retire(id));
        let admitted = self.admitted().clone();
        admitted.into_iter().for_each(|(volume, client)| self.fence(&volume, client));
        self.images.withdraw_all();
        let withheld: Vec<VolumeId> = self.withheld().keys().copied().collect();
        withheld.into_iter().for_each(|id| self.withhold_no_longer(id));
        self.pools().clear();
    }
}

fn pool_report(pool: &PoolAssignment, capacity: Observed<PoolCapacity>) -> Report {
    Report::Pool(PoolReport { id: pool.id, generation: pool.generation, capacity, failure: None })
}

fn volume_report(volume: &VolumeAssignment, served: Observed<ServedVolume>) -> Report {
    let (id, generation) = (volume.id, volume.generation);
    Report::Volume(VolumeReport { id, generation, volume: served, progress: None, failure: None })
}

fn snapshot_report(snapshot: &SnapshotAssignment, taken: Observed<TakenSnapshot>) -> Report {
    Report::Snapshot(SnapshotReport {
        id: snapshot.id,
        generation: snapshot.generation,
        snapshot: taken,
        spoilt: false,
        progress: None,
        failure: None,
    })
}

fn attachment_report(held: &AttachmentAssignment, in_force: Observed<()>) -> Report {
    Report::Attachment(AttachmentReport { id: held.id, generation: held.generation, in_force, failure: None })
}

/// Makes the volume exist. What an older state says of one that is larger by now takes nothing from it.
fn keep(backend: &dyn Backend, layout: VolumeLayout) -> Result<Ensured, BackendError> {
    match backend.ensure_volume(&layout) {
        Err(BackendError::Shrink { actual, .. }) if layout.generation.is_carried() => {
            backend.ensure_volume(&VolumeLayout { size: actual, ..layout })
        }
        done => done,
    }
}

fn failed(object: &Assigned, error: &TaskError) -> Report {
    let mut report = object.unknown(failure_text(error));
    if let (Report::Snapshot(report), TaskError::Backend(BackendError::SnapshotSpoilt { .. })) = (&mut report, error) {
        report.spoilt = true;
    }
    report
}

/// An error with its causes, short enough for a report, also within another sentence.
fn failure_text(error: &dyn std::error::Error) -> String {
    chain(error).chars().take(crate::rpc::MAX_FAILURE / 8).collect()
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
