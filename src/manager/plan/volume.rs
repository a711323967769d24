//! Volumes: placement, and the space that pools promise.

use super::attachment::{clients, know_all_attachments};
use super::copying::{Copyable, Origin, copyable, uncopied};
use super::drain::admits;
use super::image::{create_of_image, forget_base};
use super::moving::{bury_along, forget_move, settled};
use super::pool::listed;
use super::snapshot::fit_pool;
use super::{find, look_up};
use crate::manager::audit::audit;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::model::{
    Author, ByteSize, Driver, Kind, Level, Limits, Name, Phase, Pool, PoolId, PoolMetadata, Replica, Revert, Service,
    ServiceState, Source, Volume, VolumeId, VolumeSpec,
};

/// What a user asks of a new volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedVolume {
    /// Absent: as large as what it is copied from.
    pub size: Option<ByteSize>,
    /// By id or name; absent: wherever there is room.
    pub pool: Option<String>,
    pub origin: Option<Origin>,
}

/// A new volume, placed, its space promised. A copy is made beside what it is copied from, and as large unless it is to
/// be larger.
///
/// # Errors
/// If the size is impossible, the name taken, or no pool can take it.
pub fn create_volume(
    draft: &mut Draft<'_>,
    author: &Author,
    id: VolumeId,
    name: &Name,
    wanted: &WantedVolume,
) -> Result<Volume, Refusal> {
    let WantedVolume { size, pool, origin } = wanted;
    if let Some(Origin::Image { reference, base }) = origin {
        return create_of_image(draft, author, (id, name), (reference, *base), (*size, pool.as_deref()));
    }
    let copyable = origin.as_ref().and_then(|origin| copyable(draft, origin).transpose()).transpose()?;
    let size = match (&copyable, *size) {
        (Some(copyable), Some(size)) if size < copyable.size => {
            let text = format!("a copy of {} needs {} at least, {size} are too few", copyable.text, copyable.size);
            return Err(Refusal::Invalid(text));
        }
        (_, Some(size)) => size,
        (Some(copyable), None) => copyable.size,
        (None, None) => return Err(Refusal::Invalid("a volume needs a size".into())),
    };
    fit_size(size)?;
    draft.claim(Kind::Volume, name, id)?;
    let mut pool_record = match (pool, &copyable) {
        (Some(reference), _) => named_pool(draft, reference, size)?,
        (None, Some(copyable)) => named_pool(draft, &copyable.pool.to_string(), size)?,
        (None, None) => roomiest_pool(draft, size)?,
    };
    if copyable.is_some() {
        fit_pool(&pool_record)?;
    }
    if let Some(copyable) = copyable.as_ref().filter(|copyable| copyable.pool != pool_record.meta.id) {
        return Err(Refusal::Precondition(format!(
            "{} is not in pool '{}': copies are made in the pool of what they are copied from",
            copyable.text, pool_record.meta.name
        )));
    }
    let making = match &copyable {
        Some(Copyable { source: Source::Volume(_), size, .. }) => pool_record.room(None, *size).unwrap_or_default(),
        _ => ByteSize::ZERO,
    };
    let promised = promise_volume(&mut pool_record, size, making)?;
    let replica = Replica { pool: pool_record.meta.id, service: pool_record.spec.service };
    // One that another manager begins to empty meanwhile takes nothing new.
    draft.guard::<Service>(replica.service);
    let source = copyable.as_ref().map(|copyable| copyable.source);
    let pool = pool.as_ref().map(|_| pool_record.meta.id);
    let spec = VolumeSpec { pool, source, ..VolumeSpec::of_size(size) };
    let mut volume = Volume::new(draft.new_meta(id, name.clone()), spec, vec![replica]);
    volume.status.promised = Some(promised);
    let of = copyable.map(|copyable| format!(", a copy of {}", copyable.text)).unwrap_or_default();
    let detail = format!("{size} in pool '{}'{of}", pool_record.meta.name);
    draft.put(pool_record);
    draft.put(volume.clone());
    audit(draft, author, "volume.create", Kind::Volume, id, name, Some(detail));
    Ok(volume)
}

