//! Snapshots and copies: who waits for whom.

use super::*;
use crate::model::{Revert, SnapshotAssignment, SnapshotId, SnapshotMember, Source};

pub(super) fn snapshot(id: u8, volume: u8) -> SnapshotAssignment {
    SnapshotAssignment {
        id: SnapshotId::from_bytes([id; 16]),
        name: format!("s{id}").parse().unwrap(),
        generation: Generation::FIRST,
        volume: VolumeId::from_bytes([volume; 16]),
        pool: PoolId::from_bytes([1; 16]),
        set: Vec::new(),
        room: None,
        wipe: false,
        made: false,
        removed: false,
    }
}

pub(super) fn buried(snapshot: &SnapshotAssignment) -> SnapshotAssignment {
    SnapshotAssignment { generation: snapshot.generation.next(), removed: true, ..snapshot.clone() }
}

/// All taken at the same instant.
fn set(snapshots: &[SnapshotAssignment]) -> Vec<SnapshotAssignment> {
    let member = |it: &SnapshotAssignment| SnapshotMember {
        snapshot: it.id,
        name: it.name.clone(),
        volume: it.volume,
        pool: it.pool,
        room: it.room,
    };
    let set: Vec<SnapshotMember> = snapshots.iter().map(member).collect();
    snapshots.iter().map(|it| SnapshotAssignment { set: set.clone(), ..it.clone() }).collect()
}

fn with(volumes: &[VolumeAssignment], snapshots: &[SnapshotAssignment]) -> AssignmentSet {
    let snapshots = snapshots.iter().map(|it| (it.id, it.clone())).collect();
    AssignmentSet { snapshots, ..assigned(&[pool(false)], volumes) }
}

/// A world in which the pool and the volumes are as they should be.
fn settled(volumes: &[VolumeAssignment]) -> World {
    let mut world = World::default();
    done(&mut world, pool(false));
    volumes.iter().for_each(|volume| done(&mut world, volume.clone()));
    world
}

#[test]
fn a_snapshot_waits_for_its_volume_and_nothing_else_is_done_to_that_meanwhile() {
    let now = Instant::now();
    let (first, grown) = (volume(2, 1, false), volume(2, 2, false));
    let taken = snapshot(9, 2);
    let mut world = World::default();
    done(&mut world, pool(false));
    let wanted = with(std::slice::from_ref(&first), std::slice::from_ref(&taken));
    assert_eq!(world.plan(&wanted, now), [Task::Ensure(first.clone().into())]);
    let mut world = settled(std::slice::from_ref(&first));
    let begins = Task::Ensure(taken.clone().into());
    assert_eq!(world.plan(&wanted, now), std::slice::from_ref(&begins));
    world.begin(&begins);
    let grows = with(std::slice::from_ref(&grown), std::slice::from_ref(&taken));
    assert_eq!(world.plan(&grows, now), []);
    world.finish(&begins, false, now);
    assert_eq!(world.plan(&grows, now), [Task::Ensure(grown.into())]);
}

#[test]
fn a_volume_that_is_to_change_goes_first_and_its_snapshot_after_it() {
    let now = Instant::now();
    let world = settled(&[volume(2, 1, false)]);
    let grown = volume(2, 2, false);
    let wanted = with(std::slice::from_ref(&grown), &[snapshot(9, 2)]);
    assert_eq!(world.plan(&wanted, now), [Task::Ensure(grown.into())]);
}

#[test]
fn a_set_waits_for_all_its_volumes_and_goes_without_those_that_are_to_go() {
    let now = Instant::now();
    let (one, other) = (volume(2, 1, false), volume(3, 1, false));
    let both = set(&[snapshot(8, 2), snapshot(9, 3)]);
    let world = settled(std::slice::from_ref(&one));
    let tasks = world.plan(&with(&[one.clone(), other.clone()], &both), now);
    assert_eq!(tasks, [Task::Ensure(other.clone().into())]);
    let world = settled(&[one.clone(), other.clone()]);
    let half = [both[0].clone(), buried(&both[1])];
    let tasks = world.plan(&with(&[one, other], &half), now);
    let alone = SnapshotAssignment { set: vec![both[0].set[0].clone()], ..both[0].clone() };
    assert_eq!(tasks, [Task::Ensure(alone.into()), Task::Remove(half[1].clone().into())]);
}

