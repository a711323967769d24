//! One pool: made of devices, extended, opened, released. Each function names the next step only; whoever carries it
//! out looks again before he asks for another. So a step that was cut short is simply met again.
//!
//! A group is born in the state `making`, gets its thin pool, and becomes `ready`; only then has it volumes. A release
//! turns it to `removing` first. Physical volumes made here have ids that begin with the pool's own letters: one that is
//! in no group yet, or no longer, is known by them.

use crate::backend::lvm::command::ThinPoolSize;
use crate::backend::lvm::geometry;
use crate::backend::lvm::report::{Group, Lv, Percent, Pv, Reported};
use crate::backend::lvm::tags::{GroupTags, Kind, State};
use crate::backend::{BackendError, PoolIdentity};
use crate::host::devices::{Device, judge};
use crate::model::{ByteSize, PoolId};
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// The thin pool of a group.
pub const THIN_POOL: &str = "thin-pool";

/// What a pool is to be.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'w> {
    pub identity: &'w PoolIdentity,
    pub kind: Kind,
    /// Of a thin pool: how much data it may have at most; none: all that its group holds.
    pub ceiling: Option<ByteSize>,
    /// It has been set up once; anything but the pool as it was is an error then.
    pub made: bool,
    pub places: &'w [Place],
    /// Devices that the pool does not name and that say they belong to a group of its name.
    pub elsewhere: &'w [PathBuf],
}

/// One of the pool's devices.
#[derive(Clone, Debug)]
pub struct Place {
    /// As the user spelled it.
    pub given: PathBuf,
    /// None if there is no such device.
    pub device: Option<Device>,
    /// What it carries may be destroyed.
    pub wipe: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolStep {
    Wipe(PathBuf),
    MakePv(PathBuf),
    MakeGroup(Vec<PathBuf>),
    ExtendGroup(PathBuf),
    /// A part of a thin pool whose making was cut short.
    Remove(String),
    MakeThinPool(ThinPoolSize),
    RefuseWhenFull,
    /// In bytes.
    GrowMetadata(u64),
    /// In extents.
    GrowData(u64),
    Activate,
    Describe {
        present: Vec<String>,
        tags: GroupTags,
    },
    RemoveGroup,
    /// Overwrites what LVM wrote on it.
    Blank(PathBuf),
}

/// The volume group's name: one that no person gives.
pub fn group_name(pool: PoolId) -> String {
    format!("symphony-{pool}")
}

/// The first letters of the ids of the pool's physical volumes.
pub fn pv_prefix(pool: PoolId) -> String {
    const LETTERS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let digest = Sha256::new().chain_update(b"symphony physical volume ").chain_update(pool.to_bytes()).finalize();
    let letters: Vec<char> =
        digest.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).take(18).collect();
    let part = |range: std::ops::Range<usize>| letters[range].iter().collect::<String>();
    format!("{}-{}-{}-{}-", part(0..6), part(6..10), part(10..14), part(14..18))
}

/// The next step towards the pool; none if it is there.
pub fn next(wanted: &Wanted, seen: &Reported) -> Result<Option<PoolStep>, BackendError> {
    let name = group_name(wanted.identity.pool);
    let groups: Vec<&Group> = seen.groups_called(&name).collect();
    match groups.as_slice() {
        [] => next_of_nothing(wanted, seen, &name),
        [group] => next_of_group(wanted, seen, group),
        _ => Err(BackendError::Taken { place: name, owner: "two volume groups of that name".to_owned() }),
    }
}

fn next_of_nothing(wanted: &Wanted, seen: &Reported, name: &str) -> Result<Option<PoolStep>, BackendError> {
    if wanted.made {
        let found: Vec<String> = wanted.places.iter().map(describe).collect();
        let reason = format!("none of its devices carries its volume group: {}", found.join("; "));
        return Err(BackendError::PoolLost { place: name.to_owned(), reason });
    }
    if let Some(other) = wanted.elsewhere.first() {
        let owner = format!("a volume group of that name on {}", other.display());
        return Err(BackendError::Taken { place: name.to_owned(), owner });
    }
    let mut devices = Vec::new();
    let mut steps = Vec::new();
    for place in wanted.places {
        let (device, step) = admission(place, seen, wanted.identity.pool)?;
        devices.push(device);
        steps.extend(step);
    }
    if devices.is_empty() {
        return Err(BackendError::Refused("a pool needs a device at least".to_owned()));
    }
    Ok(Some(steps.into_iter().next().unwrap_or(PoolStep::MakeGroup(devices))))
}

