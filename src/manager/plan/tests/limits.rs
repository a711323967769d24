//! Limits of volumes: what a request changes, and what it must not.

use super::*;
use crate::store::Compare;

fn world() -> World {
    let mut world = World::new();
    world.pool("p", 10);
    world.volume("v", 1, None).unwrap();
    world
}

fn set(world: &mut World, changes: LimitChanges) -> Result<Volume, Refusal> {
    world.write(|draft| limit_volume(draft, &somebody(), "v", changes))
}

#[test]
fn only_what_is_named_changes_and_a_change_is_a_new_generation() {
    let mut world = world();
    let first = set(&mut world, LimitChanges { iops: Some(Some(50)), burst_ms: Some(Some(500)), ..Default::default() });
    let first = first.unwrap();
    assert_eq!(first.spec.limits, Limits { iops: Some(50), burst_ms: Some(500), bandwidth: None });
    assert_eq!((first.meta.generation, first.status.phase), (Generation::FIRST.next(), Phase::Pending));
    let second = set(&mut world, LimitChanges { bandwidth: Some(Some(1 << 20)), ..Default::default() }).unwrap();
    assert_eq!(second.spec.limits, Limits { bandwidth: Some(ByteSize::mib(1)), ..first.spec.limits });
    let before = world.view.revision;
    let same = set(&mut world, LimitChanges { iops: Some(Some(50)), ..Default::default() }).unwrap();
    assert_eq!((same.meta.generation, world.view.revision), (second.meta.generation, before));
    let none = LimitChanges { iops: Some(None), bandwidth: Some(None), burst_ms: None };
    assert_eq!(set(&mut world, none).unwrap().spec.limits, Limits::NONE);
    world.assert_adds_up();
}

#[test]
fn nonsense_and_what_is_being_removed_are_refused_and_nothing_is_recorded() {
    let mut world = world();
    let before = world.view.revision;
    for nonsense in [
        LimitChanges { iops: Some(Some(0)), ..Default::default() },
        LimitChanges { bandwidth: Some(Some(4095)), ..Default::default() },
        LimitChanges { burst_ms: Some(Some(5000)), ..Default::default() },
        LimitChanges { iops: Some(None), bandwidth: Some(None), burst_ms: Some(Some(5000)) },
    ] {
        assert!(matches!(set(&mut world, nonsense), Err(Refusal::Invalid(_))), "{nonsense:?}");
    }
    assert_eq!(world.view.revision, before);
    world.write(|draft| remove_volume(draft, &somebody(), "v", None)).unwrap();
    let late = set(&mut world, LimitChanges { iops: Some(Some(5)), ..Default::default() });
    assert!(matches!(late, Err(Refusal::Removing { .. })), "{late:?}");
}

#[test]
fn that_nothing_changes_holds_only_as_long_as_the_volume_is_as_it_was_found() {
    let mut world = world();
    let limits = LimitChanges { iops: Some(Some(50)), ..Default::default() };
    let held = set(&mut world, limits).unwrap();
    let key = Volume::key(held.meta.id);
    let revision = world.view.volumes[&held.meta.id].revision;
    let mut draft = Draft::new(&world.view, NOW, first_event(Revision(99)));
    assert_eq!(limit_volume(&mut draft, &somebody(), "v", limits).unwrap(), held);
    let txn = draft.finish().unwrap().unwrap();
    assert!(txn.ops.is_empty() && txn.compares.contains(&Compare::Unchanged(key, revision)), "{txn:?}");
}
