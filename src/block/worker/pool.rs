//! Pools: opened by their driver, kept as they are assigned, let go of.

use super::{TaskError, Worker};
use crate::backend::file::FilePool;
use crate::backend::lvm::{Executable, Ground, Kind, LvmPool, Room, Settings};
use crate::backend::{Backend, BackendError, PoolIdentity};
use crate::model::{Devices, Driver, PoolAssignment, PoolCapacity, SnapshotId};
use std::sync::Arc;

/// A pool that is open, by its driver.
#[derive(Clone)]
pub(super) enum OpenPool {
    File(Arc<FilePool>),
    Lvm(Arc<LvmPool>),
}

impl OpenPool {
    pub fn backend(&self) -> Arc<dyn Backend> {
        match self {
            OpenPool::File(pool) => pool.clone(),
            OpenPool::Lvm(pool) => pool.clone(),
        }
    }
}

impl Worker {
    pub(super) fn ensure_pool(&self, pool: &PoolAssignment) -> Result<PoolCapacity, TaskError> {
        let open = self.pools().get(&pool.id).cloned();
        let open = match (open, &pool.driver) {
            (None, driver) => {
                let opened = self.open(pool, driver)?;
                self.pools().insert(pool.id, opened.clone());
                opened
            }
            (Some(OpenPool::Lvm(open)), Driver::Lvm(devices) | Driver::LvmThin(devices)) => {
                let settings = settings(&pool.driver, devices);
                let done = open.ensure_settings(&self.identity_of(pool), &settings)?;
                tracing::debug!(pool = %pool.name, ?done, "a pool is as it should be");
                OpenPool::Lvm(open)
            }
            (Some(open), _) => open,
        };
        Ok(open.backend().observe_capacity()?)
    }

    fn open(&self, pool: &PoolAssignment, driver: &Driver) -> Result<OpenPool, BackendError> {
        let identity = self.identity_of(pool);
        match driver {
            Driver::File { path, limit } => {
                let (opened, _) = FilePool::ensure(&identity, path, *limit, pool.made)?;
                Ok(OpenPool::File(Arc::new(opened)))
            }
            Driver::Lvm(devices) | Driver::LvmThin(devices) => {
                let ground = ground(pool)?;
                let (opened, _) = LvmPool::ensure(&ground, &identity, &settings(driver, devices), pool.made)?;
                Ok(OpenPool::Lvm(Arc::new(opened)))
            }
        }
    }

    /// The snapshots that have been lost since they were taken, as far as the last look at the pools' capacities told.
    pub fn lost_snapshots(&self) -> Vec<SnapshotId> {
        let pools = self.pools().clone();
        let lost = |pool: &OpenPool| match pool {
            OpenPool::File(_) => Vec::new(),
            OpenPool::Lvm(pool) => pool.overflowed(),
        };
        pools.values().flat_map(lost).collect()
    }

    fn identity_of(&self, pool: &PoolAssignment) -> PoolIdentity {
        PoolIdentity { cluster: self.cluster, pool: pool.id, name: pool.name.clone() }
    }

    pub(super) fn release_pool(&self, pool: &PoolAssignment) -> Result<(), TaskError> {
        let open = self.pools().get(&pool.id).cloned();
        let Some(open) = open else {
            // It never came to be, its place is gone, or a release was cut short.
            return match self.release_closed(pool) {
                // What was never made and cannot be looked at holds nothing of ours.
                Err(BackendError::Io { .. } | BackendError::Absent { .. }) if !pool.made => Ok(()),
                released => Ok(released?),
            };
        };
        open.backend().release()?;
        self.pools().remove(&pool.id);
        Ok(())
    }

    fn release_closed(&self, pool: &PoolAssignment) -> Result<(), BackendError> {
        let identity = self.identity_of(pool);
        let released = match &pool.driver {
            Driver::File { path, .. } => FilePool::release_at(&identity, path)?,
            Driver::Lvm(devices) | Driver::LvmThin(devices) => {
                LvmPool::release_at(&ground(pool)?, &identity, &settings(&pool.driver, devices))?
            }
        };
        tracing::debug!(pool = %pool.name, ?released, "a pool that was not open is let go of");
        Ok(())
    }
}

/// What LVM pools of this host stand on; the program is looked for anew, since it may have been installed meanwhile.
fn ground(pool: &PoolAssignment) -> Result<Ground, BackendError> {
    let lvm = Executable::installed().map_err(|error| error.at(pool.name.as_str()))?;
    Ok(Ground::of_host(Arc::new(lvm)))
}

fn settings(driver: &Driver, devices: &Devices) -> Settings {
    let kind = if matches!(driver, Driver::LvmThin(_)) { Kind::Thin } else { Kind::Thick };
    let Devices { devices, wipe } = devices.clone();
    Settings { kind, devices, wipe: wipe.into_iter().collect(), room: Room::default() }
}
