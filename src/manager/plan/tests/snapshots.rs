//! Snapshots, copies, and volumes that are put back.

use super::*;

impl World {
    /// The volume is there now.
    pub(super) fn make(&mut self, volume: &Volume) {
        let served = ServedVolume { size: volume.spec.size, exports: Vec::new() };
        let (id, generation) = (volume.meta.id, volume.meta.generation);
        let report = VolumeReport { id, generation, volume: Observed::Known(served), progress: None, failure: None };
        self.write(|draft| take_reports(draft, service_id(), session_id(), &[Report::Volume(report.clone())])).unwrap();
    }

    fn made(&mut self, name: &str, mib: u64) -> Volume {
        let volume = self.volume(name, mib, None).unwrap();
        self.make(&volume);
        volume
    }

    pub(super) fn snapshots(&mut self, wanted: &[(&str, &str)]) -> Result<Vec<Snapshot>, Refusal> {
        let mut all = Vec::new();
        for (volume, name) in wanted {
            let id = SnapshotId::from_bytes(self.id());
            all.push(WantedSnapshot { id, name: name.parse().unwrap(), volume: (*volume).to_owned() });
        }
        self.write(|draft| create_snapshots(draft, &somebody(), &all, None))
    }

    pub(super) fn report_snapshot(&mut self, snapshot: &Snapshot, seen: Observed<TakenSnapshot>) {
        let generation = self.view.get::<Snapshot>(snapshot.meta.id).unwrap().meta.generation;
        let (id, spoilt) = (snapshot.meta.id, false);
        let report = SnapshotReport { id, generation, snapshot: seen, spoilt, progress: None, failure: None };
        let reports = [Report::Snapshot(report)];
        self.write(|draft| take_reports(draft, service_id(), session_id(), &reports)).unwrap();
    }

    fn taken(&mut self, volume: &str, name: &str) -> Snapshot {
        let snapshot = self.snapshots(&[(volume, name)]).unwrap().remove(0);
        self.report_snapshot(
            &snapshot,
            Observed::Known(TakenSnapshot { size: snapshot.status.promised, at: NOW, fill: None }),
        );
        snapshot
    }

    pub(super) fn copy(&mut self, name: &str, size: Option<u64>, origin: Origin) -> Result<Volume, Refusal> {
        let id = VolumeId::from_bytes(self.id());
        let name = name.parse().unwrap();
        let wanted = WantedVolume { size: size.map(ByteSize::mib), pool: None, origin: Some(origin) };
        self.write(|draft| create_volume(draft, &somebody(), id, &name, &wanted))
    }
}

fn of_snapshot(name: &str) -> Origin {
    Origin::Snapshot(name.to_owned())
}

#[test]
fn a_snapshot_promises_its_volume_s_size_and_gives_it_back_when_it_is_gone() {
    let mut world = World::new();
    world.pool("p", 20);
    world.made("v", 8);
    let snapshot = world.taken("v", "s");
    world.assert_adds_up();
    assert!(matches!(world.snapshots(&[("v", "t")]), Err(Refusal::NoRoom { .. })));
    assert!(matches!(world.snapshots(&[("v", "s")]), Err(Refusal::NameTaken { .. })));
    world.write(|draft| remove_snapshot(draft, &somebody(), "s", None)).unwrap();
    assert!(matches!(world.copy("c", None, of_snapshot("s")), Err(Refusal::Removing { .. })));
    world.report_snapshot(&snapshot, Observed::Absent);
    world.assert_adds_up();
    assert!(world.view.snapshots.is_empty());
    world.taken("v", "s");
}

#[test]
fn a_volume_with_snapshots_or_copies_under_way_is_not_removed_and_they_are_named() {
    let mut world = World::new();
    world.pool("p", 100);
    let volume = world.made("v", 8);
    let snapshot = world.taken("v", "s");
    let remove = |world: &mut World| world.write(|draft| remove_volume(draft, &somebody(), "v", None));
    let refused = remove(&mut world).unwrap_err().to_string();
    assert!(refused.contains("snapshots 's'"), "{refused}");
    world.write(|draft| remove_snapshot(draft, &somebody(), "s", None)).unwrap();
    world.report_snapshot(&snapshot, Observed::Absent);
    let copy = world.copy("c", None, Origin::Volume("v".into())).unwrap();
    assert_eq!(copy.spec.size, volume.spec.size);
    let refused = remove(&mut world).unwrap_err().to_string();
    assert!(refused.contains("copied for 'c'"), "{refused}");
    world.make(&copy);
    remove(&mut world).unwrap();
    world.assert_adds_up();
}

#[test]
fn a_snapshot_stays_until_its_copies_are_made_and_then_may_go_before_them() {
    let mut world = World::new();
    world.pool("p", 100);
    world.made("v", 8);
    world.taken("v", "s");
    let copy = world.copy("c", Some(10), of_snapshot("s")).unwrap();
    let refused = world.write(|draft| remove_snapshot(draft, &somebody(), "s", None)).unwrap_err().to_string();
    assert!(refused.contains("for volume 'c'"), "{refused}");
    world.make(&copy);
    world.write(|draft| remove_snapshot(draft, &somebody(), "s", None)).unwrap();
    world.assert_adds_up();
}