/// Grows a volume, or shrinks it where that is allowed: what is behind its new end is lost.
///
/// # Errors
/// If it would shrink and may not, or while somebody is attached, is being removed, or its pools have no room.
pub fn resize_volume(
    draft: &mut Draft<'_>,
    author: &Author,
    reference: &str,
    size: ByteSize,
    allow_shrink: bool,
) -> Result<Volume, Refusal> {
    let mut volume = find::<Volume>(draft, reference)?;
    let name = volume.meta.name.clone();
    if volume.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Volume, name });
    }
    settled(draft, &volume)?;
    fit_size(size)?;
    let old = volume.spec.size;
    if size == old {
        return Ok(volume);
    }
    if size < old && !allow_shrink {
        return Err(Refusal::Invalid(format!(
            "volume '{name}' is {old}, and what is behind {size} would be lost: say so with --allow-shrink"
        )));
    }
    // Growth that overtakes it would bring back what was to be lost; and what is put back has the size of before.
    let (status, ready) = (&volume.status, volume.status.phase == Phase::Ready);
    let shrinks = status.size.is_some_and(|served| served > old);
    let put_back = |revert: Revert| !ready || status.observed_generation < revert.since;
    if shrinks || volume.spec.revert.is_some_and(put_back) {
        let text = format!("volume '{name}' is being shrunk or put back: resize it once it is ready");
        return Err(Refusal::Precondition(text));
    }
    if size < old {
        know_all_attachments(draft)?;
        detached(draft, &volume)?;
    }
    // A copy has the size that this one had when it was asked for.
    uncopied(draft, &volume, "resize")?;
    if volume.status.size.is_none() {
        let fetches = volume.spec.image.as_ref().is_some_and(|tie| tie.supply().is_some());
        let held_up = match volume.spec.source {
            _ if fetches => Some("filled with its image"),
            // What it is a copy of would not fit.
            Some(_) if size < old => Some("copied"),
            Some(_) | None => None,
        };
        if let Some(what) = held_up {
            return Err(Refusal::Precondition(format!(
                "volume '{name}' is still being {what}: resize it once it is ready"
            )));
        }
    }
    for replica in volume.status.placement.clone() {
        let mut pool = pool_of(draft, replica.pool)?;
        let snapshots = draft.snapshots_to(&volume);
        if !snapshots.is_empty() && !pool.spec.driver.resizes_beside_snapshots() {
            let names: Vec<&str> = snapshots.iter().map(|snapshot| snapshot.meta.name.as_str()).collect();
            return Err(Refusal::Precondition(format!(
                "volume '{name}' has snapshots {}, and in a pool of driver {} it keeps its size as long as they are there",
                listed(&names),
                pool.spec.driver
            )));
        }
        // What its making takes beside it, if it has not been made yet, stays.
        let (held, making) = (volume.promised(), volume.promised().saturating_sub(pool.takes(old)));
        let wanted = pool.takes(size).saturating_add(making);
        match wanted < held {
            true => pool.status.reserved = pool.status.reserved.saturating_sub(held.saturating_sub(wanted)),
            false => promise(&mut pool, wanted.saturating_sub(held))?,
        }
        volume.status.promised = Some(wanted);
        draft.put(pool);
    }
    volume.spec.size = size;
    volume.meta.touch(draft.now);
    if size < old {
        volume.spec.shrunk = Some(volume.meta.generation);
    }
    volume.status.phase = Phase::Pending;
    draft.put(volume.clone());
    let detail = format!("from {old} to {size}");
    audit(draft, author, "volume.resize", Kind::Volume, volume.meta.id, &name, Some(detail));
    Ok(volume)
}

/// What to do about each limit: absent, it stays; none, it is lifted.
#[derive(Clone, Copy, Debug, Default)]
pub struct LimitChanges {
    pub iops: Option<Option<u64>>,
    pub bandwidth: Option<Option<u64>>,
    pub burst_ms: Option<Option<u64>>,
}

impl LimitChanges {
    fn applied_to(self, old: &Limits) -> Limits {
        let bandwidth = self.bandwidth.map(|bytes| bytes.map(ByteSize::bytes));
        let mut limits = Limits {
            iops: self.iops.unwrap_or(old.iops),
            bandwidth: bandwidth.unwrap_or(old.bandwidth),
            burst_ms: self.burst_ms.unwrap_or(old.burst_ms),
        };
        // The last limit takes its burst along; a burst that was asked for is for the rules to judge.
        if limits.is_none() && self.burst_ms.is_none() {
            limits.burst_ms = None;
        }
        limits
    }
}

/// Changes what a volume's clients may ask of it.
///
/// # Errors
/// If a limit makes no sense, or the volume is being removed.
pub fn limit_volume(
    draft: &mut Draft<'_>,
    author: &Author,
    reference: &str,
    changes: LimitChanges,
) -> Result<Volume, Refusal> {
    let mut volume = find::<Volume>(draft, reference)?;
    let name = volume.meta.name.clone();
    if volume.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Volume, name });
    }
    settled(draft, &volume)?;
    let old = volume.spec.limits;
    let limits = changes.applied_to(&old);
    if let Some(fault) = limits.fault() {
        return Err(Refusal::Invalid(fault));
    }
    if limits == old {
        return Ok(volume);
    }
    volume.spec.limits = limits;
    volume.meta.touch(draft.now);
    volume.status.phase = Phase::Pending;
    draft.put(volume.clone());
    let detail = format!("limits: {limits} (were: {old})");
    audit(draft, author, "volume.set", Kind::Volume, volume.meta.id, &name, Some(detail));
    Ok(volume)
}

