//! The one task that owns what this host holds: it takes assignments, starts tasks, and says how things stand.

use super::ledger::Ledger;
use super::worker::{Outcome, Worker, chain};
use crate::model::*;
use crate::reconcile::{Progress, Task, World};
use crate::runtime::Shutdown;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// What the agent is told.
#[derive(Debug)]
pub enum Notice {
    /// A session is open: tell it how everything stands, and everything new.
    Connected(mpsc::UnboundedSender<Vec<Report>>),
    Replace(AssignmentSet),
    Apply(Changes),
    TakeInventory(oneshot::Sender<Inventory>),
    /// How many pools and volumes are assigned.
    Count(oneshot::Sender<(usize, usize)>),
    /// Say when nothing is at work that is due.
    Settle(oneshot::Sender<()>),
    /// The same, and begin nothing from now on.
    Rest(oneshot::Sender<()>),
    /// Rest no longer.
    Resume,
}

/// How long tasks may take to finish at the end.
const FAREWELL: Duration = Duration::from_secs(10);
/// Tasks at work at the same time.
const HANDS: usize = 16;
/// How often capacities are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// Notices taken at once, so that many changes cost one ledger entry.
const GULP: usize = 256;

pub struct Agent {
    ledger: Ledger,
    worker: Arc<Worker>,
    assigned: AssignmentSet,
    /// The ledger holds less than `assigned` says.
    dirty: bool,
    world: World,
    /// The latest reports.
    reports: BTreeMap<AssignedId, Report>,
    uplink: Option<mpsc::UnboundedSender<Vec<Report>>>,
    hands: JoinSet<Outcome>,
    /// When tasks were last planned.
    planned: Instant,
    looks: JoinSet<Look>,
    /// What may be told once the ledger is on disk.
    held_back: Vec<Report>,
    resting: bool,
    /// Those who wait until nothing is at work.
    waiting: Vec<oneshot::Sender<()>>,
}

/// What a look in the background came to.
enum Look {
    Capacities(Vec<(PoolId, Result<PoolCapacity, String>)>, Vec<SnapshotId>),
    Inventory,
}

enum Step {
    Told(Vec<Notice>),
    Finished(Vec<Outcome>),
    Looked(Look),
    Retry,
    Look,
    Stop,
}

impl Agent {
    /// `assigned` is what the ledger holds.
    pub fn new(ledger: Ledger, worker: Arc<Worker>, assigned: AssignmentSet) -> Self {
        Self {
            ledger,
            worker,
            assigned,
            dirty: false,
            world: World::default(),
            reports: BTreeMap::new(),
            uplink: None,
            hands: JoinSet::new(),
            planned: Instant::now(),
            looks: JoinSet::new(),
            held_back: Vec::new(),
            resting: false,
            waiting: Vec::new(),
        }
    }

