//! Snapshots: staged, settled, found, removed.
//!
//! ```text
//!   nothing ──stage──▶ staged ──settle──▶ ready ──remove──▶ nothing
//!                        └──stage──▶ nothing ──▶ staged
//!   ready ──wipe──▶ removing ──(split off)──▶ removing, its room alone ──(overwritten)──▶ … ──remove──▶ nothing
//! ```
//! Each arrow is one change of LVM's metadata; what is staged is of the instant at which it was made. A thin snapshot
//! stands on its own. A classic one holds what its volume was before it changed, in room of its own: where that does not
//! suffice the snapshot overflows and is lost, and its volume is as it was.

use super::{Act, Sight, Step, damaged, names, unspeakable};
use crate::backend::lvm::report::Lv;
use crate::backend::lvm::tags::{Kind, SnapshotTags, State};
use crate::backend::{BackendError, SnapshotLayout};
use crate::model::{
    ByteSize, Fill, Generation, InventorySnapshot, PoolId, SnapshotId, TakenSnapshot, Timestamp, VolumeId,
};

const UNDESCRIBED: &str = "it is there without the tags that say what it is";

/// The way to a snapshot of its volume as it is now.
pub fn plan_stage(sight: &Sight, layout: &SnapshotLayout, at: Timestamp) -> Result<Vec<Step>, BackendError> {
    let name = names::snapshot(layout.id);
    let mut steps = Vec::new();
    if let Some(old) = sight.lv(&name) {
        if decoded(old, layout.id)?.state != State::Staged {
            return Err(BackendError::Refused(format!("snapshot {} was taken already", layout.id)));
        }
        steps.push(Act::Remove.on(&name));
    }
    let (origin, held) = super::volume::whole(sight, layout.volume)?;
    steps.extend(share(sight, origin, layout.room, &format!("snapshot {}", layout.id), &name, || {
        SnapshotTags::staged(layout, held.size, at).encode().map_err(unspeakable)
    })?);
    Ok(steps)
}

/// Makes a snapshot of a volume under that name; a classic one while the volume is active, with so much room or what is
/// usual.
pub fn share(
    sight: &Sight,
    origin: &Lv,
    room: Option<ByteSize>,
    whose: &str,
    name: &str,
    tags: impl FnOnce() -> Result<Vec<String>, BackendError>,
) -> Result<Vec<Step>, BackendError> {
    let room = (sight.kind == Kind::Thick).then(|| sight.room_extents(room, origin.size));
    sight.check_room(whose, room.unwrap_or_default())?;
    let mut steps: Vec<Step> = room.and_then(|_| sight.activation(origin)).into_iter().collect();
    steps.push(Act::Share { of: origin.name.clone(), room, tags: tags()? }.on(name));
    Ok(steps)
}

/// The way from a staged snapshot to one that exists, and what was taken.
pub fn plan_settle(sight: &Sight, id: SnapshotId) -> Result<(Vec<Step>, TakenSnapshot), BackendError> {
    let lv = sight.lv(&names::snapshot(id)).ok_or_else(|| lost(sight, id))?;
    let held = decoded(lv, id)?;
    check_sound(sight, lv, &held)?;
    let taken = TakenSnapshot { size: held.size, at: held.at, fill: fill(sight, lv) };
    match held.state {
        State::Ready => return Ok((Vec::new(), taken)),
        State::Staged => {}
        State::Making | State::Reverting | State::Removing => return Err(lost(sight, id)),
    }
    let wanted = SnapshotTags { state: State::Ready, ..held }.encode().map_err(unspeakable)?;
    Ok((vec![Act::Describe { present: lv.tags.clone(), wanted }.on(&lv.name)], taken))
}

/// A snapshot that was settled. A classic one must be active before anybody can tell whether it has overflowed.
pub fn plan_find(sight: &Sight, id: SnapshotId) -> Result<(Vec<Step>, Option<TakenSnapshot>), BackendError> {
    let Some(lv) = sight.lv(&names::snapshot(id)) else { return Ok((Vec::new(), None)) };
    let held = decoded(lv, id)?;
    if held.state != State::Ready {
        return Ok((Vec::new(), None));
    }
    check_sound(sight, lv, &held)?;
    let steps = sight.activation(lv).filter(|_| sight.kind == Kind::Thick).into_iter().collect();
    Ok((steps, Some(TakenSnapshot { size: held.size, at: held.at, fill: fill(sight, lv) })))
}

/// The snapshot that something is to be made of, and what it says of itself.
pub fn whole<'s>(sight: &Sight<'s>, id: SnapshotId) -> Result<(&'s Lv, SnapshotTags), BackendError> {
    let lv = sight.lv(&names::snapshot(id)).ok_or_else(|| lost(sight, id))?;
    let held = decoded(lv, id)?;
    if held.state != State::Ready {
        return Err(lost(sight, id));
    }
    check_sound(sight, lv, &held)?;
    Ok((lv, held))
}

/// The way to nothing.
pub fn plan_remove(sight: &Sight, id: SnapshotId) -> Result<Vec<Step>, BackendError> {
    let Some(lv) = sight.lv(&names::snapshot(id)) else { return Ok(Vec::new()) };
    check_unneeded(sight, lv, id)?;
    Ok(vec![Act::Remove.on(&lv.name)])
}

