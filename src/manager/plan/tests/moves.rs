//! Moves: what is refused, who takes which step, and what becomes of one whose ends are lost.

use super::*;

mod drains;
mod sites;

/// A second block service, and a third.
pub(super) fn site(number: u8) -> ServiceId {
    if number == 1 { service_id() } else { ServiceId::from_bytes([100 + number; 16]) }
}

pub(super) fn session_of(number: u8) -> SessionId {
    if number == 1 { session_id() } else { SessionId::from_bytes([100 + number; 16]) }
}

impl World {
    /// With so many block services, each with a pool `p1`, `p2`… of so many MiB.
    pub(super) fn of_sites(count: u8, mib: u64) -> Self {
        let mut world = Self::new();
        for number in 2..=count {
            let mut service = world.view.get::<Service>(service_id()).unwrap().clone();
            service.meta = Meta::new(site(number), format!("host-{number}").parse().unwrap(), NOW);
            service.status.host_name = format!("host-{number}");
            world.write(|draft| join_service(draft, &somebody(), &service)).unwrap();
            world.admit_site(number);
        }
        for number in 1..=count {
            world.pool_at(number, &format!("p{number}"), mib);
        }
        world
    }

    pub(super) fn admit_site(&mut self, number: u8) {
        let (service, manager) = (site(number), ServiceId::from_bytes([2; 16]));
        let session = Session { id: session_of(number), service, manager, since: NOW };
        let greeting = Greeting {
            service,
            cluster: ClusterId::from_bytes([4; 16]),
            host_name: format!("host-{number}"),
            addresses: Addresses { rpc: Some(format!("host-{number}:1")), nbd: None },
            version: "0".into(),
            mark: Mark::default(),
        };
        self.write(|draft| admit_session(draft, &session, &greeting, LeaseId(1))).unwrap();
    }

    pub(super) fn pool_at(&mut self, number: u8, name: &str, mib: u64) -> PoolId {
        let id = PoolId::from_bytes(self.id());
        let driver = Driver::File { path: format!("/{name}").into(), limit: None };
        let (name, service) = (name.parse().unwrap(), site(number).to_string());
        let rules = RuleChanges::default();
        self.write(|draft| create_pool(draft, &somebody(), id, &name, Some(&service), &driver, rules)).unwrap();
        let capacity = PoolCapacity { capacity: ByteSize::mib(mib), copies: true, ..PoolCapacity::default() };
        let generation = self.view.get::<Pool>(id).unwrap().meta.generation;
        let report = Report::Pool(PoolReport { id, generation, capacity: Observed::Known(capacity), failure: None });
        self.report_at(number, &report);
        id
    }

    pub(super) fn report_at(&mut self, number: u8, report: &Report) {
        let reports = std::slice::from_ref(report);
        self.write(|draft| take_reports(draft, site(number), session_of(number), reports)).unwrap();
    }

    pub(super) fn silence_site(&mut self, number: u8) {
        let revision = Revision(self.view.revision.0 + 1);
        let gone = store::Event::Delete(crate::store::Key::session(site(number)));
        self.view.apply(Batch { revision, events: vec![gone] });
        self.write(|draft| mark_down(draft, &somebody(), site(number))).unwrap();
    }

    pub(super) fn named_volume(&self, name: &str) -> Volume {
        let id = resolve::<Volume>(&self.view, name).unwrap();
        self.view.get::<Volume>(id).unwrap().clone()
    }

    pub(super) fn by_id(&self, id: VolumeId) -> Volume {
        self.view.get::<Volume>(id).unwrap().clone()
    }

    /// Its block service has done what was asked, and serves the volume or, as one end of a move, does not.
    pub(super) fn reached(&mut self, id: VolumeId) -> Volume {
        let volume = self.by_id(id);
        let uri = format!("nbd://host/{}", volume.meta.name);
        let exports = vec![Export { protocol: Protocol::Nbd, uri }];
        let exports = if volume.spec.moving.is_some() { Vec::new() } else { exports };
        self.say(&volume, volume.meta.generation, exports);
        self.by_id(id)
    }

    fn say(&mut self, volume: &Volume, generation: Generation, exports: Vec<Export>) {
        let seen = match volume.meta.is_removed() {
            true => Observed::Absent,
            false => Observed::Known(ServedVolume { size: volume.spec.size, exports }),
        };
        let id = volume.meta.id;
        let report = VolumeReport { id, generation, volume: seen, progress: None, failure: None };
        let service = volume.status.placement[0].service;
        let number = (1..=9).find(|number| site(*number) == service).unwrap();
        self.report_at(number, &Report::Volume(report));
    }