/// Sets a volume's tombstone: from here on its data is lost. With `wipe` its bytes are overwritten before their space is
/// given back; `Some(false)` gives up on that where it was asked for before.
///
/// # Errors
/// If there is no such volume, somebody is attached to it, or snapshots or copies depend on it: they are named. If it
/// cannot be wiped, or its removal has begun without that.
pub fn remove_volume(
    draft: &mut Draft<'_>,
    author: &Author,
    reference: &str,
    wipe: Option<bool>,
) -> Result<Volume, Refusal> {
    let mut volume = find::<Volume>(draft, reference)?;
    let name = volume.meta.name.clone();
    if wipe == Some(true) && !volume.spec.wipe {
        check_wipe(draft, &volume)?;
    }
    if !volume.meta.is_removed() {
        know_all_attachments(draft)?;
        detached(draft, &volume)?;
        let snapshots = draft.snapshots_to(&volume);
        if !snapshots.is_empty() {
            let names: Vec<&str> = snapshots.iter().map(|snapshot| snapshot.meta.name.as_str()).collect();
            return Err(Refusal::Precondition(format!(
                "volume '{name}' has snapshots {}: remove them first with `symphony ctl snapshot remove`",
                listed(&names)
            )));
        }
        uncopied(draft, &volume, "remove")?;
    }
    if volume.bury(draft.now) {
        volume.spec.wipe = wipe.unwrap_or_default();
        bury_along(draft, &volume);
        draft.put(volume.clone());
        let detail = volume.spec.wipe.then(|| "its bytes are overwritten first".to_owned());
        audit(draft, author, "volume.remove", Kind::Volume, volume.meta.id, &name, detail);
    } else if wipe == Some(false) && volume.spec.wipe {
        volume.spec.wipe = false;
        volume.meta.touch(draft.now);
        (volume.status.message, volume.status.progress) = (None, None);
        draft.put(volume.clone());
        let detail = Some("its bytes are overwritten no longer".to_owned());
        audit(draft, author, "volume.remove", Kind::Volume, volume.meta.id, &name, detail);
    }
    Ok(volume)
}

/// # Errors
/// If overwriting the volume's bytes would not overwrite what the disks hold of them, or it is too late.
fn check_wipe(draft: &Draft<'_>, volume: &Volume) -> Result<(), Refusal> {
    let name = &volume.meta.name;
    if volume.meta.is_removed() {
        return Err(Refusal::Precondition(format!(
            "the removal of volume '{name}' has begun without overwriting it: its space may have been given back already"
        )));
    }
    for replica in &volume.status.placement {
        let pool = pool_of(draft, replica.pool)?;
        let why = match pool.spec.driver {
            Driver::Lvm(_) => continue,
            Driver::LvmThin(_) => {
                "a thin pool gives each write of a shared chunk another place, discards what is removed, and zeroes what it \
                 gives to another volume"
            }
            Driver::File { .. } => {
                "a file system may write elsewhere and leave what was there, and share it with snapshots and copies"
            }
        };
        return Err(Refusal::Precondition(format!(
            "volume '{name}' is in pool '{}' of driver {}, where overwriting promises nothing: {why}; remove it without --wipe",
            pool.meta.name, pool.spec.driver
        )));
    }
    Ok(())
}

/// # Errors
/// If somebody is attached to the volume.
pub(super) fn detached(draft: &Draft<'_>, volume: &Volume) -> Result<(), Refusal> {
    let held = draft.attachments_to(volume);
    if held.is_empty() {
        return Ok(());
    }
    let name = &volume.meta.name;
    Err(Refusal::Precondition(format!(
        "volume '{name}' is attached to {}: detach first with `symphony ctl volume detach {name} --client …`",
        clients(&held)
    )))
}

/// Takes a volume that its block service has let go of out of the state: record, name and promised space.
pub(super) fn forget_volume(draft: &mut Draft<'_>, volume: &Volume) {
    for replica in &volume.status.placement {
        if let Some(mut pool) = draft.get::<Pool>(replica.pool).cloned() {
            pool.status.reserved = pool.status.reserved.saturating_sub(volume.promised());
            draft.put(pool);
        }
    }
    draft.release(Kind::Volume, &volume.meta.name);
    draft.delete::<Volume>(volume.meta.id);
    forget_base(draft, volume);
    forget_move(draft, volume);
}