/// The way from a classic snapshot to its room alone, which has the old bytes of its volume in it and is a snapshot of
/// nothing.
///
/// # Errors
/// Where it has no room of its own, or its volume is being put back to it.
pub fn plan_split(sight: &Sight, id: SnapshotId) -> Result<Vec<Step>, BackendError> {
    if sight.kind == Kind::Thin {
        return Err(BackendError::Refused(format!(
            "snapshot {id} cannot be wiped: it shares its thin pool's space with its volume and copies, and has none of its own; \
             the pool zeroes what it gives to another volume"
        )));
    }
    let Some(lv) = sight.lv(&names::snapshot(id)) else { return Ok(Vec::new()) };
    check_unneeded(sight, lv, id)?;
    let mut steps = Vec::new();
    // From here on nobody finds it: what is made of it from now on would be made of its room.
    if let Ok(held) = decoded(lv, id)
        && held.state != State::Removing
    {
        let wanted = SnapshotTags { state: State::Removing, ..held }.encode().map_err(unspeakable)?;
        steps.push(Act::Describe { present: lv.tags.clone(), wanted }.on(&lv.name));
    }
    steps.extend(lv.origin.as_ref().map(|_| Act::Split.on(&lv.name)));
    Ok(steps)
}

/// The volume that it says it is a snapshot of.
pub fn volume_of(sight: &Sight, id: SnapshotId) -> Option<VolumeId> {
    let lv = sight.lv(&names::snapshot(id))?;
    decoded(lv, id).ok().map(|held| held.volume)
}

/// # Errors
/// If a volume is being put back to it.
fn check_unneeded(sight: &Sight, lv: &Lv, id: SnapshotId) -> Result<(), BackendError> {
    if sight.kind == Kind::Thick
        && let Ok(held) = decoded(lv, id)
        && let Some(volume) = sight.lv(&names::volume(held.volume))
        && let Ok(Some(tags)) = volume.decoded()
        && tags.state == State::Reverting
        && tags.revert == Some(id)
    {
        let reason = format!("snapshot {id} cannot be removed: volume {} is being put back to it", held.volume);
        return Err(BackendError::Refused(reason));
    }
    Ok(())
}

/// The snapshot as it lies there; none for what is no snapshot, or was never settled. One whose removal has begun is damaged:
/// nothing can be made of it.
pub fn inventory(sight: &Sight, pool: PoolId, lv: &Lv) -> Option<InventorySnapshot> {
    let Some(names::Role::Snapshot(id)) = names::Role::of(&lv.name) else { return None };
    let held = lv.decoded_snapshot().ok().flatten()?;
    let damage = match held.state {
        State::Ready => {
            decoded(lv, id).and_then(|held| check_sound(sight, lv, &held)).err().map(|error| error.to_string())
        }
        State::Removing => Some("its removal was begun and has not ended".to_owned()),
        State::Making | State::Staged | State::Reverting => return None,
    };
    let (volume, name, size, at) = (held.volume, held.name.to_string(), held.size, held.at);
    let (told, room) = (Generation::default(), (sight.kind == Kind::Thick).then_some(lv.size));
    Some(InventorySnapshot { id, pool, volume, name, size, at, told, data: None, room, damage })
}

/// How full a classic snapshot's room is; nobody knows as long as it is not active.
pub fn fill(sight: &Sight, lv: &Lv) -> Option<Fill> {
    let used = lv.data.filter(|_| sight.kind == Kind::Thick)?.of(lv.size);
    Some(Fill { room: lv.size, used })
}

pub(super) fn decoded(lv: &Lv, id: SnapshotId) -> Result<SnapshotTags, BackendError> {
    match lv.decoded_snapshot().map_err(|error| damaged(lv, &error.to_string()))? {
        Some(held) if held.snapshot != id => Err(damaged(lv, &format!("it describes snapshot {}", held.snapshot))),
        Some(held) => Ok(held),
        None => Err(damaged(lv, UNDESCRIBED)),
    }
}

/// # Errors
/// If what is there does not hold what the volume was.
fn check_sound(sight: &Sight, lv: &Lv, held: &SnapshotTags) -> Result<(), BackendError> {
    let spoilt = |reason| Err(BackendError::SnapshotSpoilt { snapshot: held.snapshot, reason });
    match sight.kind {
        Kind::Thick if lv.overflowed => spoilt(format!(
            "more of volume {} was changed than the {} that it had room for; the volume is not harmed",
            held.volume, lv.size
        )),
        // Its making was cut short.
        Kind::Thick if lv.origin.is_none() => Err(lost(sight, held.snapshot)),
        Kind::Thick if lv.origin != Some(names::volume(held.volume)) => {
            let origin = lv.origin.as_deref().unwrap_or_default();
            Err(damaged(lv, &format!("it is a snapshot of {origin}, not of volume {}", held.volume)))
        }
        Kind::Thin if lv.segments != "thin" => Err(damaged(lv, &format!("it is kept as '{}'", lv.segments))),
        Kind::Thin if lv.size < held.size => {
            Err(damaged(lv, &format!("it has {} bytes, the snapshot {}", lv.size.as_u64(), held.size.as_u64())))
        }
        Kind::Thick | Kind::Thin => Ok(()),
    }
}

pub fn lost(sight: &Sight, snapshot: SnapshotId) -> BackendError {
    let path = format!("{}/{}", sight.group.name, names::snapshot(snapshot));
    BackendError::SnapshotLost { snapshot, path }
}