/// What is to be done with a device before it may enter the group; nothing if it is one of our physical volumes.
fn admission(place: &Place, seen: &Reported, pool: PoolId) -> Result<(PathBuf, Option<PoolStep>), BackendError> {
    let Some(device) = &place.device else {
        return Err(BackendError::Refused(format!("there is no device {}", place.given.display())));
    };
    let path = device.path.clone();
    if is_spare(device, seen, pool) {
        return Ok((path, None));
    }
    judge(device, place.wipe).map_err(|refused| BackendError::Refused(refused.to_string()))?;
    let step = if device.carried().is_some() { PoolStep::Wipe(path.clone()) } else { PoolStep::MakePv(path.clone()) };
    Ok((path, Some(step)))
}

/// Whether it is a physical volume that was made for the pool and is in no group.
fn is_spare(device: &Device, seen: &Reported, pool: PoolId) -> bool {
    pv_on(device, seen).is_some_and(|pv| pv.group.is_none() && pv.uuid.starts_with(&pv_prefix(pool)))
}

fn pv_on<'r>(device: &Device, seen: &'r Reported) -> Option<&'r Pv> {
    seen.pv_on(&device.path, device.number)
}

fn next_of_group(wanted: &Wanted, seen: &Reported, group: &Group) -> Result<Option<PoolStep>, BackendError> {
    let tags = own(wanted.identity, group)?;
    check_whole(wanted.places, seen, group)?;
    if tags.kind != wanted.kind {
        let reason = format!("pool '{}' is of the driver {}, not {}", tags.name, tags.kind, wanted.kind);
        return Err(BackendError::Refused(reason));
    }
    if tags.state == State::Removing {
        return Err(lost(group, "its release has begun".to_owned()));
    }
    for place in wanted.places {
        let is_in = |device: &Device| pv_on(device, seen).is_some_and(|pv| pv.group.as_deref() == Some(&group.name));
        if !place.device.as_ref().is_some_and(is_in) {
            let (device, step) = admission(place, seen, wanted.identity.pool)?;
            return Ok(Some(step.unwrap_or(PoolStep::ExtendGroup(device))));
        }
    }
    if wanted.kind == Kind::Thin
        && let Some(step) = next_of_thin_pool(wanted.ceiling, &tags, seen, group)?
    {
        return Ok(Some(step));
    }
    let described = GroupTags::new(wanted.identity, wanted.kind, State::Ready);
    let step = PoolStep::Describe { present: group.tags.clone(), tags: described.clone() };
    Ok((tags != described).then_some(step))
}

fn next_of_thin_pool(
    ceiling: Option<ByteSize>,
    tags: &GroupTags,
    seen: &Reported,
    group: &Group,
) -> Result<Option<PoolStep>, BackendError> {
    let total = group.size.as_u64() / group.extent;
    let Some(pool) = seen.lv(&group.name, THIN_POOL).filter(|pool| pool.segments == "thin-pool") else {
        if tags.state != State::Making {
            return Err(lost(group, format!("its thin pool {}/{THIN_POOL} is gone", group.name)));
        }
        // Nobody has used the group yet: whatever is in it are parts of an attempt. Others depend on what is shown.
        let part = |lv: &&Lv| !lv.hidden && (lv.name.starts_with(THIN_POOL) || lv.name.starts_with("lvol"));
        if let Some(other) = seen.lvs_of(&group.name).find(|lv| !lv.hidden && !part(lv)) {
            let reason = format!("{}/{} is in the way of the pool in the making", group.name, other.name);
            return Err(BackendError::Refused(reason));
        }
        if let Some(left) = seen.lvs_of(&group.name).find(part) {
            return Ok(Some(PoolStep::Remove(left.name.clone())));
        }
        let size = match ceiling {
            Some(ceiling) => geometry::thin_pool_within(total, group.extent, None, ceiling)
                .map(|most| geometry::thin_pool_at_first(most, group.extent)),
            None => geometry::thin_pool(total, group.extent, None),
        };
        let size = size.ok_or_else(|| BackendError::Refused(format!("{} is too small for a thin pool", group.name)))?;
        return Ok(Some(PoolStep::MakeThinPool(size)));
    };
    if pool.when_full.as_deref().is_some_and(|manner| manner != "error") {
        return Ok(Some(PoolStep::RefuseWhenFull));
    }
    if !pool.active {
        return Ok(Some(PoolStep::Activate));
    }
    Ok(match ceiling {
        Some(ceiling) => growth_within(pool, group, ceiling),
        None => growth(pool, group, total),
    })
}

