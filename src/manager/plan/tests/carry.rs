//! What becomes of objects whose devices may be ahead of the state.

use super::*;

fn epoch() -> Epoch {
    Epoch::FIRST.next()
}

fn carried() -> Generation {
    Generation::floor(epoch())
}

/// One service's objects are carried over, in as many steps as it takes.
fn carry(world: &mut World) -> usize {
    let mut steps = 0;
    while has_to_carry(&world.view, service_id(), epoch()) {
        world.write(|draft| carry_over(draft, service_id(), epoch(), "because")).unwrap();
        steps += 1;
    }
    steps
}

fn report(world: &mut World, volume: &Volume, mib: Option<u64>) {
    let volume = match mib {
        Some(mib) => {
            let served = ServedVolume { size: ByteSize::mib(mib), exports: Vec::new() };
            VolumeReport {
                id: volume.meta.id,
                generation: volume.meta.generation,
                volume: Observed::Known(served),
                progress: None,
                failure: None,
            }
        }
        None => VolumeReport {
            id: volume.meta.id,
            generation: volume.meta.generation,
            volume: Observed::Unknown,
            progress: None,
            failure: Some("missing".into()),
        },
    };
    let report = Report::Volume(volume);
    world.write(|draft| take_reports(draft, service_id(), session_id(), std::slice::from_ref(&report))).unwrap();
}

fn get(world: &World, volume: &Volume) -> Volume {
    world.view.get::<Volume>(volume.meta.id).unwrap().clone()
}

#[test]
fn a_volume_that_grew_keeps_its_size_and_the_pool_s_promise_follows() {
    let mut world = World::new();
    world.pool("p", 1000);
    let volume = world.volume("v", 10, None).unwrap();
    assert_eq!(carry(&mut world), 1);
    let lifted = get(&world, &volume);
    assert_eq!(lifted.meta.generation, carried());
    report(&mut world, &lifted, Some(30));
    let settled = get(&world, &volume);
    assert_eq!(settled.spec.size, ByteSize::mib(30));
    assert!(settled.meta.generation == carried().next() && settled.status.phase == Phase::Ready, "{settled:?}");
    world.assert_adds_up();
    // Once is enough: from then on its own word counts for nothing.
    report(&mut world, &settled, Some(900));
    assert_eq!(get(&world, &volume).spec.size, ByteSize::mib(30));
    world.assert_adds_up();
}

#[test]
fn a_volume_that_shrank_or_is_missing_keeps_what_the_state_says() {
    let mut world = World::new();
    world.pool("p", 1000);
    let (small, missing) = (world.volume("s", 10, None).unwrap(), world.volume("m", 10, None).unwrap());
    carry(&mut world);
    let (lifted, lost) = (get(&world, &small), get(&world, &missing));
    report(&mut world, &lifted, Some(10));
    assert_eq!(get(&world, &small).spec.size, ByteSize::mib(10));
    let assigned = VolumeAssignment::of(&lost, service_id()).unwrap();
    assert!(assigned.made, "it is never made anew, even if the state never heard that it was made");
    report(&mut world, &lost, None);
    let lost = get(&world, &missing);
    assert!(lost.status.phase == Phase::Failed && lost.meta.generation == carried(), "{lost:?}");
    world.assert_adds_up();
}

#[test]
fn what_would_lose_bytes_and_is_not_known_to_be_done_is_ordered_no_longer() {
    let mut world = World::new();
    world.pool("p", 1000);
    let volume = world.volume("v", 100, None).unwrap();
    report(&mut world, &volume, Some(100));
    world.write(|draft| resize_volume(draft, &somebody(), "v", ByteSize::mib(10), true)).unwrap();
    world.assert_adds_up();
    carry(&mut world);
    let lifted = get(&world, &volume);
    assert!(lifted.spec.shrunk.is_none() && lifted.spec.size == ByteSize::mib(100), "{lifted:?}");
    world.assert_adds_up();
}

#[test]
fn a_tombstone_is_never_taken_back() {
    let mut world = World::new();
    world.pool("p", 1000);
    let volume = world.volume("v", 10, None).unwrap();
    report(&mut world, &volume, Some(10));
    world.write(|draft| remove_volume(draft, &somebody(), "v", None)).unwrap();
    carry(&mut world);
    let lifted = get(&world, &volume);
    assert!(lifted.meta.is_removed() && lifted.meta.generation == carried());
    world.report_gone(&lifted);
    assert!(world.view.volumes.is_empty());
    world.assert_adds_up();
}

#[test]
fn everything_on_a_service_is_carried_over_in_transactions_of_a_bounded_size_and_once() {
    let mut world = World::new();
    world.pool("p", 100_000);
    for number in 0..170 {
        world.volume(&format!("v{number}"), 1, None).unwrap();
    }
    assert!(carry(&mut world) > 3);
    assert_eq!(carry(&mut world), 0);
    let entries = world.view.events.values().filter(|event| event.value.action == "service.carry").count();
    assert_eq!(entries, 1);
    world.assert_adds_up();
}
