//! One seed's world: who there is, what can happen next, and what must be true whatever happens.

use super::disk::{Buried, News, Violation};
use super::host::Host;
use super::manager::{LEASE, Manager, Now, Says};
use super::moving::Moves;
use super::store::{Store, Time};
use super::{Planted, operator, record};
use crate::manager::inside::{Draft, Findings, Refusal, View, check_state, create_pool, join_service};
use crate::model::*;
use crate::session::{Downward, ServiceEvent, Step, Upward};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

pub(super) const MANAGERS: usize = 3;
pub(super) const HOSTS: usize = 2;
/// Things that happen before everything is healed.
const EVENTS: usize = 1500;
/// How long a healed world may take to come to rest, in its own milliseconds.
const REST: Time = 240_000;

/// One session's stream, in both directions and in order.
#[derive(Default)]
struct Link {
    manager: usize,
    up: VecDeque<Upward>,
    down: VecDeque<Downward>,
    /// What a planted bug has lost from it applied to this.
    gap: Option<Step>,
}

pub struct World {
    pub(super) random: fastrand::Rng,
    pub(super) planted: Planted,
    began: Instant,
    time: Time,
    pub(super) next: u128,
    pub(super) store: Store,
    pub(super) managers: Vec<Manager>,
    pub(super) hosts: Vec<Host>,
    links: BTreeMap<usize, Link>,
    /// Nothing gets through between these managers and hosts.
    parted: BTreeSet<(usize, usize)>,
    full: BTreeSet<usize>,
    /// What has had a tombstone, and every write that clients had acknowledged.
    pub(super) buried: Buried,
    pub(super) written: BTreeMap<VolumeId, u64>,
    /// What volumes came into being with that are copies, and what is in each snapshot.
    pub(super) born: BTreeMap<VolumeId, u64>,
    pub(super) kept: BTreeMap<SnapshotId, u64>,
    /// Volumes that were put back, and under which generations.
    pub(super) put_back: BTreeSet<(VolumeId, Generation)>,
    /// Of all volumes together, so that no two have the same bytes.
    writes: u64,
    /// Attachments that ended by the word of their service.
    pub(super) closed: BTreeSet<AttachmentId>,
    /// Services that were taken out, and the volumes on their disks then.
    pub(super) orphans: BTreeMap<ServiceId, BTreeSet<VolumeId>>,
    pub(super) drained: usize,
    pub(super) moves: Moves,
    checked: usize,
    /// What a manager would see that never lags.
    pub(super) truth: View,
}

pub(super) fn somebody() -> Author {
    Author { who: "local root".into(), origin: "the control socket".into() }
}

fn cluster() -> ClusterId {
    ClusterId::from_bytes([4; 16])
}

impl World {
    pub fn new(seed: u64, planted: Planted) -> Self {
        let id = |kind: u8, place: usize| ServiceId::from_bytes([kind + place as u8; 16]);
        let mut world = Self {
            random: fastrand::Rng::with_seed(seed),
            planted,
            began: Instant::now(),
            time: 0,
            next: 0,
            store: Store::new(planted == Planted::BlindStore),
            managers: (0..MANAGERS).map(|place| Manager::new(id(0x10, place), planted)).collect(),
            hosts: (0..HOSTS).map(|place| Host::new(id(0x20, place), planted)).collect(),
            links: BTreeMap::new(),
            parted: BTreeSet::new(),
            full: BTreeSet::new(),
            buried: Buried::default(),
            written: BTreeMap::new(),
            born: BTreeMap::new(),
            kept: BTreeMap::new(),
            put_back: BTreeSet::new(),
            writes: 0,
            closed: BTreeSet::new(),
            orphans: BTreeMap::new(),
            drained: 0,
            moves: Moves::default(),
            checked: 0,
            truth: View::default(),
        };
        for manager in &mut world.managers {
            manager.start(&world.store);
        }
        for client in operator::clients() {
            world
                .write(0, |draft| {
                    draft.claim(Kind::Client, &client.meta.name, client.meta.id)?;
                    draft.put(client.clone());
                    Ok(())
                })
                .ok();
        }
        for place in 0..HOSTS {
            world.hosts[place].start();
            let service = record(world.hosts[place].id, place);
            world.write(0, |draft| join_service(draft, &somebody(), &service)).ok();
            let (name, driver) = (format!("p{place}"), Driver::File { path: format!("/p{place}").into(), limit: None });
            let (id, name) = (PoolId::from_bytes([0x30 + place as u8; 16]), name.parse::<Name>().expect("a name"));
            let on = service.meta.id.to_string();
            world
                .write(0, |draft| create_pool(draft, &somebody(), id, &name, Some(&on), &driver, Default::default()))
                .ok();
        }
        world
    }

