//! Pools of the LVM drivers: what LVM takes is what is promised, and how full things become is told.

use super::*;
use crate::model::{Fill, Room, room_of};

const EXTENT: ByteSize = ByteSize::mib(4);

impl World {
    pub(super) fn on_devices(&mut self, name: &str, driver: fn(Devices) -> Driver, mib: u64) -> Pool {
        let id = PoolId::from_bytes(self.id());
        let driver = driver(Devices { devices: vec![format!("/dev/{name}").into()], ..Devices::default() });
        let name = name.parse().unwrap();
        let rules = RuleChanges::default();
        let pool = self.write(|draft| create_pool(draft, &somebody(), id, &name, None, &driver, rules)).unwrap();
        let extent = matches!(driver, Driver::Lvm(_)).then_some(EXTENT);
        let capacity = PoolCapacity { capacity: ByteSize::mib(mib), copies: true, extent, ..PoolCapacity::default() };
        self.look_at(&pool, capacity);
        self.view.get::<Pool>(id).unwrap().clone()
    }

    fn look_at(&mut self, pool: &Pool, capacity: PoolCapacity) {
        let (id, generation) = (pool.meta.id, self.view.get::<Pool>(pool.meta.id).unwrap().meta.generation);
        let report = Report::Pool(PoolReport { id, generation, capacity: Observed::Known(capacity), failure: None });
        self.write(|draft| take_reports(draft, service_id(), session_id(), std::slice::from_ref(&report))).unwrap();
    }

    fn snapshot(&mut self, volume: &str, name: &str, room: Option<Room>) -> Result<Snapshot, Refusal> {
        let (id, volume) = (SnapshotId::from_bytes(self.id()), volume.to_owned());
        let wanted = [WantedSnapshot { id, name: name.parse().unwrap(), volume }];
        self.write(|draft| create_snapshots(draft, &somebody(), &wanted, room)).map(|mut made| made.remove(0))
    }

    fn fills(&mut self, snapshot: &Snapshot, used: u64, spoilt: bool) {
        let fill = Some(Fill { room: snapshot.status.room.unwrap(), used: ByteSize::mib(used) });
        let taken = TakenSnapshot { size: ByteSize::mib(100), at: NOW, fill };
        let (id, generation) = (snapshot.meta.id, snapshot.meta.generation);
        let (seen, failure) = match spoilt {
            true => (Observed::Unknown, Some("it is spoilt".to_owned())),
            false => (Observed::Known(taken), None),
        };
        let report = SnapshotReport { id, generation, snapshot: seen, spoilt, progress: None, failure };
        let report = [Report::Snapshot(report)];
        self.write(|draft| take_reports(draft, service_id(), session_id(), &report)).unwrap();
    }

    fn actions(&self, kind: &str) -> Vec<String> {
        let all = self.view.events_after(None, 1000);
        let actions = all.into_iter().map(|(_, event)| event.action.clone());
        actions.filter(|action| action.starts_with(kind) && !action.ends_with(".create")).collect()
    }
}

fn extents(size: ByteSize) -> u64 {
    assert_eq!(size.as_u64() % EXTENT.as_u64(), 0, "{size}");
    size.as_u64() / EXTENT.as_u64()
}

#[test]
fn a_thick_volume_and_its_snapshot_are_promised_what_lvm_takes() {
    let mut world = World::new();
    let pool = world.on_devices("thick", Driver::Lvm, 400);
    let volume = world.volume("v", 101, Some("thick")).unwrap();
    assert_eq!(extents(volume.promised()), 26);
    world.make(&volume);
    let asked = world.snapshot("v", "s", Some(Room::Size(ByteSize::mib(9)))).unwrap();
    assert_eq!((asked.status.room, asked.status.promised), (Some(ByteSize::mib(12)), ByteSize::mib(12)));
    assert_eq!(asked.spec.room, Some(Room::Size(ByteSize::mib(9))), "the user's words stay");
    let usual = world.snapshot("v", "t", None).unwrap();
    assert_eq!(usual.status.promised, room_of(None, ByteSize::mib(104), EXTENT));
    let share = world.snapshot("v", "u", Some(Room::Percent(50))).unwrap();
    assert_eq!(extents(share.status.promised), 13);
    world.assert_adds_up();
    let error = world.snapshot("v", "w", None).map(|_| ());
    assert!(matches!(error, Ok(()) | Err(Refusal::NoRoom { .. })));
    world.report_snapshot(&asked, Observed::Absent);
    world.assert_adds_up();
    let all = world.view.assignments(pool.spec.service);
    let assigned = &all.snapshots[&share.meta.id];
    assert_eq!(assigned.room, share.status.room, "the block service is told what was promised");
}

