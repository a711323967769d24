//! A volume's bytes, or what a classic snapshot's room holds, overwritten before that space is given back.
//!
//! ```text
//!   ready ──▶ removing ──(a slice overwritten)──▶ removing, so much of it wiped ──▶ … ──▶ removing, all of it wiped
//! ```
//! How far it has come is written down after each slice, and only then: whoever is killed overwrites one slice again.

use super::{Act, Sight, Step, damaged, names, snapshot, unspeakable, volume};
use crate::backend::BackendError;
use crate::backend::lvm::report::Lv;
use crate::backend::lvm::tags::{Kind, SnapshotTags, State, VolumeTags};
use crate::model::{ByteSize, SnapshotId, VolumeId};

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
    // What does not describe itself is overwritten from its beginning, each time.
    let told = volume::decoded(lv, id).ok().flatten();
    let begun = told.as_ref().filter(|held| held.state == State::Removing).map(|held| held.wiped);
    overwriting(sight, lv, begun, sight.activation(lv).into_iter().collect(), |wiped| {
        let tags = |held: VolumeTags| VolumeTags { state: State::Removing, revert: None, wiped, ..held }.encode();
        told.clone().map(tags).transpose().map_err(unspeakable)
    })
}

/// The way from a snapshot's room, once that is alone, to one that holds zeros and nothing else, to be removed.
pub fn plan_wipe_room(sight: &Sight, id: SnapshotId) -> Result<Vec<Step>, BackendError> {
    let Some(lv) = sight.lv(&names::snapshot(id)) else { return Ok(Vec::new()) };
    if lv.origin.is_some() {
        return Err(damaged(lv, "its room is to be overwritten, and it is a snapshot still"));
    }
    // Whoever split it off may have died before the kernel heard of it, for which it is the snapshot still: zeros that are
    // written there land beside what the room held before. To make active what is active changes nothing.
    let mut ready = Vec::from_iter(lv.active.then(|| Act::Deactivate.on(&lv.name)));
    ready.push(Act::Activate.on(&lv.name));
    let told = snapshot::decoded(lv, id).ok();
    let begun = told.as_ref().filter(|held| held.state == State::Removing).map(|held| held.wiped);
    overwriting(sight, lv, begun, ready, |wiped| {
        let tags = |held: SnapshotTags| SnapshotTags { state: State::Removing, wiped, ..held }.encode();
        told.clone().map(tags).transpose().map_err(unspeakable)
    })
}

