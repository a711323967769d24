//! A block service: what is on its disks survives it, what it knows besides does not. The order of its duties is that of
//! `block::agent`: what changes or goes is in the ledger before it is acted on, and nothing is told that the ledger does not hold.

use super::Planted;
use super::disk::{Buried, Disk, Step, Violation};
use crate::model::*;
use crate::reconcile::{Progress, Task, World};
use crate::session::{Ended, Greeting, ServiceAction, ServiceEvent, ServiceSide, Upward};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// What a running service has in memory.
pub struct Running {
    assigned: AssignmentSet,
    dirty: bool,
    pub world: World,
    reports: BTreeMap<AssignedId, Report>,
    held_back: Vec<Report>,
    hands: Vec<Task>,
    pub session: Option<ServiceSide>,
    /// The session has said what is assigned, so that it is told how everything stands.
    told: bool,
    /// Who is let in to what, by the volumes' names: under which attachment, and whether beside others.
    pub granted: BTreeMap<(Name, ClientId), (AttachmentId, bool)>,
}

pub struct Host {
    pub id: ServiceId,
    pub disk: Disk,
    ledger: AssignmentSet,
    /// None while it is down.
    pub running: Option<Running>,
    /// It was told that it is no member any more.
    pub dismissed: bool,
    planted: Planted,
}

impl Host {
    pub fn new(id: ServiceId, planted: Planted) -> Self {
        let disk = Disk { planted: Some(planted), ..Disk::default() };
        Self { id, disk, ledger: AssignmentSet::default(), running: None, dismissed: false, planted }
    }

    pub fn start(&mut self) {
        if self.dismissed {
            return;
        }
        self.running = Some(Running {
            assigned: self.ledger.clone(),
            dirty: false,
            world: World::default(),
            reports: BTreeMap::new(),
            held_back: Vec::new(),
            hands: Vec::new(),
            session: None,
            told: false,
            granted: BTreeMap::new(),
        });
    }

    pub fn crash(&mut self) {
        self.running = None;
    }

    /// Volumes that are as they should be.
    fn done(&self) -> impl Iterator<Item = &VolumeAssignment> {
        let done = |progress: &'_ Progress| matches!(progress, Progress::Done(Assigned::Volume(it)) if !it.removed);
        let held = self.running.iter().flat_map(|running| running.world.held.values());
        held.filter(move |progress| done(progress)).filter_map(|progress| match progress.object() {
            Assigned::Volume(volume) => Some(volume),
            _ => None,
        })
    }

    /// Volumes that clients reach now.
    pub fn served(&self) -> BTreeSet<VolumeId> {
        let is_kept = |volume: &&VolumeAssignment| match volume.moving.as_deref() {
            Some(Moving::Leaving { .. }) => self.planted != Planted::ServeLeaving,
            Some(Moving::Arriving { .. } | Moving::Left { .. }) => true,
            None => false,
        };
        self.done().filter(|volume| !is_kept(volume)).map(|volume| volume.id).collect()
    }

    /// Volumes that nobody uses since they are being moved, with their bytes.
    pub fn held_for_copies(&self) -> impl Iterator<Item = (VolumeId, u64)> {
        let leaving = self.done().filter(|it| matches!(it.moving.as_deref(), Some(Moving::Leaving { .. })));
        leaving.filter_map(|it| Some((it.id, self.disk.volumes.get(&it.id)?.bytes)))
    }

    /// Volumes that anybody may write to.
    pub fn open_to_clients(&self) -> BTreeSet<VolumeId> {
        let assigned = self.running.as_ref().map(|running| &running.assigned.volumes);
        let is_base = |id: &VolumeId| {
            let volume = assigned.and_then(|assigned| assigned.get(id));
            volume.is_none_or(|volume| volume.image.as_ref().is_some_and(|tie| tie.is_base()))
        };
        self.served().into_iter().filter(|id| !is_base(id)).collect()
    }

    /// Whether this attempt at an import may write to the base, as it is served now.
    pub fn takes_upload(&self, base: VolumeId, attempt: u64) -> bool {
        let held = self.running.as_ref().and_then(|running| running.world.held.get(&base.into()));
        let Some(Assigned::Volume(volume)) = held.map(|progress| progress.object()) else { return false };
        volume.image.as_ref().is_some_and(|tie| tie.role == ImageRole::Upload { upload: attempt })
    }

    pub fn greet(&mut self, cluster: ClusterId, now: Instant) -> Vec<Upward> {
        let greeting = Greeting {
            service: self.id,
            cluster,
            host_name: format!("host-{}", self.id),
            addresses: Addresses::default(),
            version: "0".into(),
            // The store of this world is never put back.
            mark: Mark::default(),
        };
        let Some(running) = &mut self.running else { return Vec::new() };
        let (side, actions) = ServiceSide::begin(greeting, now);
        (running.session, running.told) = (Some(side), false);
        self.perform(actions, now)
    }

