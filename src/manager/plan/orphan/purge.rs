//! Purges: an orphan's tombstone, as that of any other object. Whatever is killed from then on, its service goes on with it.

use super::{Draft, Refusal, Sighting, as_shown, audit, home, not_found, unowned};
use crate::model::*;

/// Destroys an orphan that is as it was shown. Its record says so from here on, and goes when its service is done.
/// Repeating it changes nothing.
///
/// # Errors
/// If it is no orphan, not what was shown, or something that depends on it is still there.
pub fn purge_orphan(
    draft: &mut Draft<'_>,
    author: &Author,
    sighting: &Sighting,
    id: OrphanId,
    shown: Generation,
) -> Result<Object, Refusal> {
    match id {
        OrphanId::Pool(id) => purge_pool(draft, author, sighting, id, shown),
        OrphanId::Volume(id) => purge_volume(draft, author, sighting, id, shown),
        OrphanId::Snapshot(id) => purge_snapshot(draft, author, sighting, id, shown),
    }
}

/// What a record is called whose object is only there to be destroyed: its own name may be another's by now.
fn claim(draft: &mut Draft<'_>, kind: Kind, id: impl std::fmt::Display + Copy) -> Result<Name, Refusal> {
    let name = Name::resembling(&format!("purged-{id}"), kind.as_str());
    draft.claim(kind, &name, id)?;
    Ok(name)
}

fn purge_volume(
    draft: &mut Draft<'_>,
    author: &Author,
    sighting: &Sighting,
    id: VolumeId,
    shown: Generation,
) -> Result<Object, Refusal> {
    if let Some(volume) = draft.get::<Volume>(id).filter(|volume| is_purged(&volume.meta)) {
        return Ok(Object::Volume(volume.clone()));
    }
    unowned::<Volume>(draft, Kind::Volume, id)?;
    let found = sighting.volume(id).ok_or_else(|| not_found(id))?;
    sighting.still_holds(draft, found.pool)?;
    as_shown(Kind::Volume, OrphanId::Volume(id), Some(shown), found.latest())?;
    let mut pool = home(draft, sighting, found.pool)?;
    let of_it = |snapshot: &&InventorySnapshot| snapshot.volume == id && snapshot.pool == found.pool;
    if let Some(snapshot) = sighting.inventory.snapshots.iter().find(of_it) {
        return Err(Refusal::Precondition(format!(
            "volume {id} has snapshots, among them {}: purge them first",
            snapshot.id
        )));
    }
    let name = claim(draft, Kind::Volume, id)?;
    let spec = VolumeSpec::of_size(found.size);
    let replica = Replica { pool: pool.meta.id, service: pool.spec.service };
    let mut volume = Volume::new(Meta::new(id, name, draft.now), spec, vec![replica]);
    volume.meta.generation = found.latest();
    volume.status.size = Some(found.size).filter(|_| !found.unfinished);
    volume.bury(draft.now);
    pool.status.reserved = pool.status.reserved.saturating_add(found.size);
    draft.put(pool);
    draft.put(volume.clone());
    let detail = format!("'{}' in pool {}, generation {}", found.name, found.pool, shown.as_u64());
    audit(draft, author, "orphan.purge", Kind::Volume, id, &volume.meta.name, Some(detail));
    Ok(Object::Volume(volume))
}

fn purge_snapshot(
    draft: &mut Draft<'_>,
    author: &Author,
    sighting: &Sighting,
    id: SnapshotId,
    shown: Generation,
) -> Result<Object, Refusal> {
    if let Some(snapshot) = draft.get::<Snapshot>(id).filter(|snapshot| is_purged(&snapshot.meta)) {
        return Ok(Object::Snapshot(snapshot.clone()));
    }
    unowned::<Snapshot>(draft, Kind::Snapshot, id)?;
    let found = sighting.snapshot(id).ok_or_else(|| not_found(id))?;
    sighting.still_holds(draft, found.pool)?;
    as_shown(Kind::Snapshot, OrphanId::Snapshot(id), Some(shown), found.told)?;
    let mut pool = home(draft, sighting, found.pool)?;
    let name = claim(draft, Kind::Snapshot, id)?;
    let volume_name = draft.get::<Volume>(found.volume).map(|volume| volume.meta.name.clone());
    let volume_name = volume_name.unwrap_or_else(|| Name::resembling(&format!("volume-{}", found.volume), "volume"));
    let spec = SnapshotSpec { volume: found.volume, volume_name, set: Vec::new(), room: None, wipe: false };
    let replica = Replica { pool: pool.meta.id, service: pool.spec.service };
    let mut snapshot = Snapshot::new(Meta::new(id, name, draft.now), spec, vec![replica], found.size);
    snapshot.meta.generation = found.told;
    snapshot.status.size = Some(found.size);
    snapshot.status.taken_at = Some(found.at);
    snapshot.bury(draft.now);
    pool.status.reserved = pool.status.reserved.saturating_add(found.size);
    draft.put(pool);
    draft.put(snapshot.clone());
    let detail = format!("'{}' of volume {} in pool {}", found.name, found.volume, found.pool);
    audit(draft, author, "orphan.purge", Kind::Snapshot, id, &snapshot.meta.name, Some(detail));
    Ok(Object::Snapshot(snapshot))
}

fn purge_pool(
    draft: &mut Draft<'_>,
    author: &Author,
    sighting: &Sighting,
    id: PoolId,
    shown: Generation,
) -> Result<Object, Refusal> {
    if let Some(pool) = draft.get::<Pool>(id).filter(|pool| is_purged(&pool.meta)) {
        return Ok(Object::Pool(pool.clone()));
    }
    unowned::<Pool>(draft, Kind::Pool, id)?;
    let found = sighting.pool(id).ok_or_else(|| not_found(id))?;
    let place = found.place.as_ref().ok_or_else(|| not_found(id))?;
    sighting.still_holds(draft, id)?;
    as_shown(Kind::Pool, OrphanId::Pool(id), Some(shown), found.told)?;
    if let Some(failure) = &found.failure {
        return Err(Refusal::Precondition(format!("pool {id} cannot be looked at: {failure}")));
    }
    let volumes = sighting.inventory.volumes.iter().filter(|volume| volume.pool == id).count();
    let snapshots = sighting.inventory.snapshots.iter().filter(|snapshot| snapshot.pool == id).count();
    if volumes + snapshots > 0 {
        return Err(Refusal::Precondition(format!(
            "pool {id} holds {volumes} volumes and {snapshots} snapshots: adopt the pool with `symphony ctl orphans adopt \
             {id}`, and purge them first"
        )));
    }
    let name = claim(draft, Kind::Pool, id)?;
    let own = draft.view().cluster.as_ref().map(|cluster| cluster.meta.id);
    let formerly = Some(place.cluster).filter(|cluster| Some(*cluster) != own);
    let spec =
        PoolSpec { service: sighting.service, driver: place.driver.clone(), rules: PoolRules::default(), formerly };
    let mut pool = Pool::new(Meta::new(id, name, draft.now), spec);
    pool.meta.generation = found.told;
    pool.bury(draft.now);
    draft.guard::<Service>(sighting.service);
    draft.put(pool.clone());
    audit(draft, author, "orphan.purge", Kind::Pool, id, &pool.meta.name, Some(place.driver.place()));
    Ok(Object::Pool(pool))
}

/// Whether a purge was begun.
fn is_purged<I: std::fmt::Display>(meta: &Meta<I>) -> bool {
    meta.is_removed() && meta.name.as_str() == format!("purged-{}", meta.id)
}
