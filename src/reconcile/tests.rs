use super::*;
use crate::model::{ByteSize, Driver, Generation};
use proptest::prelude::*;

fn pool(removed: bool) -> PoolAssignment {
    PoolAssignment {
        id: PoolId::from_bytes([1; 16]),
        name: "p".parse().unwrap(),
        generation: Generation::new(1 + u64::from(removed)),
        driver: Driver::File { path: "/p".into(), limit: None },
        made: false,
        removed,
    }
}

fn volume(id: u8, generation: u64, removed: bool) -> VolumeAssignment {
    VolumeAssignment {
        id: VolumeId::from_bytes([id; 16]),
        name: format!("v{id}").parse().unwrap(),
        generation: Generation::new(generation),
        pool: PoolId::from_bytes([1; 16]),
        size: ByteSize::mib(1),
        made: false,
        removed,
    }
}

fn assigned(pools: &[PoolAssignment], volumes: &[VolumeAssignment]) -> AssignmentSet {
    AssignmentSet {
        pools: pools.iter().map(|pool| (pool.id, pool.clone())).collect(),
        volumes: volumes.iter().map(|volume| (volume.id, volume.clone())).collect(),
    }
}

/// Carries tasks out in a naive model of a host.
fn perform(world: &mut World, task: Task, ok: bool, now: Instant) {
    match task {
        Task::EnsurePool(pool) | Task::ReleasePool(pool) => {
            let next = if ok { Progress::Done(pool.clone()) } else { Progress::failed(pool.clone(), 0, now) };
            world.pools.insert(pool.id, next);
        }
        Task::ClosePool(id) => drop(world.pools.remove(&id)),
        Task::EnsureVolume(volume) | Task::RemoveVolume(volume) => {
            let next = if ok { Progress::Done(volume.clone()) } else { Progress::failed(volume.clone(), 0, now) };
            world.volumes.insert(volume.id, next);
        }
        Task::RetireVolume(volume) => drop(world.volumes.remove(&volume.id)),
    }
}

#[test]
fn a_volume_waits_for_its_pool() {
    let (mut world, now) = (World::default(), Instant::now());
    let set = assigned(&[pool(false)], &[volume(2, 1, false)]);
    assert_eq!(world.plan(&set, now), [Task::EnsurePool(pool(false))]);
    world.pools.insert(pool(false).id, Progress::Running { attempts: 0 });
    assert_eq!(world.plan(&set, now), []);
    world.pools.insert(pool(false).id, Progress::Done(pool(false)));
    assert_eq!(world.plan(&set, now), [Task::EnsureVolume(volume(2, 1, false))]);
}

#[test]
fn what_is_not_assigned_any_more_is_retired_and_never_removed() {
    let (mut world, now) = (World::default(), Instant::now());
    world.pools.insert(pool(false).id, Progress::Done(pool(false)));
    world.volumes.insert(volume(2, 1, false).id, Progress::Done(volume(2, 1, false)));
    assert_eq!(world.plan(&AssignmentSet::default(), now), [Task::RetireVolume(volume(2, 1, false))]);
}

#[test]
fn a_pool_is_released_only_once_its_volumes_are_gone() {
    let (mut world, now) = (World::default(), Instant::now());
    world.pools.insert(pool(false).id, Progress::Done(pool(false)));
    world.volumes.insert(volume(2, 1, false).id, Progress::Done(volume(2, 1, false)));
    let set = assigned(&[pool(true)], &[volume(2, 2, true)]);
    assert_eq!(world.plan(&set, now), [Task::RemoveVolume(volume(2, 2, true))]);
    perform(&mut world, Task::RemoveVolume(volume(2, 2, true)), true, now);
    assert_eq!(world.plan(&set, now), [], "the manager has not taken the volume out yet");
    let set = assigned(&[pool(true)], &[]);
    let tasks = world.plan(&set, now);
    assert!(tasks.contains(&Task::ReleasePool(pool(true))), "{tasks:?}");
}

#[test]
fn a_failure_waits_longer_each_time_unless_the_assignment_changes() {
    let (mut world, now) = (World::default(), Instant::now());
    world.pools.insert(pool(false).id, Progress::Done(pool(false)));
    let failed = Progress::failed(volume(2, 1, false), 3, now);
    world.volumes.insert(volume(2, 1, false).id, failed);
    let set = assigned(&[pool(false)], &[volume(2, 1, false)]);
    assert_eq!(world.plan(&set, now), []);
    assert_eq!(world.next_retry(now), Some(now + Duration::from_secs(4)));
    assert_eq!(world.next_retry(now + Duration::from_secs(4)), None, "nobody waits for what is past");
    assert_eq!(world.plan(&set, now + Duration::from_secs(4)).len(), 1);
    let changed = assigned(&[pool(false)], &[volume(2, 2, false)]);
    assert_eq!(world.plan(&changed, now), [Task::EnsureVolume(volume(2, 2, false))]);
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
                let destroys = matches!(&task, Task::RemoveVolume(volume) if !volume.removed);
                prop_assert!(!destroys);
                perform(&mut world, task, true, now);
            }
        }
        prop_assert!(world.plan(&last, now + RETRY_CEILING).is_empty());
        for volume in last.volumes.values() {
            prop_assert_eq!(world.volumes.get(&volume.id), Some(&Progress::Done(volume.clone())));
        }
        prop_assert_eq!(world.volumes.len(), last.volumes.len());
    }
}