#[test]
fn a_snapshot_of_a_set_that_is_being_taken_is_not_destroyed_before_the_others_are_there() {
    let now = Instant::now();
    let volumes = [volume(2, 1, false), volume(3, 1, false)];
    let both = set(&[snapshot(8, 2), snapshot(9, 3)]);
    let mut world = settled(&volumes);
    let begun = Task::Ensure(both[0].clone().into());
    world.begin(&begun);
    let half = with(&volumes, &[both[0].clone(), buried(&both[1])]);
    assert_eq!(world.plan(&half, now), []);
    world.finish(&begun, false, now);
    assert_eq!(world.plan(&half, now), [Task::Remove(buried(&both[1]).into())]);
}

#[test]
fn a_copy_waits_for_what_it_is_copied_from_which_stays_until_it_is_made() {
    let now = Instant::now();
    let (origin, taken) = (volume(2, 1, false), snapshot(9, 2));
    let copy = VolumeAssignment { source: Some(Source::Snapshot(taken.id)), ..volume(3, 1, false) };
    let mut world = settled(std::slice::from_ref(&origin));
    let wanted = with(&[origin.clone(), copy.clone()], std::slice::from_ref(&taken));
    assert_eq!(world.plan(&wanted, now), [Task::Ensure(taken.clone().into())]);
    done(&mut world, taken.clone());
    let copies = Task::Ensure(copy.clone().into());
    assert_eq!(world.plan(&wanted, now), std::slice::from_ref(&copies));
    world.begin(&copies);
    let goes = with(&[origin.clone(), copy.clone()], &[buried(&taken)]);
    assert_eq!(world.plan(&goes, now), []);
    world.finish(&copies, false, now);
    let made = VolumeAssignment { made: true, ..copy };
    let goes = with(&[origin, made], &[buried(&taken)]);
    assert_eq!(world.plan(&goes, now), [Task::Remove(buried(&taken).into())]);
}

#[test]
fn a_volume_is_put_back_once_its_snapshot_is_there() {
    let now = Instant::now();
    let (first, taken) = (volume(2, 1, false), SnapshotAssignment { made: true, ..snapshot(9, 2) });
    let next = volume(2, 2, false);
    let back = VolumeAssignment { revert: Some(Revert { to: taken.id, since: next.generation }), ..next };
    let mut world = settled(std::slice::from_ref(&first));
    let wanted = with(std::slice::from_ref(&back), std::slice::from_ref(&taken));
    assert_eq!(world.plan(&wanted, now), [Task::Ensure(taken.clone().into())]);
    done(&mut world, taken);
    assert_eq!(world.plan(&wanted, now), [Task::Ensure(back.into())]);
}

#[test]
fn a_volume_does_not_wait_while_a_snapshot_s_room_is_overwritten_not_even_one_that_was_put_back_to_it() {
    let now = Instant::now();
    let (first, taken) = (volume(2, 1, false), snapshot(9, 2));
    let both = set(&[taken.clone(), snapshot(8, 2)]);
    let wiped = SnapshotAssignment { wipe: true, ..buried(&both[0]) };
    let since = first.generation.next();
    let grown = VolumeAssignment { revert: Some(Revert { to: taken.id, since }), ..volume(2, 3, false) };
    let wanted = with(std::slice::from_ref(&grown), std::slice::from_ref(&wiped));
    // After a restart the volume comes first.
    let mut world = settled(&[]);
    assert_eq!(world.plan(&wanted, now), [Task::Ensure(grown.clone().into())]);
    // And it changes while that is under way, as does the rest of the set.
    let mut busy = settled(std::slice::from_ref(&first));
    let begun = Task::Remove(wiped.clone().into());
    busy.begin(&begun);
    assert_eq!(busy.plan(&wanted, now), [Task::Ensure(grown.clone().into())]);
    let rest = with(std::slice::from_ref(&first), &[wiped.clone(), buried(&both[1])]);
    assert_eq!(busy.plan(&rest, now), [Task::Remove(buried(&both[1]).into())]);
    // Without overwriting it is over at once, and waited for.
    let plain = SnapshotAssignment { wipe: false, ..wiped };
    world.begin(&Task::Remove(plain.clone().into()));
    assert_eq!(world.plan(&with(&[grown], &[plain]), now), []);
}

