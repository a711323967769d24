//! Volumes made of other volumes' bytes, and put back to a snapshot's.
//!
//! ```text
//!   thin:   nothing ──▶ making, a snapshot of the source ──(longer)──▶ ready
//!           ready, and next: making ──(longer)──▶ next: reverting ──▶ reverting alone, as next ──▶ reverting ──▶ ready
//!   thick:  from: the source held still ──▶ making ──(copied, the rest zeroed)──▶ ready ──▶ ready without from
//!           ready ──▶ reverting ──(what differs is copied back)──▶ ready
//! ```
//! What is in the making is begun anew, since nobody knows how far it came. A volume that is reverting is opened by
//! nobody, and whoever meets it first goes on with it.

use super::{Act, Sight, Step, damaged, names, snapshot, unspeakable, volume};
use crate::backend::lvm::geometry::extents;
use crate::backend::lvm::report::Lv;
use crate::backend::lvm::tags::{Kind, State, VolumeTags};
use crate::backend::{BackendError, Ensured, VolumeLayout};
use crate::model::{ByteSize, Revert, Source, VolumeId};

/// What a copy is made of.
struct Origin<'s> {
    lv: &'s Lv,
    size: ByteSize,
}

fn origin<'s>(sight: &Sight<'s>, layout: &VolumeLayout, source: Source) -> Result<Origin<'s>, BackendError> {
    let (lv, size) = match source {
        Source::Volume(id) => volume::whole(sight, id).map(|(lv, held)| (lv, held.size))?,
        Source::Snapshot(id) => snapshot::whole(sight, id).map(|(lv, held)| (lv, held.size))?,
    };
    if size > layout.size {
        let (id, wanted) = (layout.id, layout.size);
        let reason = format!("{source} has {size}, which does not fit into the {wanted} of volume {id}");
        return Err(BackendError::Refused(reason));
    }
    Ok(Origin { lv, size })
}

/// The way to a volume that holds what `source` holds. `half` is what an attempt has left.
pub fn creation(
    sight: &Sight,
    layout: &VolumeLayout,
    source: Source,
    half: Option<&Lv>,
) -> Result<(Vec<Step>, Ensured), BackendError> {
    let origin = origin(sight, layout, source)?;
    let steps = match sight.kind {
        Kind::Thin => shared(sight, layout, &origin, half)?,
        Kind::Thick => copied(sight, layout, &origin, half)?,
    };
    Ok((steps, Ensured::Created))
}

fn shared(sight: &Sight, layout: &VolumeLayout, origin: &Origin, half: Option<&Lv>) -> Result<Vec<Step>, BackendError> {
    let name = names::volume(layout.id);
    let mut steps: Vec<Step> = half.map(|_| Act::Remove.on(&name)).into_iter().collect();
    let making = VolumeTags::new(layout, State::Making).encode().map_err(unspeakable)?;
    let wanted = VolumeTags::new(layout, State::Ready).encode().map_err(unspeakable)?;
    steps.push(Act::Share { of: origin.lv.name.clone(), room: None, tags: making.clone() }.on(&name));
    steps.extend(lengthening(sight, layout, origin.lv).map(|act| act.on(&name)));
    steps.push(Act::Describe { present: making, wanted }.on(&name));
    Ok(steps)
}

fn lengthening(sight: &Sight, layout: &VolumeLayout, of: &Lv) -> Option<Act> {
    let extent = sight.group.extent;
    let more = extents(layout.size, extent).saturating_sub(extents(of.size, extent));
    (more > 0).then_some(Act::Grow { extents: more })
}

fn copied(sight: &Sight, layout: &VolumeLayout, origin: &Origin, half: Option<&Lv>) -> Result<Vec<Step>, BackendError> {
    let (name, from) = (names::volume(layout.id), names::from(layout.id));
    let still = sight.lv(&from);
    if still.is_some_and(|still| still.overflowed) {
        return Err(BackendError::Refused(format!("volume {} has to be copied anew: {CHANGED}", layout.id)));
    }
    let source = still.unwrap_or(origin.lv);
    let making = VolumeTags::new(layout, State::Making).encode().map_err(unspeakable)?;
    let wanted = VolumeTags::new(layout, State::Ready).encode().map_err(unspeakable)?;
    let (mut steps, end, present) = match half {
        Some(half) => {
            let (mut steps, end) = volume::lengthening(sight, layout, half)?;
            steps.extend(sight.activation(half));
            (steps, end, half.tags.clone())
        }
        None => {
            let count = extents(layout.size, sight.group.extent);
            sight.check_room(&format!("volume {}", layout.id), count)?;
            let make = Act::Make { extents: count, tags: making.clone() }.on(&name);
            (vec![make], count.saturating_mul(sight.group.extent), making)
        }
    };
    steps.extend(sight.activation(source));
    let length = origin.size.as_u64();
    steps.push(Act::Copy { of: source.name.clone(), length }.on(&name));
    steps.extend((length < end).then(|| Act::Zero { from: length, to: end }.on(&name)));
    steps.push(Act::Describe { present, wanted }.on(&name));
    steps.extend(still.map(|_| Act::Remove.on(&from)));
    Ok(steps)
}

