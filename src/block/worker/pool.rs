//! Pools: opened by their driver, kept as they are assigned, let go of.

use super::{TaskError, Worker, failure_text};
use crate::backend::file::FilePool;
use crate::backend::lvm::{Executable, Ground, Kind, LvmPool, Room, Settings, SnapshotFill};
use crate::backend::{Backend, BackendError, Ensured, PoolIdentity};
use crate::model::{AssignedId, ClusterId, Devices, Driver, PoolAssignment, PoolCapacity, PoolId, PoolPlace, Progress};
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

    /// The cluster whose mark it bears.
    pub fn cluster(&self) -> ClusterId {
        match self {
            OpenPool::File(pool) => pool.cluster(),
            OpenPool::Lvm(pool) => pool.cluster(),
        }
    }

    fn pass_on(&self, cluster: ClusterId) -> Result<Ensured, BackendError> {
        match self {
            OpenPool::File(pool) => pool.pass_on(cluster),
            OpenPool::Lvm(pool) => pool.pass_on(cluster),
        }
    }

    /// Extends it, if that is due, and says how full it is then.
    pub fn look(&self) -> Result<PoolCapacity, BackendError> {
        if let OpenPool::Lvm(pool) = self
            && pool.extend_if_due()?
        {
            tracing::info!(pool = ?pool, "a thin pool was extended as it fills up");
        }
        self.backend().observe_capacity()
    }

    /// As [`Self::look`], at one that grows and is near to that; of all others nothing.
    fn look_at_growth(&self) -> Option<Result<PoolCapacity, BackendError>> {
        let near = matches!(self, OpenPool::Lvm(pool) if pool.is_filling_up());
        near.then(|| self.look())
    }
}

/// Opens a pool as that of `identity`.
pub(super) fn open_as(identity: &PoolIdentity, driver: &Driver, made: bool) -> Result<OpenPool, BackendError> {
    match driver {
        Driver::File { path, limit } => {
            let (opened, _) = FilePool::ensure(identity, path, *limit, made)?;
            Ok(OpenPool::File(Arc::new(opened)))
        }
        Driver::Lvm(devices) | Driver::LvmThin(devices) => {
            let ground = ground(identity)?;
            let (opened, _) = LvmPool::ensure(&ground, identity, &settings(driver, devices), made)?;
            Ok(OpenPool::Lvm(Arc::new(opened)))
        }
    }
}

impl Worker {
    pub(super) fn ensure_pool(&self, pool: &PoolAssignment) -> Result<PoolCapacity, TaskError> {
        let _turn = self.opening.take(pool.id);
        self.places.remember(pool.id, &self.place_of(pool)).map_err(TaskError::Places)?;
        let open = self.pools().get(&pool.id).cloned();
        if let (Some(open), Some(_)) = (&open, pool.formerly) {
            let done = open.pass_on(self.cluster())?;
            tracing::debug!(pool = %pool.name, ?done, "a pool that was adopted bears this cluster's mark");
        }
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
        self.take_over(pool)?;
        open_as(&self.identity_of(pool), driver, pool.made)
    }

    /// Lets a pool that was adopted, and is not open, bear this cluster's mark.
    fn take_over(&self, pool: &PoolAssignment) -> Result<(), BackendError> {
        let to = self.identity_of(pool);
        let Some(cluster) = pool.formerly.filter(|cluster| *cluster != to.cluster) else { return Ok(()) };
        let from = PoolIdentity { cluster, ..to.clone() };
        let done = match &pool.driver {
            Driver::File { path, .. } => FilePool::pass_on_at(&from, &to, path)?,
            Driver::Lvm(devices) | Driver::LvmThin(devices) => {
                LvmPool::pass_on_at(&ground(&to)?, &from, &to, &settings(&pool.driver, devices))?
            }
        };
        tracing::debug!(pool = %pool.name, ?done, "a pool that was adopted bears this cluster's mark");
        Ok(())
    }

    fn place_of(&self, pool: &PoolAssignment) -> PoolPlace {
        PoolPlace { cluster: self.cluster(), name: pool.name.to_string(), driver: pool.driver.clone() }
    }

    /// How full snapshots are that have room of their own, as far as the last look at the pools' capacities told.
    pub fn fills(&self) -> Vec<SnapshotFill> {
        let pools = self.pools().clone();
        let fills = |pool: &OpenPool| match pool {
            OpenPool::File(_) => Vec::new(),
            OpenPool::Lvm(pool) => pool.fills(),
        };
        pools.values().flat_map(fills).collect()
    }