#[test]
fn a_snapshot_is_not_destroyed_in_the_round_in_which_a_copy_of_it_begins() {
    let now = Instant::now();
    let (origin, taken) = (volume(2, 1, false), snapshot(9, 2));
    let copy = VolumeAssignment { source: Some(Source::Snapshot(taken.id)), ..volume(3, 1, false) };
    let mut world = settled(std::slice::from_ref(&origin));
    done(&mut world, taken.clone());
    let goes = with(&[origin, copy.clone()], &[buried(&taken)]);
    assert_eq!(world.plan(&goes, now), [Task::Ensure(copy.into())]);
}

#[test]
fn a_pool_with_snapshots_in_it_is_not_let_go() {
    let now = Instant::now();
    let mut world = settled(&[]);
    done(&mut world, snapshot(9, 2));
    let released = assigned(&[pool(true)], &[]);
    let tasks = world.plan(&released, now);
    assert_eq!(tasks, [Task::Drop(snapshot(9, 2).into())]);
    tasks.iter().for_each(|task| world.finish(task, false, now));
    assert_eq!(world.plan(&released, now), [Task::Remove(pool(true).into())]);
}

/// Walks an object that is to be made of what cannot be had through all that may come of looking for it.
fn is_looked_for_once(object: &Assigned, made: Assigned, wanted: &AssignmentSet, known: &AssignmentSet, fails: &Task) {
    let (now, find) = (Instant::now(), Task::Find(object.clone()));
    let mut world = settled(&[]);
    assert_eq!(world.plan(wanted, now), std::slice::from_ref(fails));
    world.begin(fails);
    assert_eq!(world.plan(wanted, now), [], "it may succeed");
    world.finish(fails, true, now);
    assert_eq!(world.plan(wanted, now), std::slice::from_ref(&find));
    world.begin(&find);
    assert_eq!(world.plan(wanted, now), []);

    let mut found = world.clone();
    found.finish(&find, false, now);
    assert_eq!(found.plan(known, now), [Task::Ensure(made)]);

    let later = now + RETRY_CEILING;
    let mut unseen = world.clone();
    unseen.finish(&find, true, now);
    assert_eq!(unseen.plan(wanted, now), []);
    assert!(unseen.plan(wanted, later).contains(&find), "its medium could not be looked at");

    world.miss(object);
    assert_eq!(world.plan(wanted, now), []);
    assert_eq!(world.plan(wanted, later), std::slice::from_ref(fails), "it is not looked for again");
    world.begin(fails);
    world.finish(fails, false, later);
    assert_eq!(world.plan(wanted, later), [Task::Ensure(object.clone())]);
}

#[test]
fn a_copy_or_a_snapshot_whose_source_has_failed_is_looked_for_once_and_never_begun() {
    let origin = volume(2, 1, false);
    let fails = Task::Ensure(origin.clone().into());
    let copy = VolumeAssignment { source: Some(Source::Volume(origin.id)), ..volume(3, 1, false) };
    let made = VolumeAssignment { made: true, ..copy.clone() };
    let with_copy = |copy: &VolumeAssignment| with(&[origin.clone(), copy.clone()], &[]);
    is_looked_for_once(&copy.clone().into(), made.clone().into(), &with_copy(&copy), &with_copy(&made), &fails);

    let taken = snapshot(9, 2);
    let made = SnapshotAssignment { made: true, ..taken.clone() };
    let with_taken = |taken: &SnapshotAssignment| with(std::slice::from_ref(&origin), std::slice::from_ref(taken));
    is_looked_for_once(&taken.clone().into(), made.clone().into(), &with_taken(&taken), &with_taken(&made), &fails);
}

#[test]
fn what_is_made_or_is_to_go_is_not_looked_for() {
    let now = Instant::now();
    let origin = volume(2, 1, false);
    let copy = VolumeAssignment { source: Some(Source::Volume(origin.id)), ..volume(3, 1, false) };
    let mut world = settled(&[]);
    world.held.insert(origin.id.into(), Progress::failed(origin.clone().into(), 0, now));
    let made = VolumeAssignment { made: true, ..copy.clone() };
    let wanted = with(&[origin.clone(), made.clone()], &[]);
    assert_eq!(world.plan(&wanted, now), [Task::Ensure(made.into())]);
    world.miss(&copy.clone().into());
    let gone = VolumeAssignment { removed: true, generation: copy.generation.next(), ..copy };
    assert_eq!(world.plan(&with(&[origin, gone.clone()], &[]), now), [Task::Remove(gone.into())]);
}
