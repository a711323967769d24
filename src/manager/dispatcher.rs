//! The manager's end of block services' sessions: drives the sans-io core over a gRPC stream.

use super::draft::Draft;
use super::history;
use super::lifeline::Hold;
use super::member::Member;
use super::plan;
use super::refusal::Refusal;
use super::sessions::Ask;
use super::view::View;
use crate::model::{Inventory, Mark, Report, Service, ServiceId, ServiceType, Session, SessionId, Trust};
use crate::pki::Role;
use crate::rpc::{Caller, Malformed, Peer, proto};
use crate::session::{Downward, Ended, Greeting, ManagerAction, ManagerEvent, ManagerSide, Upward, Welcome};
use crate::store::Key;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot};
use tonic::{Status, Streaming};

type Outbound = mpsc::Sender<Result<proto::ManagerMessage, Status>>;
type Pending<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// How often the core is told that time passes.
const TICK: Duration = Duration::from_millis(250);
/// Reports in one plan: each may take three operations of a transaction.
const REPORTS_AT_ONCE: usize = 40;

/// What an open session holds.
struct Open {
    session: Session,
    /// When the service was last heard of.
    heard: Instant,
    /// What the service was last told of managers.
    managers: Vec<String>,
    /// What it was last told of certificates.
    trust: Option<Trust>,
    /// How far the state had come when it was told last.
    mark: Mark,
    /// The cluster was being recovered when it opened: the service keeps what it was not told of.
    recovering: bool,
}

struct Driver {
    member: Arc<Member>,
    peer: Peer,
    core: ManagerSide,
    outbound: Outbound,
    open: Option<Open>,
    /// With `open`.
    concern: Option<Arc<Notify>>,
    asks: Option<mpsc::Receiver<Ask>>,
    hold: Option<Hold>,
    commit: Pending<(u64, Result<(), Refusal>)>,
    waiting: HashMap<u64, oneshot::Sender<Inventory>>,
    nonce: u64,
}

/// Holds one session from Hello to its end.
pub async fn hold(member: Arc<Member>, inbound: Streaming<proto::ServiceMessage>, outbound: Outbound, peer: Peer) {
    let core = ManagerSide::new(Instant::now());
    let mut driver = Driver {
        member,
        peer,
        core,
        outbound,
        open: None,
        concern: None,
        asks: None,
        hold: None,
        commit: None,
        waiting: HashMap::new(),
        nonce: 0,
    };
    let (reason, release) = driver.run(inbound).await;
    driver.end(&reason, release).await;
}

/// Completes when the future in `slot` does, and never while there is none.
async fn finished<T>(slot: &mut Pending<T>) -> T {
    match slot {
        Some(future) => {
            let value = future.await;
            *slot = None;
            value
        }
        None => std::future::pending().await,
    }
}

async fn concerned(concern: Option<&Notify>) {
    match concern {
        Some(concern) => concern.notified().await,
        None => std::future::pending().await,
    }
}

async fn let_go(hold: &mut Option<Hold>) {
    match hold {
        Some(hold) => hold.lost().await,
        None => std::future::pending().await,
    }
}

async fn asked(asks: &mut Option<mpsc::Receiver<Ask>>) -> Option<Ask> {
    match asks {
        Some(asks) => asks.recv().await,
        None => std::future::pending().await,
    }
}

