//! Orphans and losses against a naive disk: nothing that is assigned, or not there any more, is ever touched.

use super::*;
use std::collections::BTreeMap;

/// What is on the service's disks, whoever it belongs to.
type Disk = BTreeMap<VolumeId, InventoryVolume>;

impl World {
    fn sight(&self, disk: &Disk, snapshots: &[InventorySnapshot]) -> Sighting {
        let service = self.view.get::<Service>(service_id()).unwrap();
        let inventory =
            Inventory { pools: Vec::new(), volumes: disk.values().cloned().collect(), snapshots: snapshots.to_vec() };
        Sighting::before(&self.view, service).answered(inventory)
    }

    fn close(&mut self, kind: Kind, reference: &str) -> Result<(), Refusal> {
        while self.write(|draft| close_lost(draft, &somebody(), kind, reference))? {}
        Ok(())
    }

    /// The service dies, its volume is given up for lost, and it comes back.
    fn lose(&mut self, name: &str) {
        self.fall_silent();
        self.close(Kind::Volume, name).unwrap();
        self.admit();
    }

    fn adopt(&mut self, sighting: &Sighting, id: VolumeId, adoption: &Adoption) -> Result<Adopted, Refusal> {
        self.write(|draft| adopt_volume(draft, &somebody(), sighting, id, adoption))
    }

    fn purge(&mut self, sighting: &Sighting, id: OrphanId, shown: u64) -> Result<Object, Refusal> {
        self.write(|draft| purge_orphan(draft, &somebody(), sighting, id, Generation::new(shown)))
    }
}

fn on_disk(volume: &Volume) -> InventoryVolume {
    InventoryVolume {
        name: volume.meta.name.to_string(),
        size: volume.spec.size,
        generation: volume.meta.generation,
        ..InventoryVolume::bare(volume.meta.id, volume.status.placement[0].pool)
    }
}

fn renaming() -> Adoption {
    Adoption { rename: true, ..Adoption::default() }
}

/// A world with one volume on disk that was closed, its sighting and its id.
fn with_orphan() -> (World, Disk, VolumeId) {
    let mut world = World::new();
    world.pool("p", 100);
    let volume = world.volume("v", 8, None).unwrap();
    world.make(&volume);
    let disk = Disk::from([(volume.meta.id, on_disk(&volume))]);
    world.lose("v");
    (world, disk, volume.meta.id)
}

#[test]
fn a_volume_is_closed_only_while_its_service_is_silent_and_comes_back_as_it_was() {
    let mut world = World::new();
    world.pool("p", 100);
    let volume = world.volume("v", 8, None).unwrap();
    world.make(&volume);
    let refusal = world.close(Kind::Volume, "v").unwrap_err();
    assert!(refusal.to_string().contains("is connected"), "{refusal}");
    world.lose("v");
    assert!(world.view.volumes.is_empty());
    world.assert_adds_up();
    let id = volume.meta.id;
    let sighting = world.sight(&Disk::from([(id, on_disk(&volume))]), &[]);
    let found = orphans(&world.view, &sighting);
    assert_eq!((found.len(), found[0].id, &found[0].standing), (1, OrphanId::Volume(id), &OrphanStanding::Whole));
    assert_eq!((found[0].origin, found[0].pool_name.as_str()), (OrphanOrigin::InPool, "p"));
    let adopted = world.adopt(&sighting, id, &Adoption::default()).unwrap();
    let again = world.view.get::<Volume>(id).unwrap();
    assert_eq!(adopted.objects, [Object::Volume(again.clone())]);
    assert_eq!((again.meta.generation, again.spec.size), (volume.meta.generation, volume.spec.size));
    assert!(
        VolumeAssignment::of(again, service_id()).unwrap().made,
        "a loss of its bytes must not look like a fresh start"
    );
    assert!(orphans(&world.view, &sighting).is_empty());
    world.assert_adds_up();
}

