//! The manager's end of one session.

use super::{Downward, Ended, Greeting, Step, Upward, Welcome};
use crate::model::{AssignmentSet, Inventory, Mark, Report, Trust};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub enum ManagerEvent {
    Received(Upward),
    /// The service in the greeting is a member, and the store shows its session.
    Admitted {
        welcome: Welcome,
        assignments: AssignmentSet,
        partial: bool,
    },
    /// No session could be had, or it is none of this cluster's business.
    Refused(String),
    /// The cluster has no such member.
    Unknown(String),
    /// What the service must hold has changed. Where `partial`, the state could not be read whole: nothing is dropped.
    Assigned {
        set: AssignmentSet,
        partial: bool,
    },
    /// The managers of the cluster have changed.
    Managers(Vec<String>),
    /// How far the state has come, before what follows from it.
    Mark(Mark),
    /// Whose certificates to believe has changed.
    Trust(Trust),
    /// The reports of this sequence number are in the store.
    Committed {
        sequence: u64,
    },
    /// The service has been taken out of the cluster.
    Removed,
    /// An operator asks for the inventory.
    Ask {
        nonce: u64,
    },
    /// Time has passed.
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManagerAction {
    /// Look the service up, write its session down; answer `Admitted`, `Refused`, `Unknown` or `Removed`.
    Admit(Greeting),
    Send(Downward),
    /// The service was heard of: its session lasts for another lease.
    Heard,
    /// Bring these into the store; answer `Committed`.
    Commit {
        sequence: u64,
        reports: Vec<Report>,
    },
    Answer {
        nonce: u64,
        inventory: Inventory,
    },
    /// The session is over; nothing follows. `release`: for the store, too, at once, and not a lease after the service was
    /// last heard of.
    End {
        reason: Ended,
        release: bool,
    },
}

#[derive(Debug)]
enum State {
    Waiting,
    Admitting,
    Open { lease: Duration, held: AssignmentSet, step: Step, committing: Option<u64> },
    Ended,
}

/// See the module's text. Feed every event, perform every action in order.
#[derive(Debug)]
pub struct ManagerSide {
    state: State,
    heard: Instant,
}

/// How long a peer may take to say Hello.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

impl ManagerSide {
    pub fn new(now: Instant) -> Self {
        Self { state: State::Waiting, heard: now }
    }

    pub fn handle(&mut self, event: ManagerEvent, now: Instant) -> Vec<ManagerAction> {
        match event {
            ManagerEvent::Received(message) => {
                self.heard = now;
                self.receive(message)
            }
            ManagerEvent::Admitted { welcome, assignments, partial } => {
                // An admission may take longer than the lease; the service could not speak meanwhile.
                self.heard = now;
                self.open(welcome, assignments, partial)
            }
            ManagerEvent::Refused(reason) => self.end(Ended::Refused(reason), false),
            ManagerEvent::Unknown(reason) => self.end(Ended::Unknown(reason), false),
            ManagerEvent::Assigned { set, partial } => self.assign(set, partial),
            ManagerEvent::Managers(managers) => match self.state {
                State::Open { .. } => vec![ManagerAction::Send(Downward::Managers(managers))],
                _ => Vec::new(),
            },
            ManagerEvent::Mark(mark) => match self.state {
                State::Open { .. } => vec![ManagerAction::Send(Downward::Mark(mark))],
                _ => Vec::new(),
            },
            ManagerEvent::Trust(trust) => match self.state {
                State::Open { .. } => vec![ManagerAction::Send(Downward::Trust(trust))],
                _ => Vec::new(),
            },
            ManagerEvent::Committed { sequence } => self.acknowledge(sequence),
            ManagerEvent::Removed => self.remove(),
            ManagerEvent::Ask { nonce } => match self.state {
                State::Open { .. } => vec![ManagerAction::Send(Downward::InventoryRequest { nonce })],
                _ => Vec::new(),
            },
            ManagerEvent::Tick => self.tick(now),
        }
    }

    fn receive(&mut self, message: Upward) -> Vec<ManagerAction> {
        match (&mut self.state, message) {
            (State::Ended, _) => Vec::new(),
            (State::Waiting, Upward::Hello(greeting)) => {
                self.state = State::Admitting;
                vec![ManagerAction::Admit(greeting)]
            }
            (State::Waiting, _) => self.fault("the first message must be Hello"),
            (_, Upward::Hello(_)) => self.fault("a second Hello"),
            (State::Admitting, _) => self.fault("a message before Welcome"),
            (State::Open { .. }, Upward::Heartbeat) => {
                vec![ManagerAction::Heard, ManagerAction::Send(Downward::HeartbeatAck)]
            }
            (State::Open { committing: Some(_), .. }, Upward::Reports { .. }) => {
                self.fault("Reports before the last ones were acknowledged")
            }
            (State::Open { committing, .. }, Upward::Reports { sequence, reports }) => {
                *committing = Some(sequence);
                vec![ManagerAction::Commit { sequence, reports }]
            }
            (State::Open { .. }, Upward::Inventory { nonce, inventory }) => {
                vec![ManagerAction::Answer { nonce, inventory }]
            }
            (State::Open { .. }, Upward::Goodbye) => self.end(Ended::Goodbye, true),
        }
    }

    fn open(&mut self, welcome: Welcome, assignments: AssignmentSet, partial: bool) -> Vec<ManagerAction> {
        if !matches!(self.state, State::Admitting) {
            return Vec::new();
        }
        let step = Step(1);
        self.state = State::Open { lease: welcome.lease, held: assignments.clone(), step, committing: None };
        vec![
            ManagerAction::Send(Downward::Welcome(welcome)),
            ManagerAction::Send(Downward::Complete { set: assignments, partial, results_in: step }),
        ]
    }

    fn assign(&mut self, mut next: AssignmentSet, partial: bool) -> Vec<ManagerAction> {
        let State::Open { held, step, .. } = &mut self.state else { return Vec::new() };
        if partial {
            next.fill_from(held);
        }
        let changes = held.changes_to(&next);
        if changes.is_empty() {
            return Vec::new();
        }
        let (applies_to, results_in) = (*step, Step(step.0 + 1));
        *step = results_in;
        *held = next;
        vec![ManagerAction::Send(Downward::Incremental { changes, applies_to, results_in })]
    }

    fn acknowledge(&mut self, sequence: u64) -> Vec<ManagerAction> {
        match &mut self.state {
            State::Open { committing, .. } if *committing == Some(sequence) => {
                *committing = None;
                vec![ManagerAction::Send(Downward::ReportsAck { sequence })]
            }
            _ => Vec::new(),
        }
    }

    fn remove(&mut self) -> Vec<ManagerAction> {
        let mut actions = match self.state {
            State::Open { .. } | State::Admitting => vec![ManagerAction::Send(Downward::Removed)],
            State::Waiting | State::Ended => Vec::new(),
        };
        actions.extend(self.end(Ended::Removed, true));
        actions
    }

    fn tick(&mut self, now: Instant) -> Vec<ManagerAction> {
        let limit = match self.state {
            State::Ended => return Vec::new(),
            State::Open { lease, .. } => lease,
            State::Waiting | State::Admitting => GREETING_LIMIT,
        };
        if now.saturating_duration_since(self.heard) > limit {
            // For the store it ends with the lease: a service that is only cut off must not look gone earlier than that.
            return self.end(Ended::Silence(limit), false);
        }
        Vec::new()
    }

    fn fault(&mut self, what: &str) -> Vec<ManagerAction> {
        self.end(Ended::Protocol(what.into()), false)
    }

    fn end(&mut self, reason: Ended, release: bool) -> Vec<ManagerAction> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Ended => Vec::new(),
            _ => vec![ManagerAction::End { reason, release }],
        }
    }
}