    /// Its block service has destroyed it.
    pub(super) fn reached_gone(&mut self, id: VolumeId) {
        let volume = self.by_id(id);
        assert!(volume.meta.is_removed());
        self.say(&volume, volume.meta.generation, Vec::new());
        assert!(self.view.get::<Volume>(id).is_none());
    }

    /// A volume that is served, in a pool.
    pub(super) fn served(&mut self, name: &str, mib: u64, pool: &str) -> Volume {
        let id = self.volume(name, mib, Some(pool)).unwrap().meta.id;
        self.reached(id)
    }

    pub(super) fn relocate(&mut self, name: &str, pool: &str) -> Result<Volume, Refusal> {
        let copy = VolumeId::from_bytes(self.id());
        self.write(|draft| move_volume(draft, &somebody(), name, pool, copy))
    }

    /// The leader takes every step that is due.
    pub(super) fn lead(&mut self) -> usize {
        let mut steps = 0;
        loop {
            let due = due_moves(&self.view);
            if due.is_empty() {
                return steps;
            }
            for end in due {
                self.write(|draft| advance_move(draft, &somebody(), end)).unwrap();
                steps += 1;
            }
            assert!(steps < 1000, "a step that is due stays due");
        }
    }

    /// Whatever the consistency check would say.
    pub(super) fn assert_sound(&self) {
        let mut findings = crate::manager::check::Findings::default();
        crate::manager::check::check_state(&self.view, &mut findings);
        assert_eq!(findings.faults, Vec::<String>::new());
        self.assert_adds_up();
    }

    /// A move of `v` from `p1` to `p2` of which all bytes have arrived.
    fn arrived() -> (Self, Volume, VolumeId) {
        let mut world = Self::of_sites(2, 100);
        let volume = world.served("v", 8, "p1");
        let copy = world.relocate("v", "p2").unwrap().successor().unwrap();
        world.reached(volume.meta.id);
        assert_eq!(world.lead(), 1);
        world.reached(copy);
        (world, volume, copy)
    }
}

fn refuses<T: std::fmt::Debug>(outcome: Result<T, Refusal>, texts: &[&str]) {
    let refusal = outcome.unwrap_err().to_string();
    assert!(texts.iter().all(|text| refusal.contains(text)), "{refusal}");
}

#[test]
fn a_volume_is_held_then_copied_then_served_anew_and_only_then_its_former_bytes_go() {
    let mut world = World::of_sites(2, 100);
    let limits = LimitChanges { iops: Some(Some(100)), ..LimitChanges::default() };
    world.served("v", 8, "p1");
    let old = world.write(|draft| limit_volume(draft, &somebody(), "v", limits)).unwrap();
    let old = world.reached(old.meta.id);
    let copy = world.relocate("v", "p2").unwrap().successor().unwrap();
    assert!(!world.view.assignments(site(2)).volumes.contains_key(&copy), "nothing is copied of what may be in use");
    assert_eq!(world.lead(), 0);
    world.assert_sound();
    world.reached(old.meta.id);
    assert_eq!(world.lead(), 1);
    let assigned = world.view.assignments(site(2)).volumes[&copy].clone();
    let Some(Moving::Arriving { supply, begun: true }) = assigned.moving.as_deref() else { panic!("{assigned:?}") };
    assert_eq!((supply.volume, supply.address.as_deref()), (old.meta.id, None), "the first service listens nowhere");
    assert_eq!(world.lead(), 0);
    world.reached(copy);
    assert_eq!(world.named_volume("v").meta.id, old.meta.id);
    assert_eq!(world.lead(), 1);
    world.assert_sound();
    let new = world.named_volume("v");
    assert_eq!((new.meta.id, new.status.left, &new.spec.moving), (copy, Some(old.meta.id), &None));
    assert!(
        new.is_on(site(2)) && new.meta.generation > world.by_id(old.meta.id).meta.generation.min(old.meta.generation)
    );
    assert_eq!(
        (new.spec.limits, new.spec.size, new.meta.created_at),
        (old.spec.limits, old.spec.size, old.meta.created_at)
    );
    assert_eq!(new.status.phase, Phase::Pending);
    let left = world.reached(old.meta.id);
    assert!(left.is_hidden() && !left.meta.is_removed(), "it stays until the volume has been served");
    assert_eq!(world.lead(), 0);
    world.reached(copy);
    assert_eq!(world.lead(), 1);
    assert!(world.by_id(old.meta.id).meta.is_removed());
    world.reached_gone(old.meta.id);
    assert_eq!(world.named_volume("v").status.left, None);
    assert_eq!(world.view.volumes.len(), 1);
    world.assert_sound();
}

