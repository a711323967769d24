//! A manager: its view, which lags behind the store, and its ends of sessions. The planners, drafts and views are the
//! product's; how they are driven follows `manager::writer` and `manager::dispatcher`.

use super::Planted;
use super::store::{Store, Time};
use crate::manager::inside::{
    Ask, Draft, Refusal, Sessions, View, admit_session, advance_move, close_sessions, draining, due_moves, empty_one,
    has_next, mark_down, take_reports,
};
use crate::model::*;
use crate::session::{Downward, ManagerAction, ManagerEvent, ManagerSide, Upward, Welcome};
use crate::store::{Commit, Compare, Key, LeaseId, Op, Revision, Txn};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Milliseconds without a renewal.
pub const LEASE: Time = 4000;
const HEARTBEAT: Duration = Duration::from_millis(1000);
/// How often a plan is made anew because others were faster.
const ATTEMPTS: usize = 3;

/// One session's end here.
pub struct Held {
    core: ManagerSide,
    open: Option<Open>,
}

struct Open {
    session: SessionId,
    /// When the service was last heard of.
    heard: Instant,
    /// As long as it is there, the session counts as open.
    _asks: mpsc::Receiver<Ask>,
}

pub struct Manager {
    pub id: ServiceId,
    pub view: View,
    /// How many of the store's commits the view holds.
    applied: usize,
    /// The watch hangs: commits work, and the view does not see them.
    pub stalled: bool,
    pub is_up: bool,
    pub sessions: BTreeMap<ServiceId, Held>,
    /// What it knows of which are open, and which are over.
    known: Sessions,
    /// The lease that all of them hang on.
    lifeline: Option<LeaseId>,
    /// The revision that made it the leader, and the lease it is the leader by.
    term: Option<(Revision, LeaseId)>,
    planted: Planted,
}

/// What everybody shares at one moment.
pub struct Now<'s> {
    pub store: &'s mut Store,
    pub time: Time,
    pub instant: Instant,
    /// For identities.
    pub next: &'s mut u128,
}

impl Now<'_> {
    pub fn fresh(&mut self) -> [u8; 16] {
        // Room for what one transaction adds to it.
        *self.next += 1 << 16;
        self.next.to_be_bytes()
    }

    fn timestamp(&self) -> Timestamp {
        Timestamp::from_millis(self.time)
    }
}

/// What a session has to say to its service, message after message.
pub type Says = Vec<(ServiceId, Downward)>;

impl Manager {
    pub fn new(id: ServiceId, planted: Planted) -> Self {
        let (view, sessions, known) = (View::default(), BTreeMap::new(), Sessions::default());
        Self {
            id,
            view,
            applied: 0,
            stalled: false,
            is_up: false,
            sessions,
            known,
            lifeline: None,
            term: None,
            planted,
        }
    }

    pub fn start(&mut self, store: &Store) {
        self.view = View::load(store.list());
        (self.applied, self.is_up, self.stalled, self.term) = (store.log.len(), true, false, None);
    }

    pub fn crash(&mut self) {
        self.is_up = false;
        self.sessions.clear();
        (self.known, self.lifeline) = (Sessions::default(), None);
    }

    /// Takes the next commits over, up to so many; sessions that are concerned look again.
    pub fn see(&mut self, now: &mut Now<'_>, most: usize) -> Says {
        if self.stalled || !self.is_up {
            return Says::new();
        }
        let mut concerned = BTreeSet::new();
        for batch in now.store.log.iter().skip(self.applied).take(most) {
            let touched = self.view.apply(batch.clone());
            self.applied += 1;
            concerned.extend(touched.services);
            if touched.everybody {
                concerned.extend(self.sessions.keys());
            }
        }
        concerned.into_iter().flat_map(|service| self.look_again(now, service)).collect()
    }

    pub fn is_behind(&self, store: &Store) -> bool {
        self.applied < store.log.len()
    }

    fn look_again(&mut self, now: &mut Now<'_>, service: ServiceId) -> Says {
        let Some(session) = self.open_session(service) else { return Says::new() };
        if self.view.get::<Service>(service).is_some_and(|it| it.meta.is_removed()) {
            return self.tell(now, service, ManagerEvent::Removed);
        }
        if self.view.get::<Session>(service).is_none_or(|seen| seen.id != session) {
            self.part(service, false);
            return Says::new();
        }
        let set = self.view.assignments(service);
        self.tell(now, service, ManagerEvent::Assigned { set, partial: self.view.is_partial() })
    }