#[test]
fn room_is_refused_where_snapshots_have_none_of_their_own_and_where_it_makes_no_sense() {
    let mut world = World::new();
    world.pool("files", 100);
    world.on_devices("thin", Driver::LvmThin, 100);
    world.on_devices("thick", Driver::Lvm, 100);
    for pool in ["files", "thin", "thick"] {
        let volume = world.volume(&format!("v-{pool}"), 8, Some(pool)).unwrap();
        world.make(&volume);
    }
    let before = world.view.revision;
    for pool in ["files", "thin"] {
        let refused = world.snapshot(&format!("v-{pool}"), "s", Some(Room::Percent(20))).unwrap_err().to_string();
        assert!(refused.contains("driver lvm") && refused.contains(pool) && refused.contains("20%"), "{refused}");
    }
    for nonsense in [Room::Percent(0), Room::Percent(101), Room::Size(ByteSize::ZERO)] {
        assert!(matches!(world.snapshot("v-thick", "s", Some(nonsense)), Err(Refusal::Invalid(_))), "{nonsense:?}");
    }
    assert_eq!(world.view.revision, before);
    world.snapshot("v-thin", "s", None).unwrap();
}

#[test]
fn a_set_tells_its_block_service_the_room_of_each() {
    let mut world = World::new();
    world.on_devices("thick", Driver::Lvm, 400);
    for (name, mib) in [("a", 8), ("b", 40)] {
        let volume = world.volume(name, mib, None).unwrap();
        world.make(&volume);
    }
    let ids = [world.id(), world.id()].map(SnapshotId::from_bytes);
    let wanted = [("a", ids[0]), ("b", ids[1])].map(|(volume, id)| WantedSnapshot {
        id,
        name: format!("s-{volume}").parse().unwrap(),
        volume: volume.to_owned(),
    });
    let room = Some(Room::Percent(50));
    let made = world.write(|draft| create_snapshots(draft, &somebody(), &wanted, room)).unwrap();
    let rooms: Vec<_> = made[0].spec.set.iter().map(|member| member.room.map(extents)).collect();
    assert_eq!(rooms, [Some(1), Some(5)]);
    world.assert_adds_up();
}

#[test]
fn a_snapshot_that_fills_up_is_told_of_once_a_level_and_a_spoilt_one_stays_spoilt_and_can_only_go() {
    let mut world = World::new();
    world.on_devices("thick", Driver::Lvm, 400);
    let volume = world.volume("v", 100, None).unwrap();
    world.make(&volume);
    let snapshot = world.snapshot("v", "s", Some(Room::Size(ByteSize::mib(40)))).unwrap();
    for used in [1, 31, 32, 33] {
        world.fills(&snapshot, used, false);
    }
    let held = world.view.get::<Snapshot>(snapshot.meta.id).unwrap();
    assert_eq!((held.status.level, held.status.phase), (Level::High, Phase::Ready));
    assert_eq!(world.actions("snapshot."), ["snapshot.high"]);
    world.fills(&snapshot, 40, true);
    world.fills(&snapshot, 40, true);
    assert_eq!(world.actions("snapshot."), ["snapshot.high", "snapshot.spoilt"]);
    let held = world.view.get::<Snapshot>(snapshot.meta.id).unwrap();
    assert!(held.status.spoilt && held.status.phase == Phase::Failed && held.status.message.is_some());
    world.fills(&snapshot, 1, false);
    assert!(world.view.get::<Snapshot>(snapshot.meta.id).unwrap().status.spoilt, "it does not come back");
    let refused = world.copy("c", None, Origin::Snapshot("s".into())).unwrap_err().to_string();
    assert!(refused.contains("is spoilt") && refused.contains("volume 'v'"), "{refused}");
    let refused = world.write(|draft| revert_volume(draft, &somebody(), "v", "s")).unwrap_err().to_string();
    assert!(refused.contains("is spoilt"), "{refused}");
    world.write(|draft| remove_snapshot(draft, &somebody(), "s", None)).unwrap();
    world.assert_adds_up();
}

