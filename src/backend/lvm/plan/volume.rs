//! One volume: made, grown, described, removed.
//!
//! ```text
//!   nothing ──▶ making ──(zeroed)──▶ ready ──▶ longer ──(the new part zeroed)──▶ ready, of the new size
//!                                      │
//!                                      ▼ (remove)
//!                                  removing ──(discarded)──▶ nothing
//! ```
//! Each arrow between states is one change of LVM's metadata. A process killed anywhere leaves one of the states drawn,
//! and the verb repeated goes on from there: only a ready volume is ever opened, so what is in the making holds
//! nobody's bytes, and what lies beyond the size that the tags tell is zeroed before they tell a larger one.
//!
//! Thin volumes read as zeros where nothing was written, so theirs is the same way without the zeroing. When one shrinks,
//! what is to be cut off becomes zeros first. For volumes that are copies, and those that are put back, see
//! [`super::copy`].

use super::{Act, Sight, Step, copy, damaged, names, unspeakable};
use crate::backend::lvm::geometry::extents;
use crate::backend::lvm::report::Lv;
use crate::backend::lvm::tags::{Kind, State, VolumeTags};
use crate::backend::{BackendError, Ensured, VolumeLayout};
use crate::model::{ByteSize, Generation, InventoryVolume, PoolId, VolumeId};

pub(super) const UNDESCRIBED: &str = "it is there without the tags that say what it is";

/// The way from what is there to what `layout` says, and what it comes to. Nothing is owed of an earlier attempt.
pub fn plan_ensure(sight: &Sight, layout: &VolumeLayout) -> Result<(Vec<Step>, Ensured), BackendError> {
    let Some(lv) = sight.lv(&names::volume(layout.id)) else {
        return match layout.source {
            _ if layout.made => Err(lost(layout.id, &sight.group.name)),
            Some(source) => copy::creation(sight, layout, source, None),
            None => creation(sight, layout),
        };
    };
    check_kind(sight.kind, lv)?;
    match decoded(lv, layout.id)? {
        // Its description was lost, or its last change; the bytes are what matters, and they are there.
        None if layout.made => Ok((vec![redescribed(layout, lv, Vec::new())?], Ensured::Updated)),
        Some(held) if layout.made && held.state == State::Making => {
            Ok((vec![redescribed(layout, lv, held.lineage)?], Ensured::Updated))
        }
        None => Err(damaged(lv, UNDESCRIBED)),
        Some(held) if layout.generation < held.generation => Err(stale(layout, held.generation)),
        Some(held) => match (held.state, layout.source) {
            (State::Making, Some(source)) => copy::creation(sight, layout, source, Some(lv)),
            (State::Making, None) => completion(sight, layout, lv, &held),
            (State::Ready, _) => follow(sight, layout, lv, &held),
            (State::Removing, _) => {
                Err(BackendError::Refused(format!("volume {} cannot be kept: its removal has begun", layout.id)))
            }
            (State::Staged | State::Reverting, _) => Err(damaged(lv, &format!("it is in the state '{}'", held.state))),
        },
    }
}

/// The way from what is there to nothing.
///
/// # Errors
/// If classic snapshots of it would be lost with it.
pub fn plan_remove(sight: &Sight, id: VolumeId) -> Result<Vec<Step>, BackendError> {
    check_independent(sight, id)?;
    let mut steps = Vec::new();
    if let Some(lv) = sight.lv(&names::volume(id)) {
        if let Ok(Some(held)) = lv.decoded()
            && held.state != State::Removing
        {
            let wanted = VolumeTags { state: State::Removing, ..held }.encode().map_err(unspeakable)?;
            steps.push(Act::Describe { present: lv.tags.clone(), wanted }.on(&lv.name));
        }
        steps.extend(sight.activation(lv));
        steps.push(Act::Discard { length: lv.size.as_u64() }.on(&lv.name));
        steps.push(Act::Remove.on(&lv.name));
    }
    // What was to take its place, and what it was being made of.
    let rest = [names::next(id), names::from(id)];
    steps.extend(rest.iter().filter_map(|name| sight.lv(name)).map(|lv| Act::Remove.on(&lv.name)));
    Ok(steps)
}

/// # Errors
/// If classic snapshots of it would be lost with it.
pub(super) fn check_independent(sight: &Sight, id: VolumeId) -> Result<(), BackendError> {
    let dependants = sight.dependants(id);
    if dependants.is_empty() {
        return Ok(());
    }
    let reason = format!("volume {id} cannot be removed before what depends on it: {}", dependants.join(", "));
    Err(BackendError::Refused(reason))
}

/// The volume that something is to be made of, and what it says of itself.
pub fn whole<'s>(sight: &Sight<'s>, id: VolumeId) -> Result<(&'s Lv, VolumeTags), BackendError> {
    let lv = sight.lv(&names::volume(id)).ok_or_else(|| lost(id, &sight.group.name))?;
    check_kind(sight.kind, lv)?;
    let held = decoded(lv, id)?.ok_or_else(|| damaged(lv, UNDESCRIBED))?;
    if held.state != State::Ready {
        let reason = format!("volume {id} cannot be copied: it is in the state '{}'", held.state);
        return Err(BackendError::Refused(reason));
    }
    check_size(lv, held.size)?;
    Ok((lv, held))
}