    /// Tells the session's core something; what it has to say then. The session is gone if it ended.
    pub fn hear(&mut self, event: ServiceEvent, now: Instant) -> Vec<Upward> {
        let session = self.running.as_mut().and_then(|running| running.session.as_mut());
        let actions = session.map(|session| session.handle(event, now)).unwrap_or_default();
        self.perform(actions, now)
    }

    fn perform(&mut self, actions: Vec<ServiceAction>, now: Instant) -> Vec<Upward> {
        let mut says = Vec::new();
        for action in actions {
            match action {
                ServiceAction::Send(message) => says.push(message),
                ServiceAction::Replace(set) => {
                    self.take(|assigned| assigned.replace(set.clone()), &set);
                    says.extend(self.tell_all(now));
                }
                ServiceAction::Apply(changes) => {
                    let mut next = AssignmentSet::default();
                    next.apply(changes.clone());
                    self.take(|assigned| assigned.apply(changes), &next);
                    says.extend(self.tell_all(now));
                }
                ServiceAction::End(Ended::Removed) => {
                    // It stops; what is on its disks stays, for whoever adopts it.
                    (self.running, self.dismissed) = (None, true);
                    if self.planted == Planted::WipeWhenRemoved {
                        self.disk.volumes.clear();
                    }
                }
                ServiceAction::End(_) => {
                    if let Some(running) = &mut self.running {
                        running.session = None;
                    }
                }
                ServiceAction::Opened
                | ServiceAction::Remember(_)
                | ServiceAction::Learn { .. }
                | ServiceAction::Believe(_)
                | ServiceAction::TakeInventory { .. } => {}
            }
        }
        says
    }

    fn take(&mut self, change: impl FnOnce(&mut AssignmentSet) -> Vec<String>, offered: &AssignmentSet) {
        let planted = self.planted;
        let Some(running) = &mut self.running else { return };
        change(&mut running.assigned);
        if planted == Planted::AnyGeneration {
            running.assigned.volumes.extend(offered.volumes.clone());
        }
        if planted == Planted::ForgetMade {
            running.assigned.volumes.values_mut().for_each(|volume| volume.made = false);
        }
        running.dirty = true;
    }

    /// After the first assignments of a session it is told everything.
    fn tell_all(&mut self, now: Instant) -> Vec<Upward> {
        let Some(running) = self.running.as_mut().filter(|running| !running.told) else { return Vec::new() };
        running.told = true;
        let all = running.reports.values().cloned().collect();
        self.hear(ServiceEvent::Report(all), now)
    }

    /// Brings the ledger up to date, if the disk takes it.
    fn save(&mut self, disk_works: bool) -> bool {
        let Some(running) = &mut self.running else { return false };
        if running.dirty && disk_works {
            self.ledger = running.assigned.clone();
            running.dirty = false;
        }
        !running.dirty
    }

    /// Starts what is due. Says what may not be let go of and is.
    pub fn plan(&mut self, now: Instant, disk_works: bool) -> Vec<Task> {
        let Some(running) = &self.running else { return Vec::new() };
        let mut tasks = running.world.plan(&running.assigned, now);
        if tasks.iter().any(Task::follows_the_ledger) && !self.save(disk_works) {
            tasks.retain(|task| !task.follows_the_ledger());
        }
        if let Some(running) = &mut self.running {
            for task in &tasks {
                running.world.begin(task);
            }
            running.hands.extend(tasks.iter().cloned());
        }
        tasks
    }

