use super::*;
use crate::model::{
    AttachmentAssignment, AttachmentId, ByteSize, ClientId, Driver, Generation, PoolAssignment, SnapshotAssignment,
    VolumeAssignment, VolumeId,
};
use proptest::prelude::*;

mod doors;
mod lineage;

fn pool(removed: bool) -> PoolAssignment {
    PoolAssignment {
        id: PoolId::from_bytes([1; 16]),
        name: "p".parse().unwrap(),
        generation: Generation::new(1 + u64::from(removed)),
        driver: Driver::File { path: "/p".into(), limit: None },
        made: false,
        formerly: None,
        removed,
    }
}

fn volume(id: u8, generation: u64, removed: bool) -> VolumeAssignment {
    VolumeAssignment {
        removed,
        ..VolumeAssignment::bare(
            VolumeId::from_bytes([id; 16]),
            &format!("v{id}"),
            generation,
            PoolId::from_bytes([1; 16]),
            ByteSize::mib(1),
        )
    }
}

fn assigned(pools: &[PoolAssignment], volumes: &[VolumeAssignment]) -> AssignmentSet {
    AssignmentSet {
        pools: pools.iter().map(|pool| (pool.id, pool.clone())).collect(),
        volumes: volumes.iter().map(|volume| (volume.id, volume.clone())).collect(),
        ..AssignmentSet::default()
    }
}

fn done(world: &mut World, object: impl Into<Assigned>) {
    let object = object.into();
    world.held.insert(object.id(), Progress::Done(object));
}

/// Carries a task out in a naive model of a host.
fn perform(world: &mut World, task: Task, ok: bool, now: Instant) {
    world.begin(&task);
    world.finish(&task, !ok, now);
}

#[test]
fn a_volume_waits_for_its_pool() {
    let (mut world, now) = (World::default(), Instant::now());
    let set = assigned(&[pool(false)], &[volume(2, 1, false)]);
    assert_eq!(world.plan(&set, now), [Task::Ensure(pool(false).into())]);
    world.begin(&Task::Ensure(pool(false).into()));
    assert_eq!(world.plan(&set, now), []);
    done(&mut world, pool(false));
    assert_eq!(world.plan(&set, now), [Task::Ensure(volume(2, 1, false).into())]);
}

#[test]
fn what_is_not_assigned_any_more_is_dropped_and_never_removed() {
    let (mut world, now) = (World::default(), Instant::now());
    done(&mut world, pool(false));
    done(&mut world, volume(2, 1, false));
    assert_eq!(world.plan(&AssignmentSet::default(), now), [Task::Drop(volume(2, 1, false).into())]);
}

#[test]
fn a_pool_is_released_only_once_its_volumes_are_gone() {
    let (mut world, now) = (World::default(), Instant::now());
    done(&mut world, pool(false));
    done(&mut world, volume(2, 1, false));
    let set = assigned(&[pool(true)], &[volume(2, 2, true)]);
    let remove = Task::Remove(volume(2, 2, true).into());
    assert_eq!(world.plan(&set, now), std::slice::from_ref(&remove));
    world.begin(&remove);
    let set = assigned(&[pool(true)], &[]);
    assert_eq!(world.plan(&set, now), [], "the volume is still being worked on");
    world.finish(&remove, false, now);
    let tasks = world.plan(&set, now);
    assert!(tasks.contains(&Task::Remove(pool(true).into())), "{tasks:?}");
}

#[test]
fn a_failure_waits_longer_each_time_unless_the_assignment_changes() {
    let (mut world, now) = (World::default(), Instant::now());
    done(&mut world, pool(false));
    let failed = Progress::failed(volume(2, 1, false).into(), 3, now);
    world.held.insert(volume(2, 1, false).id.into(), failed);
    let set = assigned(&[pool(false)], &[volume(2, 1, false)]);
    assert_eq!(world.plan(&set, now), []);
    assert_eq!(world.next_retry(now), Some(now + Duration::from_secs(4)));
    assert_eq!(world.next_retry(now + Duration::from_secs(4)), None, "nobody waits for what is past");
    assert_eq!(world.plan(&set, now + Duration::from_secs(4)).len(), 1);
    let changed = assigned(&[pool(false)], &[volume(2, 2, false)]);
    assert_eq!(world.plan(&changed, now), [Task::Ensure(volume(2, 2, false).into())]);
}

