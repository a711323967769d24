//! The manager's end of block services' sessions: drives the sans-io core over a gRPC stream.

use super::member::Member;
use super::plan;
use super::refusal::Refusal;
use crate::discovery::Presence;
use crate::model::{Inventory, Report, Service, ServiceId, ServiceType, Session, SessionId};
use crate::rpc::{Malformed, proto};
use crate::session::{Downward, Ended, Greeting, ManagerAction, ManagerEvent, ManagerSide, Upward, Welcome};
use crate::store::{Key, StoreError};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot};
use tonic::{Status, Streaming};

/// A question for a service's inventory.
pub struct Ask {
    reply: oneshot::Sender<Inventory>,
}

/// The sessions that this manager holds.
#[derive(Default)]
pub struct Sessions {
    ports: Mutex<HashMap<ServiceId, (SessionId, mpsc::Sender<Ask>)>>,
}

impl Sessions {
    fn ports(&self) -> std::sync::MutexGuard<'_, HashMap<ServiceId, (SessionId, mpsc::Sender<Ask>)>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `service` finds on its devices; none if this manager does not hold its session, or it does not answer.
    pub async fn inventory(&self, service: ServiceId, patience: Duration) -> Option<Inventory> {
        let port = self.ports().get(&service).map(|(_, port)| port.clone())?;
        let (reply, answer) = oneshot::channel();
        port.send(Ask { reply }).await.ok()?;
        tokio::time::timeout(patience, answer).await.ok()?.ok()
    }

    fn open(&self, service: ServiceId, session: SessionId) -> mpsc::Receiver<Ask> {
        let (port, asks) = mpsc::channel(4);
        // An older session of the same service loses its port, and ends.
        self.ports().insert(service, (session, port));
        asks
    }

    fn close(&self, service: ServiceId, session: SessionId) {
        let mut ports = self.ports();
        if ports.get(&service).is_some_and(|(held, _)| *held == session) {
            ports.remove(&service);
        }
    }
}

type Outbound = mpsc::Sender<Result<proto::ManagerMessage, Status>>;
type Pending<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// How often the core is told that time passes.
const TICK: Duration = Duration::from_millis(250);
/// Reports in one plan: each may take three operations of a transaction.
const REPORTS_AT_ONCE: usize = 40;

/// What an open session holds.
struct Open {
    session: Session,
    presence: Arc<Presence>,
    /// When the lease was last known to live.
    renewed: Instant,
    /// What the service was last told of managers.
    managers: Vec<String>,
}

struct Driver {
    member: Arc<Member>,
    core: ManagerSide,
    outbound: Outbound,
    open: Option<Open>,
    /// With `open`.
    concern: Option<Arc<Notify>>,
    asks: Option<mpsc::Receiver<Ask>>,
    commit: Pending<(u64, Result<(), Refusal>)>,
    renewal: Pending<Result<(), StoreError>>,
    waiting: HashMap<u64, oneshot::Sender<Inventory>>,
    nonce: u64,
}