    /// Plans until it is committed or refused. What is committed is seen, unless the watch hangs.
    pub fn write<T>(
        &mut self,
        now: &mut Now<'_>,
        mut plan: impl FnMut(&mut Draft<'_>) -> Result<T, Refusal>,
    ) -> (Result<T, Refusal>, Says) {
        let mut says = Says::new();
        for _ in 0..ATTEMPTS {
            let first_event = EventId::from_bytes(now.fresh());
            let mut draft = Draft::new(&self.view, now.timestamp(), first_event);
            let planned = match plan(&mut draft) {
                Ok(planned) => planned,
                Err(refusal) => return (Err(refusal), says),
            };
            let Ok(txn) = draft.finish() else { return (Err(Refusal::Busy), says) };
            let outcome = txn.map(|txn| now.store.commit(txn));
            says.extend(self.see(now, usize::MAX));
            match outcome {
                None | Some(Commit::Done(_)) => return (Ok(planned), says),
                Some(Commit::Conflict) => {}
            }
        }
        (Err(Refusal::Busy), says)
    }

    fn open_session(&self, service: ServiceId) -> Option<SessionId> {
        Some(self.sessions.get(&service)?.open.as_ref()?.session)
    }

    /// A session ends here; for the store, too, `release` or a lease after it was last heard of.
    fn part(&mut self, service: ServiceId, release: bool) {
        if let Some(Open { session, heard, _asks }) = self.sessions.remove(&service).and_then(|held| held.open) {
            let stays = if release { Duration::ZERO } else { Duration::from_millis(LEASE) };
            self.known.close(service, session, heard + stays);
        }
    }

    /// Renews the lease that the sessions hang on, and tells the store which of them are over: as `manager::lifeline` does.
    pub fn keep(&mut self, now: &mut Now<'_>) -> Says {
        if !self.is_up {
            return Says::new();
        }
        if self.lifeline.is_some_and(|lease| !now.store.keep_alive(lease, now.time)) {
            self.lifeline = None;
            let all: Vec<ServiceId> = self.sessions.keys().copied().collect();
            all.into_iter().for_each(|service| self.part(service, false));
        }
        let shown = self.view.sessions.values().map(|session| &*session.value);
        let shown: Vec<_> =
            shown.filter(|session| session.manager == self.id).map(|session| (session.service, session.id)).collect();
        let mut over = self.known.over(&shown, Duration::from_millis(LEASE), now.instant);
        // A seed has one world.
        over.sort_unstable();
        if over.is_empty() { Says::new() } else { self.write(now, |draft| close_sessions(draft, &over)).1 }
    }

    /// A service has dialled: what it says first comes later.
    pub fn answer(&mut self, service: ServiceId, now: &Now<'_>) {
        self.part(service, false);
        self.sessions.insert(service, Held { core: ManagerSide::new(now.instant), open: None });
    }

    pub fn hear(&mut self, now: &mut Now<'_>, service: ServiceId, message: Upward) -> Says {
        self.tell(now, service, ManagerEvent::Received(message))
    }

    pub fn tick(&mut self, now: &mut Now<'_>, service: ServiceId) -> Says {
        self.tell(now, service, ManagerEvent::Tick)
    }

    fn tell(&mut self, now: &mut Now<'_>, service: ServiceId, event: ManagerEvent) -> Says {
        let mut says = Says::new();
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let Some(held) = self.sessions.get_mut(&service) else { break };
            for action in held.core.handle(event, now.instant) {
                match action {
                    ManagerAction::Send(message) => says.push((service, message)),
                    ManagerAction::Admit(greeting) => {
                        let (event, more) = self.admit(now, &greeting);
                        says.extend(more);
                        events.push(event);
                    }
                    ManagerAction::Heard => {
                        if let Some(open) = self.sessions.get_mut(&service).and_then(|held| held.open.as_mut()) {
                            open.heard = now.instant;
                        }
                    }
                    ManagerAction::Commit { sequence, reports } => {
                        let Some(session) = self.open_session(service) else { continue };
                        let (taken, more) = self.write(now, |draft| take_reports(draft, service, session, &reports));
                        says.extend(more);
                        match taken {
                            Ok(()) => events.push(ManagerEvent::Committed { sequence }),
                            Err(_) => self.part(service, false),
                        }
                    }
                    ManagerAction::Answer { .. } => {}
                    ManagerAction::End { release, .. } => self.part(service, release),
                }
            }
        }
        says
    }