#[test]
fn a_copy_is_made_beside_its_origin_and_never_smaller() {
    let mut world = World::new();
    let pool = world.pool("p", 100);
    world.made("v", 8);
    world.pool("roomier", 1000);
    assert!(world.snapshots(&[("nobody", "s")]).is_err());
    world.taken("v", "s");
    assert!(world.copy("c", None, of_snapshot("s")).unwrap().is_in(pool.meta.id));
    let refused = world.copy("d", Some(7), of_snapshot("s")).unwrap_err().to_string();
    assert!(refused.contains("needs 8MiB at least"), "{refused}");
    let id = VolumeId::from_bytes(world.id());
    let elsewhere = WantedVolume { size: None, pool: Some("roomier".into()), origin: Some(of_snapshot("s")) };
    let name: Name = "e".parse().unwrap();
    let refused = world.write(|draft| create_volume(draft, &somebody(), id, &name, &elsewhere)).unwrap_err();
    assert!(refused.to_string().contains("is not in pool 'roomier'"), "{refused}");
    world.assert_adds_up();
}

#[test]
fn a_copy_and_what_it_is_a_copy_of_keep_their_sizes_until_it_is_made() {
    let mut world = World::new();
    world.pool("p", 100);
    world.made("v", 8);
    world.taken("v", "s");
    let resized = |world: &mut World, name: &str, size| {
        world.write(|draft| resize_volume(draft, &somebody(), name, ByteSize::mib(size), true))
    };
    let copy = world.copy("of-s", None, of_snapshot("s")).unwrap();
    let refused = resized(&mut world, "of-s", 4).unwrap_err().to_string();
    assert!(refused.contains("'of-s' is still being copied"), "{refused}");
    let grown = resized(&mut world, "of-s", 9).unwrap();
    assert_eq!(grown.meta.id, copy.meta.id);
    world.make(&grown);
    resized(&mut world, "of-s", 4).unwrap();

    let copy = world.copy("of-v", None, Origin::Volume("v".into())).unwrap();
    for size in [4, 9] {
        let refused = resized(&mut world, "v", size).unwrap_err().to_string();
        assert!(refused.contains("'v' is still being copied for 'of-v'"), "{refused}");
    }
    let refused = world.write(|draft| revert_volume(draft, &somebody(), "v", "s")).unwrap_err().to_string();
    assert!(refused.contains("revert it once they are ready"), "{refused}");
    world.make(&copy);
    let grows = resized(&mut world, "v", 9).unwrap();
    let refused = world.copy("small", Some(8), Origin::Volume("v".into())).unwrap_err().to_string();
    assert!(refused.contains("needs 9MiB at least"), "{refused}");
    world.make(&grows);
    resized(&mut world, "v", 4).unwrap();
    let copy = world.copy("safe", None, Origin::Volume("v".into())).unwrap();
    assert_eq!(copy.spec.size, ByteSize::mib(9), "it shrinks, and is not smaller yet");
    world.assert_adds_up();
}

#[test]
fn snapshots_of_several_volumes_are_made_all_or_none() {
    let mut world = World::new();
    world.pool("p", 100);
    world.made("a", 8);
    world.made("b", 8);
    assert!(world.snapshots(&[("a", "s"), ("b", "s")]).is_err(), "one name for two");
    assert!(world.snapshots(&[("a", "s"), ("a", "t")]).is_err(), "one volume twice");
    assert!(world.snapshots(&[]).is_err());
    let pending = world.volume("c", 8, None).unwrap();
    assert!(world.snapshots(&[("a", "s"), ("c", "t")]).is_err(), "one has no bytes yet");
    assert!(world.view.snapshots.is_empty());
    world.make(&pending);
    let both = world.snapshots(&[("a", "s"), ("c", "t")]).unwrap();
    assert!(both.iter().all(|snapshot| snapshot.spec.set.len() == 2));
    world.assert_adds_up();
}

#[test]
fn a_volume_is_put_back_only_to_a_snapshot_of_its_own_and_of_its_size() {
    let mut world = World::new();
    world.pool("p", 100);
    let volume = world.made("v", 8);
    world.made("w", 8);
    let snapshot = world.taken("v", "s");
    let revert = |world: &mut World, volume: &str| {
        let volume = volume.to_owned();
        world.write(move |draft| revert_volume(draft, &somebody(), &volume, "s"))
    };
    let refused = revert(&mut world, "w").unwrap_err().to_string();
    assert!(refused.contains("one of volume 'v'"), "{refused}");
    let back = revert(&mut world, "v").unwrap();
    assert_eq!(back.spec.revert, Some(Revert { to: snapshot.meta.id, since: volume.meta.generation.next() }));
    assert!(world.write(|draft| remove_snapshot(draft, &somebody(), "s", None)).is_err(), "it is being copied from");
    world.make(&back);
    let grown = world.write(|draft| resize_volume(draft, &somebody(), "v", ByteSize::mib(9), false)).unwrap();
    world.make(&grown);
    let refused = revert(&mut world, "v").unwrap_err().to_string();
    assert!(refused.contains("--from-snapshot s"), "{refused}");
    world.write(|draft| remove_snapshot(draft, &somebody(), "s", None)).unwrap();
}

#[test]
fn a_lost_service_s_snapshots_are_closed_with_it() {
    let mut world = World::new();
    world.pool("p", 2000);
    for number in 0..30 {
        world.made(&format!("v{number}"), 8);
        world.taken(&format!("v{number}"), &format!("s{number}"));
    }
    world.fall_silent();
    let mut rounds = 0;
    while world.write(|draft| remove_service(draft, &somebody(), service_id(), true)).unwrap().is_none() {
        world.assert_adds_up();
        rounds += 1;
        assert!(rounds < 10);
    }
    assert!(world.view.snapshots.is_empty() && world.view.volumes.is_empty() && world.view.names.is_empty());
}
