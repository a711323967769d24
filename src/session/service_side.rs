//! The block service's end of one session.

use super::{Downward, Ended, Greeting, Step, Upward};
use crate::model::{AssignedId, AssignmentSet, Changes, Inventory, Mark, Report, Trust};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub enum ServiceEvent {
    Received(Downward),
    /// Something is newly known of these objects. Only the latest report of an object is ever sent.
    Report(Vec<Report>),
    Inventory {
        nonce: u64,
        inventory: Inventory,
    },
    /// The service stops in order.
    Leave,
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceAction {
    Send(Upward),
    /// The session is open.
    Opened,
    /// These are the managers of the cluster.
    Learn {
        managers: Vec<String>,
    },
    /// The state has come so far; before the assignments that follow from it.
    Remember(Mark),
    /// Believe these from now on.
    Believe(Trust),
    /// Hold exactly this from now on.
    Replace(AssignmentSet),
    Apply(Changes),
    /// Look at the devices; answer `Inventory`.
    TakeInventory {
        nonce: u64,
    },
    /// The session is over; nothing follows.
    End(Ended),
}

#[derive(Debug)]
enum State {
    Greeting,
    Open { heartbeat: Duration, lease: Duration, step: Option<Step> },
    Ended,
}

/// See the module's text. Feed every event, perform every action in order.
#[derive(Debug)]
pub struct ServiceSide {
    state: State,
    heard: Instant,
    /// When the last heartbeat went out. Other messages do not replace one: it is what renews the lease.
    beaten: Instant,
    /// When the first heartbeat went out since something was heard.
    asked: Option<Instant>,
    /// Reports not yet sent.
    pending: BTreeMap<AssignedId, Report>,
    /// The batch that is sent and not acknowledged.
    unacknowledged: Option<u64>,
    sequence: u64,
}

/// How long a manager may take to answer Hello.
const WELCOME_LIMIT: Duration = Duration::from_secs(5);

/// Periods that a heartbeat may go unanswered. A manager that hangs is left while there is still lease to find another one
/// with; an answer that takes long, over a line that does, has as long to come.
const UNANSWERED: u32 = 2;

/// Reports of one batch; keeps a manager's transaction within a store's limits.
const BATCH: usize = 256;

impl ServiceSide {
    /// A new session, with the first thing to say.
    pub fn begin(greeting: Greeting, now: Instant) -> (Self, Vec<ServiceAction>) {
        let side = Self {
            state: State::Greeting,
            heard: now,
            beaten: now,
            asked: None,
            pending: BTreeMap::new(),
            unacknowledged: None,
            sequence: 0,
        };
        (side, vec![ServiceAction::Send(Upward::Hello(greeting))])
    }

    /// When [`ServiceEvent::Tick`] is needed next.
    pub fn deadline(&self) -> Instant {
        match self.state {
            State::Open { heartbeat, lease, .. } => {
                let silent = self.heard + lease;
                let hung = self.asked.map_or(silent, |asked| asked + UNANSWERED * heartbeat);
                (self.beaten + heartbeat).min(silent).min(hung)
            }
            State::Greeting | State::Ended => self.heard + WELCOME_LIMIT,
        }
    }

    pub fn handle(&mut self, event: ServiceEvent, now: Instant) -> Vec<ServiceAction> {
        let mut actions = match event {
            ServiceEvent::Received(message) => {
                (self.heard, self.asked) = (now, None);
                self.receive(message)
            }
            ServiceEvent::Report(reports) => {
                self.pending.extend(reports.into_iter().map(|report| (report.id(), report)));
                Vec::new()
            }
            ServiceEvent::Inventory { nonce, inventory } => match self.state {
                State::Open { .. } => vec![ServiceAction::Send(Upward::Inventory { nonce, inventory })],
                _ => Vec::new(),
            },
            ServiceEvent::Leave => self.leave(),
            ServiceEvent::Tick => self.tick(now),
        };
        actions.extend(self.next_reports());
        actions
    }

    fn receive(&mut self, message: Downward) -> Vec<ServiceAction> {
        match (&mut self.state, message) {
            (State::Ended, _) => Vec::new(),
            (_, Downward::Removed) => self.end(Ended::Removed),
            (State::Greeting, Downward::Welcome(welcome)) => {
                self.state = State::Open { heartbeat: welcome.heartbeat, lease: welcome.lease, step: None };
                vec![
                    ServiceAction::Opened,
                    ServiceAction::Remember(welcome.mark),
                    ServiceAction::Learn { managers: welcome.managers },
                ]
            }
            (State::Greeting, _) => self.fault("the first message must be Welcome"),
            (State::Open { .. }, Downward::Welcome(_)) => self.fault("a second Welcome"),
            (State::Open { step, .. }, Downward::Complete { set, partial, results_in }) => {
                *step = Some(results_in);
                match partial {
                    true => vec![ServiceAction::Apply(AssignmentSet::default().changes_to(&set))],
                    false => vec![ServiceAction::Replace(set)],
                }
            }
            (State::Open { .. }, Downward::Managers(managers)) => vec![ServiceAction::Learn { managers }],
            (State::Open { .. }, Downward::Mark(mark)) => vec![ServiceAction::Remember(mark)],
            (State::Open { .. }, Downward::Trust(trust)) => vec![ServiceAction::Believe(trust)],
            (State::Open { step, .. }, Downward::Incremental { changes, applies_to, results_in }) => {
                if *step != Some(applies_to) || results_in <= applies_to {
                    return self.fault("a gap in the chain of assignments");
                }
                *step = Some(results_in);
                vec![ServiceAction::Apply(changes)]
            }
            (State::Open { .. }, Downward::HeartbeatAck) => Vec::new(),
            (State::Open { .. }, Downward::ReportsAck { sequence }) => {
                if self.unacknowledged != Some(sequence) {
                    return self.fault("an acknowledgement of reports that were not sent");
                }
                self.unacknowledged = None;
                Vec::new()
            }
            (State::Open { .. }, Downward::InventoryRequest { nonce }) => vec![ServiceAction::TakeInventory { nonce }],
        }
    }

    /// The next batch, once the manager has said what is assigned and the last batch is acknowledged.
    fn next_reports(&mut self) -> Option<ServiceAction> {
        let ready = matches!(self.state, State::Open { step: Some(_), .. });
        if !ready || self.unacknowledged.is_some() || self.pending.is_empty() {
            return None;
        }
        let mut reports = Vec::with_capacity(self.pending.len().min(BATCH));
        while reports.len() < BATCH
            && let Some((_, report)) = self.pending.pop_first()
        {
            reports.push(report);
        }
        self.sequence += 1;
        self.unacknowledged = Some(self.sequence);
        Some(ServiceAction::Send(Upward::Reports { sequence: self.sequence, reports }))
    }

    fn leave(&mut self) -> Vec<ServiceAction> {
        let mut actions = match self.state {
            State::Open { .. } => vec![ServiceAction::Send(Upward::Goodbye)],
            State::Greeting | State::Ended => Vec::new(),
        };
        actions.extend(self.end(Ended::Goodbye));
        actions
    }

    fn tick(&mut self, now: Instant) -> Vec<ServiceAction> {
        let (silence, heartbeat) = match self.state {
            State::Ended => return Vec::new(),
            State::Greeting => (WELCOME_LIMIT, None),
            State::Open { heartbeat, lease, .. } => (lease, Some(heartbeat)),
        };
        if now.saturating_duration_since(self.heard) >= silence {
            return self.end(Ended::Silence(silence));
        }
        // Counted from the question, so that a service that could not run itself asks before it leaves.
        if let (Some(period), Some(asked)) = (heartbeat, self.asked)
            && now.saturating_duration_since(asked) >= UNANSWERED * period
        {
            return self.end(Ended::Silence(UNANSWERED * period));
        }
        match heartbeat {
            Some(period) if now.saturating_duration_since(self.beaten) >= period => {
                self.beaten = now;
                self.asked.get_or_insert(now);
                vec![ServiceAction::Send(Upward::Heartbeat)]
            }
            _ => Vec::new(),
        }
    }

    fn fault(&mut self, what: &str) -> Vec<ServiceAction> {
        self.end(Ended::Protocol(what.into()))
    }

    fn end(&mut self, reason: Ended) -> Vec<ServiceAction> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Ended => Vec::new(),
            _ => vec![ServiceAction::End(reason)],
        }
    }
}
