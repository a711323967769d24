//! Pools that promise more than they have, and pools that run full.

use super::*;

impl World {
    fn rule(&mut self, changes: RuleChanges) -> Result<Pool, Refusal> {
        self.write(|draft| set_pool(draft, &somebody(), "p", changes, None))
    }

    /// The pool's block service has looked: 100 MiB there, so many used, and the same of its metadata.
    fn look(&mut self, used: u64, metadata: Option<PoolMetadata>) {
        let pool = self.the_pool();
        let (capacity, used) = (ByteSize::mib(100), ByteSize::mib(used));
        let capacity = PoolCapacity { capacity, used, metadata, copies: true, ..PoolCapacity::default() };
        let (id, generation) = (pool.meta.id, pool.meta.generation);
        let report = PoolReport { id, generation, capacity: Observed::Known(capacity), failure: None };
        self.write(|draft| take_reports(draft, service_id(), session_id(), &[Report::Pool(report.clone())])).unwrap();
    }

    fn the_pool(&self) -> Pool {
        (*self.view.pools.values().next().unwrap().value).clone()
    }

    fn told(&self) -> Vec<(String, Option<String>)> {
        let all = self.view.events_after(None, 100);
        let of_levels = |event: &Event| ["pool.ok", "pool.high", "pool.full"].contains(&event.action.as_str());
        let levels = all.into_iter().filter(|(_, event)| of_levels(event));
        levels.map(|(_, event)| (event.action.clone(), event.detail.clone())).collect()
    }
}

fn overcommit(percent: u32) -> RuleChanges {
    RuleChanges { overcommit_percent: Some(percent), ..RuleChanges::default() }
}

#[test]
fn a_pool_promises_no_more_than_it_has_unless_it_is_told_to() {
    let mut world = World::new();
    world.pool("p", 100);
    world.volume("a", 60, None).unwrap();
    assert!(matches!(world.volume("b", 60, Some("p")), Err(Refusal::NoRoom { .. })));
    world.rule(overcommit(150)).unwrap();
    world.volume("b", 60, None).unwrap();
    assert!(matches!(world.volume("c", 31, Some("p")), Err(Refusal::NoRoom { free, .. }) if free == ByteSize::mib(30)));
    world.assert_adds_up();
    // What is promised stays promised.
    let pool = world.rule(overcommit(100)).unwrap();
    assert_eq!((pool.free(), pool.status.reserved), (Some(ByteSize::ZERO), ByteSize::mib(120)));
    assert!(world.volume("c", 1, None).is_err());
}

#[test]
fn rules_that_make_no_sense_are_refused_and_those_of_before_change_nothing() {
    let mut world = World::new();
    let made = world.pool("p", 100);
    for nonsense in [overcommit(99), RuleChanges { warn_percent: Some(96), ..RuleChanges::default() }] {
        assert!(matches!(world.rule(nonsense), Err(Refusal::Invalid(_))), "{nonsense:?}");
    }
    assert_eq!(world.rule(overcommit(100)).unwrap(), made);
    let pool = world.rule(overcommit(200)).unwrap();
    assert_eq!(pool.meta.generation, made.meta.generation, "block services have nothing to do about it");
    world.write(|draft| remove_pool(draft, &somebody(), "p")).unwrap();
    assert!(matches!(world.rule(overcommit(300)), Err(Refusal::Removing { .. })));
}