#[test]
fn what_a_thick_copy_needs_while_it_is_made_is_promised_until_then() {
    let mut world = World::new();
    let pool = world.on_devices("thick", Driver::Lvm, 600);
    let volume = world.volume("v", 100, None).unwrap();
    world.make(&volume);
    let copy = world.copy("c", None, Origin::Volume("v".into())).unwrap();
    assert_eq!(extents(copy.promised()), 25 + extents(room_of(None, ByteSize::mib(100), EXTENT)));
    world.assert_adds_up();
    world.make(&copy);
    let made = world.view.get::<Volume>(copy.meta.id).unwrap();
    assert_eq!(extents(made.promised()), 25);
    world.assert_adds_up();
    assert_eq!(world.view.get::<Pool>(pool.meta.id).unwrap().status.reserved, ByteSize::mib(200));
    let buried = world.copy("d", None, Origin::Volume("v".into())).unwrap();
    let buried = world.write(|draft| remove_volume(draft, &somebody(), buried.meta.name.as_str(), None)).unwrap();
    world.report_gone(&buried);
    assert_eq!(world.view.get::<Pool>(pool.meta.id).unwrap().status.reserved, ByteSize::mib(200));
}

#[test]
fn wiping_is_for_thick_pools_asked_for_in_time_and_can_be_given_up() {
    let mut world = World::new();
    world.pool("files", 100);
    world.on_devices("thin", Driver::LvmThin, 100);
    world.on_devices("thick", Driver::Lvm, 100);
    let remove =
        |world: &mut World, name: &str, wipe| world.write(|draft| remove_volume(draft, &somebody(), name, wipe));
    for pool in ["files", "thin"] {
        let name = format!("v-{pool}");
        world.volume(&name, 8, Some(pool)).unwrap();
        let refused = remove(&mut world, &name, Some(true)).unwrap_err().to_string();
        assert!(refused.contains("--wipe") && refused.contains(pool), "{refused}");
        assert!(!remove(&mut world, &name, Some(false)).unwrap().spec.wipe);
    }
    for name in ["late", "v"] {
        world.volume(name, 8, Some("thick")).unwrap();
    }
    remove(&mut world, "late", None).unwrap();
    let refused = remove(&mut world, "late", Some(true)).unwrap_err().to_string();
    assert!(refused.contains("has begun without"), "{refused}");
    let wiped = remove(&mut world, "v", Some(true)).unwrap();
    assert!(wiped.spec.wipe && wiped.meta.is_removed());
    assert_eq!(remove(&mut world, "v", None).unwrap(), wiped, "it stays as it was asked for");
    assert_eq!(remove(&mut world, "v", Some(true)).unwrap(), wiped);
    let given_up = remove(&mut world, "v", Some(false)).unwrap();
    assert!(!given_up.spec.wipe && given_up.meta.generation > wiped.meta.generation);
    world.report_gone(&wiped);
    assert!(world.view.get::<Volume>(wiped.meta.id).is_some(), "a report of before says nothing of it");
    world.report_gone(&given_up);
    world.assert_adds_up();
}