/// Overwrites what is left of a logical volume, after what makes it `ready` for that. `begun` with how much of it is wiped, if
/// its removal has begun; `note` says what its tags are once so much is, if it has any.
fn overwriting(
    sight: &Sight,
    lv: &Lv,
    begun: Option<Option<ByteSize>>,
    ready: Vec<Step>,
    note: impl Fn(Option<ByteSize>) -> Result<Option<Vec<String>>, BackendError>,
) -> Result<Vec<Step>, BackendError> {
    let end = lv.size.as_u64();
    let (mut steps, mut present) = (Vec::new(), lv.tags.clone());
    let mut describe = |steps: &mut Vec<Step>, wiped: Option<ByteSize>| {
        if let Some(wanted) = note(wiped)? {
            let present = std::mem::replace(&mut present, wanted.clone());
            steps.push(Act::Describe { present, wanted }.on(&lv.name));
        }
        Ok::<(), BackendError>(())
    };
    if begun.is_none() {
        describe(&mut steps, None)?;
    }
    let mut from = begun.flatten().map_or(0, ByteSize::as_u64).min(end);
    if from < end {
        steps.extend(ready);
    }
    let slice = SLICE.max(end / NOTES).next_multiple_of(sight.group.extent);
    while from < end {
        let to = from.saturating_add(slice).min(end);
        steps.push(Act::Wipe { from, to }.on(&lv.name));
        describe(&mut steps, Some(ByteSize::bytes(to)))?;
        from = to;
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::lvm::geometry::Room;
    use crate::backend::lvm::report::{Group, Reported};
    use crate::model::{Generation, Timestamp};
    use proptest::prelude::*;

    const EXTENT: u64 = 4 << 20;

    fn group() -> Group {
        let size = ByteSize::mib(1 << 30);
        Group { name: "g".into(), uuid: "u".into(), size, free: size, extent: EXTENT, missing: 0, tags: Vec::new() }
    }

    /// A group with one logical volume of that name, of so many extents.
    fn reported(name: &str, extents: u64, tags: Vec<String>) -> Reported {
        let lv = Lv {
            name: name.into(),
            hidden: false,
            group: "g".into(),
            segments: "linear".into(),
            size: ByteSize::bytes(extents * EXTENT),
            metadata_size: None,
            pool: None,
            origin: None,
            overflowed: false,
            data: None,
            metadata: None,
            when_full: None,
            ailment: None,
            active: true,
            tags,
            chunk: 0,
        };
        Reported { groups: vec![group()], lvs: vec![lv], ..Reported::default() }
    }

    /// A volume of which so much was wiped.
    fn of_volume(volume: VolumeId, extents: u64, wiped: Option<ByteSize>) -> Reported {
        let state = if wiped.is_some() { State::Removing } else { State::Ready };
        let (name, generation) = ("v".parse().unwrap(), Generation::FIRST);
        let (size, lineage) = (ByteSize::bytes(extents * EXTENT), Vec::new());
        let tags = VolumeTags { volume, name, generation, size, state, lineage, revert: None, wiped };
        reported(&names::volume(volume), extents, tags.encode().unwrap())
    }

    /// A snapshot that was split off, of whose room so much was wiped.
    fn of_snapshot(snapshot: SnapshotId, extents: u64, wiped: Option<ByteSize>) -> Reported {
        let (name, volume) = ("s".parse().unwrap(), VolumeId::generate());
        let (size, at, state) = (ByteSize::mib(1), Timestamp::EPOCH, State::Removing);
        let tags = SnapshotTags { snapshot, name, volume, size, at, state, wiped };
        reported(&names::snapshot(snapshot), extents, tags.encode().unwrap())
    }

    /// All that is left is overwritten once, in order, and noted only after it.
    fn check(seen: &Reported, wiped: Option<u64>, steps: &[Step]) {
        let told = |tags: &[String]| {
            let of_volume = VolumeTags::decode(tags).map(|it| it.map(|it| (it.state, it.wiped)));
            of_volume.or_else(|_| SnapshotTags::decode(tags).map(|it| it.map(|it| (it.state, it.wiped)))).unwrap()
        };
        let lv = &seen.lvs[0];
        let (end, mut present) = (lv.size.as_u64(), &lv.tags);
        let mut reached = wiped.unwrap_or(0).min(end);
        let (mut noted, mut forgotten, mut activated) = (reached, false, false);
        for step in steps {
            assert_eq!(step.on, lv.name);
            match &step.act {
                Act::Wipe { from, to } => {
                    assert!(*from == reached && from < to && *to <= end && noted == reached, "{step:?}");
                    assert!(
                        activated || !lv.name.starts_with("s-"),
                        "the kernel may take it for a snapshot still: {step:?}"
                    );
                    reached = *to;
                }
                Act::Describe { present: old, wanted } => {
                    assert_eq!(old, present);
                    let (state, wiped) = told(wanted).unwrap();
                    noted = wiped.map_or(0, ByteSize::as_u64);
                    assert!(state == State::Removing && noted == reached, "{step:?}");
                    present = wanted;
                }
                Act::Deactivate => forgotten = !activated,
                Act::Activate => activated = forgotten,
                act => panic!("{act:?}"),
            }
        }
        assert!(reached == end && noted == end);
        assert!(steps.len() as u64 <= 2 * NOTES + 5, "{} steps", steps.len());
    }

    proptest! {
        #[test]
        fn all_that_is_left_is_overwritten_once_in_order_and_noted_only_after_it(
            extents in 1u64..1 << 22, wiped in proptest::option::of(0u64..1 << 45),
        ) {
            let (volume, snapshot, group) = (VolumeId::generate(), SnapshotId::generate(), group());
            let bytes = wiped.map(ByteSize::bytes);
            let (one, other) = (of_volume(volume, extents, bytes), of_snapshot(snapshot, extents, bytes));
            let sight = |seen| Sight { kind: Kind::Thick, room: Room::default(), group: &group, seen };
            check(&one, wiped, &plan_wipe(&sight(&one), volume).unwrap());
            check(&other, wiped, &plan_wipe_room(&sight(&other), snapshot).unwrap());
        }
    }
}