#[test]
fn what_is_used_or_depended_on_stays_and_says_why() {
    let mut world = World::of_sites(2, 100);
    world.served("v", 8, "p1");
    refuses(world.relocate("v", "nothing"), &["no pool 'nothing'"]);
    refuses(world.relocate("nothing", "p2"), &["no volume 'nothing'"]);
    assert_eq!(world.relocate("v", "p1").unwrap().spec.moving, None, "it is there already");
    world.pool_at(2, "tiny", 1);
    refuses(world.relocate("v", "tiny"), &["tiny", "8MiB"]);
    world.client("web");
    let held = world.attach("v", "web", false, false).unwrap();
    refuses(world.relocate("v", "p2"), &["attached to 'web'", "volume detach v"]);
    let held = world.detach("v", "web").map(|_| held).unwrap();
    refuses(world.relocate("v", "p2"), &["attached to 'web'"]);
    let held = world.view.get::<Attachment>(held.meta.id).unwrap().clone();
    world.report_attachment(&held, Observed::Absent, None);
    let wanted =
        WantedSnapshot { id: SnapshotId::from_bytes(world.id()), name: "monday".parse().unwrap(), volume: "v".into() };
    world.write(|draft| create_snapshots(draft, &somebody(), std::slice::from_ref(&wanted), None)).unwrap();
    refuses(world.relocate("v", "p2"), &["snapshots 'monday'", "snapshot remove"]);
    let fresh = world.volume("fresh", 1, Some("p1")).unwrap();
    refuses(world.relocate("fresh", "p2"), &["'fresh' is not ready"]);
    world.reached(fresh.meta.id);
    let (id, origin) = (VolumeId::from_bytes(world.id()), Some(Origin::Volume("fresh".into())));
    let of_it = WantedVolume { size: None, pool: None, origin };
    world.write(|draft| create_volume(draft, &somebody(), id, &"copy".parse().unwrap(), &of_it)).unwrap();
    refuses(world.relocate("fresh", "p2"), &["still being copied for 'copy'"]);
    let other = world.served("other", 1, "p1");
    world.silence_site(2);
    refuses(world.relocate("other", "p2"), &["'p2' is on block service", "does not answer"]);
    world.write(|draft| remove_volume(draft, &somebody(), "other", None)).unwrap();
    refuses(world.relocate("other", "p2"), &["other", "removed"]);
    world.reached_gone(other.meta.id);
    world.assert_sound();
}

#[test]
fn nothing_else_is_done_to_a_volume_that_is_being_moved() {
    let mut world = World::of_sites(3, 100);
    world.served("v", 8, "p1");
    world.client("web");
    let first = world.relocate("v", "p2").unwrap();
    assert_eq!(world.relocate("v", "p2").unwrap(), first, "repeating it changes nothing");
    let hint = &["'v' is being moved to pool 'p2'", "volume move v --cancel"];
    refuses(world.relocate("v", "p3"), hint);
    refuses(world.attach("v", "web", false, false), hint);
    refuses(world.write(|draft| resize_volume(draft, &somebody(), "v", ByteSize::mib(9), false)), hint);
    let limits = LimitChanges { iops: Some(Some(1)), ..LimitChanges::default() };
    refuses(world.write(|draft| limit_volume(draft, &somebody(), "v", limits)), hint);
    let (id, origin) = (VolumeId::from_bytes(world.id()), Some(Origin::Volume("v".into())));
    let of_it = WantedVolume { size: None, pool: None, origin };
    refuses(world.write(|draft| create_volume(draft, &somebody(), id, &"c".parse().unwrap(), &of_it)), hint);
    let wanted =
        WantedSnapshot { id: SnapshotId::from_bytes([77; 16]), name: "s".parse().unwrap(), volume: "v".into() };
    refuses(world.write(|draft| create_snapshots(draft, &somebody(), std::slice::from_ref(&wanted), None)), hint);
    let copy = first.successor().unwrap().to_string();
    refuses(world.write(|draft| remove_volume(draft, &somebody(), &copy, None)), &["no volume of its own", "'v'"]);
    refuses(world.attach(&copy, "web", false, false), &["no volume of its own"]);
    world.assert_sound();
}

#[test]
fn a_block_service_that_serves_one_end_all_the_same_is_not_believed() {
    let mut world = World::of_sites(2, 100);
    let volume = world.served("v", 8, "p1");
    let copy = world.relocate("v", "p2").unwrap().successor().unwrap();
    let exports = vec![Export { protocol: Protocol::Nbd, uri: "nbd://host/v".into() }];
    let held = world.by_id(volume.meta.id);
    world.say(&held, held.meta.generation, exports.clone());
    assert_eq!(world.lead(), 0, "it may be written to");
    world.say(&held, Generation::new(held.meta.generation.as_u64() - 1), Vec::new());
    assert_eq!(world.lead(), 0, "that speaks of before");
    world.reached(volume.meta.id);
    assert_eq!(world.lead(), 1);
    let begun = world.by_id(copy);
    world.say(&begun, begun.meta.generation, exports);
    assert_eq!(world.lead(), 0, "somebody may have written to it");
}