#[test]
fn a_snapshot_is_wiped_in_thick_pools_where_that_is_asked_for_in_time_and_it_can_be_given_up() {
    let mut world = World::new();
    world.pool("files", 100);
    world.on_devices("thin", Driver::LvmThin, 100);
    world.on_devices("thick", Driver::Lvm, 100);
    let remove =
        |world: &mut World, name: &str, wipe| world.write(|draft| remove_snapshot(draft, &somebody(), name, wipe));
    for pool in ["files", "thin", "thick"] {
        let volume = world.volume(&format!("v-{pool}"), 8, Some(pool)).unwrap();
        world.make(&volume);
    }
    for pool in ["files", "thin"] {
        let name = format!("s-{pool}");
        world.snapshot(&format!("v-{pool}"), &name, None).unwrap();
        let refused = remove(&mut world, &name, Some(true)).unwrap_err().to_string();
        assert!(refused.contains("--wipe") && refused.contains(&format!("'{pool}'")), "{refused}");
        assert!(!remove(&mut world, &name, Some(false)).unwrap().spec.wipe);
    }
    for name in ["late", "s"] {
        world.snapshot("v-thick", name, None).unwrap();
    }
    remove(&mut world, "late", None).unwrap();
    let refused = remove(&mut world, "late", Some(true)).unwrap_err().to_string();
    assert!(refused.contains("has begun without"), "{refused}");
    let wiped = remove(&mut world, "s", Some(true)).unwrap();
    assert!(wiped.spec.wipe && wiped.meta.is_removed());
    assert_eq!(remove(&mut world, "s", None).unwrap(), wiped, "it stays as it was asked for");
    assert_eq!(remove(&mut world, "s", Some(true)).unwrap(), wiped);
    let refused = world.write(|draft| remove_volume(draft, &somebody(), "v-thick", None)).unwrap_err().to_string();
    assert!(refused.contains("has snapshots"), "{refused}");
    let half = Some(Progress { done: ByteSize::mib(4), of: ByteSize::mib(8) });
    let tell = |world: &mut World, of: &Snapshot, snapshot, progress, failure: Option<&str>| {
        let (id, generation, spoilt) = (of.meta.id, of.meta.generation, false);
        let failure = failure.map(str::to_owned);
        let report = [Report::Snapshot(SnapshotReport { id, generation, snapshot, spoilt, progress, failure })];
        world.write(|draft| take_reports(draft, service_id(), session_id(), &report)).unwrap();
        world.view.get::<Snapshot>(id).map(|snapshot| snapshot.status.clone())
    };
    let status = tell(&mut world, &wiped, Observed::Unknown, half, None).unwrap();
    assert_eq!((status.phase, status.progress), (Phase::Removing, half));
    let status = tell(&mut world, &wiped, Observed::Unknown, half, Some("cannot wipe: Input/output error")).unwrap();
    assert!(status.message.is_some_and(|why| why.contains("Input/output")));
    let given_up = remove(&mut world, "s", Some(false)).unwrap();
    assert!(!given_up.spec.wipe && given_up.meta.generation > wiped.meta.generation);
    assert_eq!((&given_up.status.message, given_up.status.progress), (&None, None));
    assert_eq!(remove(&mut world, "s", Some(false)).unwrap(), given_up);
    assert!(tell(&mut world, &wiped, Observed::Absent, None, None).is_some(), "a report of before says nothing of it");
    assert_eq!(tell(&mut world, &given_up, Observed::Absent, None, None), None);
    world.assert_adds_up();
}