    fn admit(&mut self, now: &mut Now<'_>, greeting: &crate::session::Greeting) -> (ManagerEvent, Says) {
        let service = greeting.service;
        let refused = |why: &str| ManagerEvent::Refused(why.to_owned());
        let Some(entry) = now.store.get(&Key::service(service)).cloned() else {
            return (ManagerEvent::Unknown("no member".into()), Says::new());
        };
        let removed = serde_json::from_slice::<Service>(&entry.value).is_ok_and(|record| record.meta.is_removed());
        if removed {
            return (ManagerEvent::Removed, Says::new());
        }
        if self.view.revision < entry.revision {
            return (refused("the view is behind the store"), Says::new());
        }
        let lease = *self.lifeline.get_or_insert_with(|| now.store.grant(LEASE, now.time));
        let id = SessionId::from_bytes(now.fresh());
        let session = Session { id, service, manager: self.id, since: now.timestamp() };
        let (admitted, says) = self.write(now, |draft| admit_session(draft, &session, greeting, lease));
        if let Err(refusal) = admitted {
            return (refused(&refusal.to_string()), says);
        }
        // As in the dispatcher: what a view shows that does not show this session may be older than what the service holds.
        let shown = self.view.get::<Session>(service).is_some_and(|seen| seen.id == id);
        if !shown && !matches!(self.planted, Planted::AdmitBehind | Planted::AnyGeneration | Planted::DestroyDropped) {
            return (refused("the view is behind the store"), says);
        }
        if let Some(held) = self.sessions.get_mut(&service) {
            held.open = Some(Open { session: id, heard: now.instant, _asks: self.known.open(service, id) });
        }
        let welcome = Welcome {
            session: id,
            heartbeat: HEARTBEAT,
            lease: Duration::from_millis(LEASE),
            managers: Vec::new(),
            mark: self.view.mark(),
        };
        let (assignments, partial) = (self.view.assignments(service), self.view.is_partial());
        (ManagerEvent::Admitted { welcome, assignments, partial }, says)
    }

    /// What falls to one of several: the office is taken where it is free, services without a lease are noted, and moves are
    /// led on.
    pub fn lead(&mut self, now: &mut Now<'_>) -> Says {
        let mine = self.term.filter(|(_, lease)| now.store.keep_alive(*lease, now.time));
        self.term = mine.or_else(|| self.campaign(now));
        let Some((began, _)) = self.term else { return Says::new() };
        let silent = self.view.services.values().map(|service| &*service.value);
        let silent = silent.filter(|it| it.status.state == ServiceState::Ready);
        let silent: Vec<ServiceId> =
            silent.map(|it| it.meta.id).filter(|id| self.view.get::<Session>(*id).is_none()).collect();
        let author = Author { who: "leader".into(), origin: "itself".into() };
        let mut says = Says::new();
        for id in silent {
            let (_, more) = self.write(now, |draft| {
                draft.require(Compare::Unchanged(Key::leader(), began));
                mark_down(draft, &author, id)
            });
            says.extend(more);
        }
        says.extend(self.lead_moves(now, &author, began));
        says
    }

    /// As `manager::moves` does.
    fn lead_moves(&mut self, now: &mut Now<'_>, author: &Author, began: Revision) -> Says {
        let mut says = Says::new();
        let in_office = Compare::Unchanged(Key::leader(), began);
        for end in due_moves(&self.view) {
            let (_, more) = self.write(now, |draft| {
                draft.require(in_office.clone());
                advance_move(draft, author, end)
            });
            says.extend(more);
        }
        for service in draining(&self.view) {
            let draft = Draft::new(&self.view, now.timestamp(), EventId::from_bytes(now.fresh()));
            let has_next = has_next(&draft, service);
            drop(draft);
            if has_next {
                let copy = VolumeId::from_bytes(now.fresh());
                let (_, more) = self.write(now, |draft| {
                    draft.require(in_office.clone());
                    empty_one(draft, author, service, copy)
                });
                says.extend(more);
            }
        }
        says
    }

    fn campaign(&self, now: &mut Now<'_>) -> Option<(Revision, LeaseId)> {
        if now.store.get(&Key::leader()).is_some() {
            return None;
        }
        let lease = now.store.grant(LEASE, now.time);
        let value = serde_json::to_vec(&self.id).ok()?;
        let take = Txn {
            compares: vec![Compare::Absent(Key::leader())],
            ops: vec![Op::Put { key: Key::leader(), value, lease: Some(lease) }],
        };
        match now.store.commit(take) {
            Commit::Done(revision) => Some((revision, lease)),
            Commit::Conflict => None,
        }
    }

    /// The service hung up.
    pub fn lose(&mut self, service: ServiceId) {
        self.part(service, false);
    }
}
