//! Moves among block services that act when they like on what they were told last, crash, and are told late: at each instant
//! one of them serves a name at most, and what the state calls by a name holds every byte that was written under it.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

const SITES: u8 = 3;
const NAMES: u8 = 3;

/// A volume on a site's disks.
#[derive(Clone, Debug)]
struct Disk {
    /// Which volume's bytes they are, whatever it is called and wherever it went.
    label: u32,
    writes: Vec<u32>,
    /// Under which name clients reach it.
    served: Option<Name>,
    /// It lets its copy read it.
    readable: bool,
}

#[derive(Debug, Default)]
struct Site {
    running: bool,
    told: AssignmentSet,
    disks: BTreeMap<VolumeId, Disk>,
    outbox: Vec<Report>,
}

struct Fleet {
    world: World,
    sites: Vec<Site>,
    /// What was written and acknowledged, by label.
    written: BTreeMap<u32, Vec<u32>>,
    /// Volumes with clients that nobody may cut off.
    busy: BTreeSet<Name>,
    count: u32,
    next_id: u128,
}

#[derive(Clone, Debug)]
enum Deed {
    Create(u8, u8),
    Move(u8, u8),
    Cancel(u8),
    Remove(u8),
    Drain(u8),
    Undrain(u8),
    Tell(u8),
    Act(u8),
    Say(u8),
    Lead(u8),
    Empty(u8),
    Crash(u8),
    Start(u8),
    Write(u8),
    Busy(u8),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let (site, name) = (0..SITES, 0..NAMES);
    let deed = prop_oneof![
        2 => (name.clone(), site.clone()).prop_map(|(name, site)| Deed::Create(name, site)),
        4 => (name.clone(), site.clone()).prop_map(|(name, site)| Deed::Move(name, site)),
        1 => name.clone().prop_map(Deed::Cancel),
        1 => name.clone().prop_map(Deed::Remove),
        1 => site.clone().prop_map(Deed::Drain),
        1 => site.clone().prop_map(Deed::Undrain),
        8 => site.clone().prop_map(Deed::Tell),
        8 => site.clone().prop_map(Deed::Act),
        8 => site.clone().prop_map(Deed::Say),
        8 => any::<u8>().prop_map(Deed::Lead),
        2 => site.clone().prop_map(Deed::Empty),
        1 => site.clone().prop_map(Deed::Crash),
        2 => site.prop_map(Deed::Start),
        6 => name.clone().prop_map(Deed::Write),
        1 => name.prop_map(Deed::Busy),
    ];
    prop::collection::vec(deed, 0..160)
}

fn name_of(number: u8) -> String {
    format!("v{number}")
}

impl Fleet {
    fn new() -> Self {
        let sites = (0..SITES).map(|_| Site { running: true, ..Site::default() }).collect();
        let (written, busy) = (BTreeMap::new(), BTreeSet::new());
        Self { world: World::of_sites(SITES, 40), sites, written, busy, count: 0, next_id: 1 << 100 }
    }

    fn volume_id(&mut self) -> VolumeId {
        self.next_id += 1;
        VolumeId::from_bytes(self.next_id.to_be_bytes())
    }

    fn site(&mut self, number: u8) -> &mut Site {
        &mut self.sites[usize::from(number)]
    }

    fn serving(&self, name: &str) -> Vec<(usize, VolumeId)> {
        let running = self.sites.iter().enumerate().filter(|(_, site)| site.running);
        let disks = running.flat_map(|(number, site)| site.disks.iter().map(move |(id, disk)| (number, id, disk)));
        let serving = disks.filter(|(_, _, disk)| disk.served.as_ref().is_some_and(|served| served.as_str() == name));
        serving.map(|(number, id, _)| (number, *id)).collect()
    }