#[test]
fn failures_in_a_row_are_counted_over_tasks() {
    let (mut world, now) = (World::default(), Instant::now());
    let task = Task::Ensure(pool(false).into());
    for _ in 0..3 {
        perform(&mut world, task.clone(), false, now);
    }
    assert_eq!(world.next_retry(now), Some(now + RETRY_FLOOR * 4));
    perform(&mut world, task, true, now);
    assert_eq!(world.held.values().map(Progress::attempts).max(), Some(0));
}

proptest! {
    #[test]
    fn any_history_of_assignments_and_failures_settles_on_the_last_assignment(
        sets in prop::collection::vec(prop::collection::btree_map(2u8..6, any::<bool>(), 0..4), 1..6),
        luck in prop::collection::vec(any::<bool>(), 200),
    ) {
        let (mut world, mut now, mut luck) = (World::default(), Instant::now(), luck.into_iter());
        let mut last = AssignmentSet::default();
        for (index, set) in sets.iter().enumerate() {
            let volumes: Vec<_> =
                set.iter().map(|(id, removed)| volume(*id, index as u64 + 1, *removed)).collect();
            last = assigned(&[pool(false)], &volumes);
            // A few tasks happen, some fail, before the next assignment comes.
            for task in world.plan(&last, now) {
                perform(&mut world, task, luck.next().unwrap_or(true), now);
            }
        }
        for _ in 0..10 {
            now += RETRY_CEILING;
            for task in world.plan(&last, now) {
                let destroys = matches!(&task, Task::Remove(object) if !object.is_removed());
                prop_assert!(!destroys);
                perform(&mut world, task, true, now);
            }
        }
        prop_assert!(world.plan(&last, now + RETRY_CEILING).is_empty());
        for volume in last.volumes.values() {
            prop_assert_eq!(world.held.get(&volume.id.into()), Some(&Progress::Done(volume.clone().into())));
        }
        let volumes = world.held.keys().filter(|id| matches!(id, AssignedId::Volume(_))).count();
        prop_assert_eq!(volumes, last.volumes.len());
    }
}

#[test]
fn a_few_volumes_and_snapshots_are_overwritten_at_a_time_and_all_come_while_others_go_on() {
    let wiped = |id| VolumeAssignment { removed: true, wipe: true, ..volume(id, 1, true) };
    let all: Vec<VolumeAssignment> = (2..8).map(wiped).chain([volume(20, 1, false)]).collect();
    let mut assigned = assigned(&[pool(false)], &all);
    let rooms = (30..34).map(|id| SnapshotAssignment { wipe: true, ..lineage::buried(&lineage::snapshot(id, 21)) });
    assigned.snapshots = rooms.map(|snapshot| (snapshot.id, snapshot)).collect();
    let (mut world, now) = (World::default(), Instant::now());
    done(&mut world, pool(false));
    let mut gone = 0;
    loop {
        let tasks = world.plan(&assigned, now);
        let (wipes, others): (Vec<Task>, Vec<Task>) = tasks.into_iter().partition(Task::follows_the_ledger);
        assert!(wipes.len() <= WIPES && others.len() == usize::from(gone == 0), "{wipes:?} {others:?}");
        if wipes.is_empty() {
            break;
        }
        wipes.iter().chain(&others).for_each(|task| world.begin(task));
        assert!(!world.plan(&assigned, now).iter().any(Task::follows_the_ledger), "while they run no other begins");
        gone += wipes.len();
        wipes.iter().chain(&others).for_each(|task| world.finish(task, false, now));
    }
    assert_eq!(gone, 10);
}