/// What a thin pool with a ceiling can be extended to, as far as its group has it now. None if nobody can say.
pub fn most(pool: &Lv, group: &Group, ceiling: ByteSize) -> Option<ThinPoolSize> {
    let total = group.size.as_u64() / group.extent;
    let most = geometry::thin_pool_within(total, group.extent, Some(pool.chunk), ceiling)?;
    let metadata = pool.metadata_size?.as_u64();
    let metadata_bytes = most.metadata_bytes.max(metadata);
    // The spare grows with it.
    let more = (metadata_bytes - metadata).div_ceil(group.extent).saturating_mul(2);
    let present = geometry::extents(pool.size, group.extent);
    let room = (group.free.as_u64() / group.extent).saturating_sub(more);
    let data_extents = most.data_extents.min(present.saturating_add(room)).max(present);
    Some(ThinPoolSize { data_extents, metadata_bytes, ..most })
}

/// What a thin pool with a ceiling needs next, by how full it is: metadata before the data that they are to remember.
pub fn growth_within(pool: &Lv, group: &Group, ceiling: ByteSize) -> Option<PoolStep> {
    let most = most(pool, group, ceiling)?;
    let (present, metadata) = (geometry::extents(pool.size, group.extent), pool.metadata_size?.as_u64());
    let part = |part: Percent, of: u64| part.of(ByteSize::bytes(of)).as_u64();
    let data = geometry::extended(present, part(pool.data?, present), most.data_extents);
    let wanted = geometry::metadata_for(data, &most, group.extent);
    let eased = geometry::extended(metadata, part(pool.metadata?, metadata), most.metadata_bytes);
    let more = wanted.max(eased).next_multiple_of(group.extent).min(most.metadata_bytes).saturating_sub(metadata);
    let free = group.free.as_u64() / group.extent;
    if more > 0 && more.div_ceil(group.extent).saturating_mul(2) <= free {
        return Some(PoolStep::GrowMetadata(more));
    }
    let more = data.saturating_sub(present).min(free);
    (more > 0).then_some(PoolStep::GrowData(more))
}

/// A group that has been extended has room that its thin pool does not have yet.
fn growth(pool: &Lv, group: &Group, total: u64) -> Option<PoolStep> {
    let size = geometry::thin_pool(total, group.extent, Some(pool.chunk))?;
    let free = group.free.as_u64() / group.extent;
    let metadata = size.metadata_bytes.checked_sub(pool.metadata_size?.as_u64()).filter(|more| *more > 0);
    // The spare grows with it.
    if let Some(more) = metadata.filter(|more| more.div_ceil(group.extent).saturating_mul(2) <= free) {
        return Some(PoolStep::GrowMetadata(more));
    }
    let data = size.data_extents.saturating_sub(geometry::extents(pool.size, group.extent)).min(free);
    (data > 0).then_some(PoolStep::GrowData(data))
}