    fn do_one(&mut self, deed: &Deed) {
        let label = self.count;
        match *deed {
            // Refusals are part of life here; what is checked is what they leave behind.
            Deed::Create(name, site) => {
                let (id, pool) = (self.volume_id(), format!("p{}", site + 1));
                let name: Name = name_of(name).parse().unwrap();
                let made =
                    self.world.write(|draft| create_volume(draft, &somebody(), id, &name, &wanted(3, Some(&pool))));
                if made.is_ok() {
                    self.busy.remove(&name);
                }
            }
            Deed::Move(name, site) => {
                let (copy, pool, name) = (self.volume_id(), format!("p{}", site + 1), name_of(name));
                self.world.write(|draft| move_volume(draft, &somebody(), &name, &pool, copy)).map_or_else(drop, drop);
            }
            Deed::Cancel(name) => {
                let name = name_of(name);
                self.world.write(|draft| cancel_move(draft, &somebody(), &name)).map_or_else(drop, drop);
            }
            Deed::Remove(name) => {
                let name = name_of(name);
                self.world.write(|draft| remove_volume(draft, &somebody(), &name, None)).map_or_else(drop, drop);
            }
            Deed::Drain(number) | Deed::Undrain(number) => {
                let (id, undo) = (site(number + 1).to_string(), matches!(deed, Deed::Undrain(_)));
                self.world.write(|draft| drain_service(draft, &somebody(), &id, undo)).unwrap();
            }
            Deed::Tell(number) => {
                let assigned = self.world.view.assignments(site(number + 1));
                let refused = self.site(number).told.replace(assigned);
                assert_eq!(refused, Vec::<String>::new());
            }
            Deed::Act(number) => self.act(number, label),
            Deed::Say(number) => {
                for report in std::mem::take(&mut self.site(number).outbox) {
                    self.world.report_at(number + 1, &report);
                }
            }
            Deed::Lead(place) => {
                let due = due_moves(&self.world.view);
                if let Some(end) = due.get(usize::from(place) % due.len().max(1)).copied() {
                    self.world.write(|draft| advance_move(draft, &somebody(), end)).unwrap();
                }
            }
            Deed::Empty(number) => {
                let copy = self.volume_id();
                self.world.write(|draft| empty_one(draft, &somebody(), site(number + 1), copy)).unwrap();
            }
            Deed::Crash(number) => {
                let crashed = self.site(number);
                crashed.running = false;
                crashed.outbox.clear();
                crashed.disks.values_mut().for_each(|disk| (disk.served, disk.readable) = (None, false));
            }
            Deed::Start(number) => self.site(number).running = true,
            Deed::Write(name) => {
                if let [(number, id)] = self.serving(&name_of(name))[..] {
                    self.count += 1;
                    let write = self.count;
                    let disk = self.sites[number].disks.get_mut(&id).unwrap();
                    disk.writes.push(write);
                    self.written.entry(disk.label).or_default().push(write);
                }
            }
            Deed::Busy(name) => {
                let name: Name = name_of(name).parse().unwrap();
                if !self.busy.remove(&name) {
                    self.busy.insert(name);
                }
            }
        }
    }

    /// A site does all that it was told.
    fn act(&mut self, number: u8, label: u32) {
        if !self.site(number).running {
            return;
        }
        let told: Vec<VolumeAssignment> = self.site(number).told.volumes.values().cloned().collect();
        let unassigned: Vec<VolumeId> =
            self.site(number).disks.keys().filter(|id| !told.iter().any(|it| it.id == **id)).copied().collect();
        for id in unassigned {
            let disk = self.site(number).disks.get_mut(&id).unwrap();
            (disk.served, disk.readable) = (None, false);
        }
        // Who leaves a name goes before who takes it.
        let (ends, plain): (Vec<_>, Vec<_>) = told.into_iter().partition(|it| it.removed || it.moving.is_some());
        for (order, volume) in ends.into_iter().chain(plain).enumerate() {
            let seen = self.one(number, &volume, label * 100 + u32::try_from(order).unwrap());
            let (observed, failure) = match seen {
                Ok(observed) => (observed, None),
                Err((observed, why)) => (observed, Some(why)),
            };
            let (id, generation) = (volume.id, volume.generation);
            let report = VolumeReport { id, generation, volume: observed, progress: None, failure };
            self.site(number).outbox.push(Report::Volume(report));
        }
        self.count += 1;
    }