#[test]
fn what_was_told_and_never_reached_the_disk_is_overtaken() {
    let (mut world, mut disk, id) = with_orphan();
    disk.get_mut(&id).unwrap().told = Generation::new(9);
    let sighting = world.sight(&disk, &[]);
    world.adopt(&sighting, id, &Adoption::default()).unwrap();
    assert_eq!(world.view.get::<Volume>(id).unwrap().meta.generation, Generation::new(10));
}

#[test]
fn a_name_that_is_taken_is_said_or_replaced() {
    let (mut world, disk, id) = with_orphan();
    world.volume("v", 1, None).unwrap();
    let sighting = world.sight(&disk, &[]);
    assert!(matches!(world.adopt(&sighting, id, &Adoption::default()), Err(Refusal::NameTaken { .. })));
    let adopted = world.adopt(&sighting, id, &renaming()).unwrap();
    let name = &world.view.get::<Volume>(id).unwrap().meta.name;
    assert!(name.as_str().starts_with("v-") && adopted.remarks[0].contains(name.as_str()), "{adopted:?}");
    world.assert_adds_up();
}

#[test]
fn what_is_damaged_half_made_or_not_as_shown_is_not_touched() {
    let (mut world, disk, id) = with_orphan();
    let mut refused = |change: &dyn Fn(&mut InventoryVolume), adoption: &Adoption, words: &str| {
        let mut disk = disk.clone();
        change(disk.get_mut(&id).unwrap());
        let sighting = world.sight(&disk, &[]);
        let refusal = world.adopt(&sighting, id, adoption).unwrap_err().to_string();
        assert!(refusal.contains(words), "{refusal}");
    };
    let any = Adoption::default();
    refused(&|volume| volume.damage = Some("too short".into()), &any, "too short");
    refused(&|volume| volume.unfinished = true, &any, "never came to be");
    refused(&|volume| volume.size = ByteSize::bytes(5), &any, "multiple of 512");
    refused(&|volume| volume.name = "../etc".into(), &any, "--name");
    refused(&|volume| volume.pool = PoolId::from_bytes([77; 16]), &any, "its pool");
    let shown = Adoption { shown: Some(Generation::new(5)), ..any };
    refused(&|_| {}, &shown, "as it was shown");
    let sighting = world.sight(&disk, &[]);
    let refusal = world.purge(&sighting, OrphanId::Volume(id), 5).unwrap_err();
    assert!(refusal.to_string().contains("as it was shown"), "{refusal}");
}

#[test]
fn a_purge_sets_a_tombstone_that_only_its_service_s_word_ends_and_is_the_same_when_repeated() {
    let (mut world, disk, id) = with_orphan();
    let sighting = world.sight(&disk, &[]);
    let shown = disk[&id].generation.as_u64();
    let Object::Volume(purged) = world.purge(&sighting, OrphanId::Volume(id), shown).unwrap() else {
        panic!("a volume")
    };
    assert!(purged.meta.is_removed() && purged.meta.generation > disk[&id].generation);
    world.assert_adds_up();
    let assigned = &world.view.assignments(service_id()).volumes[&id];
    assert!(assigned.removed && assigned.generation == purged.meta.generation);
    let again = world.sight(&disk, &[]);
    assert_eq!(world.purge(&again, OrphanId::Volume(id), shown).unwrap(), Object::Volume(purged.clone()));
    assert!(world.adopt(&again, id, &renaming()).unwrap_err().to_string().contains("no orphan"));
    world.report_gone(&purged);
    assert!(world.view.volumes.is_empty());
    world.assert_adds_up();
}

