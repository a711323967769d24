//! The record of changes: one entry for each change, none for what changes nothing, and never too many.

use super::*;

fn actions(world: &World) -> Vec<String> {
    world.view.events_after(None, usize::MAX).into_iter().map(|(_, event)| event.action.clone()).collect()
}

#[test]
fn every_change_is_recorded_once_in_the_order_it_happened() {
    let mut world = World::new();
    world.pool("p", 10);
    world.volume("v", 1, None).unwrap();
    for _ in 0..2 {
        world.write(|draft| resize_volume(draft, &somebody(), "v", ByteSize::mib(2), false)).unwrap();
    }
    let buried = world.write(|draft| remove_volume(draft, &somebody(), "v", None)).unwrap();
    world.write(|draft| remove_volume(draft, &somebody(), "v", None)).unwrap();
    world.report_gone(&buried);
    world.write(|draft| remove_pool(draft, &somebody(), "p")).unwrap();
    world.fall_silent();
    world.admit();
    let expected = [
        "service.join",
        "pool.create",
        "volume.create",
        "volume.resize",
        "volume.remove",
        "pool.remove",
        "service.down",
        "service.ready",
    ];
    assert_eq!(actions(&world), expected);
    let (_, resized) = world.view.events_after(None, usize::MAX).swap_remove(3);
    assert_eq!((&resized.author, resized.kind, resized.name.as_str()), (&somebody(), Some(Kind::Volume), "v"));
    assert_eq!(
        (resized.object.as_str(), resized.detail.as_deref()),
        (&*buried.meta.id.to_string(), Some("from 1MiB to 2MiB"))
    );
    let (_, back) = world.view.events_after(None, usize::MAX).swap_remove(7);
    assert_eq!(back.author.who, format!("block service {}", service_id()));
}

#[test]
fn what_is_refused_or_undone_is_not_recorded() {
    let mut world = World::new();
    world.pool("p", 10);
    let before = actions(&world);
    world.volume("v", 11, None).unwrap_err();
    let id = VolumeId::from_bytes([100; 16]);
    world
        .write(|draft| {
            let savepoint = draft.savepoint();
            create_volume(draft, &somebody(), id, &"undone".parse().unwrap(), &wanted(1, None))?;
            draft.undo_to(savepoint);
            Ok(())
        })
        .unwrap();
    assert_eq!(actions(&world), before);
}

#[test]
fn plans_that_share_a_transaction_have_an_entry_each_in_their_order() {
    let mut world = World::new();
    world.pool("p", 10);
    let ids = [3u8, 1, 2].map(|byte| VolumeId::from_bytes([100 + byte; 16]));
    world
        .write(|draft| {
            for id in ids {
                let name = Name::resembling(&id.to_string()[..8], "v");
                create_volume(draft, &somebody(), id, &name, &wanted(1, None))?;
            }
            Ok(())
        })
        .unwrap();
    let made =
        world.view.events_after(None, usize::MAX).into_iter().filter(|(_, event)| event.action == "volume.create");
    assert_eq!(made.map(|(_, event)| event.object.clone()).collect::<Vec<_>>(), ids.map(|id| id.to_string()));
}

#[test]
fn closing_a_lost_service_is_recorded_in_every_transaction_that_closes_a_part() {
    let mut world = World::new();
    world.pool("p", 1000);
    for index in 0..100 {
        world.volume(&format!("v{index}"), 1, None).unwrap();
    }
    world.fall_silent();
    while world.write(|draft| remove_service(draft, &somebody(), service_id(), true)).unwrap().is_none() {}
    let last: Vec<String> = actions(&world).split_off(103);
    assert_eq!(last, [["service.close"; 5].as_slice(), &["service.remove"]].concat());
    let (_, removed) = world.view.events_after(None, usize::MAX).pop().unwrap();
    assert!(removed.detail.as_deref().unwrap().contains("pool p"), "{removed:?}");
}

#[test]
fn the_record_is_bounded_and_the_oldest_entries_go() {
    let mut world = World::new();
    world.pool("p", 1000);
    world.volume("v", 1, None).unwrap();
    for size in 2..300 {
        world.write(|draft| resize_volume(draft, &somebody(), "v", ByteSize::mib(size), false)).unwrap();
    }
    let before = world.view.events_after(None, usize::MAX);
    let place = before.first().unwrap().0;
    assert!(!world.view.has_dropped_after(place));
    while world.write(|draft| prune_events(draft, 50)).unwrap() {}
    let after = world.view.events_after(None, usize::MAX);
    assert_eq!(
        after.iter().map(|(place, _)| place).collect::<Vec<_>>(),
        before[before.len() - 50..].iter().map(|(place, _)| place).collect::<Vec<_>>()
    );
    assert!(world.view.has_dropped_after(place), "a reader that stopped at the first entry has missed some");
    assert!(!world.view.has_dropped_after(after.first().unwrap().0));
}