    /// Runs until the end is requested, and then until every task at work has finished.
    pub async fn run(mut self, mut notices: mpsc::Receiver<Notice>, group: Shutdown) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let fresh = self.advance().await;
            self.tell(fresh);
            self.say_when_still();
            match self.select(&mut notices, &mut looks, &group).await {
                Step::Told(told) => {
                    for notice in told {
                        self.take_notice(notice);
                    }
                }
                Step::Finished(outcomes) => {
                    let now = Instant::now();
                    for outcome in outcomes {
                        let report = self.take_outcome(outcome, now);
                        self.held_back.extend(report);
                    }
                    self.tell_what_is_kept().await;
                }
                Step::Looked(Look::Capacities(seen, lost)) => {
                    let reports = seen.into_iter().filter_map(|(id, seen)| look_report(self.pool_report(id)?, seen));
                    let lost = lost.into_iter().filter_map(|id| self.loss_report(id));
                    let reports = reports.chain(lost).collect();
                    self.tell(reports);
                }
                Step::Looked(Look::Inventory) | Step::Retry => {}
                Step::Look => {
                    self.tell_what_is_kept().await;
                    self.look();
                }
                Step::Stop => break,
            }
        }
        self.worker.hurry();
        let last = async {
            while let Some(finished) = self.hands.join_next().await {
                if let Err(error) = finished {
                    tracing::error!(%error, "a task panicked");
                }
            }
        };
        if tokio::time::timeout(FAREWELL, last).await.is_err() {
            // Every task can be killed at any instruction and resumed.
            tracing::error!("tasks are stuck, perhaps on a disk that hangs; they are left behind");
            self.hands.detach_all();
        }
        // A look changes nothing, and a disk that hangs must not hold up the end.
        self.looks.detach_all();
    }

    /// Tells what was achieved, once the ledger holds it: what was promised once is found again after a reboot.
    async fn tell_what_is_kept(&mut self) {
        if self.save().await {
            let reports = std::mem::take(&mut self.held_back);
            self.tell(reports);
        }
    }

    async fn select(
        &mut self,
        notices: &mut mpsc::Receiver<Notice>,
        looks: &mut tokio::time::Interval,
        group: &Shutdown,
    ) -> Step {
        let retry = self.world.next_retry(self.planned);
        let pause = async {
            match retry {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let mut told = Vec::new();
        tokio::select! {
            count = notices.recv_many(&mut told, GULP) => if count == 0 { Step::Stop } else { Step::Told(told) },
            Some(first) = self.hands.join_next() => Step::Finished(self.finished(first)),
            Some(looked) = self.looks.join_next() => Step::Looked(looked.unwrap_or_else(|error| {
                tracing::error!(%error, "a look at the pools panicked");
                Look::Inventory
            })),
            () = pause => Step::Retry,
            _ = looks.tick() => Step::Look,
            () = group.requested() => Step::Stop,
        }
    }

    /// The first finished task and all that have finished since.
    fn finished(&mut self, first: Result<Outcome, tokio::task::JoinError>) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        let mut next = Some(first);
        while let Some(finished) = next {
            match finished {
                Ok(outcome) => outcomes.push(outcome),
                // A panic leaves its object at work for ever, which is what keeps anybody else away from it.
                Err(error) => tracing::error!(%error, "a task panicked; its object stays as it is"),
            }
            next = self.hands.try_join_next();
        }
        outcomes
    }

    /// Starts what is due. Returns reports on what waits for something else.
    async fn advance(&mut self) -> Vec<Report> {
        self.planned = Instant::now();
        if self.resting {
            return Vec::new();
        }
        let mut tasks = self.world.plan(&self.assigned, self.planned);
        if tasks.iter().any(Task::destroys) && !self.save().await {
            // A tombstone is on disk before it is acted on, or not acted on.
            tasks.retain(|task| !task.destroys());
        }
        for task in tasks {
            if self.hands.len() >= HANDS {
                break;
            }
            self.world.begin(&task);
            let worker = self.worker.clone();
            self.hands.spawn_blocking(move || worker.perform(task));
        }
        self.report_waiting()
    }

    fn say_when_still(&mut self) {
        if !self.hands.is_empty() || self.resting && !self.looks.is_empty() {
            return;
        }
        for waiting in self.waiting.drain(..) {
            if waiting.send(()).is_err() {
                tracing::debug!("nobody waits for stillness any more");
            }
        }
    }

    /// Takes over what a task came to; what is to be told of it.
    fn take_outcome(&mut self, outcome: Outcome, now: Instant) -> Option<Report> {
        let object = outcome.task.object();
        if let Some(why) = outcome.failure() {
            tracing::warn!(%object, %why, "an object is not as it should be");
        }
        self.world.finish(&outcome.task, outcome.failure().is_some(), now);
        match outcome.task {
            Task::Drop(_) => drop(self.reports.remove(&object.id())),
            Task::Ensure(_) | Task::Remove(_) if outcome.failure().is_none() => {
                self.dirty |= self.assigned.mark_made(object.id());
            }
            Task::Ensure(_) | Task::Remove(_) => {}
        }
        outcome.report
    }

    /// Volumes whose pool cannot be used, or whose bytes are to come from what cannot be made, say so.
    fn report_waiting(&self) -> Vec<Report> {
        let broken = |pool: PoolId| matches!(self.world.held.get(&pool.into()), Some(Progress::Failed { .. }));
        // One that is as it should be does not wait for its pool to become what it is to be next.
        let done = |id: VolumeId| matches!(self.world.held.get(&id.into()), Some(Progress::Done(_)));
        let waiting = self.assigned.volumes.values().filter(|volume| broken(volume.pool) && !done(volume.id));
        let report = |volume: &VolumeAssignment| {
            let why = self.pool_report(volume.pool).and_then(|report| report.failure.clone()).unwrap_or_default();
            Assigned::from(volume.clone()).unknown(format!("its pool cannot be used: {why}"))
        };
        let mut reports: Vec<Report> = waiting.map(report).collect();
        for volume in self.assigned.volumes.values().filter(|volume| !volume.made && !volume.removed) {
            let Some(Source::Volume(source)) = volume.source else { continue };
            if let Some(Progress::Failed { tried, .. }) = self.world.held.get(&source.into())
                && let Some(why) = self.reports.get(&source.into()).and_then(Report::failure)
            {
                let why = format!("{tried}, which it is to be copied from, is not ready: {why}");
                reports.push(Assigned::from(volume.clone()).unknown(why));
            }
        }
        reports
    }

    fn take_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Connected(uplink) => {
                let all: Vec<Report> = self.reports.values().cloned().collect();
                // A session that ended already has no ear; the next one gets everything again.
                self.uplink = uplink.send(all).is_ok().then_some(uplink);
            }
            Notice::Replace(set) => self.take_assignments(|assigned| assigned.replace(set)),
            Notice::Apply(changes) => self.take_assignments(|assigned| assigned.apply(changes)),
            Notice::TakeInventory(reply) => {
                let worker = self.worker.clone();
                self.looks.spawn_blocking(move || {
                    if reply.send(worker.inventory()).is_err() {
                        tracing::debug!("nobody waits for the inventory any more");
                    }
                    Look::Inventory
                });
            }
            Notice::Count(reply) => {
                if reply.send((self.assigned.pools.len(), self.assigned.volumes.len())).is_err() {
                    tracing::debug!("nobody waits for the count any more");
                }
            }
            Notice::Settle(reply) => self.waiting.push(reply),
            Notice::Rest(reply) => {
                self.resting = true;
                self.waiting.push(reply);
            }
            Notice::Resume => self.resting = false,
        }
    }

    fn take_assignments(&mut self, change: impl FnOnce(&mut AssignmentSet) -> Vec<String>) {
        for refused in change(&mut self.assigned) {
            tracing::error!(%refused, "an assignment was refused");
        }
        self.dirty = true;
        for volume in self.assigned.volumes.values().filter(|volume| volume.removed) {
            if let Some(Progress::Running { task, .. }) = self.world.held.get(&volume.id.into())
                && !task.is_removed()
            {
                self.worker.abandon(volume.id);
            }
        }
    }

    /// Brings the ledger up to date; false if the disk did not take it.
    async fn save(&mut self) -> bool {
        if !self.dirty {
            return true;
        }
        let (ledger, assigned) = (self.ledger.clone(), self.assigned.clone());
        match tokio::task::spawn_blocking(move || ledger.save(&assigned)).await {
            Ok(Ok(())) => {
                self.dirty = false;
                true
            }
            Ok(Err(error)) => {
                tracing::error!(error = %chain(&error), "cannot save the ledger");
                false
            }
            Err(error) => {
                tracing::error!(%error, "saving the ledger panicked");
                false
            }
        }
    }

    /// Looks at the pools' capacities in the background.
    fn look(&mut self) {
        if self.resting || !self.looks.is_empty() {
            return;
        }
        let worker = self.worker.clone();
        self.looks.spawn_blocking(move || Look::Capacities(worker.capacities(), worker.lost_snapshots()));
    }

    /// Remembers reports and passes on those that say something new.
    fn tell(&mut self, reports: Vec<Report>) {
        let news: Vec<Report> = reports.into_iter().filter(|report| self.is_news(report)).collect();
        if let Some(uplink) = &self.uplink
            && !news.is_empty()
            && uplink.send(news).is_err()
        {
            self.uplink = None;
        }
    }

    fn is_news(&mut self, report: &Report) -> bool {
        self.reports.insert(report.id(), report.clone()).as_ref() != Some(report)
    }

    /// Says of a snapshot that it is lost, after it was taken.
    fn loss_report(&self, id: SnapshotId) -> Option<Report> {
        let snapshot = self.assigned.snapshots.get(&id).filter(|snapshot| !snapshot.removed)?;
        let why = "it is lost: more of its volume was changed than it had room for; the volume is not harmed";
        Some(Assigned::from(snapshot.clone()).unknown(why.to_owned()))
    }

    /// The last report on a pool.
    fn pool_report(&self, id: PoolId) -> Option<&PoolReport> {
        match self.reports.get(&AssignedId::Pool(id))? {
            Report::Pool(report) => Some(report),
            Report::Volume(_) | Report::Snapshot(_) | Report::Attachment(_) => None,
        }
    }
}

