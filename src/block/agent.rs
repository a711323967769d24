//! The one task that owns what this host holds: it takes assignments, starts tasks, and says how things stand.

use super::ledger::{Ledger, Page};
use super::worker::{Outcome, Worker, chain};
use crate::backend::lvm::SnapshotFill;
use crate::model::*;
use crate::reconcile::{Progress, Task, World};
use crate::runtime::Shutdown;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

mod news;

/// What the agent is told.
#[derive(Debug)]
pub enum Notice {
    /// A session is open: tell it how everything stands, and everything new.
    Connected(mpsc::UnboundedSender<Vec<Report>>),
    /// The state has come so far; what follows from it comes next.
    Remember(Mark),
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
    /// Write down that another service goes on with what is held, whose pools bear the mark of `cluster`; whether the disk
    /// took it.
    Bequeath {
        heir: ServiceId,
        cluster: ClusterId,
        reply: oneshot::Sender<bool>,
    },
    /// The heir that was named last is who this is now.
    Inherit,
}

/// How long tasks may take to finish at the end.
const FAREWELL: Duration = Duration::from_secs(10);
/// Tasks at work at the same time.
const HANDS: usize = 16;
/// How often capacities are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// How often what takes long is asked how far it has come, and every other time pools that grow whether they are to.
const BEAT: Duration = Duration::from_secs(1);
/// Notices taken at once, so that many changes cost one ledger entry.
const GULP: usize = 256;

pub struct Agent {
    ledger: Ledger,
    worker: Arc<Worker>,
    assigned: AssignmentSet,
    /// Goes into the ledger with what follows from it.
    mark: Mark,
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
    /// One was due while another was under way.
    owes_look: bool,
    /// The last beat was one on which pools that grow were looked at.
    looked_for_growth: bool,
    /// What may be told once the ledger is on disk.
    held_back: Vec<Report>,
    resting: bool,
    /// Who waits for the ledger to name an heir.
    bequest: Option<oneshot::Sender<bool>>,
    /// Those who wait until nothing is at work.
    waiting: Vec<oneshot::Sender<()>>,
}

/// What a look in the background came to.
enum Look {
    Capacities(Vec<(PoolId, Result<PoolCapacity, String>)>, Vec<SnapshotFill>),
    Inventory,
}

enum Step {
    Told(Vec<Notice>),
    Finished(Vec<Outcome>),
    Looked(Look),
    Retry,
    Look,
    Beat,
    Stop,
}

impl Agent {
    /// `assigned` and `mark` are what the ledger holds.
    pub fn new(ledger: Ledger, worker: Arc<Worker>, assigned: AssignmentSet, mark: Mark) -> Self {
        Self {
            ledger,
            worker,
            assigned,
            mark,
            dirty: false,
            world: World::default(),
            reports: BTreeMap::new(),
            uplink: None,
            hands: JoinSet::new(),
            planned: Instant::now(),
            looks: JoinSet::new(),
            owes_look: false,
            looked_for_growth: false,
            held_back: Vec::new(),
            resting: false,
            bequest: None,
            waiting: Vec::new(),
        }
    }