#[test]
fn a_snapshot_that_is_adopted_is_promised_the_room_that_it_has() {
    let mut world = World::new();
    let pool = world.on_devices("thick", Driver::Lvm, 400).meta.id;
    let volume = world.volume("v", 100, Some("thick")).unwrap();
    world.make(&volume);
    let (id, disk) = (volume.meta.id, Disk::from([(volume.meta.id, on_disk(&volume))]));
    world.lose("v");
    let snapshot = |number: u8, room: Option<ByteSize>| InventorySnapshot {
        id: SnapshotId::from_bytes([100 + number; 16]),
        pool,
        volume: id,
        name: format!("s{number}"),
        size: ByteSize::mib(100),
        at: NOW,
        told: Generation::default(),
        data: None,
        room,
        damage: None,
    };
    // The second one is told by a block service that does not say how much it has.
    let sighting = world.sight(&disk, &[snapshot(1, Some(ByteSize::mib(12))), snapshot(2, None)]);
    world.adopt(&sighting, id, &Adoption::default()).unwrap();
    let room = |number: u8| {
        let held = world.view.get::<Snapshot>(SnapshotId::from_bytes([100 + number; 16])).unwrap();
        (held.status.room.unwrap(), held.status.promised)
    };
    assert_eq!(room(1), (ByteSize::mib(12), ByteSize::mib(12)));
    assert_eq!(room(2).0, crate::model::room_of(None, ByteSize::mib(100), ByteSize::mib(4)));
    world.assert_adds_up();
}

#[test]
fn snapshots_come_back_with_their_volume_and_go_before_it() {
    let (mut world, disk, id) = with_orphan();
    let snapshot = |number: u8| InventorySnapshot {
        id: SnapshotId::from_bytes([100 + number; 16]),
        pool: disk[&id].pool,
        volume: id,
        name: format!("s{number}"),
        size: ByteSize::mib(8),
        at: Timestamp::from_millis(5),
        told: Generation::default(),
        data: None,
        room: None,
        damage: (number == 2).then(|| "bent".to_owned()),
    };
    let past = [snapshot(1), snapshot(2)];
    let sighting = world.sight(&disk, &past);
    let refusal = world.purge(&sighting, OrphanId::Volume(id), disk[&id].generation.as_u64()).unwrap_err();
    assert!(refusal.to_string().contains("has snapshots"), "{refusal}");
    let alone = |draft: &mut Draft<'_>| adopt_snapshot(draft, &somebody(), &sighting, past[0].id, &Adoption::default());
    let refusal = world.write(alone).unwrap_err();
    assert!(refusal.to_string().contains("is an orphan, too"), "{refusal}");
    let adopted = world.adopt(&sighting, id, &Adoption::default()).unwrap();
    assert_eq!((adopted.objects.len(), adopted.remarks.len()), (2, 1), "{adopted:?}");
    let back = world.view.get::<Snapshot>(past[0].id).unwrap();
    assert_eq!((back.spec.volume, back.status.taken_at), (id, Some(Timestamp::from_millis(5))));
    world.assert_adds_up();
    // The damaged one can only be destroyed.
    let sighting = world.sight(&disk, &past);
    let Object::Snapshot(purged) = world.purge(&sighting, OrphanId::Snapshot(past[1].id), 0).unwrap() else {
        panic!("a snapshot")
    };
    assert!(purged.meta.is_removed());
    world.assert_adds_up();
}