#[test]
fn a_snapshot_that_is_needed_is_not_wiped_and_giving_up_waits_for_nobody() {
    let mut world = World::new();
    world.on_devices("thick", Driver::Lvm, 400);
    let volume = world.volume("v", 8, None).unwrap();
    world.make(&volume);
    let snapshot = world.snapshot("v", "s", None).unwrap();
    let taken = TakenSnapshot { size: ByteSize::mib(8), at: NOW, fill: None };
    world.report_snapshot(&snapshot, Observed::Known(taken));
    let remove = |world: &mut World, wipe| world.write(|draft| remove_snapshot(draft, &somebody(), "s", Some(wipe)));
    let back = world.write(|draft| revert_volume(draft, &somebody(), "v", "s")).unwrap();
    let refused = remove(&mut world, true).unwrap_err().to_string();
    assert!(refused.contains("for volume 'v'"), "{refused}");
    world.make(&back);
    let copy = world.copy("c", None, Origin::Snapshot("s".into())).unwrap();
    let refused = remove(&mut world, true).unwrap_err().to_string();
    assert!(refused.contains("for volume 'c'"), "{refused}");
    world.make(&copy);
    assert!(remove(&mut world, true).unwrap().spec.wipe);
    // What was put back to it once is not ready at this moment, for another reason.
    let slower = LimitChanges { iops: Some(Some(50)), ..LimitChanges::default() };
    let busy = world.write(|draft| limit_volume(draft, &somebody(), "v", slower)).unwrap();
    assert_eq!(busy.status.phase, Phase::Pending);
    assert!(!remove(&mut world, false).unwrap().spec.wipe);
    world.report_snapshot(&snapshot, Observed::Absent);
    world.assert_adds_up();
}

#[test]
fn progress_is_shown_as_long_as_something_is_under_way() {
    let mut world = World::new();
    world.on_devices("thick", Driver::Lvm, 100);
    world.volume("v", 8, None).unwrap();
    let buried = world.write(|draft| remove_volume(draft, &somebody(), "v", Some(true))).unwrap();
    let mut tell = |progress, failure: Option<&str>| {
        let (id, generation, failure) = (buried.meta.id, buried.meta.generation, failure.map(str::to_owned));
        let report = [Report::Volume(VolumeReport { id, generation, volume: Observed::Unknown, progress, failure })];
        world.write(|draft| take_reports(draft, service_id(), session_id(), &report)).unwrap();
        world.view.get::<Volume>(id).unwrap().status.clone()
    };
    let half = Progress { done: ByteSize::mib(4), of: ByteSize::mib(8) };
    let status = tell(Some(half), None);
    assert_eq!((status.phase, status.progress), (Phase::Removing, Some(half)));
    let status = tell(None, Some("cannot wipe: Input/output error"));
    assert_eq!((status.phase, status.progress), (Phase::Removing, None));
    assert!(status.message.is_some_and(|why| why.contains("Input/output")));
}

#[test]
fn a_ceiling_is_a_thin_pool_s_and_is_not_below_what_it_has() {
    let mut world = World::new();
    world.pool("files", 100);
    world.on_devices("thick", Driver::Lvm, 100);
    let thin = world.on_devices("thin", Driver::LvmThin, 100);
    let set = |world: &mut World, name: &str, mib: Option<u64>| {
        let ceiling = Some(mib.map(ByteSize::mib));
        world.write(|draft| set_pool(draft, &somebody(), name, RuleChanges::default(), ceiling))
    };
    for pool in ["files", "thick"] {
        let refused = set(&mut world, pool, Some(200)).unwrap_err().to_string();
        assert!(refused.contains("lvm-thin") && refused.contains(pool), "{refused}");
    }
    let refused = set(&mut world, "thin", Some(99)).unwrap_err().to_string();
    assert!(refused.contains("do not shrink") && refused.contains("100MiB"), "{refused}");
    assert!(matches!(set(&mut world, "thin", Some(0)), Err(Refusal::Precondition(_))));
    let pool = set(&mut world, "thin", Some(500)).unwrap();
    assert_eq!((pool.meta.generation, pool.status.phase), (Generation::FIRST.next(), Phase::Pending));
    assert_eq!(set(&mut world, "thin", Some(500)).unwrap(), pool);
    let sized = |size, capacity| PoolCapacity {
        capacity: ByteSize::mib(capacity),
        copies: true,
        size: Some(ByteSize::mib(size)),
        ..PoolCapacity::default()
    };
    world.look_at(&thin, sized(100, 500));
    assert!(world.actions("pool.autoextend").is_empty(), "nobody knew how large it was before");
    for size in [120, 120, 144] {
        world.look_at(&thin, sized(size, 500));
    }
    assert_eq!(world.actions("pool.autoextend"), ["pool.autoextend", "pool.autoextend"]);
    assert_eq!(world.view.get::<Pool>(thin.meta.id).unwrap().free(), Some(ByteSize::mib(500)), "what it can become");
    assert!(set(&mut world, "thin", Some(143)).is_err());
    set(&mut world, "thin", Some(144)).unwrap();
    set(&mut world, "thin", None).unwrap();
}