#[test]
fn a_pool_that_is_all_but_full_takes_nothing_new_and_people_are_told_once() {
    let mut world = World::new();
    world.pool("p", 100);
    let volume = world.volume("a", 10, None).unwrap();
    world.make(&volume);
    world.look(79, None);
    world.look(80, None);
    world.look(79, None);
    world.look(81, None);
    assert_eq!(world.told(), [("pool.high".to_owned(), Some("80MiB of 100MiB are used".to_owned()))]);
    world.volume("b", 1, None).unwrap();
    world.look(95, None);
    assert_eq!(world.the_pool().status.level, Level::Full);
    for refusal in [
        world.volume("c", 1, Some("p")).unwrap_err(),
        world.write(|draft| resize_volume(draft, &somebody(), "a", ByteSize::mib(11), false)).unwrap_err(),
        world.snapshots(&[("a", "s")]).unwrap_err(),
    ] {
        assert!(matches!(refusal, Refusal::PoolFull { percent: 95, .. }), "{refusal}");
    }
    assert!(matches!(world.volume("c", 1, None), Err(Refusal::NoRoomAnywhere { .. })));
    world.look(40, None);
    world.volume("c", 1, None).unwrap();
    let levels: Vec<String> = world.told().into_iter().map(|(action, _)| action).collect();
    assert_eq!(levels, ["pool.high", "pool.full", "pool.ok"]);
    world.assert_adds_up();
}

#[test]
fn other_thresholds_hold_at_once() {
    let mut world = World::new();
    world.pool("p", 100);
    world.look(50, None);
    let lower = RuleChanges { warn_percent: Some(30), refuse_percent: Some(50), ..RuleChanges::default() };
    assert_eq!(world.rule(lower).unwrap().status.level, Level::Full);
    assert!(matches!(world.volume("a", 1, Some("p")), Err(Refusal::PoolFull { percent: 50, .. })));
}

#[test]
fn metadata_is_promised_and_watched_like_data() {
    let mut world = World::new();
    world.pool("p", 100);
    // Room for 512 chunks of 64 KiB: 32 MiB.
    let metadata = |used: u64| PoolMetadata {
        capacity: ByteSize::bytes(512 * PoolMetadata::OF_A_CHUNK),
        used: ByteSize::bytes(used * 512 * PoolMetadata::OF_A_CHUNK / 100),
        chunk: ByteSize::bytes(64 << 10),
    };
    world.look(10, Some(metadata(10)));
    assert!(matches!(world.volume("a", 33, Some("p")), Err(Refusal::NoRoom { free, .. }) if free == ByteSize::mib(32)));
    world.volume("a", 32, None).unwrap();
    world.assert_adds_up();
    world.look(10, Some(metadata(76)));
    assert_eq!(world.the_pool().status.level, Level::Full, "from here on LVM makes nothing new");
    assert!(world.told()[0].1.as_ref().unwrap().contains("of its metadata"));
    let refusal = world.volume("b", 1, Some("p")).unwrap_err();
    assert!(matches!(refusal, Refusal::PoolMetadataFull { .. }), "{refusal}");
    let higher = RuleChanges { refuse_percent: Some(100), ..RuleChanges::default() };
    assert_eq!(world.rule(higher).unwrap().status.level, Level::Full, "whatever the rules say");
}

#[test]
fn a_volume_shrinks_only_where_that_is_allowed_and_nobody_is_attached_and_not_twice_at_once() {
    let mut world = World::new();
    world.pool("p", 100);
    let volume = world.volume("v", 60, None).unwrap();
    world.make(&volume);
    let resize = |world: &mut World, mib: u64, allow: bool| {
        world.write(|draft| resize_volume(draft, &somebody(), "v", ByteSize::mib(mib), allow))
    };
    let refusal = resize(&mut world, 20, false).unwrap_err();
    assert!(refusal.to_string().contains("--allow-shrink"), "{refusal}");
    let shrunk = resize(&mut world, 20, true).unwrap();
    assert_eq!((shrunk.spec.size, shrunk.spec.shrunk), (ByteSize::mib(20), Some(shrunk.meta.generation)));
    world.assert_adds_up();
    // Growth that overtakes the cut would show again what it is to take away.
    assert!(matches!(resize(&mut world, 80, true), Err(Refusal::Precondition(_))));
    world.make(&shrunk);
    assert_eq!(resize(&mut world, 80, false).unwrap().spec.size, ByteSize::mib(80));
    world.assert_adds_up();
}