/// A report on a pool that was looked at again, from the last one on it, if that is worth a write to the store: it failed, recovered, or moved
/// by a hundredth of its capacity.
fn look_report(last: &PoolReport, seen: Result<PoolCapacity, String>) -> Option<Report> {
    let mut report = last.clone();
    match (seen, &last.capacity) {
        (Ok(seen), Observed::Known(known)) => {
            let moved = |a: ByteSize, b: ByteSize, of: ByteSize| a.as_u64().abs_diff(b.as_u64()) > of.as_u64() / 100;
            let metadata_moved = match (seen.metadata, known.metadata) {
                (Some(seen), Some(known)) => {
                    seen.capacity != known.capacity || moved(seen.used, known.used, known.capacity)
                }
                (seen, known) => seen != known,
            };
            let same = !moved(seen.capacity, known.capacity, known.capacity)
                && !moved(seen.used, known.used, known.capacity)
                && !metadata_moved
                && seen.copies == known.copies;
            if same && last.failure.is_none() {
                return None;
            }
            report.capacity = Observed::Known(seen);
            report.failure = None;
        }
        (Ok(_), Observed::Absent | Observed::Unknown) => return None,
        (Err(why), Observed::Known(_)) => report.failure = Some(why),
        // It was let go of meanwhile.
        (Err(_), Observed::Absent | Observed::Unknown) => return None,
    }
    Some(Report::Pool(report))
}