pub(super) fn fit_size(size: ByteSize) -> Result<(), Refusal> {
    VolumeSpec::fault_of_size(size).map_or(Ok(()), |fault| Err(Refusal::Invalid(fault)))
}

pub(super) fn pool_of(draft: &Draft<'_>, id: PoolId) -> Result<Pool, Refusal> {
    let missing = || Refusal::NoSuch { kind: Kind::Pool, reference: id.to_string() };
    draft.get::<Pool>(id).cloned().ok_or_else(missing)
}

pub(super) fn named_pool(draft: &Draft<'_>, reference: &str, size: ByteSize) -> Result<Pool, Refusal> {
    let pool = look_up::<Pool>(draft, reference)?;
    let name = pool.meta.name.clone();
    if pool.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Pool, name });
    }
    admits(draft, pool.spec.service)?;
    match pool.free() {
        None => Err(Refusal::Precondition(format!(
            "pool '{name}' is not ready yet{}: see `symphony ctl pool get {name}`",
            pool.status.message.as_ref().map(|message| format!(" ({message})")).unwrap_or_default()
        ))),
        Some(_) if pool.status.level == Level::Full => Err(full(&pool)),
        Some(free) if free < pool.takes(size) => Err(Refusal::NoRoom { pool: name, free, wanted: pool.takes(size) }),
        Some(_) => Ok(pool),
    }
}

/// The ready pools on living services, and what each has left to promise.
pub(super) fn ready_pools<'d>(draft: &'d Draft<'_>) -> impl Iterator<Item = (ByteSize, &'d Pool)> {
    let alive = move |pool: &Pool| {
        let service = draft.get::<Service>(pool.spec.service);
        service.is_some_and(|service| service.status.state == ServiceState::Ready && service.spec.draining.is_none())
    };
    let fit = |pool: &Pool| pool.status.phase == Phase::Ready && pool.status.level < Level::Full;
    let ready = move |pool: &&Pool| fit(pool) && !pool.meta.is_removed() && alive(pool);
    draft.all::<Pool>().filter(ready).filter_map(|pool| Some((pool.free()?, pool)))
}

/// The ready pool on a living service with the most left to promise; by id where two have the same.
pub(super) fn roomiest_pool(draft: &Draft<'_>, size: ByteSize) -> Result<Pool, Refusal> {
    let largest = ready_pools(draft)
        .map(|(free, pool)| (free, std::cmp::Reverse(pool.meta.id), pool))
        .max_by_key(|(free, id, _)| (*free, *id));
    match largest {
        Some((free, _, pool)) if free >= pool.takes(size) => Ok(pool.clone()),
        other => Err(Refusal::NoRoomAnywhere {
            wanted: size,
            largest: other.map(|(free, _, pool)| (pool.meta.name.clone(), free)),
        }),
    }
}

/// A pool that is all but full promises nothing new, so that what it has promised has room to the last.
fn full(pool: &Pool) -> Refusal {
    let name = pool.meta.name.clone();
    match pool.status.metadata.filter(|_| pool.is_short_of_metadata()) {
        Some(PoolMetadata { used, capacity, .. }) => Refusal::PoolMetadataFull { pool: name, used, capacity },
        None => Refusal::PoolFull { pool: name, percent: pool.spec.rules.refuse_percent },
    }
}

/// Promises a volume of that size what it takes, and what is needed beside it while it is made; that is what it has been
/// promised.
pub(super) fn promise_volume(pool: &mut Pool, size: ByteSize, making: ByteSize) -> Result<ByteSize, Refusal> {
    let promised = pool.takes(size).saturating_add(making);
    promise(pool, promised).map(|()| promised)
}

/// Takes back what was needed while a volume was made.
pub(super) fn settle_promise(draft: &mut Draft<'_>, volume: &mut Volume) {
    for replica in volume.status.placement.clone() {
        let Some(mut pool) = draft.get::<Pool>(replica.pool).cloned() else { continue };
        let (held, wanted) = (volume.promised(), pool.takes(volume.spec.size));
        if wanted < held {
            pool.status.reserved = pool.status.reserved.saturating_sub(held.saturating_sub(wanted));
            volume.status.promised = Some(wanted);
            draft.put(pool);
        }
    }
}

/// Promises more of a pool.
pub(super) fn promise(pool: &mut Pool, more: ByteSize) -> Result<(), Refusal> {
    if pool.status.level == Level::Full {
        return Err(full(pool));
    }
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
