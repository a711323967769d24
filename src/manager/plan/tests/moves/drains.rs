//! Services that are emptied: what leaves by itself, where to, what stays, and how that is called off.

use super::*;

impl World {
    fn drain(&mut self, number: u8, undo: bool) {
        let id = site(number).to_string();
        self.write(|draft| drain_service(draft, &somebody(), &id, undo)).unwrap();
    }

    /// The leader lets as much leave as it will now; how much that was.
    fn empty(&mut self, number: u8) -> usize {
        let mut count = 0;
        loop {
            let copy = VolumeId::from_bytes(self.id());
            if !self.write(|draft| empty_one(draft, &somebody(), site(number), copy)).unwrap() {
                return count;
            }
            count += 1;
            assert!(count < 100);
        }
    }

    fn advice(&self, number: u8, name: &str) -> String {
        let draft = Draft::new(&self.view, NOW, first_event(self.view.revision));
        let left = remnants(&draft, site(number));
        left.into_iter().find(|it| it.name == name).map(|it| it.advice).unwrap_or_default()
    }

    /// Every block service does what it was told, until nothing changes any more.
    fn run(&mut self) {
        for _round in 0..20 {
            let ids: Vec<VolumeId> = self.view.volumes.keys().copied().collect();
            for id in ids {
                let Some(volume) = self.view.get::<Volume>(id).cloned() else { continue };
                let waits =
                    volume.status.placement.iter().all(|it| VolumeAssignment::of(&volume, it.service).is_none());
                match volume.meta.is_removed() {
                    true => self.reached_gone(id),
                    false if !waits => drop(self.reached(id)),
                    false => {}
                }
            }
            self.lead();
        }
    }
}

#[test]
fn volumes_that_nobody_uses_leave_a_few_at_a_time_and_the_others_say_why_not() {
    let mut world = World::of_sites(2, 100);
    for index in 0..7 {
        world.served(&format!("v{index}"), 1, "p1");
    }
    world.client("web");
    world.attach("v0", "web", false, false).unwrap();
    let wanted =
        WantedSnapshot { id: SnapshotId::from_bytes(world.id()), name: "monday".parse().unwrap(), volume: "v1".into() };
    world.write(|draft| create_snapshots(draft, &somebody(), std::slice::from_ref(&wanted), None)).unwrap();
    assert_eq!(world.empty(1), 0, "nobody has asked for it");
    world.drain(1, false);
    assert!(world.advice(1, "v2").contains("as soon as its turn comes"), "{}", world.advice(1, "v2"));
    assert_eq!(world.empty(1), 4);
    world.assert_sound();
    assert!(world.advice(1, "v2").contains("being moved to pool 'p2'"), "{}", world.advice(1, "v2"));
    world.run();
    assert_eq!(world.empty(1), 1, "two stay");
    world.run();
    assert_eq!(world.empty(1), 0);
    let left: Vec<String> = world.view.volumes_of(site(1)).map(|volume| volume.meta.name.to_string()).collect();
    assert_eq!(left, ["v0", "v1"]);
    let (held, kept) = (world.advice(1, "v0"), world.advice(1, "v1"));
    assert!(held.contains("attached to 'web'") && held.contains("moved by itself"), "{held}");
    assert!(kept.contains("snapshots 'monday'") && kept.contains("moved by itself"), "{kept}");
    let held = world.detach("v0", "web").unwrap();
    world.report_attachment(&held, Observed::Absent, None);
    assert_eq!(world.empty(1), 1, "it goes as soon as that has changed");
    world.run();
    assert!(world.named_volume("v0").is_on(site(2)));
    world.assert_sound();
}

#[test]
fn a_drain_that_is_called_off_lets_what_has_not_been_moved_stay() {
    let mut world = World::of_sites(2, 100);
    let (one, two) = (world.served("one", 1, "p1"), world.served("two", 1, "p1"));
    world.relocate("two", "p2").unwrap();
    world.drain(1, false);
    assert_eq!(world.empty(1), 1);
    world.drain(1, true);
    assert_eq!(world.named_volume("one").spec.moving, None);
    assert!(world.named_volume("two").successor().is_some(), "somebody has asked for that one by name");
    assert_eq!(world.empty(1), 0);
    world.run();
    assert_eq!(world.named_volume("one").meta.id, one.meta.id);
    assert_ne!(world.named_volume("two").meta.id, two.meta.id);
    world.assert_sound();
}

#[test]
fn where_no_other_service_has_room_a_volume_stays_and_says_so() {
    let mut world = World::of_sites(2, 10);
    world.served("large", 8, "p1");
    world.served("other", 8, "p2");
    world.drain(1, false);
    assert_eq!(world.empty(1), 0);
    let advice = world.advice(1, "large");
    assert!(advice.contains("no pool on another service has 8MiB"), "{advice}");
    world.pool_at(2, "more", 20);
    assert_eq!(world.empty(1), 1);
    world.silence_site(1);
    assert!(draining(&world.view).is_empty(), "nothing leaves a service that does not answer");
    world.assert_sound();
}

#[test]
fn what_a_service_keeps_of_images_is_kept_elsewhere_before_it_goes() {
    let mut world = World::of_sites(2, 100);
    let image = world.whole("i", 8, Some("p1"));
    let base = image.status.bases[0];
    world.drain(1, false);
    assert_eq!(world.empty(1), 1);
    assert_eq!(world.empty(1), 0, "it is on its way");
    assert!(world.advice(1, &format!("image-{base}")).contains("as soon as another service keeps that"));
    let other = world.image("i").status.bases[1];
    assert!(world.view.get::<Volume>(other).unwrap().is_on(site(2)));
    assert!(!world.view.get::<Volume>(base).unwrap().meta.is_removed());
    world.reached(other);
    assert_eq!(world.empty(1), 1);
    assert!(world.view.get::<Volume>(base).unwrap().meta.is_removed());
    world.reached_gone(base);
    assert!(world.image("i").is_whole());
    assert_eq!(world.empty(1), 0);
    world.assert_sound();
}
