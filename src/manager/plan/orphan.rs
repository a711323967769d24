//! Orphans: told from what is assigned, adopted, purged.
//!
//! Every plan here is made of a [`Sighting`]: what a block service found on its devices when it was asked. Between that
//! and the commit somebody else may adopt the same object, even remove it again. Whoever does so writes the record of the
//! object's pool, so a plan whose pool was written since the sighting is refused as [`Refusal::Busy`], for the caller to
//! look again; and two that come to the same object at once conflict over its record.

use super::pool::check_free;
use crate::manager::audit::audit;
use crate::manager::draft::{Draft, Drafted};
use crate::manager::refusal::Refusal;
use crate::manager::view::View;
use crate::model::*;
use crate::store::Revision;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

mod adoption;
mod purge;

pub use adoption::{Adopted, Adoption, adopt_pool, adopt_snapshot, adopt_some, adopt_volume};
pub use purge::purge_orphan;

/// What a service found on its devices, and what was known before it was asked.
#[derive(Clone, Debug)]
pub struct Sighting {
    pub service: ServiceId,
    pub host_name: String,
    pub inventory: Arc<Inventory>,
    /// The revisions of all pools.
    pools: BTreeMap<PoolId, Revision>,
    /// What was assigned to the service.
    volumes: BTreeSet<VolumeId>,
    snapshots: BTreeSet<SnapshotId>,
}

impl Sighting {
    /// To be made of the view before the service is asked.
    pub fn before(view: &View, service: &Service) -> Self {
        let id = service.meta.id;
        Self {
            service: id,
            host_name: service.status.host_name.clone(),
            inventory: Arc::default(),
            pools: view.pools.iter().map(|(id, held)| (*id, held.revision)).collect(),
            volumes: view.volumes_of(id).map(|volume| volume.meta.id).collect(),
            snapshots: view.snapshots_of(id).map(|snapshot| snapshot.meta.id).collect(),
        }
    }

    /// With what the service has answered.
    pub fn answered(self, inventory: Inventory) -> Self {
        Self { inventory: Arc::new(inventory), ..self }
    }

    /// Goes on after a commit of one's own that made the pool what it is here; false if somebody else has written it since.
    pub fn follow(&mut self, view: &View, pool: &Pool) -> bool {
        match view.pools.get(&pool.meta.id) {
            Some(held) if *held.value == *pool => {
                self.pools.insert(pool.meta.id, held.revision);
                true
            }
            Some(_) | None => false,
        }
    }

    fn pool(&self, id: PoolId) -> Option<&InventoryPool> {
        self.inventory.pools.iter().find(|pool| pool.id == id)
    }

    fn volume(&self, id: VolumeId) -> Option<&InventoryVolume> {
        self.inventory.volumes.iter().find(|volume| volume.id == id)
    }

    fn snapshot(&self, id: SnapshotId) -> Option<&InventorySnapshot> {
        self.inventory.snapshots.iter().find(|snapshot| snapshot.id == id)
    }

    /// Whether the service holds the volume by what it was told last.
    pub fn is_told(&self, id: VolumeId) -> bool {
        self.volume(id).is_some_and(|volume| volume.told > Generation::default())
    }

    /// Which object of what was found is meant by an id.
    pub fn find(&self, reference: &str) -> Option<OrphanId> {
        let pool = reference.parse().ok().filter(|id| self.pool(*id).is_some()).map(OrphanId::Pool);
        let volume = || reference.parse().ok().filter(|id| self.volume(*id).is_some()).map(OrphanId::Volume);
        let snapshot = || reference.parse().ok().filter(|id| self.snapshot(*id).is_some()).map(OrphanId::Snapshot);
        pool.or_else(volume).or_else(snapshot)
    }

    /// # Errors
    /// If the pool was written since the sighting.
    fn still_holds(&self, draft: &Draft<'_>, pool: PoolId) -> Result<(), Refusal> {
        let now = draft.view().pools.get(&pool).map(|held| held.revision);
        if now == self.pools.get(&pool).copied() { Ok(()) } else { Err(Refusal::Busy) }
    }
}

/// What a base of an image is called, which is nobody's volume.
fn is_base_name(volume: &InventoryVolume) -> bool {
    volume.name == format!("image-{}", volume.id)
}

fn standing(volume: &InventoryVolume) -> OrphanStanding {
    match &volume.damage {
        _ if volume.unfinished => OrphanStanding::Unfinished,
        Some(damage) => OrphanStanding::Damaged(damage.clone()),
        None if is_base_name(volume) => OrphanStanding::ImageBase,
        None => OrphanStanding::Whole,
    }
}