    fn one(
        &mut self,
        number: u8,
        volume: &VolumeAssignment,
        label: u32,
    ) -> Result<Observed<ServedVolume>, (Observed<ServedVolume>, String)> {
        let served = |exports: Vec<Export>| Observed::Known(ServedVolume { size: volume.size, exports });
        let exports = || vec![Export { protocol: Protocol::Nbd, uri: format!("nbd://{number}/{}", volume.name) }];
        let lost = || (Observed::Unknown, "it is missing".to_owned());
        if volume.removed {
            self.site(number).disks.remove(&volume.id);
            return Ok(Observed::Absent);
        }
        match volume.moving.as_deref() {
            Some(Moving::Arriving { supply, .. }) => {
                let there = self.site(number).disks.contains_key(&volume.id);
                if !there && volume.made {
                    return Err(lost());
                }
                if !there {
                    let from = (1..=SITES).find(|number| site(*number) == supply.service).unwrap() - 1;
                    let source = self.site(from);
                    let disk = source.disks.get(&supply.volume).filter(|disk| disk.readable && source.running);
                    let disk = disk.cloned().ok_or((Observed::Unknown, "nothing to read".to_owned()))?;
                    assert_eq!(disk.served, None, "it is copied while somebody may write to it");
                    let copy = Disk { served: None, readable: false, ..disk };
                    self.site(number).disks.insert(volume.id, copy);
                }
                self.site(number).told.mark_made(volume.id.into());
                Ok(served(Vec::new()))
            }
            Some(Moving::Leaving { .. } | Moving::Left { .. }) => {
                let busy = self.busy.contains(&volume.name);
                let readable = matches!(volume.moving.as_deref(), Some(Moving::Leaving { .. }));
                let disk = self.site(number).disks.get_mut(&volume.id).ok_or_else(lost)?;
                if disk.served.is_some() && busy {
                    return Err((served(exports()), "it is in use".into()));
                }
                (disk.served, disk.readable) = (None, readable);
                Ok(served(Vec::new()))
            }
            None => {
                let there = self.site(number).disks.contains_key(&volume.id);
                if !there && volume.made {
                    return Err(lost());
                }
                let taken =
                    |(id, disk): (&VolumeId, &Disk)| *id != volume.id && disk.served.as_ref() == Some(&volume.name);
                if self.site(number).disks.iter().any(taken) {
                    return Err((Observed::Unknown, "the name is taken".into()));
                }
                if !there {
                    let disk = Disk { label, writes: Vec::new(), served: None, readable: false };
                    self.site(number).disks.insert(volume.id, disk);
                    self.written.insert(label, Vec::new());
                }
                let disk = self.site(number).disks.get_mut(&volume.id).unwrap();
                (disk.served, disk.readable) = (Some(volume.name.clone()), false);
                self.site(number).told.mark_made(volume.id.into());
                Ok(served(exports()))
            }
        }
    }

    fn assert_safe(&self) {
        self.world.assert_sound();
        for number in 0..NAMES {
            let name = name_of(number);
            let serving = self.serving(&name);
            // A name that is free again may be taken while a removed volume of that name is on its way out.
            assert!(serving.len() <= 1, "'{name}' is served by {serving:?}");
            let Some(id) = resolve::<Volume>(&self.world.view, &name) else { continue };
            let volume = self.world.by_id(id);
            if volume.status.size.is_none() || volume.meta.is_removed() {
                continue;
            }
            let home = (1..=SITES).find(|number| volume.is_on(site(*number))).unwrap() - 1;
            let disk = self.sites[usize::from(home)].disks.get(&id);
            let disk = disk.unwrap_or_else(|| panic!("'{name}' has no bytes where the state says that it is"));
            assert_eq!(disk.writes, self.written[&disk.label], "'{name}' lacks what was written");
        }
    }

    /// Everything runs, nobody is busy, and everybody does what there is to do, until nothing is left to do.
    fn settle(&mut self) {
        self.busy.clear();
        let mut rounds = 0;
        loop {
            let before = self.world.view.revision;
            for number in 0..SITES {
                for deed in
                    [Deed::Start(number), Deed::Tell(number), Deed::Act(number), Deed::Say(number), Deed::Empty(number)]
                {
                    self.do_one(&deed);
                }
            }
            self.world.lead();
            self.assert_safe();
            if self.world.view.revision == before {
                break;
            }
            rounds += 1;
            assert!(rounds < 100, "it does not come to rest");
        }
        let moving = self.world.view.volumes.values().filter(|volume| volume.value.spec.moving.is_some());
        let moving: Vec<&Volume> = moving.map(|volume| &*volume.value).collect();
        assert_eq!(moving, Vec::<&Volume>::new(), "moves that never end");
        for service in draining(&self.world.view) {
            let alive = |pool: &Pool| {
                let home = self.world.view.get::<Service>(pool.spec.service);
                home.is_some_and(|home| home.spec.draining.is_none())
            };
            let room = self.world.view.pools.values().any(|pool| alive(&pool.value));
            assert!(!room || self.world.view.volumes_of(service).next().is_none(), "a drain that does not end");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_name_is_served_once_and_keeps_every_byte_however_its_volume_is_moved(deeds in deeds()) {
        let mut fleet = Fleet::new();
        for deed in &deeds {
            fleet.do_one(deed);
            fleet.assert_safe();
        }
        fleet.settle();
    }
}
