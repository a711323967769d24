//! Volumes: placement, and the space that pools promise.

use super::attachment::{clients, know_all_attachments};
use super::find;
use crate::manager::audit::audit;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::model::{
    Author, ByteSize, Kind, Meta, Name, Phase, Pool, PoolId, Replica, Service, ServiceState, Volume, VolumeId,
    VolumeSpec,
};

/// A new volume, placed, its space promised.
///
/// # Errors
/// If the size is impossible, the name taken, or no pool can take it.
pub fn create_volume(
    draft: &mut Draft<'_>,
    author: &Author,
    id: VolumeId,
    name: &Name,
    size: ByteSize,
    pool: Option<&str>,
) -> Result<Volume, Refusal> {
    fit_size(size)?;
    draft.claim(Kind::Volume, name, id)?;
    let mut pool_record = match pool {
        Some(reference) => named_pool(draft, reference, size)?,
        None => roomiest_pool(draft, size)?,
    };
    promise(&mut pool_record, size)?;
    let replica = Replica { pool: pool_record.meta.id, service: pool_record.spec.service };
    let spec = VolumeSpec { size, pool: pool.map(|_| pool_record.meta.id) };
    let volume = Volume::new(Meta::new(id, name.clone(), draft.now), spec, vec![replica]);
    let detail = format!("{size} in pool '{}'", pool_record.meta.name);
    draft.put(pool_record);
    draft.put(volume.clone());
    audit(draft, author, "volume.create", Kind::Volume, id, name, Some(detail));
    Ok(volume)
}

/// Grows a volume.
///
/// # Errors
/// If it would shrink, is being removed, or its pools have no room.
pub fn resize_volume(
    draft: &mut Draft<'_>,
    author: &Author,
    reference: &str,
    size: ByteSize,
) -> Result<Volume, Refusal> {
    let mut volume = find::<Volume>(draft, reference)?;
    let name = volume.meta.name.clone();
    if volume.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Volume, name });
    }
    fit_size(size)?;
    let old = volume.spec.size;
    if size < old {
        return Err(Refusal::Invalid(format!(
            "volume '{name}' is {old} and cannot shrink to {size}: volumes only grow, so that no data is cut off"
        )));
    }
    if size == old {
        return Ok(volume);
    }
    for replica in volume.status.placement.clone() {
        let mut pool = pool_of(draft, replica.pool)?;
        promise(&mut pool, size.saturating_sub(old))?;
        draft.put(pool);
    }
    volume.spec.size = size;
    volume.meta.touch(draft.now);
    volume.status.phase = Phase::Pending;
    draft.put(volume.clone());
    let detail = format!("from {old} to {size}");
    audit(draft, author, "volume.resize", Kind::Volume, volume.meta.id, &name, Some(detail));
    Ok(volume)
}

/// Sets a volume's tombstone: from here on its data is lost.
///
/// # Errors
/// If there is no such volume, or somebody is attached to it: the clients are named.
pub fn remove_volume(draft: &mut Draft<'_>, author: &Author, reference: &str) -> Result<Volume, Refusal> {
    let mut volume = find::<Volume>(draft, reference)?;
    let name = volume.meta.name.clone();
    if !volume.meta.is_removed() {
        know_all_attachments(draft)?;
        let held = draft.attachments_to(&volume);
        if !held.is_empty() {
            return Err(Refusal::Precondition(format!(
                "volume '{name}' is attached to {}: detach first with `symphony ctl volume detach {name} --client …`",
                clients(&held)
            )));
        }
    }
    if volume.bury(draft.now) {
        draft.put(volume.clone());
        audit(draft, author, "volume.remove", Kind::Volume, volume.meta.id, &name, None);
    }
    Ok(volume)
}

/// Takes a volume that its block service has let go of out of the state: record, name and promised space.
pub(super) fn forget_volume(draft: &mut Draft<'_>, volume: &Volume) {
    for replica in &volume.status.placement {
        if let Some(mut pool) = draft.get::<Pool>(replica.pool).cloned() {
            pool.status.reserved = pool.status.reserved.saturating_sub(volume.spec.size);
            draft.put(pool);
        }
    }
    draft.release(Kind::Volume, &volume.meta.name);
    draft.delete::<Volume>(volume.meta.id);
}

fn fit_size(size: ByteSize) -> Result<(), Refusal> {
    VolumeSpec::fault_of_size(size).map_or(Ok(()), |fault| Err(Refusal::Invalid(fault)))
}

fn pool_of(draft: &Draft<'_>, id: PoolId) -> Result<Pool, Refusal> {
    let missing = || Refusal::NoSuch { kind: Kind::Pool, reference: id.to_string() };
    draft.get::<Pool>(id).cloned().ok_or_else(missing)
}

fn named_pool(draft: &Draft<'_>, reference: &str, size: ByteSize) -> Result<Pool, Refusal> {
    let pool = find::<Pool>(draft, reference)?;
    let name = pool.meta.name.clone();
    if pool.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Pool, name });
    }
    match pool.free() {
        None => Err(Refusal::Precondition(format!(
            "pool '{name}' is not ready yet{}: see `symphony ctl pool get {name}`",
            pool.status.message.as_ref().map(|message| format!(" ({message})")).unwrap_or_default()
        ))),
        Some(free) if free < size => Err(Refusal::NoRoom { pool: name, free, wanted: size }),
        Some(_) => Ok(pool),
    }
}

/// The ready pool on a living service with the most left to promise; by id where two have the same.
fn roomiest_pool(draft: &Draft<'_>, size: ByteSize) -> Result<Pool, Refusal> {
    let alive = |pool: &Pool| {
        let service = draft.get::<Service>(pool.spec.service);
        service.is_some_and(|service| service.status.state == ServiceState::Ready)
    };
    let ready = |pool: &&Pool| pool.status.phase == Phase::Ready && !pool.meta.is_removed() && alive(pool);
    let largest = draft
        .all::<Pool>()
        .filter(ready)
        .filter_map(|pool| Some((pool.free()?, std::cmp::Reverse(pool.meta.id), pool)))
        .max_by_key(|(free, id, _)| (*free, *id));
    match largest {
        Some((free, _, pool)) if free >= size => Ok(pool.clone()),
        other => Err(Refusal::NoRoomAnywhere {
            wanted: size,
            largest: other.map(|(free, _, pool)| (pool.meta.name.clone(), free)),
        }),
    }
}

/// Promises more of a pool.
fn promise(pool: &mut Pool, more: ByteSize) -> Result<(), Refusal> {
    let free = pool.free().unwrap_or_default();
    let reserved = pool.status.reserved.checked_add(more);
    match reserved {
        Some(reserved) if more <= free => {
            pool.status.reserved = reserved;
            Ok(())
        }
        _ => Err(Refusal::NoRoom { pool: pool.meta.name.clone(), free, wanted: more }),
    }
}