const CHANGED: &str = "its source was changed more than there was room for meanwhile";

/// Holds the source of a thick copy still, so that it can be changed while it is copied. What an earlier attempt held
/// still is as good, unless it has overflowed.
pub fn plan_begin(sight: &Sight, layout: &VolumeLayout, source: VolumeId) -> Result<Vec<Step>, BackendError> {
    let from = names::from(layout.id);
    let is_made = |lv: &Lv| matches!(lv.decoded(), Ok(Some(held)) if held.state != State::Making);
    if sight.lv(&names::volume(layout.id)).is_some_and(is_made) {
        return Ok(Vec::new());
    }
    let origin = origin(sight, layout, Source::Volume(source))?.lv;
    let mut steps = Vec::new();
    if let Some(still) = sight.lv(&from) {
        if still.active && !still.overflowed && still.origin.as_deref() == Some(&origin.name) {
            return Ok(Vec::new());
        }
        steps.push(Act::Remove.on(&from));
    }
    let tags = || VolumeTags::new(layout, State::Making).encode().map_err(unspeakable);
    steps.extend(snapshot::share(sight, origin, None, &format!("the making of volume {}", layout.id), &from, tags)?);
    Ok(steps)
}

/// The way back to a snapshot's bytes, for a volume that is whole.
pub fn put_back(
    sight: &Sight,
    layout: &VolumeLayout,
    lv: &Lv,
    next: VolumeTags,
    revert: Revert,
) -> Result<(Vec<Step>, Ensured), BackendError> {
    let origin = origin(sight, layout, Source::Snapshot(revert.to))?;
    let encode = |state| {
        let revert = (state == State::Reverting).then_some(revert.to);
        VolumeTags { state, revert, ..next.clone() }.encode().map_err(unspeakable)
    };
    let reverting = encode(State::Reverting)?;
    let mut steps = Vec::new();
    match sight.kind {
        Kind::Thin => {
            let stand_in = names::next(layout.id);
            let making = encode(State::Making)?;
            steps.push(Act::Share { of: origin.lv.name.clone(), room: None, tags: making.clone() }.on(&stand_in));
            steps.extend(lengthening(sight, layout, origin.lv).map(|act| act.on(&stand_in)));
            steps.push(Act::Describe { present: making, wanted: reverting.clone() }.on(&stand_in));
            steps.push(Act::Remove.on(&lv.name));
            steps.push(Act::Rename { to: lv.name.clone() }.on(&stand_in));
        }
        Kind::Thick => {
            steps.extend(volume::lengthening(sight, layout, lv)?.0);
            steps.push(Act::Describe { present: lv.tags.clone(), wanted: reverting.clone() }.on(&lv.name));
            steps.extend(sight.activation(lv));
            steps.push(Act::PutBack { of: origin.lv.name.clone(), length: lv.size.as_u64() }.on(&lv.name));
        }
    }
    steps.push(Act::Describe { present: reverting, wanted: encode(State::Ready)? }.on(&lv.name));
    Ok((steps, Ensured::Reverted))
}

/// What an earlier attempt at a copy or at putting a volume back still owes.
pub fn plan_finish(sight: &Sight, id: VolumeId) -> Result<Vec<Step>, BackendError> {
    let name = names::volume(id);
    let lv = sight.lv(&name);
    let held = lv.map(|lv| volume::decoded(lv, id)).transpose()?.flatten();
    if let Some(next) = sight.lv(&names::next(id)) {
        let Some(told) = volume::decoded(next, id)? else { return Err(damaged(next, volume::UNDESCRIBED)) };
        if told.state != State::Reverting {
            return Ok(vec![Act::Remove.on(&next.name)]);
        }
        let mut steps: Vec<Step> = lv.map(|lv| Act::Remove.on(&lv.name)).into_iter().collect();
        steps.push(Act::Rename { to: name.clone() }.on(&next.name));
        steps.push(settled(next, &told, &name)?);
        return Ok(steps);
    }
    let (Some(lv), Some(held)) = (lv, held) else { return Ok(Vec::new()) };
    match held.state {
        State::Reverting => {
            let mut steps = Vec::new();
            if sight.kind == Kind::Thick {
                let to = held.revert.ok_or_else(|| damaged(lv, "it does not say what it is put back to"))?;
                let (from, _) = snapshot::whole(sight, to)?;
                steps.extend(sight.activation(lv));
                steps.push(Act::PutBack { of: from.name.clone(), length: lv.size.as_u64() }.on(&name));
            }
            steps.push(settled(lv, &held, &name)?);
            Ok(steps)
        }
        State::Ready => Ok(sight.lv(&names::from(id)).map(|from| Act::Remove.on(&from.name)).into_iter().collect()),
        State::Making | State::Staged | State::Removing => Ok(Vec::new()),
    }
}

/// Says that a reverting volume, by then of that name, is whole.
fn settled(lv: &Lv, held: &VolumeTags, name: &str) -> Result<Step, BackendError> {
    let wanted = VolumeTags { state: State::Ready, revert: None, ..held.clone() }.encode().map_err(unspeakable)?;
    Ok(Act::Describe { present: lv.tags.clone(), wanted }.on(name))
}