    /// Runs until the end is requested, and then until every task at work has finished.
    pub async fn run(mut self, mut notices: mpsc::Receiver<Notice>, group: Shutdown) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut beats = tokio::time::interval(BEAT);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let fresh = self.advance().await;
            self.tell(fresh);
            self.say_when_still();
            match self.select(&mut notices, (&mut looks, &mut beats), &group).await {
                Step::Told(told) => {
                    for notice in told {
                        self.take_notice(notice);
                    }
                    if let Some(waiting) = self.bequest.take()
                        && waiting.send(self.save().await).is_err()
                    {
                        tracing::debug!("nobody waits for the ledger any more");
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
                Step::Looked(looked) => self.take_look(looked),
                Step::Retry => {}
                Step::Look => {
                    self.tell_what_is_kept().await;
                    self.look();
                }
                Step::Beat => {
                    let reports = self.beat();
                    self.tell(reports);
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

    fn take_look(&mut self, looked: Look) {
        if let Look::Capacities(seen, fills) = looked {
            let reports = seen.into_iter().filter_map(|(id, seen)| news::look_report(self.pool_report(id)?, seen));
            let fills = fills.iter().filter_map(|seen| self.fill_report(seen));
            let reports = reports.chain(fills).collect();
            self.tell(reports);
        }
        if std::mem::take(&mut self.owes_look) {
            self.look();
        }
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
        (looks, beats): (&mut tokio::time::Interval, &mut tokio::time::Interval),
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
            _ = beats.tick(), if !self.hands.is_empty() || self.worker.has_growing_pools() => Step::Beat,
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
        if tasks.iter().any(Task::follows_the_ledger) && !self.save().await {
            tasks.retain(|task| !task.follows_the_ledger());
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
        if outcome.interrupted {
            tracing::info!(%object, "what takes long was ended before its end");
        } else if let Some(why) = outcome.failure() {
            tracing::warn!(%object, %why, "an object is not as it should be");
        }
        if outcome.missing {
            self.world.miss(object);
            return None;
        }
        self.world.finish(&outcome.task, outcome.failure().is_some(), now);
        match outcome.task {
            Task::Drop(_) => drop(self.reports.remove(&object.id())),
            Task::Ensure(_) | Task::Find(_) | Task::Remove(_) if outcome.failure().is_none() => {
                self.dirty |= self.assigned.mark_made(object.id());
            }
            Task::Ensure(_) | Task::Find(_) | Task::Remove(_) => {}
        }
        outcome.report.filter(|_| !outcome.interrupted)
    }

    fn take_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Connected(uplink) => {
                let all: Vec<Report> = self.reports.values().cloned().collect();
                // A session that ended already has no ear; the next one gets everything again.
                self.uplink = uplink.send(all).is_ok().then_some(uplink);
            }
            Notice::Remember(mark) => self.mark = mark,
            Notice::Replace(set) => self.take_assignments(|assigned| assigned.replace(set)),
            Notice::Apply(changes) => self.take_assignments(|assigned| assigned.apply(changes)),
            Notice::TakeInventory(reply) => {
                let (worker, held) = (self.worker.clone(), self.assigned.clone());
                self.looks.spawn_blocking(move || {
                    if reply.send(worker.inventory(&held)).is_err() {
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
            Notice::Bequeath { heir, cluster, reply } => {
                for pool in self.assigned.pools.values_mut() {
                    pool.formerly.get_or_insert(cluster);
                }
                self.ledger.bequeath(heir);
                self.dirty = true;
                self.bequest = Some(reply);
            }
            Notice::Inherit => {
                self.ledger.inherit();
                // Another cluster's state has a history of its own.
                self.mark = Mark::default();
                self.dirty = true;
            }
        }
    }

    fn take_assignments(&mut self, change: impl FnOnce(&mut AssignmentSet) -> Vec<String>) {
        for refused in change(&mut self.assigned) {
            tracing::error!(%refused, "an assignment was refused");
        }
        self.dirty = true;
        self.abandon_unwanted();
    }

    /// Ends what is done to volumes and snapshots that are to be destroyed, but for what destroys them as they are to be.
    fn abandon_unwanted(&self) {
        for snapshot in self.assigned.snapshots.values().filter(|snapshot| snapshot.removed && !snapshot.wipe) {
            let held = self.world.held.get(&snapshot.id.into());
            if matches!(held, Some(Progress::Running { task: Assigned::Snapshot(task), .. }) if task.wipe) {
                self.worker.abandon(snapshot.id.into());
            }
        }
        for volume in self.assigned.volumes.values().filter(|volume| volume.removed) {
            if let Some(Progress::Running { task: Assigned::Volume(task), .. }) = self.world.held.get(&volume.id.into())
                && (!task.removed || task.wipe && !volume.wipe)
            {
                self.worker.abandon(volume.id.into());
            }
        }
    }

    /// Says how far it has come what takes long, and ends what is not to go on.
    fn beat(&mut self) -> Vec<Report> {
        // What had not begun when this was said for the first time has begun by now.
        self.abandon_unwanted();
        if self.resting {
            self.worker.pause();
        }
        self.looked_for_growth = !self.looked_for_growth && self.worker.has_growing_pools();
        if self.looked_for_growth && !self.resting && self.looks.is_empty() {
            let worker = self.worker.clone();
            self.looks.spawn_blocking(move || Look::Capacities(worker.extend_pools(), Vec::new()));
        }
        let progress = self.worker.progress();
        progress.into_iter().filter_map(|(id, progress)| self.progress_report(id, progress)).collect()
    }

    /// Brings the ledger up to date; false if the disk did not take it.
    async fn save(&mut self) -> bool {
        if !self.dirty {
            return true;
        }
        let (ledger, page) = (self.ledger.clone(), Page { assigned: self.assigned.clone(), mark: self.mark });
        match tokio::task::spawn_blocking(move || ledger.save(page)).await {
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

    /// Looks at the pools' capacities in the background: once what is looked at now is known.
    fn look(&mut self) {
        if self.resting {
            return;
        }
        if !self.looks.is_empty() {
            self.owes_look = true;
            return;
        }
        let worker = self.worker.clone();
        self.looks.spawn_blocking(move || Look::Capacities(worker.capacities(), worker.fills()));
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
}