impl Driver {
    async fn run(&mut self, mut inbound: Streaming<proto::ServiceMessage>) -> (Ended, bool) {
        let mut ticks = tokio::time::interval(TICK);
        let group = self.member.group.clone();
        loop {
            let events = tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(message)) => match Upward::try_from(message) {
                        Ok(message) => vec![ManagerEvent::Received(message)],
                        Err(Malformed(what)) => return (Ended::Protocol(what), false),
                    },
                    Ok(None) => return (Ended::Refused("the service closed the stream".into()), false),
                    Err(status) => return (Ended::Refused(status.message().to_owned()), false),
                },
                () = concerned(self.concern.as_deref()) => match self.look_again() {
                    Ok(events) => events,
                    Err(ended) => return (ended, false),
                },
                (sequence, committed) = finished(&mut self.commit) => match committed {
                    Ok(()) => vec![ManagerEvent::Committed { sequence }],
                    Err(refusal) => {
                        if let Refusal::NotYours { .. } = refusal {
                            let caller = self.peer.caller();
                            tracing::warn!(peer = %self.peer.peer, %caller, %refusal, "a forged report was refused");
                        }
                        return (Ended::Refused(refusal.to_string()), false);
                    }
                },
                () = let_go(&mut self.hold) => {
                    return (Ended::Refused("this manager's lease ran out, and the session with it".into()), false);
                }
                ask = asked(&mut self.asks) => match ask {
                    Some(ask) => {
                        self.nonce += 1;
                        self.waiting.insert(self.nonce, ask.reply);
                        self.waiting.retain(|_, asker| !asker.is_closed());
                        vec![ManagerEvent::Ask { nonce: self.nonce }]
                    }
                    None => return (Ended::Refused("a newer session of the same service took over".into()), false),
                },
                _ = ticks.tick() => vec![ManagerEvent::Tick],
                () = group.requested() => return (Ended::Refused("the manager stops".into()), false),
            };
            let mut actions = VecDeque::new();
            for event in events {
                actions.extend(self.core.handle(event, Instant::now()));
            }
            while let Some(action) = actions.pop_front() {
                match self.perform(action).await {
                    Ok(events) => {
                        for event in events {
                            actions.extend(self.core.handle(event, Instant::now()));
                        }
                    }
                    Err(end) => return end,
                }
            }
        }
    }

    /// The view has changed for this service.
    fn look_again(&mut self) -> Result<Vec<ManagerEvent>, Ended> {
        let Some(open) = &mut self.open else { return Ok(Vec::new()) };
        let view = self.member.view.read();
        let service = open.session.service;
        if view.get::<Service>(service).is_some_and(|service| service.meta.is_removed()) {
            return Ok(vec![ManagerEvent::Removed]);
        }
        if view.get::<Session>(service).is_none_or(|session| session.id != open.session.id) {
            return Err(Ended::Refused(Refusal::Superseded(service).to_string()));
        }
        if open.recovering && view.recovering().is_none() {
            return Err(Ended::Refused("the recovery is finished: the service is told everything anew".into()));
        }
        let mark = view.mark();
        if mark.epoch != open.mark.epoch {
            let text = "the state is in another history now: the service is synchronised anew";
            return Err(Ended::Refused(text.into()));
        }
        open.mark = mark;
        let mut events = vec![
            ManagerEvent::Mark(mark),
            ManagerEvent::Assigned { set: view.assignments(service), partial: view.withholds() },
        ];
        let managers = view.manager_addresses(self.member.service);
        if managers != open.managers {
            open.managers.clone_from(&managers);
            events.push(ManagerEvent::Managers(managers));
        }
        // Without an authority to be read, what was said last holds on.
        if let Some(trust) = view.trust()
            && open.trust.as_ref() != Some(&trust)
        {
            open.trust = Some(trust.clone());
            events.push(ManagerEvent::Trust(trust));
        }
        Ok(events)
    }

    /// Performs one action; may answer with the events that follow from it.
    async fn perform(&mut self, action: ManagerAction) -> Result<Vec<ManagerEvent>, (Ended, bool)> {
        match action {
            ManagerAction::Admit(greeting) => return Ok(self.admit(greeting).await),
            ManagerAction::Send(message) => self.send(message).await?,
            ManagerAction::Heard => {
                if let Some(open) = &mut self.open {
                    open.heard = Instant::now();
                }
            }
            ManagerAction::Commit { sequence, reports } => {
                if let Some(open) = &self.open {
                    let (service, session) = (open.session.service, open.session.id);
                    let member = self.member.clone();
                    let commit = async move { (sequence, commit(&member, service, session, reports).await) };
                    self.commit = Some(Box::pin(commit));
                }
            }
            ManagerAction::Answer { nonce, inventory } => {
                if let Some(reply) = self.waiting.remove(&nonce)
                    && reply.send(inventory).is_err()
                {
                    tracing::debug!("nobody waits for the inventory any more");
                }
            }
            ManagerAction::End { reason, release } => return Err((reason, release)),
        }
        Ok(Vec::new())
    }

    async fn send(&mut self, message: Downward) -> Result<(), (Ended, bool)> {
        let patience = self.member.cluster.spec.lease();
        match tokio::time::timeout(patience, self.outbound.send(Ok(message.into()))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err((Ended::Refused("the service closed the stream".into()), false)),
            Err(_) => Err((Ended::Silence(patience), false)),
        }
    }

    async fn admit(&mut self, greeting: Greeting) -> Vec<ManagerEvent> {
        let claimed = greeting.service;
        match self.try_admit(greeting).await {
            Ok(events) => events,
            Err(refusal @ Refusal::NotMember(_)) => vec![ManagerEvent::Unknown(refusal.to_string())],
            Err(refusal) => {
                if let Refusal::Denied(_) = refusal {
                    let Peer { peer, .. } = &self.peer;
                    tracing::warn!(%peer, caller = %self.peer.caller(), %claimed, "a forged greeting was refused");
                }
                vec![ManagerEvent::Refused(refusal.to_string())]
            }
        }
    }

    async fn try_admit(&mut self, greeting: Greeting) -> Result<Vec<ManagerEvent>, Refusal> {
        let (member, service) = (&self.member, greeting.service);
        if greeting.cluster != member.cluster.meta.id {
            return Err(Refusal::Precondition(format!("this manager belongs to cluster {}", member.cluster.meta.id)));
        }
        // Asked of the store, not of the view: a manager that lags must not turn a new member away, and only a
        // tombstone that was read may tell a service that it is removed.
        let entry = member.store.get(&Key::service(service)).await?.ok_or(Refusal::NotMember(service))?;
        let record: Service = crate::store::decode(&entry)?;
        speaks_for(self.peer.caller(), &record)?;
        if record.meta.is_removed() {
            return Ok(vec![ManagerEvent::Removed]);
        }
        if record.spec.service_type != ServiceType::Block {
            return Err(Refusal::Precondition(format!("service {service} is not a block service")));
        }
        if !member.view.reached(entry.revision).await {
            return Err(Refusal::Store("this manager's view is behind the store".into()));
        }
        carry_over(member, &greeting).await?;
        let hold = member.sessions.hold(member.cluster.spec.lease()).await?;
        let session =
            Session { id: SessionId::generate(), service, manager: member.service, since: member.clock.wall() };
        let (lease, written) = (hold.lease(), session.clone());
        member.writer.write(move |draft| plan::admit_session(draft, &written, &greeting, lease)).await?;
        // Before the assignments are read, so that no later change is missed.
        self.concern = Some(member.view.subscribe(service));
        is_shown(&member.view.read(), &session)?;
        self.asks = Some(member.sessions.open(service, session.id));
        let view = member.view.read();
        let managers = view.manager_addresses(member.service);
        let welcome = Welcome {
            session: session.id,
            heartbeat: member.cluster.spec.heartbeat(),
            lease: member.cluster.spec.lease(),
            managers: managers.clone(),
            mark: view.mark(),
        };
        let mark = welcome.mark;
        let (assignments, partial) = (view.assignments(service), view.withholds());
        let (trust, recovering) = (view.trust(), view.recovering().is_some());
        drop(view);
        tracing::info!(%service, session = %session.id, "a block service is connected");
        let mut events = vec![ManagerEvent::Admitted { welcome, assignments, partial }];
        events.extend(trust.clone().map(ManagerEvent::Trust));
        self.hold = Some(hold);
        self.open = Some(Open { session, heard: Instant::now(), managers, trust, mark, recovering });
        Ok(events)
    }

    async fn end(self, reason: &Ended, release: bool) {
        match &self.open {
            Some(open) => tracing::info!(service = %open.session.service, %reason, "a session ended"),
            None => tracing::warn!(peer = %self.peer.peer, %reason, "a session was not admitted"),
        }
        let status = match reason {
            Ended::Removed | Ended::Goodbye => None,
            Ended::Protocol(_) => Some(Status::invalid_argument(reason.to_string())),
            Ended::Silence(_) => Some(Status::deadline_exceeded(reason.to_string())),
            Ended::Unknown(_) => Some(Status::not_found(reason.to_string())),
            Ended::Refused(_) => Some(Status::failed_precondition(reason.to_string())),
        };
        if let Some(status) = status
            && self.outbound.try_send(Err(status)).is_err()
        {
            tracing::debug!("the service does not hear why its session ended");
        }
        if let Some(open) = self.open {
            let (service, session) = (open.session.service, open.session.id);
            // One that is only cut off must not look gone before its time.
            let stays = if release { Duration::ZERO } else { self.member.cluster.spec.lease() };
            self.member.sessions.close(service, session, open.heard + stays);
        }
    }
}