    /// Whether there are pools that are extended as they fill up: those must be looked at often.
    pub fn has_growing_pools(&self) -> bool {
        self.pools().values().any(|pool| matches!(pool, OpenPool::Lvm(pool) if pool.can_grow()))
    }

    /// Extends pools that grow as they fill up, where that is due: capacity and use of those that are near to it.
    pub fn extend_pools(&self) -> Vec<(PoolId, Result<PoolCapacity, String>)> {
        let pools = self.pools().clone();
        let looked =
            |(id, pool): (PoolId, OpenPool)| Some((id, pool.look_at_growth()?.map_err(|error| failure_text(&error))));
        pools.into_iter().filter_map(looked).collect()
    }

    /// How far the work on volumes and snapshots is that takes long.
    pub fn progress(&self) -> Vec<(AssignedId, Progress)> {
        let pools = self.pools().clone();
        let filled = self.images.progress().into_iter().map(|(volume, progress)| (volume.into(), progress));
        filled.chain(pools.values().flat_map(|pool| pool.backend().progress())).collect()
    }

    /// Lets what takes long on volumes and snapshots end soon, unfinished; it is begun again when it is due.
    pub fn pause(&self) {
        self.abandon_work(None);
    }

    pub(super) fn abandon_work(&self, on: Option<AssignedId>) {
        let pools = self.pools().clone();
        pools.values().for_each(|pool| pool.backend().abandon(on));
    }

    fn identity_of(&self, pool: &PoolAssignment) -> PoolIdentity {
        PoolIdentity { cluster: self.cluster(), pool: pool.id, name: pool.name.clone() }
    }

    pub(super) fn release_pool(&self, pool: &PoolAssignment) -> Result<(), TaskError> {
        let _turn = self.opening.take(pool.id);
        let open = self.pools().get(&pool.id).cloned();
        match open {
            Some(open) => {
                open.backend().release()?;
                self.pools().remove(&pool.id);
            }
            // It never came to be, its place is gone, or a release was cut short.
            None => match self.take_over(pool).and_then(|()| self.release_closed(pool)) {
                // What was never made and cannot be looked at holds nothing of ours.
                Err(BackendError::Io { .. } | BackendError::Absent { .. }) if !pool.made => {}
                released => released?,
            },
        }
        self.places.forget(pool.id).map_err(TaskError::Places)
    }

    fn release_closed(&self, pool: &PoolAssignment) -> Result<(), BackendError> {
        let identity = self.identity_of(pool);
        let released = match &pool.driver {
            Driver::File { path, .. } => FilePool::release_at(&identity, path)?,
            Driver::Lvm(devices) | Driver::LvmThin(devices) => {
                LvmPool::release_at(&ground(&identity)?, &identity, &settings(&pool.driver, devices))?
            }
        };
        tracing::debug!(pool = %pool.name, ?released, "a pool that was not open is let go of");
        Ok(())
    }
}

/// What LVM pools of this host stand on; the program is looked for anew, since it may have been installed meanwhile.
fn ground(pool: &PoolIdentity) -> Result<Ground, BackendError> {
    let lvm = Executable::installed().map_err(|error| error.at(pool.name.as_str()))?;
    Ok(Ground::of_host(Arc::new(lvm)))
}

fn settings(driver: &Driver, devices: &Devices) -> Settings {
    let kind = if matches!(driver, Driver::LvmThin(_)) { Kind::Thin } else { Kind::Thick };
    let Devices { devices, wipe, ceiling } = devices.clone();
    Settings { kind, devices, wipe: wipe.into_iter().collect(), room: Room::default(), ceiling }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::lvm::tests::machine::Machine;
    use crate::model::ByteSize;

    #[test]
    fn a_pool_that_grows_is_told_of_while_it_fills_up_even_where_it_cannot_grow_any_more() {
        let mut machine = Machine::new(Kind::Thin);
        machine.settings.ceiling = Some(ByteSize::mib(800));
        let pool = OpenPool::Lvm(Arc::new(machine.open(false)));
        machine.fill(10.0, 10.0);
        assert!(pool.look_at_growth().is_none(), "the next look at all pools is soon enough");
        let mut sizes = Vec::new();
        for _ in 0..9 {
            machine.fill(100.0, 10.0);
            let PoolCapacity { size, used, .. } = pool.look_at_growth().unwrap().unwrap();
            sizes.push((size, used));
        }
        let (most, used) = *sizes.last().unwrap();
        assert_eq!((sizes[7], most), ((most, used), Some(used)), "it is full, and that is said");
    }
}