    /// One step of one of the tasks at work.
    pub fn work(
        &mut self,
        choice: usize,
        buried: &Buried,
        now: Instant,
        disk_works: bool,
    ) -> Result<Vec<Upward>, Violation> {
        let Some(running) = &mut self.running else { return Ok(Vec::new()) };
        if running.hands.is_empty() {
            return Ok(self.tell_what_is_kept(now, disk_works));
        }
        let place = choice % running.hands.len();
        let step = match (&running.hands[place], disk_works) {
            (Task::Drop(Assigned::Volume(volume)), _) if self.planted == Planted::DestroyDropped => {
                self.disk.destroy(volume.id, buried)?
            }
            (Task::Ensure(Assigned::Attachment(held)), _) => admit(&mut running.granted, held),
            (Task::Remove(Assigned::Attachment(_)), _) if self.planted == Planted::KeepGrants => Step::Done,
            (Task::Remove(Assigned::Attachment(held)) | Task::Drop(Assigned::Attachment(held)), _) => {
                running.granted.retain(|_, (id, _)| *id != held.id);
                Step::Done
            }
            (task, true) => self.disk.step(task, buried)?,
            (Task::Drop(_), false) => Step::Done,
            (_, false) => Step::Failed("no space".into()),
        };
        let failure = match step {
            Step::More => return Ok(Vec::new()),
            Step::Done => None,
            Step::Missing => {
                let sought = running.hands.swap_remove(place);
                running.world.miss(sought.object());
                return Ok(self.tell_what_is_kept(now, disk_works));
            }
            Step::Failed(why) => Some(why),
        };
        let task = running.hands.swap_remove(place);
        running.world.finish(&task, failure.is_some(), now);
        let id = task.object().id();
        match &task {
            Task::Drop(_) => drop(running.reports.remove(&id)),
            Task::Ensure(_) | Task::Find(_) | Task::Remove(_) if failure.is_none() => {
                running.dirty |= running.assigned.mark_made(id);
            }
            Task::Ensure(_) | Task::Find(_) | Task::Remove(_) => {}
        }
        let size = match id {
            AssignedId::Snapshot(id) => self.disk.snapshots.get(&id).map(|kept| kept.size),
            _ => None,
        };
        running.held_back.extend(report(&task, size.unwrap_or_default(), failure));
        if self.planted == Planted::ForgetMade {
            running.assigned.volumes.values_mut().for_each(|volume| volume.made = false);
        }
        Ok(self.tell_what_is_kept(now, disk_works))
    }

    fn tell_what_is_kept(&mut self, now: Instant, disk_works: bool) -> Vec<Upward> {
        if !self.save(disk_works) {
            return Vec::new();
        }
        let Some(running) = &mut self.running else { return Vec::new() };
        let all = std::mem::take(&mut running.held_back);
        let fresh = |report: &Report| running.reports.insert(report.id(), report.clone()).as_ref() != Some(report);
        let news: Vec<Report> = all.into_iter().filter(fresh).collect();
        match running.told && !news.is_empty() {
            true => self.hear(ServiceEvent::Report(news), now),
            false => Vec::new(),
        }
    }

    pub fn is_idle(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.hands.is_empty() && running.held_back.is_empty())
    }
}

/// Lets a client in, unless somebody is in the way: as `export::grants` has it.
fn admit(granted: &mut BTreeMap<(Name, ClientId), (AttachmentId, bool)>, held: &AttachmentAssignment) -> Step {
    let others = |((name, client), (_, shared)): (&(Name, ClientId), &(AttachmentId, bool))| {
        *name == held.volume_name && *client != held.client && !(*shared && held.shared)
    };
    if granted.iter().any(others) {
        return Step::Failed("another client is there".into());
    }
    granted.insert((held.volume_name.clone(), held.client), (held.id, held.shared));
    Step::Done
}

/// What is told of a task that ended; `size` is a snapshot's.
fn report(task: &Task, size: ByteSize, failure: Option<String>) -> Option<Report> {
    let object = task.object();
    if let Some(why) = failure {
        return Some(object.unknown(why));
    }
    let removed = match task {
        Task::Find(_) | Task::Drop(_) => return None,
        Task::Remove(_) => true,
        Task::Ensure(_) => false,
    };
    match object {
        Assigned::Pool(pool) => {
            let (capacity, used) = (ByteSize::mib(160), ByteSize::ZERO);
            let known = PoolCapacity { capacity, used, copies: true, ..PoolCapacity::default() };
            let capacity = if removed { Observed::Absent } else { Observed::Known(known) };
            Some(Report::Pool(PoolReport { id: pool.id, generation: pool.generation, capacity, failure: None }))
        }
        Assigned::Volume(it) => {
            let served = ServedVolume { size: it.size, exports: Vec::new() };
            let volume = if removed { Observed::Absent } else { Observed::Known(served) };
            Some(Report::Volume(VolumeReport {
                id: it.id,
                generation: it.generation,
                volume,
                progress: None,
                failure: None,
            }))
        }
        Assigned::Snapshot(it) => {
            let taken = TakenSnapshot { size, at: Timestamp::EPOCH, fill: None };
            let snapshot = if removed { Observed::Absent } else { Observed::Known(taken) };
            let (id, generation, spoilt) = (it.id, it.generation, false);
            let report = SnapshotReport { id, generation, snapshot, spoilt, progress: None, failure: None };
            Some(Report::Snapshot(report))
        }
        Assigned::Attachment(it) => {
            let in_force = if removed { Observed::Absent } else { Observed::Known(()) };
            let (id, generation) = (it.id, it.generation);
            Some(Report::Attachment(AttachmentReport { id, generation, in_force, failure: None }))
        }
    }
}
