//! Carries tasks out on backends and exports. Runs on blocking threads; decides nothing.

use crate::backend::file::FilePool;
use crate::backend::{Backend, BackendError, PoolIdentity, VolumeLayout};
use crate::export::{ExportTable, ServedExport};
use crate::model::*;
use crate::nbd::{Target, Uri};
use crate::reconcile::Task;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a task came to.
#[derive(Debug)]
pub struct Outcome {
    pub task: Task,
    /// None for what is not assigned any more: there is nobody to tell.
    pub report: Option<Report>,
}

impl Outcome {
    pub fn failure(&self) -> Option<&str> {
        match self.report.as_ref()? {
            Report::Pool(report) => report.failure.as_deref(),
            Report::Volume(report) => report.failure.as_deref(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum TaskError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("pool {0} is not open")]
    PoolClosed(PoolId),
    #[error(transparent)]
    Publish(#[from] crate::export::PublishError),
}

/// Where clients find the exports.
#[derive(Clone, Debug)]
pub struct Doors {
    /// `host:port` as clients are told; absent where there is no TCP listener.
    pub tcp: Option<String>,
    pub unix: PathBuf,
}

/// The open pools and the export table of this host.
pub struct Worker {
    cluster: ClusterId,
    pools: Mutex<BTreeMap<PoolId, Arc<dyn Backend>>>,
    exports: Arc<ExportTable>,
    /// Which volumes are in the export table. By id: a name may pass from a volume that goes to one that comes.
    served: Mutex<BTreeMap<VolumeId, Name>>,
    doors: Doors,
}

impl Worker {
    pub fn new(cluster: ClusterId, exports: Arc<ExportTable>, doors: Doors) -> Self {
        Self { cluster, pools: Mutex::default(), exports, served: Mutex::default(), doors }
    }

    fn pools(&self) -> MutexGuard<'_, BTreeMap<PoolId, Arc<dyn Backend>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn served(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Name>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self, id: PoolId) -> Result<Arc<dyn Backend>, TaskError> {
        self.pools().get(&id).cloned().ok_or(TaskError::PoolClosed(id))
    }

    /// Blocks until the task has succeeded or failed.
    pub fn perform(&self, task: Task) -> Outcome {
        let report = match &task {
            Task::EnsurePool(pool) => Some(pool_report(pool, self.ensure_pool(pool).map(Observed::Known))),
            Task::ReleasePool(pool) => Some(pool_report(pool, self.release_pool(pool).map(|()| Observed::Absent))),
            Task::ClosePool(id) => {
                drop(self.pools().remove(id));
                None
            }
            Task::EnsureVolume(volume) => Some(volume_report(volume, self.ensure_volume(volume).map(Observed::Known))),
            Task::RemoveVolume(volume) => {
                Some(volume_report(volume, self.remove_volume(volume).map(|()| Observed::Absent)))
            }
            Task::RetireVolume(volume) => {
                self.retire(volume.id);
                None
            }
        };
        Outcome { task, report }
    }

    fn ensure_pool(&self, pool: &PoolAssignment) -> Result<PoolCapacity, TaskError> {
        let open = self.pools().get(&pool.id).cloned();
        let backend = match open {
            Some(backend) => backend,
            None => {
                let Driver::File { path, limit } = &pool.driver;
                let (backend, _) = FilePool::ensure(&self.identity_of(pool), path, *limit, pool.made)?;
                let backend: Arc<dyn Backend> = Arc::new(backend);
                self.pools().insert(pool.id, backend.clone());
                backend
            }
        };
        Ok(backend.observe_capacity()?)
    }

    fn identity_of(&self, pool: &PoolAssignment) -> PoolIdentity {
        PoolIdentity { cluster: self.cluster, pool: pool.id, name: pool.name.clone() }
    }

    fn release_pool(&self, pool: &PoolAssignment) -> Result<(), TaskError> {
        let Driver::File { path, .. } = &pool.driver;
        let open = self.pools().get(&pool.id).cloned();
        match open {
            Some(backend) => {
                backend.release()?;
                self.pools().remove(&pool.id);
            }
            // It never came to be, its place is gone, or a release was cut short.
            None => match FilePool::release_at(&self.identity_of(pool), path) {
                // What was never made and cannot be looked at holds nothing of ours.
                Err(BackendError::Io { .. }) if !pool.made => {}
                released => drop(released?),
            },
        }
        Ok(())
    }

    fn ensure_volume(&self, volume: &VolumeAssignment) -> Result<ServedVolume, TaskError> {
        let backend = self.pool(volume.pool)?;
        backend.ensure_volume(&VolumeLayout {
            id: volume.id,
            name: volume.name.clone(),
            generation: volume.generation,
            size: volume.size,
            made: volume.made,
        })?;
        let io = backend.open_volume(volume.id)?;
        let size = ByteSize::bytes(io.size());
        if !self.served().contains_key(&volume.id) {
            let description = format!("symphony volume {}", volume.id);
            let name = volume.name.to_string();
            self.exports.publish(ServedExport { name, description, io, read_only: false })?;
            self.served().insert(volume.id, volume.name.clone());
        }
        Ok(ServedVolume { size, exports: self.exports_of(&volume.name) })
    }

    fn remove_volume(&self, volume: &VolumeAssignment) -> Result<(), TaskError> {
        let backend = self.pool(volume.pool)?;
        self.retire(volume.id);
        backend.remove_volume(volume.id)?;
        Ok(())
    }

    /// Cuts the clients of a volume, if it is served, and waits until none of their operations is in flight.
    fn retire(&self, id: VolumeId) {
        let name = self.served().get(&id).cloned();
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
        let uri = Uri { target: Target::Unix { socket: self.doors.unix.clone() }, export: name.to_string() };
        exports.push(Export { protocol: Protocol::NbdUnix, uri: uri.to_string() });
        exports
    }

    /// Capacity and use of every open pool.
    pub fn capacities(&self) -> Vec<(PoolId, Result<PoolCapacity, String>)> {
        let pools = self.pools().clone();
        let look = |backend: Arc<dyn Backend>| backend.observe_capacity().map_err(|error| failure_text(&error));
        pools.into_iter().map(|(id, backend)| (id, look(backend))).collect()
    }

    /// Everything on the devices of the open pools.
    pub fn inventory(&self) -> Inventory {
        let mut inventory = Inventory::default();
        let pools = self.pools().clone();
        for (id, backend) in pools {
            let mut failure = None;
            match backend.observe_volumes() {
                Ok(volumes) => inventory.volumes.extend(volumes.into_iter().map(|mut volume| {
                    volume.exported = self.served().contains_key(&volume.id);
                    volume
                })),
                Err(error) => failure = Some(chain(&error)),
            }
            inventory.pools.push(InventoryPool { id, failure });
        }
        inventory
    }

    /// Stops serving everything and closes every pool, as after a removal from the cluster.
    pub fn close(&self) {
        let served: Vec<VolumeId> = self.served().keys().copied().collect();
        served.into_iter().for_each(|id| self.retire(id));
        self.pools().clear();
    }
}

fn pool_report(pool: &PoolAssignment, outcome: Result<Observed<PoolCapacity>, TaskError>) -> Report {
    let (capacity, failure) = split(outcome);
    Report::Pool(PoolReport { id: pool.id, generation: pool.generation, capacity, failure })
}

fn volume_report(volume: &VolumeAssignment, outcome: Result<Observed<ServedVolume>, TaskError>) -> Report {
    let (served, failure) = split(outcome);
    Report::Volume(VolumeReport { id: volume.id, generation: volume.generation, volume: served, failure })
}

fn split<T>(outcome: Result<Observed<T>, TaskError>) -> (Observed<T>, Option<String>) {
    match outcome {
        Ok(observed) => (observed, None),
        Err(error) => (Observed::Unknown, Some(failure_text(&error))),
    }
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