#[test]
fn a_move_is_called_off_and_no_late_word_of_the_copy_revives_it() {
    let (mut world, volume, copy) = World::arrived();
    let whole = world.by_id(copy);
    assert_eq!(due_moves(&world.view), [copy]);
    let back = world.write(|draft| cancel_move(draft, &somebody(), "v")).unwrap();
    assert_eq!((back.meta.id, &back.spec.moving), (volume.meta.id, &None));
    assert!(world.by_id(copy).meta.is_removed());
    world.say(&whole, whole.meta.generation, Vec::new());
    assert_eq!(world.lead(), 0);
    assert_eq!(world.named_volume("v").meta.id, volume.meta.id);
    world.reached(volume.meta.id);
    world.reached_gone(copy);
    assert_eq!(world.write(|draft| cancel_move(draft, &somebody(), "v")).unwrap().meta.id, volume.meta.id);
    world.relocate("v", "p2").unwrap();
    world.assert_sound();
}

#[test]
fn a_volume_that_is_removed_while_it_is_moved_takes_both_ends_along() {
    for steps in 0..3 {
        let (mut world, volume, copy) = World::arrived();
        if steps > 0 {
            world.lead();
        }
        if steps > 1 {
            refuses(world.write(|draft| cancel_move(draft, &somebody(), "v")), &["has been moved"]);
            refuses(world.relocate("v", "p1"), &["only just been moved"]);
        }
        world.write(|draft| remove_volume(draft, &somebody(), "v", None)).unwrap();
        assert_eq!(world.lead(), 0);
        world.reached_gone(volume.meta.id);
        world.reached_gone(copy);
        assert!(world.view.volumes.is_empty() && world.view.names.len() == 2, "only the pools are left");
        world.assert_sound();
    }
}

#[test]
fn a_lost_end_of_a_move_costs_nothing_that_the_other_end_has() {
    let lose = |world: &mut World, number: u8| {
        world.silence_site(number);
        while world.write(|draft| remove_service(draft, &somebody(), site(number), true)).unwrap().is_none() {}
        world.assert_sound();
    };
    let (mut world, volume, copy) = World::arrived();
    lose(&mut world, 2);
    let stays = world.named_volume("v");
    assert_eq!((stays.meta.id, &stays.spec.moving), (volume.meta.id, &None), "the copy's service is lost");
    assert!(world.view.get::<Volume>(copy).is_none());

    let (mut world, volume, copy) = World::arrived();
    world.lead();
    assert_eq!(world.named_volume("v").meta.id, copy);
    lose(&mut world, 2);
    let stays = world.named_volume("v");
    assert_eq!((stays.meta.id, &stays.spec.moving), (volume.meta.id, &None), "it has not been served there");

    let (mut world, _, copy) = World::arrived();
    lose(&mut world, 1);
    assert!(world.by_id(copy).meta.is_removed(), "what it is a copy of is given up");
    world.reached_gone(copy);
    assert!(world.view.volumes.is_empty());

    let (mut world, _, copy) = World::arrived();
    world.lead();
    lose(&mut world, 1);
    assert_eq!((world.named_volume("v").meta.id, world.named_volume("v").status.left), (copy, None));

    for switched in [false, true] {
        let mut world = World::of_sites(1, 100);
        world.pool_at(1, "beside", 100);
        let volume = world.served("v", 8, "p1");
        let copy = world.relocate("v", "beside").unwrap().successor().unwrap();
        if switched {
            world.reached(volume.meta.id);
            world.lead();
            world.reached(copy);
            world.lead();
            assert_eq!(world.named_volume("v").meta.id, copy);
        }
        lose(&mut world, 1);
        assert!(world.view.volumes.is_empty() && world.view.names.is_empty());
    }
}

#[test]
fn a_state_that_was_put_back_in_the_middle_of_a_move_believes_neither_copy_nor_report() {
    for number in [1, 2] {
        let (mut world, volume, copy) = World::arrived();
        let epoch = Epoch::FIRST.next();
        while has_to_carry(&world.view, site(number), epoch) {
            world.write(|draft| carry_over(draft, site(number), epoch, "because")).unwrap();
        }
        let stays = world.named_volume("v");
        assert_eq!((stays.meta.id, &stays.spec.moving), (volume.meta.id, &None));
        assert!(world.view.get::<Volume>(copy).is_none(), "an orphan: it may be more than a copy by now");
        assert_eq!(world.lead(), 0);
        world.assert_sound();
    }
}