/// Brings the service's objects into the state's present history, if they are of an earlier one: it may hold something
/// newer.
async fn carry_over(member: &Member, greeting: &Greeting) -> Result<(), Refusal> {
    let service = greeting.service;
    let (epoch, reason) = history::floor_for(member, greeting).await?;
    while plan::has_to_carry(&member.view.read(), service, epoch) {
        let reason = reason.clone();
        let plan = move |draft: &mut Draft<'_>| plan::carry_over(draft, service, epoch, &reason);
        let more = member.writer.write(plan).await?;
        tracing::info!(%service, %epoch, more, "what is on a block service is carried over");
    }
    Ok(())
}

/// Whether `caller` may speak as the service of this record. A service with a certificate must show it: a peer on the
/// manager's host may do what operators do, but not be a service that has a key of its own.
fn speaks_for(caller: &Caller, record: &Service) -> Result<(), Refusal> {
    let id = record.meta.id;
    match caller {
        Caller::Certified(bearer) if bearer.role == Role::Block && bearer.service_id() == Some(id) => Ok(()),
        Caller::Certified(bearer) => Err(Refusal::Denied(format!("{bearer} may not open a session as service {id}"))),
        // One that was removed is only told so.
        Caller::Local { .. } if record.status.certificate.is_none() || record.meta.is_removed() => Ok(()),
        Caller::Local { .. } => {
            Err(Refusal::Denied(format!("service {id} has a certificate: it opens its sessions with it, over TLS")))
        }
        Caller::Anonymous => Err(Refusal::Denied(format!("a session as service {id} needs its certificate"))),
        Caller::Refused(reason) => Err(Refusal::Denied(reason.clone())),
    }
}