/// The next step towards a pool that is let go of; none if nothing of it is left on the devices.
pub fn next_of_release(
    identity: &PoolIdentity,
    places: &[Place],
    seen: &Reported,
) -> Result<Option<PoolStep>, BackendError> {
    let name = group_name(identity.pool);
    let ours = |group: &&Group| matches!(group.decoded(), Ok(Some(tags)) if tags.marks(identity));
    let Some(group) = seen.groups_called(&name).find(ours) else {
        let devices = places.iter().filter_map(|place| place.device.as_ref());
        let spare = devices.into_iter().find(|device| is_spare(device, seen, identity.pool));
        return Ok(spare.map(|device| PoolStep::Blank(device.path.clone())));
    };
    let tags = own(identity, group)?;
    check_whole(places, seen, group)?;
    let is_part = |lv: &Lv| tags.kind == Kind::Thin && lv.name.starts_with(THIN_POOL);
    let is_made = |lv: &Lv| !matches!(lv.decoded(), Ok(Some(tags)) if tags.state == State::Making);
    let shown: Vec<&Lv> = seen.lvs_of(&name).filter(|lv| !lv.hidden).collect();
    let held: Vec<&str> = shown.iter().filter(|lv| !is_part(lv) && is_made(lv)).map(|lv| lv.name.as_str()).collect();
    if !held.is_empty() {
        return Err(BackendError::Refused(format!("{name} still holds volumes or snapshots ({})", held.join(", "))));
    }
    if tags.state != State::Removing {
        let tags = GroupTags { state: State::Removing, ..tags };
        return Ok(Some(PoolStep::Describe { present: group.tags.clone(), tags }));
    }
    // Volumes before what they are in.
    let left = shown.iter().find(|lv| !is_part(lv)).or(shown.first());
    Ok(Some(left.map_or(PoolStep::RemoveGroup, |lv| PoolStep::Remove(lv.name.clone()))))
}

/// The group's own words, if it is the pool's.
fn own(identity: &PoolIdentity, group: &Group) -> Result<GroupTags, BackendError> {
    match group.decoded() {
        Ok(Some(tags)) if tags.marks(identity) => Ok(tags),
        Ok(Some(tags)) => Err(BackendError::Taken { place: group.name.clone(), owner: tags.owner() }),
        Ok(None) => {
            Err(BackendError::Taken { place: group.name.clone(), owner: "nobody that symphony knows".to_owned() })
        }
        Err(error) => Err(BackendError::Damaged { path: group.name.clone(), reason: error.to_string() }),
    }
}

/// Finds what of the group's devices is missing, or has become smaller.
fn check_whole(places: &[Place], seen: &Reported, group: &Group) -> Result<(), BackendError> {
    let pvs: Vec<&Pv> = seen.pvs.iter().filter(|pv| pv.group.as_deref() == Some(&group.name)).collect();
    let missing: Vec<&str> = pvs.iter().filter(|pv| pv.device.is_none()).map(|pv| pv.uuid.as_str()).collect();
    if group.missing > 0 || !missing.is_empty() {
        let is_in = |device: &Device| pv_on(device, seen).is_some_and(|pv| pv.group.as_deref() == Some(&group.name));
        let strays: Vec<String> =
            places.iter().filter(|place| !place.device.as_ref().is_some_and(is_in)).map(describe).collect();
        let strays =
            if strays.is_empty() { "it is on none of the pool's devices".to_owned() } else { strays.join("; ") };
        let reason =
            format!("{} of its physical volumes are missing ({}): {strays}", group.missing, missing.join(", "));
        return Err(lost(group, reason));
    }
    let shrunk = |pv: &&&Pv| pv.device_size.is_some_and(|size| size < pv.size);
    if let Some(pv) = pvs.iter().find(shrunk) {
        let device = pv.device.as_ref().map(|device| device.display().to_string()).unwrap_or_default();
        let size = pv.device_size.unwrap_or(ByteSize::ZERO);
        let reason = format!("{device} has shrunk to {size}, of which {} were in use", pv.size);
        return Err(lost(group, reason));
    }
    Ok(())
}

/// What is at a place, for people.
fn describe(place: &Place) -> String {
    let given = place.given.display();
    match &place.device {
        None => format!("{given} is not there"),
        Some(device) => match device.carried() {
            None => format!("{given} carries nothing"),
            Some(what) => format!("{given} carries {what}"),
        },
    }
}

fn lost(group: &Group, reason: String) -> BackendError {
    BackendError::PoolLost { place: group.name.clone(), reason }
}
