//! Looking at everything that is on this host's devices, assigned or not. Changes nothing that anybody could notice.
//!
//! A pool that is remembered and not open is opened for the time of the look, as the pool that it last was, so that what
//! is in it is told by the driver that wrote it. One that another process has open is that one's, and is left out.

use super::pool::{OpenPool, open_as};
use super::{Worker, chain};
use crate::backend::file::FilePool;
use crate::backend::{Backend, BackendError, PoolIdentity};
use crate::model::{
    AssignmentSet, Driver, Generation, Inventory, InventoryPool, InventorySnapshot, InventoryVolume, Name, PoolId,
    PoolPlace,
};

impl Worker {
    /// Everything on the devices of the open pools, and of those that are remembered. `held` is what is assigned here.
    pub fn inventory(&self, held: &AssignmentSet) -> Inventory {
        let mut inventory = Inventory::default();
        let places = self.places.all();
        let open = self.pools().clone();
        for (id, pool) in open {
            let place = places.get(&id).map(|place| PoolPlace { cluster: pool.cluster(), ..place.clone() });
            self.look_into(id, &*pool.backend(), place, &mut inventory);
        }
        for (id, place) in places {
            let listed = inventory.pools.iter().any(|pool| pool.id == id);
            if !listed && !held.pools.contains_key(&id) {
                self.look_at_stray(id, place, &mut inventory);
            }
        }
        for pool in &mut inventory.pools {
            pool.told = held.pools.get(&pool.id).map_or_else(Generation::default, |pool| pool.generation);
        }
        for volume in &mut inventory.volumes {
            volume.exported = self.served().contains_key(&volume.id);
            let told = held.volumes.get(&volume.id);
            volume.told = told.map_or_else(Generation::default, |volume| volume.generation);
            volume.unfinished |= told.is_some_and(|volume| volume.removed);
        }
        for snapshot in &mut inventory.snapshots {
            let told = held.snapshots.get(&snapshot.id);
            snapshot.told = told.map_or_else(Generation::default, |snapshot| snapshot.generation);
        }
        inventory
    }

    fn look_into(&self, id: PoolId, backend: &dyn Backend, place: Option<PoolPlace>, inventory: &mut Inventory) {
        let mut failure = None;
        match contents(backend) {
            Ok((volumes, snapshots)) => {
                inventory.volumes.extend(volumes);
                inventory.snapshots.extend(snapshots);
            }
            Err(error) => failure = Some(chain(&error)),
        }
        inventory.pools.push(InventoryPool { id, told: Generation::default(), place, failure });
    }

    /// A pool that was this host's once. What is there no longer, or has become another pool's, is no orphan.
    fn look_at_stray(&self, id: PoolId, place: PoolPlace, inventory: &mut Inventory) {
        let _turn = self.opening.take(id);
        if self.pools().contains_key(&id) {
            return;
        }
        match self.open_stray(id, &place) {
            Ok(Some((pool, place))) => self.look_into(id, &*pool.backend(), Some(place), inventory),
            Ok(None) => {}
            Err(error) => {
                let failure = Some(chain(&error));
                inventory.pools.push(InventoryPool { id, told: Generation::default(), place: Some(place), failure });
            }
        }
    }

    /// None for what is another's.
    fn open_stray(&self, id: PoolId, place: &PoolPlace) -> Result<Option<(OpenPool, PoolPlace)>, BackendError> {
        let mut place = place.clone();
        if let Driver::File { path, .. } = &place.driver {
            // The mark says best whose it was last.
            match FilePool::find(path)? {
                Some(found) if found.pool == id => {
                    (place.cluster, place.name) = (found.cluster, found.name.to_string());
                }
                Some(_) | None => return Ok(None),
            }
        }
        let name = Name::resembling(&place.name, "pool");
        let identity = PoolIdentity { cluster: place.cluster, pool: id, name };
        match open_as(&identity, &place.driver, true) {
            Ok(pool) => Ok(Some((pool, place))),
            Err(BackendError::Locked { .. } | BackendError::Taken { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn contents(backend: &dyn Backend) -> Result<(Vec<InventoryVolume>, Vec<InventorySnapshot>), BackendError> {
    let mut volumes = backend.observe_volumes()?;
    volumes.extend(backend.observe_unfinished()?);
    Ok((volumes, backend.observe_snapshots()?))
}