/// Whether the view has come to where the session was committed. An older one may lack what the service holds already, which
/// it would then stop serving.
fn is_shown(view: &View, session: &Session) -> Result<(), Refusal> {
    match view.get::<Session>(session.service) {
        Some(shown) if shown.id == session.id => Ok(()),
        _ => Err(Refusal::Store("this manager's view is behind the store".into())),
    }
}

async fn commit(member: &Member, service: ServiceId, session: SessionId, reports: Vec<Report>) -> Result<(), Refusal> {
    for part in reports.chunks(REPORTS_AT_ONCE) {
        let part = part.to_vec();
        member.writer.write(move |draft| plan::take_reports(draft, service, session, &part)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::enrollment::new_service;
    use crate::model::{CertificateRecord, ClusterId, Timestamp};
    use crate::pki::Bearer;
    use crate::store::{Batch, Entry, Event, Revision};

    #[test]
    fn a_service_is_not_told_what_to_hold_by_a_view_that_does_not_show_its_session() {
        let service = ServiceId::generate();
        let session = || Session { id: SessionId::generate(), service, manager: service, since: Timestamp::EPOCH };
        let (older, newer, mut view) = (session(), session(), View::default());
        assert!(is_shown(&view, &older).is_err());
        for (number, shown) in [(1, &older), (2, &newer)] {
            let (key, value) = (Key::session(service), serde_json::to_vec(shown).unwrap());
            let entry = Entry { key, value, revision: Revision(number), lease: None };
            view.apply(Batch { revision: Revision(number), events: vec![Event::Put(entry)] });
            assert!(is_shown(&view, shown).is_ok());
        }
        assert!(matches!(is_shown(&view, &older), Err(Refusal::Store(_))), "it was superseded meanwhile");
    }

    #[test]
    fn a_forged_greeting_in_the_name_of_another_service_is_refused() {
        let (id, cluster) = (ServiceId::generate(), ClusterId::generate());
        let mut record = new_service(id, ServiceType::Block, "host".into(), "0".into(), Timestamp::EPOCH);
        let certified = |role, id| Caller::Certified(Bearer { cluster, role, id });
        let local = Caller::Local { who: "root".into() };
        assert!(speaks_for(&local, &record).is_ok(), "it has no certificate to show yet");
        record.status.certificate = Some(CertificateRecord {
            public_key: "ab".into(),
            expires_at: Timestamp::EPOCH,
            root: "cd".into(),
            names: Default::default(),
        });
        assert!(speaks_for(&certified(Role::Block, id.as_uuid()), &record).is_ok());
        let other = ServiceId::generate().as_uuid();
        let forgers = [
            local,
            Caller::Anonymous,
            Caller::Refused("because".into()),
            certified(Role::Block, other),
            certified(Role::Manager, id.as_uuid()),
            certified(Role::Admin, id.as_uuid()),
            certified(Role::Data, id.as_uuid()),
        ];
        for forger in forgers {
            assert!(matches!(speaks_for(&forger, &record), Err(Refusal::Denied(_))), "{forger}");
        }
        record.meta.bury(Timestamp::EPOCH);
        assert!(
            speaks_for(&Caller::Local { who: "root".into() }, &record).is_ok(),
            "it must be told that it is removed"
        );
    }
}