#[test]
fn a_pool_of_another_cluster_is_adopted_with_a_word_of_whose_it_was() {
    let mut world = World::new();
    let id = PoolId::from_bytes([50; 16]);
    let cluster = ClusterId::from_bytes([9; 16]);
    let driver = Driver::File { path: "/lost".into(), limit: None };
    let place = PoolPlace { cluster, name: "lost".into(), driver: driver.clone() };
    let pool = InventoryPool { id, told: Generation::new(3), place: Some(place), failure: None };
    let volume = InventoryVolume {
        name: "v".into(),
        size: ByteSize::mib(4),
        generation: Generation::new(2),
        ..InventoryVolume::bare(VolumeId::from_bytes([51; 16]), id)
    };
    let service = world.view.get::<Service>(service_id()).unwrap().clone();
    let inventory = Inventory { pools: vec![pool], volumes: vec![volume.clone()], snapshots: Vec::new() };
    let mut sighting = Sighting::before(&world.view, &service).answered(inventory);
    let found = orphans(&world.view, &sighting);
    assert!(found.iter().all(|orphan| orphan.origin == OrphanOrigin::Cluster(cluster)), "{found:?}");
    let adopted = world.write(|draft| adopt_pool(draft, &somebody(), &sighting, id, &Adoption::default())).unwrap();
    let assigned = PoolAssignment::from(&adopted.pool);
    assert_eq!((assigned.formerly, assigned.made, assigned.generation), (Some(cluster), true, Generation::new(4)));
    assert!(sighting.follow(&world.view, &adopted.pool));
    let (all, done) = world.write(|draft| adopt_some(draft, &somebody(), &sighting, id, &[volume.id])).unwrap();
    assert_eq!((all.objects.len(), done), (1, 1));
    assert!(!sighting.follow(&world.view, &adopted.pool), "somebody has written it since");
    // Its place is taken by now.
    let other = InventoryPool {
        id: PoolId::from_bytes([60; 16]),
        told: Generation::default(),
        place: Some(PoolPlace { cluster, name: "other".into(), driver }),
        failure: None,
    };
    let inventory = Inventory { pools: vec![other.clone()], ..Inventory::default() };
    let sighting = Sighting::before(&world.view, &service).answered(inventory);
    let refusal = world.write(|draft| adopt_pool(draft, &somebody(), &sighting, other.id, &renaming())).unwrap_err();
    assert!(refusal.to_string().contains("/lost"), "{refusal}");
}

#[test]
fn many_volumes_with_many_snapshots_are_adopted_in_parts_that_fit_into_transactions() {
    let mut world = World::new();
    let pool = world.pool("p", 1000);
    let mut disk = Disk::new();
    let mut past = Vec::new();
    for number in 0..60u8 {
        let id = VolumeId::from_bytes([number; 16]);
        let name = format!("v{number}");
        let size = ByteSize::mib(1);
        disk.insert(
            id,
            InventoryVolume { name, size, generation: Generation::FIRST, ..InventoryVolume::bare(id, pool.meta.id) },
        );
        for of_it in 0..number % 4 {
            past.push(InventorySnapshot {
                id: SnapshotId::from_bytes(std::array::from_fn(|place| if place == 0 { of_it + 1 } else { number })),
                pool: pool.meta.id,
                volume: id,
                name: format!("s{number}-{of_it}"),
                size,
                at: NOW,
                told: Generation::default(),
                data: None,
                room: None,
                damage: None,
            });
        }
    }
    let mut sighting = world.sight(&disk, &past);
    let mut rest: Vec<VolumeId> = disk.keys().copied().collect();
    while !rest.is_empty() {
        let (adopted, done) =
            world.write(|draft| adopt_some(draft, &somebody(), &sighting, pool.meta.id, &rest)).unwrap();
        assert!(done > 0 && adopted.remarks.is_empty(), "{adopted:?}");
        rest.drain(..done);
        assert!(sighting.follow(&world.view, &adopted.pool));
    }
    assert_eq!((world.view.volumes.len(), world.view.snapshots.len()), (60, past.len()));
    world.assert_adds_up();
}

#[test]
fn a_service_that_is_drained_is_given_nothing_new_and_a_dead_one_is_not_drained() {
    let mut world = World::new();
    world.pool("p", 100);
    world.volume("v", 1, None).unwrap();
    let drain = |world: &mut World, undo| {
        world.write(|draft| drain_service(draft, &somebody(), &service_id().to_string(), undo))
    };
    drain(&mut world, false).unwrap();
    assert!(matches!(world.volume("w", 1, None), Err(Refusal::NoRoomAnywhere { .. })));
    assert!(world.volume("w", 1, Some("p")).unwrap_err().to_string().contains("being drained"));
    let draft = Draft::new(&world.view, NOW, first_event(world.view.revision));
    let left: Vec<String> = remnants(&draft, service_id()).into_iter().map(|remnant| remnant.name).collect();
    assert_eq!(left, ["v", "p"]);
    let revision = world.view.revision;
    drain(&mut world, false).unwrap();
    assert_eq!(world.view.events_after(None, 99).iter().filter(|(place, _)| place.0 > revision).count(), 0);
    drain(&mut world, true).unwrap();
    world.volume("w", 1, Some("p")).unwrap();
    world.fall_silent();
    assert!(drain(&mut world, false).unwrap_err().to_string().contains("--lost"));
}