/// What must be done before the volume can be opened, and the size that its users see.
pub fn plan_open(sight: &Sight, id: VolumeId) -> Result<(Vec<Step>, ByteSize), BackendError> {
    let lv = match (sight.lv(&names::volume(id)), sight.lv(&names::next(id))) {
        (Some(lv), _) => lv,
        (None, Some(next)) => next,
        (None, None) => return Err(lost(id, &sight.group.name)),
    };
    check_kind(sight.kind, lv)?;
    let held = decoded(lv, id)?.ok_or_else(|| damaged(lv, UNDESCRIBED))?;
    if held.state != State::Ready {
        let reason = format!("volume {id} cannot be opened: it is in the state '{}'", held.state);
        return Err(BackendError::Refused(reason));
    }
    check_size(lv, held.size)?;
    Ok((sight.activation(lv).into_iter().collect(), held.size))
}

/// The volume as it lies there; none for what is no volume of ours, or has never come into being.
pub fn inventory(sight: &Sight, pool: PoolId, lv: &Lv) -> Option<InventoryVolume> {
    let role = names::Role::of(&lv.name);
    let named = match role {
        Some(names::Role::Volume(id)) => Some(id),
        // It is the volume, from the moment when what was there is gone.
        Some(names::Role::Next(id)) if sight.lv(&names::volume(id)).is_none() => Some(id),
        Some(_) => return None,
        None => None,
    };
    if lv.hidden {
        return None;
    }
    let tags = lv.decoded();
    let told = tags.as_ref().ok().and_then(|tags| tags.as_ref()).map(|tags| tags.volume);
    let id = named.or(told)?;
    let mut seen = InventoryVolume { size: lv.size, ..InventoryVolume::bare(id, pool) };
    seen.damage = match tags {
        Ok(Some(tags)) => {
            seen.name = tags.name.to_string();
            seen.size = tags.size;
            seen.generation = tags.generation;
            match tags.state {
                State::Making => return None,
                State::Removing => {
                    seen.unfinished = true;
                    Some("its removal was begun and has not ended".to_owned())
                }
                _ if named != Some(tags.volume) => Some(format!("it describes volume {}", tags.volume)),
                State::Ready | State::Reverting => check_kind(sight.kind, lv)
                    .and_then(|()| check_size(lv, tags.size))
                    .err()
                    .map(|error| error.to_string())
                    .or_else(|| lv.ailment.as_ref().map(|word| format!("LVM says of it: {word}"))),
                State::Staged => Some("it calls itself a staged snapshot".to_owned()),
            }
        }
        Ok(None) => Some(UNDESCRIBED.to_owned()),
        Err(error) => Some(error.to_string()),
    };
    Some(seen)
}

fn creation(sight: &Sight, layout: &VolumeLayout) -> Result<(Vec<Step>, Ensured), BackendError> {
    let name = names::volume(layout.id);
    let extent = sight.group.extent;
    let count = extents(layout.size, extent);
    sight.check_room(&format!("volume {}", layout.id), count)?;
    let making = VolumeTags::new(layout, State::Making).encode().map_err(unspeakable)?;
    let wanted = VolumeTags::new(layout, State::Ready).encode().map_err(unspeakable)?;
    let mut steps = vec![Act::Make { extents: count, tags: making.clone() }.on(&name)];
    steps.extend(zeroing(sight, &name, 0, count.saturating_mul(extent)));
    steps.push(Act::Describe { present: making, wanted }.on(&name));
    Ok((steps, Ensured::Created))
}

/// Goes on where an earlier creation stopped.
fn completion(
    sight: &Sight,
    layout: &VolumeLayout,
    lv: &Lv,
    held: &VolumeTags,
) -> Result<(Vec<Step>, Ensured), BackendError> {
    let (mut steps, end) = lengthening(sight, layout, lv)?;
    steps.extend(sight.activation(lv).filter(|_| sight.kind == Kind::Thick));
    steps.extend(zeroing(sight, &lv.name, 0, end));
    let tags = VolumeTags { lineage: held.lineage.clone(), ..VolumeTags::new(layout, State::Ready) };
    steps.push(describe(lv, &tags)?);
    Ok((steps, Ensured::Created))
}