#[derive(Clone, Debug)]
enum Deed {
    Volume(u8, u64),
    Resize(u8, u64),
    Snapshot(u8, u8, Option<Room>),
    Gone(u8),
    SnapshotGone(u8),
}

fn deed() -> impl Strategy<Value = Deed> {
    let room = proptest::option::of(prop_oneof![
        (1u32..=100).prop_map(Room::Percent),
        (1u64..200 << 20).prop_map(|bytes| Room::Size(ByteSize::bytes(bytes))),
    ]);
    prop_oneof![
        3 => (0u8..4, 1u64..400_000).prop_map(|(name, sectors)| Deed::Volume(name, sectors * 512)),
        1 => (0u8..4, 1u64..400_000).prop_map(|(name, sectors)| Deed::Resize(name, sectors * 512)),
        3 => (0u8..4, 0u8..6, room).prop_map(|(volume, name, room)| Deed::Snapshot(volume, name, room)),
        1 => (0u8..4).prop_map(Deed::Gone),
        1 => (0u8..6).prop_map(Deed::SnapshotGone),
    ]
}

proptest! {
    #[test]
    fn whatever_a_thick_pool_promises_lvm_has(deeds in prop::collection::vec(deed(), 0..40)) {
        const EXTENTS: u64 = 100;
        let mut world = World::new();
        world.on_devices("thick", Driver::Lvm, EXTENTS * 4);
        for deed in deeds {
            // Refusals are part of life here.
            let _refused = match deed {
                Deed::Volume(name, bytes) => {
                    let (id, name) = (VolumeId::from_bytes(world.id()), format!("v{name}").parse().unwrap());
                    let wanted = WantedVolume { size: Some(ByteSize::bytes(bytes)), ..WantedVolume::default() };
                    let made = world.write(|draft| create_volume(draft, &somebody(), id, &name, &wanted));
                    made.as_ref().map(|volume| world.make(volume)).is_err()
                }
                Deed::Resize(name, bytes) => {
                    let (name, size) = (format!("v{name}"), ByteSize::bytes(bytes));
                    let grown = world.write(|draft| resize_volume(draft, &somebody(), &name, size, false));
                    grown.as_ref().map(|volume| world.make(volume)).is_err()
                }
                Deed::Snapshot(volume, name, room) => {
                    world.snapshot(&format!("v{volume}"), &format!("s{name}"), room).is_err()
                }
                Deed::Gone(name) => {
                    let gone = world.write(|draft| remove_volume(draft, &somebody(), &format!("v{name}"), None));
                    gone.as_ref().map(|volume| world.report_gone(volume)).is_err()
                }
                Deed::SnapshotGone(name) => {
                    let gone = world.write(|draft| remove_snapshot(draft, &somebody(), &format!("s{name}"), None));
                    gone.as_ref().map(|snapshot| world.report_snapshot(snapshot, Observed::Absent)).is_err()
                }
            };
            world.assert_adds_up();
            // What LVM takes, extent by extent.
            let volumes = world.view.volumes.values().map(|held| held.value.spec.size.as_u64().div_ceil(EXTENT.as_u64()));
            let rooms = world.view.snapshots.values().map(|held| extents(held.value.status.room.unwrap()));
            let taken: u64 = volumes.chain(rooms).sum();
            prop_assert!(taken <= EXTENTS, "{taken} of {EXTENTS}");
            let reserved = world.view.pools.values().next().unwrap().value.status.reserved;
            prop_assert_eq!(extents(reserved), taken);
        }
    }
}