#[derive(Clone, Debug)]
enum Deed {
    Create(usize),
    Lose(usize),
    Look,
    /// Of a look, so many back, and a volume.
    Adopt(usize, usize),
    Purge(usize, usize),
    /// The service destroys what has a tombstone.
    Destroy,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        (0usize..3).prop_map(Deed::Create),
        (0usize..3).prop_map(Deed::Lose),
        Just(Deed::Look),
        (0usize..3, 0usize..3).prop_map(|(back, which)| Deed::Adopt(back, which)),
        (0usize..3, 0usize..3).prop_map(|(back, which)| Deed::Purge(back, which)),
        Just(Deed::Destroy),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn by_however_old_a_look_nothing_is_adopted_or_purged_that_is_assigned_or_gone(deeds in prop::collection::vec(deed(), 1..40)) {
        let mut world = World::new();
        world.pool("p", 1000);
        let (mut disk, mut ids) = (Disk::new(), [None::<VolumeId>; 3]);
        let mut looks = vec![world.sight(&disk, &[])];
        for deed in deeds {
            match deed {
                Deed::Create(which) => {
                    let known = ids[which].is_some_and(|id| disk.contains_key(&id));
                    if !known && let Ok(volume) = world.volume(&format!("v{which}"), 1, None) {
                        world.make(&volume);
                        disk.insert(volume.meta.id, on_disk(&volume));
                        ids[which] = Some(volume.meta.id);
                    }
                }
                Deed::Lose(which) => {
                    let held = ids[which].filter(|id| world.view.get::<Volume>(*id).is_some());
                    if let Some(id) = held {
                        world.lose(&id.to_string());
                    }
                }
                Deed::Look => looks.push(world.sight(&disk, &[])),
                Deed::Adopt(back, which) => {
                    let look = looks[looks.len().saturating_sub(1 + back)].clone();
                    let Some(id) = ids[which] else { continue };
                    let owned = world.view.get::<Volume>(id).is_some();
                    if world.adopt(&look, id, &renaming()).is_ok() {
                        prop_assert!(!owned, "it was assigned");
                        prop_assert!(disk.contains_key(&id), "it was gone");
                    }
                }
                Deed::Purge(back, which) => {
                    let look = looks[looks.len().saturating_sub(1 + back)].clone();
                    let Some(id) = ids[which] else { continue };
                    let living = world.view.get::<Volume>(id).is_some_and(|volume| !volume.meta.is_removed());
                    let shown = look.inventory.volumes.iter().find(|it| it.id == id).map_or(0, |it| it.generation.as_u64());
                    if world.purge(&look, OrphanId::Volume(id), shown).is_ok() {
                        prop_assert!(!living, "it was assigned");
                        prop_assert!(disk.contains_key(&id), "it was gone");
                    }
                }
                Deed::Destroy => {
                    let buried: Vec<Volume> =
                        world.view.volumes_of(service_id()).filter(|volume| volume.meta.is_removed()).cloned().collect();
                    for volume in buried {
                        disk.remove(&volume.meta.id);
                        world.report_gone(&volume);
                    }
                }
            }
            world.assert_adds_up();
            for volume in world.view.volumes.values().filter(|volume| !volume.value.meta.is_removed()) {
                prop_assert!(disk.contains_key(&volume.value.meta.id), "a volume of the cluster lost its bytes");
            }
        }
    }
}