fn follow(
    sight: &Sight,
    layout: &VolumeLayout,
    lv: &Lv,
    held: &VolumeTags,
) -> Result<(Vec<Step>, Ensured), BackendError> {
    check_size(lv, held.size)?;
    let volume = layout.id;
    let shrinks = layout.size < held.size;
    if shrinks && layout.shrunk.is_none_or(|since| held.generation >= since) {
        return Err(BackendError::Shrink { volume, actual: held.size, wanted: layout.size });
    }
    let tags = VolumeTags { lineage: held.lineage.clone(), ..VolumeTags::new(layout, State::Ready) };
    if tags == *held {
        return Ok((Vec::new(), Ensured::Unchanged));
    }
    if layout.generation == held.generation {
        let generation = layout.generation.as_u64();
        let reason = format!("volume {volume} is something else on disk under the same generation {generation}");
        return Err(BackendError::Refused(reason));
    }
    if let Some(revert) = layout.revert
        && held.generation < revert.since
    {
        return copy::put_back(sight, layout, lv, tags, revert);
    }
    let describe = describe(lv, &tags)?;
    if layout.size == held.size {
        return Ok((vec![describe], Ensured::Updated));
    }
    if shrinks {
        return Ok((shrinking(sight, layout, lv, describe)?, Ensured::Shrunk));
    }
    let (mut steps, end) = lengthening(sight, layout, lv)?;
    steps.extend(sight.activation(lv).filter(|_| sight.kind == Kind::Thick));
    steps.extend(zeroing(sight, &lv.name, held.size.as_u64(), end));
    steps.push(describe);
    Ok((steps, Ensured::Grown))
}

/// # Errors
/// If classic snapshots keep the volume as it is.
fn shrinking(sight: &Sight, layout: &VolumeLayout, lv: &Lv, describe: Step) -> Result<Vec<Step>, BackendError> {
    let dependants = sight.dependants(layout.id);
    if !dependants.is_empty() {
        let (volume, names) = (layout.id, dependants.join(", "));
        let reason = format!("volume {volume} cannot shrink while LVM keeps something of it as it was: {names}");
        return Err(BackendError::Refused(reason));
    }
    let extent = sight.group.extent;
    let less = (lv.size.as_u64() / extent).saturating_sub(extents(layout.size, extent));
    let mut steps = Vec::new();
    // What is left of its last extent stays, and whatever grows or is copied takes it for zeros.
    if sight.kind == Kind::Thin {
        steps.extend(sight.activation(lv));
        steps.push(Act::Zero { from: layout.size.as_u64(), to: lv.size.as_u64() }.on(&lv.name));
    }
    steps.push(describe);
    steps.extend((less > 0).then(|| Act::Shrink { extents: less }.on(&lv.name)));
    Ok(steps)
}

/// Makes the logical volume long enough; where it then ends, in bytes.
pub(super) fn lengthening(sight: &Sight, layout: &VolumeLayout, lv: &Lv) -> Result<(Vec<Step>, u64), BackendError> {
    let (volume, extent) = (layout.id, sight.group.extent);
    let present = lv.size.as_u64() / extent;
    let more = extents(layout.size, extent).saturating_sub(present);
    let dependants = sight.dependants(volume);
    if more > 0 && !dependants.is_empty() {
        let names = dependants.join(", ");
        let reason = format!("volume {volume} cannot grow while LVM keeps something of it as it was: {names}");
        return Err(BackendError::Refused(reason));
    }
    sight.check_room(&format!("volume {volume}"), more)?;
    let end = present.saturating_add(more).saturating_mul(extent);
    Ok(((more > 0).then(|| Act::Grow { extents: more }.on(&lv.name)).into_iter().collect(), end))
}

fn zeroing(sight: &Sight, name: &str, from: u64, to: u64) -> Option<Step> {
    (sight.kind == Kind::Thick && from < to).then(|| Act::Zero { from, to }.on(name))
}

fn describe(lv: &Lv, tags: &VolumeTags) -> Result<Step, BackendError> {
    let wanted = tags.encode().map_err(unspeakable)?;
    Ok(Act::Describe { present: lv.tags.clone(), wanted }.on(&lv.name))
}

fn redescribed(layout: &VolumeLayout, lv: &Lv, lineage: Vec<String>) -> Result<Step, BackendError> {
    check_size(lv, layout.size)?;
    describe(lv, &VolumeTags { lineage, ..VolumeTags::new(layout, State::Ready) })
}

pub(super) fn decoded(lv: &Lv, id: VolumeId) -> Result<Option<VolumeTags>, BackendError> {
    match lv.decoded().map_err(|error| damaged(lv, &error.to_string()))? {
        Some(held) if held.volume != id => Err(damaged(lv, &format!("it describes volume {}", held.volume))),
        held => Ok(held),
    }
}

fn check_kind(kind: Kind, lv: &Lv) -> Result<(), BackendError> {
    let is_thin = lv.segments == "thin";
    if is_thin == (kind == Kind::Thin) {
        return Ok(());
    }
    Err(damaged(lv, &format!("it is kept as '{}', which no volume of a pool of the driver {kind} is", lv.segments)))
}

fn check_size(lv: &Lv, size: ByteSize) -> Result<(), BackendError> {
    if lv.size < size {
        let (length, size) = (lv.size.as_u64(), size.as_u64());
        return Err(damaged(lv, &format!("it has {length} bytes, the volume has {size}")));
    }
    Ok(())
}

fn stale(layout: &VolumeLayout, held: Generation) -> BackendError {
    BackendError::Stale { volume: layout.id, held, offered: layout.generation }
}

fn lost(volume: VolumeId, group: &str) -> BackendError {
    BackendError::Lost { volume, path: format!("{group}/{volume}") }
}