    fn instant(&self) -> Instant {
        self.began + Duration::from_millis(self.time)
    }

    /// A manager, and what it needs of the world.
    fn with_manager<T>(&mut self, place: usize, act: impl FnOnce(&mut Manager, &mut Now<'_>) -> T) -> T {
        let instant = self.instant();
        let mut now = Now { store: &mut self.store, time: self.time, instant, next: &mut self.next };
        act(&mut self.managers[place], &mut now)
    }

    pub(super) fn write<T>(
        &mut self,
        place: usize,
        plan: impl FnMut(&mut Draft<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let (outcome, says) = self.with_manager(place, |manager, now| manager.write(now, plan));
        self.post(place, says);
        outcome
    }

    /// Puts what a manager says on the links that lead from it.
    fn post(&mut self, manager: usize, says: Says) {
        for (service, message) in says {
            let host = self.hosts.iter().position(|host| host.id == service);
            if let Some(link) = host.and_then(|host| self.links.get_mut(&host)).filter(|link| link.manager == manager) {
                link.down.push_back(message);
            }
        }
    }

    fn post_up(&mut self, host: usize, says: Vec<Upward>) {
        if let Some(link) = self.links.get_mut(&host) {
            link.up.extend(says);
        }
    }

    fn is_through(&self, host: usize) -> bool {
        self.links
            .get(&host)
            .is_some_and(|link| self.managers[link.manager].is_up && !self.parted.contains(&(link.manager, host)))
    }

    /// A whole life: everything at random, then healed, then at rest.
    ///
    /// # Errors
    /// What was true that must not be.
    pub fn live(&mut self) -> Result<(), Violation> {
        // Faults come upon a world that works.
        while self.unrest().is_some() && self.time < REST {
            self.go_on()?;
            self.look()?;
        }
        for _ in 0..EVENTS {
            self.happen()?;
            self.look()?;
        }
        self.heal();
        let healed = self.time;
        while self.unrest().is_some() && self.time < healed + REST {
            self.go_on()?;
            self.look()?;
        }
        self.unrest().map_or(Ok(()), |why| Err(format!("it does not come to rest: {why}")))
    }

    /// What was committed, and when it was over.
    pub fn story(&self) -> (Time, String) {
        (self.time, format!("{:?}", self.store.log))
    }

    fn happen(&mut self) -> Result<(), Violation> {
        self.time += self.random.u64(0..20);
        self.store.expire(self.time);
        let (manager, host) = (self.random.usize(..MANAGERS), self.random.usize(..HOSTS));
        match self.random.u32(..1000) {
            0..330 => self.deliver_some(host)?,
            330..560 => self.work_some(host)?,
            560..660 => self.see(manager),
            660..760 => self.ask(manager),
            760..830 => self.serve_client(host),
            830..900 => self.tick(manager, host),
            900..950 => self.dial(host),
            950..970 => self.lead(manager),
            970..973 => self.time += self.random.u64(..2 * LEASE),
            _ => self.hurt(manager, host)?,
        }
        Ok(())
    }

    /// One fault, or the end of one.
    fn hurt(&mut self, manager: usize, host: usize) -> Result<(), Violation> {
        match self.random.u32(..12) {
            0 if self.managers[manager].is_up => self.managers[manager].crash(),
            0 | 1 if !self.managers[manager].is_up => self.managers[manager].start(&self.store),
            2 => {
                self.hosts[host].crash();
                self.links.remove(&host);
            }
            3 if self.hosts[host].running.is_none() => self.hosts[host].start(),
            4 => toggle(&mut self.parted, (manager, host)),
            5 | 9 | 10 => self.hang_up(host),
            6 | 11 => self.managers[manager].stalled ^= true,
            7 => toggle(&mut self.full, host),
            8 if self.hosts[host].running.is_none() => self.lose_a_volume(host),
            _ => {}
        }
        Ok(())
    }

    /// Somebody takes a volume's file away while nobody looks.
    fn lose_a_volume(&mut self, host: usize) {
        let disk = &mut self.hosts[host].disk;
        let known: Vec<VolumeId> = disk.volumes.keys().filter(|id| self.written.contains_key(id)).copied().collect();
        if let Some(id) = self.random.choice(known).filter(|_| self.random.u8(..4) == 0) {
            disk.volumes.remove(&id);
            disk.lost.insert(id);
        }
    }

    /// The stream breaks: both ends notice, what was under way is lost.
    fn hang_up(&mut self, host: usize) {
        if let Some(link) = self.links.remove(&host) {
            self.managers[link.manager].lose(self.hosts[host].id);
        }
        if let Some(running) = &mut self.hosts[host].running {
            running.session = None;
        }
    }

    fn dial(&mut self, host: usize) {
        let manager = self.random.usize(..MANAGERS);
        let free = self.hosts[host].running.as_ref().is_some_and(|running| running.session.is_none());
        if !free || !self.managers[manager].is_up || self.parted.contains(&(manager, host)) {
            return;
        }
        let (service, instant) = (self.hosts[host].id, self.instant());
        self.with_manager(manager, |it, now| it.answer(service, now));
        self.links.insert(host, Link { manager, ..Link::default() });
        let says = self.hosts[host].greet(cluster(), instant);
        self.post_up(host, says);
    }

    fn deliver_some(&mut self, host: usize) -> Result<(), Violation> {
        (0..4).try_for_each(|_| self.deliver(host))
    }

    fn work_some(&mut self, host: usize) -> Result<(), Violation> {
        (0..4).try_for_each(|_| self.work(host))
    }

    /// The next message of a stream, in one direction. A stream whose other end is gone breaks.
    fn deliver(&mut self, host: usize) -> Result<(), Violation> {
        let (id, instant) = (self.hosts[host].id, self.instant());
        let alive = |manager: &Manager| manager.is_up && manager.sessions.contains_key(&id);
        let ended = self.links.get(&host).is_some_and(|link| {
            link.down.is_empty() && !alive(&self.managers[link.manager]) && !self.parted.contains(&(link.manager, host))
        });
        if ended {
            self.hang_up(host);
            return Ok(());
        }
        if !self.is_through(host) {
            return Ok(());
        }
        let down = self.random.bool();
        let Some(link) = self.links.get_mut(&host) else { return Ok(()) };
        let manager = link.manager;
        if down {
            let Some(message) = self.take_down(host) else { return Ok(()) };
            let says = self.hosts[host].hear(ServiceEvent::Received(message), instant);
            self.post_up(host, says);
        } else if let Some(message) = link.up.pop_front() {
            let says = self.with_manager(manager, |it, now| it.hear(now, id, message));
            self.post(manager, says);
        }
        Ok(())
    }

    /// The next message downwards. A planted bug loses a change now and then, and makes the next one fit.
    fn take_down(&mut self, host: usize) -> Option<Downward> {
        let loses = self.planted == Planted::SkipGap && self.random.u8(..3) == 0;
        let link = self.links.get_mut(&host)?;
        let mut message = link.down.pop_front()?;
        if let Downward::Incremental { applies_to, .. } = &mut message {
            if loses {
                link.gap.get_or_insert(*applies_to);
                return None;
            }
            *applies_to = link.gap.take().unwrap_or(*applies_to);
        }
        Some(message)
    }

    fn work(&mut self, host: usize) -> Result<(), Violation> {
        let (instant, works) = (self.instant(), !self.full.contains(&host));
        let begun = self.hosts[host].plan(instant, works);
        for task in begun {
            if let crate::reconcile::Task::Drop(Assigned::Volume(volume)) = &task {
                self.assert_droppable(host, volume)?;
            }
        }
        let choice = self.random.usize(..64);
        self.hand_over_to(host);
        let says = self.hosts[host].work(choice, &self.buried, instant, works)?;
        self.post_up(host, says);
        let news = std::mem::take(&mut self.hosts[host].disk.news);
        news.into_iter().try_for_each(|news| self.learn(news))
    }

    /// Bytes have come from somewhere: they must be the right ones, and may come once.
    fn learn(&mut self, news: News) -> Result<(), Violation> {
        match news {
            News::Taken { snapshot, bytes } => match self.kept.insert(snapshot, bytes) {
                Some(before) => Err(format!("snapshot {snapshot} had {before}, and was taken anew with {bytes}")),
                None => Ok(()),
            },
            News::Filled { volume, bytes } => {
                self.born.insert(volume, bytes);
                self.look_at_birth(volume, bytes)
            }
            News::Born { volume, of, bytes } => {
                self.born.insert(volume, bytes);
                self.look_at_birth(volume, bytes)?;
                match of {
                    Source::Snapshot(id) if self.kept.get(&id) != Some(&bytes) => {
                        Err(format!("volume {volume} is a copy of snapshot {id}, and has other bytes than that"))
                    }
                    Source::Snapshot(_) | Source::Volume(_) => Ok(()),
                }
            }
            News::PutBack { volume, since, to, bytes } => {
                self.written.insert(volume, bytes);
                if !self.put_back.insert((volume, since)) {
                    return Err(format!("volume {volume} is put back twice for generation {since:?}"));
                }
                match self.kept.get(&to) == Some(&bytes) {
                    true => Ok(()),
                    false => {
                        Err(format!("volume {volume} is put back to snapshot {to}, and has other bytes than that"))
                    }
                }
            }
        }
    }

    /// Nobody stops serving what the cluster wants served there.
    fn assert_droppable(&self, host: usize, volume: &VolumeAssignment) -> Result<(), Violation> {
        // Nearly the same is planted there, and something else is to be found.
        if matches!(self.planted, Planted::AnyGeneration | Planted::DestroyDropped) {
            return Ok(());
        }
        let wanted = self.store.get(&crate::store::Key::volume(volume.id));
        let wanted = wanted.and_then(|entry| serde_json::from_slice::<Volume>(&entry.value).ok());
        match wanted.filter(|it| !it.meta.is_removed() && it.is_on(self.hosts[host].id)) {
            Some(it) => Err(format!("volume {} is assigned, and its service stops serving it", it.meta.name)),
            None => Ok(()),
        }
    }

    fn see(&mut self, manager: usize) {
        let most = self.random.usize(1..4);
        let says = self.with_manager(manager, |it, now| it.see(now, most));
        self.post(manager, says);
    }

    fn lead(&mut self, manager: usize) {
        if self.managers[manager].is_up {
            let says = self.with_manager(manager, Manager::lead);
            self.post(manager, says);
        }
    }

    fn tick(&mut self, manager: usize, host: usize) {
        let (id, instant) = (self.hosts[host].id, self.instant());
        let says = self.with_manager(manager, |it, now| it.tick(now, id));
        self.post(manager, says);
        let says = self.with_manager(manager, Manager::keep);
        self.post(manager, says);
        let says = self.hosts[host].hear(ServiceEvent::Tick, instant);
        self.post_up(host, says);
    }

    /// A client's write that is acknowledged.
    fn serve_client(&mut self, host: usize) {
        let served: Vec<VolumeId> = self.hosts[host].open_to_clients().into_iter().collect();
        let Some(id) = self.random.choice(served) else { return };
        if let Some(volume) = self.hosts[host].disk.volumes.get_mut(&id) {
            self.writes += 1;
            volume.bytes = self.writes;
            self.written.insert(id, volume.bytes);
        }
    }

    /// What holds at any time, of what was committed since the last look.
    fn look(&mut self) -> Result<(), Violation> {
        if self.checked == self.store.log.len() {
            return Ok(());
        }
        while let Some(batch) = self.store.log.get(self.checked).cloned() {
            self.checked += 1;
            self.take_note(batch)?;
        }
        self.look_at_hosts()?;
        self.look_at_images()?;
        self.look_at_moves()?;
        let mut findings = Findings::default();
        check_state(&self.truth, &mut findings);
        match findings.faults.first() {
            Some(fault) => Err(fault.clone()),
            None => Ok(()),
        }
    }

    fn heal(&mut self) {
        self.parted.clear();
        self.full.clear();
        for manager in &mut self.managers {
            manager.stalled = false;
            if !manager.is_up {
                manager.start(&self.store);
            }
        }
        for host in self.hosts.iter_mut().filter(|host| host.running.is_none()) {
            host.start();
        }
    }

    /// Everything that is due, and no more faults.
    fn go_on(&mut self) -> Result<(), Violation> {
        self.time += 50;
        self.store.expire(self.time);
        for manager in 0..MANAGERS {
            let says = self.with_manager(manager, |it, now| it.see(now, usize::MAX));
            self.post(manager, says);
            self.lead(manager);
        }
        // Before anybody acts on what was committed.
        self.look()?;
        for host in 0..HOSTS {
            for manager in 0..MANAGERS {
                self.tick(manager, host);
            }
            self.dial(host);
            self.deliver_some(host)?;
            self.deliver_some(host)?;
            self.work_some(host)?;
        }
        Ok(())
    }
}

/// Puts it in if it is not there, and takes it out if it is.
fn toggle<T: Ord>(set: &mut BTreeSet<T>, it: T) {
    if let Some(it) = Some(it).filter(|it| !set.remove(it)) {
        set.insert(it);
    }
}