/// What is on a service's devices and in no state, in the order pools, volumes, snapshots.
pub fn orphans(view: &View, sighting: &Sighting) -> Vec<Orphan> {
    let own = view.cluster.as_ref().map(|cluster| cluster.meta.id);
    let place = |id: PoolId| sighting.pool(id).and_then(|pool| pool.place.as_ref());
    let origin = |id: PoolId| match place(id) {
        _ if view.get::<Pool>(id).is_some() => OrphanOrigin::InPool,
        Some(place) if Some(place.cluster) != own => OrphanOrigin::Cluster(place.cluster),
        Some(_) | None => OrphanOrigin::RemovedService,
    };
    let pool_name = |id: PoolId| match view.get::<Pool>(id) {
        Some(pool) => pool.meta.name.to_string(),
        None => place(id).map(|place| place.name.clone()).unwrap_or_default(),
    };
    // A pool that came here from another host stays that one's until it is closed there.
    let elsewhere = |id: PoolId| {
        let pool = view.get::<Pool>(id).filter(|pool| pool.spec.service != sighting.service)?;
        Some(OrphanStanding::Damaged(format!("its pool '{}' belongs to service {}", pool.meta.name, pool.spec.service)))
    };
    let bare = |id: OrphanId, name: &str, pool: PoolId| Orphan {
        id,
        name: name.to_owned(),
        service: sighting.service,
        host_name: sighting.host_name.clone(),
        pool,
        pool_name: pool_name(pool),
        volume: None,
        size: None,
        generation: Generation::default(),
        data: None,
        standing: OrphanStanding::Whole,
        origin: origin(pool),
    };
    let strays = sighting.inventory.pools.iter().filter(|pool| {
        let known = view.get::<Pool>(pool.id).is_some() || sighting.pools.contains_key(&pool.id);
        !known && pool.place.is_some()
    });
    let strays = strays.map(|pool| {
        let standing = pool.failure.clone().map_or(OrphanStanding::Whole, OrphanStanding::Damaged);
        Orphan { generation: pool.told, standing, ..bare(OrphanId::Pool(pool.id), &pool_name(pool.id), pool.id) }
    });
    let volumes = sighting
        .inventory
        .volumes
        .iter()
        .filter(|volume| view.get::<Volume>(volume.id).is_none() && !sighting.volumes.contains(&volume.id));
    let volumes = volumes.map(|volume| Orphan {
        size: Some(volume.size),
        generation: volume.latest(),
        data: volume.data,
        standing: elsewhere(volume.pool).unwrap_or_else(|| standing(volume)),
        ..bare(OrphanId::Volume(volume.id), &volume.name, volume.pool)
    });
    let snapshots =
        sighting.inventory.snapshots.iter().filter(|snapshot| {
            view.get::<Snapshot>(snapshot.id).is_none() && !sighting.snapshots.contains(&snapshot.id)
        });
    let snapshots = snapshots.map(|snapshot| Orphan {
        volume: Some(snapshot.volume),
        size: Some(snapshot.size),
        generation: snapshot.told,
        data: snapshot.data,
        standing: elsewhere(snapshot.pool)
            .or_else(|| snapshot.damage.clone().map(OrphanStanding::Damaged))
            .unwrap_or(OrphanStanding::Whole),
        ..bare(OrphanId::Snapshot(snapshot.id), &snapshot.name, snapshot.pool)
    });
    strays.chain(volumes).chain(snapshots).collect()
}

/// # Errors
/// If the object is in the state, and so no orphan.
fn unowned<T: Drafted>(draft: &Draft<'_>, kind: Kind, id: T::Id) -> Result<(), Refusal> {
    match draft.get::<T>(id) {
        Some(_) => Err(Refusal::Precondition(format!("{kind} {id} is no orphan: it belongs to the cluster"))),
        None => Ok(()),
    }
}

/// # Errors
/// If what lies there is not what was shown.
fn as_shown(kind: Kind, id: OrphanId, shown: Option<Generation>, found: Generation) -> Result<(), Refusal> {
    match shown {
        Some(shown) if shown != found => Err(Refusal::Precondition(format!(
            "{kind} {id} is at generation {}, not {} as it was shown: look again with `symphony ctl orphans list`",
            found.as_u64(),
            shown.as_u64()
        ))),
        Some(_) | None => Ok(()),
    }
}

fn not_found(id: impl std::fmt::Display) -> Refusal {
    Refusal::Precondition(format!(
        "no block service that could be asked has {id} on its devices: see `symphony ctl orphans list`"
    ))
}

/// The cluster's pool that an orphan lies in.
///
/// # Errors
/// If the pool is an orphan itself, another service's, or on its way out.
fn home(draft: &Draft<'_>, sighting: &Sighting, id: PoolId) -> Result<Pool, Refusal> {
    let Some(pool) = draft.get::<Pool>(id) else {
        return Err(Refusal::Precondition(format!(
            "its pool {id} is an orphan, too: adopt that first with `symphony ctl orphans adopt {id}`, or with all that is \
             in it by --all"
        )));
    };
    if pool.spec.service != sighting.service {
        let (name, owner) = (&pool.meta.name, pool.spec.service);
        return Err(Refusal::Precondition(format!(
            "its pool '{name}' belongs to service {owner}, not to the one that has it on its devices ({}): close it there \
             first with `symphony ctl pool remove {name} --lost`",
            sighting.service
        )));
    }
    if pool.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Pool, name: pool.meta.name.clone() });
    }
    Ok(pool.clone())
}