/// Holds one session from Hello to its end.
pub async fn hold(member: Arc<Member>, inbound: Streaming<proto::ServiceMessage>, outbound: Outbound, peer: String) {
    let core = ManagerSide::new(Instant::now());
    let mut driver = Driver {
        member,
        core,
        outbound,
        open: None,
        concern: None,
        asks: None,
        commit: None,
        renewal: None,
        waiting: HashMap::new(),
        nonce: 0,
    };
    let (reason, release) = driver.run(inbound).await;
    driver.end(&peer, &reason, release).await;
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
                    Err(refusal) => return (Ended::Refused(refusal.to_string()), false),
                },
                renewed = finished(&mut self.renewal) => match renewed {
                    Err(error @ StoreError::LeaseGone(_)) => return (Ended::Refused(error.to_string()), false),
                    // Another manager may reach the store where this one does not.
                    Err(error) if self.is_overdue() => return (Ended::Refused(error.to_string()), false),
                    Err(error) => {
                        tracing::warn!(%error, "cannot renew a service's lease yet");
                        continue;
                    }
                    Ok(()) => {
                        if let Some(open) = &mut self.open {
                            open.renewed = Instant::now();
                        }
                        continue;
                    }
                },
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
                    Ok(Some(event)) => actions.extend(self.core.handle(event, Instant::now())),
                    Ok(None) => {}
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
        let mut events = vec![ManagerEvent::Assigned { set: view.assignments(service), partial: view.is_partial() }];
        let managers = view.manager_addresses(self.member.service);
        if managers != open.managers {
            open.managers.clone_from(&managers);
            events.push(ManagerEvent::Managers(managers));
        }
        Ok(events)
    }

    /// Performs one action; may answer with the event that follows from it.
    async fn perform(&mut self, action: ManagerAction) -> Result<Option<ManagerEvent>, (Ended, bool)> {
        match action {
            ManagerAction::Admit(greeting) => return Ok(Some(self.admit(greeting).await)),
            ManagerAction::Send(message) => self.send(message).await?,
            ManagerAction::KeepAlive => {
                if let (Some(open), None) = (&self.open, &self.renewal) {
                    let presence = open.presence.clone();
                    self.renewal = Some(Box::pin(async move { presence.renew().await }));
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
        Ok(None)
    }

    async fn send(&mut self, message: Downward) -> Result<(), (Ended, bool)> {
        let patience = self.member.cluster.spec.lease();
        match tokio::time::timeout(patience, self.outbound.send(Ok(message.into()))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err((Ended::Refused("the service closed the stream".into()), false)),
            Err(_) => Err((Ended::Silence(patience), false)),
        }
    }

    /// Whether the lease has run out as far as this manager can tell.
    fn is_overdue(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.renewed.elapsed() >= self.member.cluster.spec.lease())
    }

    async fn admit(&mut self, greeting: Greeting) -> ManagerEvent {
        match self.try_admit(greeting).await {
            Ok(event) => event,
            Err(refusal @ Refusal::NotMember(_)) => ManagerEvent::Unknown(refusal.to_string()),
            Err(refusal) => ManagerEvent::Refused(refusal.to_string()),
        }
    }

    async fn try_admit(&mut self, greeting: Greeting) -> Result<ManagerEvent, Refusal> {
        let (member, service) = (&self.member, greeting.service);
        if greeting.cluster != member.cluster.meta.id {
            return Err(Refusal::Precondition(format!("this manager belongs to cluster {}", member.cluster.meta.id)));
        }
        // Asked of the store, not of the view: a manager that lags must not turn a new member away, and only a
        // tombstone that was read may tell a service that it is removed.
        let entry = member.store.get(&Key::service(service)).await?.ok_or(Refusal::NotMember(service))?;
        let record: Service = crate::store::decode(&entry)?;
        if record.meta.is_removed() {
            return Ok(ManagerEvent::Removed);
        }
        if record.spec.service_type != ServiceType::Block {
            return Err(Refusal::Precondition(format!("service {service} is not a block service")));
        }
        if !member.view.reached(entry.revision).await {
            return Err(Refusal::Store("this manager's view is behind the store".into()));
        }
        let presence = Presence::begin(member.store.clone(), member.cluster.spec.lease()).await?;
        let session =
            Session { id: SessionId::generate(), service, manager: member.service, since: member.clock.wall() };
        let (lease, written) = (presence.lease(), session.clone());
        member.writer.write(move |draft| plan::admit_session(draft, &written, &greeting, lease)).await?;
        // Before the assignments are read, so that no later change is missed.
        self.concern = Some(member.view.subscribe(service));
        self.asks = Some(member.sessions.open(service, session.id));
        let view = member.view.read();
        let managers = view.manager_addresses(member.service);
        let welcome = Welcome {
            session: session.id,
            heartbeat: member.cluster.spec.heartbeat(),
            lease: member.cluster.spec.lease(),
            managers: managers.clone(),
        };
        let (assignments, partial) = (view.assignments(service), view.is_partial());
        drop(view);
        tracing::info!(%service, session = %session.id, "a block service is connected");
        self.open = Some(Open { session, presence: Arc::new(presence), renewed: Instant::now(), managers });
        Ok(ManagerEvent::Admitted { welcome, assignments, partial })
    }

    async fn end(mut self, peer: &str, reason: &Ended, release: bool) {
        match &self.open {
            Some(open) => tracing::info!(service = %open.session.service, %reason, "a session ended"),
            None => tracing::warn!(%peer, %reason, "a session was not admitted"),
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
        self.renewal = None;
        if let Some(open) = self.open {
            self.member.sessions.close(open.session.service, open.session.id);
            if release
                && let Some(presence) = Arc::into_inner(open.presence)
                && let Err(error) = presence.release().await
            {
                tracing::debug!(%error, "the lease runs out by itself");
            }
        }
    }
}

async fn commit(member: &Member, service: ServiceId, session: SessionId, reports: Vec<Report>) -> Result<(), Refusal> {
    for part in reports.chunks(REPORTS_AT_ONCE) {
        let part = part.to_vec();
        member.writer.write(move |draft| plan::take_reports(draft, service, session, &part)).await?;
    }
    Ok(())
}
