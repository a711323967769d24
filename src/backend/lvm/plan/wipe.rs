//! A volume's bytes overwritten before its space is given back.
//!
//! ```text
//!   ready ──▶ removing ──(a slice overwritten)──▶ removing, so much of it wiped ──▶ … ──▶ removing, all of it wiped
//! ```
//! How far it has come is written down after each slice, and only then: whoever is killed overwrites one slice again.

use super::{Act, Sight, Step, names, unspeakable, volume};
use crate::backend::BackendError;
use crate::backend::lvm::tags::{Kind, State, VolumeTags};
use crate::model::{ByteSize, VolumeId};

/// The least that is overwritten between two notes of how far it has come, in bytes.
const SLICE: u64 = 1 << 30;
/// The most notes for one volume: each is a change of LVM's metadata.
const NOTES: u64 = 128;

/// The way from what is there to a volume that holds zeros and nothing else, to be removed.
///
/// # Errors
/// Where the volume's space is not its own, or classic snapshots of it would take all that is overwritten.
pub fn plan_wipe(sight: &Sight, id: VolumeId) -> Result<Vec<Step>, BackendError> {
    if sight.kind == Kind::Thin {
        return Err(BackendError::Refused(format!(
            "volume {id} cannot be wiped: it shares its thin pool's space with snapshots and copies, and overwriting it would \
             overwrite none of theirs; the pool zeroes what it gives to another volume"
        )));
    }
    volume::check_independent(sight, id)?;
    let Some(lv) = sight.lv(&names::volume(id)) else { return Ok(Vec::new()) };
    let end = lv.size.as_u64();
    // What does not describe itself is overwritten from its beginning, each time.
    let told = volume::decoded(lv, id).ok().flatten();
    let mut steps = Vec::new();
    let (mut present, mut from) = (lv.tags.clone(), 0);
    let note = |wiped: Option<u64>| {
        let tags = |held: &VolumeTags| {
            let wiped = wiped.map(ByteSize::bytes);
            VolumeTags { state: State::Removing, revert: None, wiped, ..held.clone() }.encode().map_err(unspeakable)
        };
        told.as_ref().map(tags).transpose()
    };
    match &told {
        Some(held) if held.state == State::Removing => from = held.wiped.map_or(0, ByteSize::as_u64).min(end),
        _ => {
            if let Some(wanted) = note(None)? {
                steps.push(Act::Describe { present, wanted: wanted.clone() }.on(&lv.name));
                present = wanted;
            }
        }
    }
    if from < end {
        steps.extend(sight.activation(lv));
    }
    let slice = SLICE.max(end / NOTES).next_multiple_of(sight.group.extent);
    while from < end {
        let to = from.saturating_add(slice).min(end);
        steps.push(Act::Wipe { from, to }.on(&lv.name));
        if let Some(wanted) = note(Some(to))? {
            steps.push(Act::Describe { present, wanted: wanted.clone() }.on(&lv.name));
            present = wanted;
        }
        from = to;
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::lvm::geometry::Room;
    use crate::backend::lvm::report::{Group, Lv, Reported};
    use crate::model::{ByteSize, Generation};
    use proptest::prelude::*;

    const EXTENT: u64 = 4 << 20;

    fn group() -> Group {
        let size = ByteSize::mib(1 << 30);
        Group { name: "g".into(), uuid: "u".into(), size, free: size, extent: EXTENT, missing: 0, tags: Vec::new() }
    }

    /// A group with one volume of so many extents, of which so much was wiped.
    fn reported(id: VolumeId, extents: u64, wiped: Option<u64>) -> Reported {
        let state = if wiped.is_some() { State::Removing } else { State::Ready };
        let size = ByteSize::bytes(extents * EXTENT);
        let tags = VolumeTags {
            volume: id,
            name: "v".parse().unwrap(),
            generation: Generation::FIRST,
            size,
            state,
            lineage: Vec::new(),
            revert: None,
            wiped: wiped.map(ByteSize::bytes),
        };
        let lv = Lv {
            name: id.to_string(),
            hidden: false,
            group: "g".into(),
            segments: "linear".into(),
            size,
            metadata_size: None,
            pool: None,
            origin: None,
            overflowed: false,
            data: None,
            metadata: None,
            when_full: None,
            ailment: None,
            active: true,
            tags: tags.encode().unwrap(),
            chunk: 0,
        };
        Reported { groups: vec![group()], lvs: vec![lv], ..Reported::default() }
    }

    proptest! {
        #[test]
        fn all_that_is_left_is_overwritten_once_in_order_and_noted_only_after_it(
            extents in 1u64..1 << 22, wiped in proptest::option::of(0u64..1 << 45),
        ) {
            let (id, group) = (VolumeId::generate(), group());
            let seen = reported(id, extents, wiped);
            let sight = Sight { kind: Kind::Thick, room: Room::default(), group: &group, seen: &seen };
            let steps = plan_wipe(&sight, id).unwrap();
            let end = extents * EXTENT;
            let (mut reached, mut noted) = (wiped.unwrap_or(0).min(end), wiped.unwrap_or(0).min(end));
            let mut present = seen.lvs[0].tags.clone();
            for step in &steps {
                match &step.act {
                    Act::Wipe { from, to } => {
                        prop_assert!(*from == reached && from < to && *to <= end && noted == reached);
                        reached = *to;
                    }
                    Act::Describe { present: old, wanted } => {
                        prop_assert_eq!(old, &present);
                        let held = VolumeTags::decode(wanted).unwrap().unwrap();
                        prop_assert!(held.state == State::Removing);
                        noted = held.wiped.map_or(0, ByteSize::as_u64);
                        prop_assert_eq!(noted, reached);
                        present = wanted.clone();
                    }
                    act => prop_assert!(false, "{act:?}"),
                }
            }
            prop_assert!(reached == end && noted == end);
            prop_assert!(steps.len() as u64 <= 2 * NOTES + 4, "{} steps", steps.len());
        }
    }
}
