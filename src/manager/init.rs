//! Becoming a member: at start, by what is on disk; by `manager init`; and back again when removed.

use super::audit;
use super::authority;
use super::enrollment::new_service;
use super::filling;
use super::member::{Member, Seat, Stranded};
use super::migrate;
use super::refusal::Refusal;
use super::view::Stored;
use super::{Stage, StoreConfig};
use crate::host::{ConfigDir, load_document, put_aside, save_document};
use crate::model::*;
use crate::pki::Keyring;
use crate::rpc::{Fault, FaultKind};
use crate::runtime::{Backoff, Clock, Shutdown, VERSION};
use crate::store::{Commit, Compare, Key, Op, SharedStore, StoreError, Txn, decode, encode};
use std::future::Future;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex, oneshot, watch};

/// How long an init waits for the new member's lease.
const FIRST_LEASE: Duration = Duration::from_secs(5);

/// A running manager, member or not.
pub struct Manager {
    pub(super) dir: ConfigDir,
    /// Where others reach this manager, `host:port`.
    pub(super) address: String,
    store_config: std::sync::Mutex<StoreConfig>,
    /// Once it could be reached.
    store: Mutex<Option<SharedStore>>,
    stage: watch::Sender<Stage>,
    /// One init at a time.
    pub(super) init: Mutex<()>,
    /// What this manager presents and believes; empty while it is no member.
    pub(super) keyring: Keyring,
    pub(super) clock: Arc<dyn Clock>,
    shutdown: Shutdown,
}

impl Manager {
    pub(super) fn new(
        dir: ConfigDir,
        address: String,
        store_config: StoreConfig,
        store: Option<SharedStore>,
        keyring: Keyring,
        clock: Arc<dyn Clock>,
        shutdown: Shutdown,
    ) -> Arc<Self> {
        let stage = watch::Sender::new(Stage::Starting("it is looking at its store".into()));
        let (store, store_config) = (Mutex::new(store), std::sync::Mutex::new(store_config));
        Arc::new(Self { dir, address, store_config, store, stage, init: Mutex::default(), keyring, clock, shutdown })
    }

    pub(super) fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }

    pub(super) fn store_text(&self) -> String {
        self.store_config().to_string()
    }

    pub(super) fn store_config(&self) -> StoreConfig {
        self.store_config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        self.stage.send_replace(stage);
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.wall()
    }

    /// Serves from another store from now on; no member runs meanwhile.
    pub(super) async fn set_store(&self, config: StoreConfig, store: SharedStore) {
        *self.store.lock().await = Some(store);
        *self.store_config.lock().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// Looks for the store anew when it is needed next.
    pub(super) async fn forget_store(&self) {
        *self.store.lock().await = None;
    }

    /// Runs to its end what somebody asked for, whether or not they wait for it.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Fault> {
        let (reply, done) = oneshot::channel();
        self.shutdown.spawn(async move {
            if reply.send(work.await).is_err() {
                tracing::info!("whoever asked for this has gone; it was done all the same");
            }
        });
        done.await.map_err(|_| Refusal::Stopping.into())
    }

    /// Begins anew with what the disk says.
    pub(super) fn spawn_bring_up(self: &Arc<Self>, identity: Identity) {
        self.set_stage(Stage::Starting("it is looking for its store".into()));
        self.shutdown.spawn(self.clone().bring_up(Some(identity)));
    }

    /// The store, connecting to it first if that did not succeed yet.
    pub(super) async fn store(&self) -> Result<SharedStore, StoreError> {
        let mut held = self.store.lock().await;
        if let Some(store) = &*held {
            return Ok(store.clone());
        }
        let (config, store) = migrate::open(&self.dir, &self.store_config()).await?;
        *self.store_config.lock().unwrap_or_else(PoisonError::into_inner) = config;
        *held = Some(store.clone());
        Ok(store)
    }

    /// The member that answers requests.
    pub(super) fn member(&self) -> Result<Arc<Member>, Fault> {
        let socket = self.dir.control_socket();
        match self.stage() {
            Stage::Member(member) => Ok(member),
            Stage::Starting(reason) => {
                Err(Fault::new(FaultKind::Unavailable, format!("this manager is not serving yet: {reason}")))
            }
            Stage::Stranded(reason) => Err(Fault::new(FaultKind::Precondition, reason)),
            Stage::Uninitialised(note) => {
                let note = note.map(|note| format!(" ({note})")).unwrap_or_default();
                let init = format!("symphony ctl --socket={} manager init", socket.display());
                Err(Fault::new(FaultKind::Precondition, format!("this manager is not initialised{note}: run `{init}`")))
            }
        }
    }

    /// Brings the manager to what its identity on disk says, trying for as long as the store is away.
    pub(super) async fn bring_up(self: Arc<Self>, identity: Option<Identity>) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            let error = match self.try_bring_up(identity.as_ref()).await {
                Ok(()) => return,
                Err(error) => error,
            };
            // A former handle of this process on the file may have a moment to go.
            if !error.retryable() && !matches!(error, StoreError::InUse(_)) {
                tracing::error!(%error, "the store cannot be used");
                self.stage.send_replace(Stage::Stranded(error.to_string()));
                return;
            }
            tracing::warn!(%error, "the store cannot be used yet");
            self.stage.send_replace(Stage::Starting(error.to_string()));
            tokio::select! {
                () = tokio::time::sleep(backoff.next(fastrand::f64())) => {}
                () = self.shutdown.requested() => return,
            }
        }
    }

    async fn try_bring_up(self: &Arc<Self>, identity: Option<&Identity>) -> Result<(), StoreError> {
        let Some((identity, membership)) = identity.and_then(|id| Some((id, id.membership.as_ref()?))) else {
            self.store().await?.get(&Key::cluster()).await?;
            tracing::info!("not initialised: waiting for `manager init`");
            self.stage.send_replace(Stage::Uninitialised(None));
            return Ok(());
        };
        match self.enter(identity, membership).await {
            Ok(_) => Ok(()),
            Err(Stranded::Store(error)) => Err(error),
            Err(Stranded::Removed(service)) => {
                self.leave(service);
                Ok(())
            }
            Err(stranded) => {
                tracing::error!(error = %stranded, "this manager cannot serve");
                self.stage.send_replace(Stage::Stranded(stranded.to_string()));
                Ok(())
            }
        }
    }

    async fn enter(self: &Arc<Self>, identity: &Identity, membership: &Membership) -> Result<Arc<Member>, Stranded> {
        let group = self.shutdown.child();
        let seat = Seat { address: self.address.clone(), directory: self.dir.path().to_owned() };
        let started = Member::start(
            identity,
            membership,
            seat,
            self.store().await?,
            self.keyring.clone(),
            self.clock.clone(),
            group.clone(),
        )
        .await;
        let member = match started {
            Ok(member) => member,
            Err(stranded) => {
                group.finish().await;
                return Err(stranded);
            }
        };
        tracing::info!(service = %member.service, cluster = %member.cluster.meta.name, "serving as a member");
        self.stage.send_replace(Stage::Member(member.clone()));
        let (manager, watched) = (self.clone(), member.clone());
        self.shutdown.spawn(async move {
            tokio::select! {
                () = watched.removed() => {
                    tracing::warn!("this manager was removed from the cluster");
                    manager.leave(watched.service);
                }
                () = watched.group.requested() => {}
            }
            watched.group.finish().await;
        });
        Ok(member)
    }

    /// Puts the identity aside, so that the manager may init again.
    fn leave(&self, service: ServiceId) {
        self.keyring.forget();
        if let Err(error) = put_aside(&self.dir.identity(), "removed") {
            tracing::error!(%error, "cannot put the identity aside");
        }
        let note = format!("service {service} was removed from the cluster");
        self.stage.send_replace(Stage::Uninitialised(Some(note)));
    }

    /// Inits once the store answers, as containers and unit files want it. A manager that is removed later stays out:
    /// that was an operator's word.
    pub(super) async fn init_unattended(self: Arc<Self>) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut stage = self.stage.subscribe();
        loop {
            let settled = stage.wait_for(|stage| !matches!(stage, Stage::Starting(_))).await.map(|stage| stage.clone());
            if !matches!(settled, Ok(Stage::Uninitialised(_))) {
                return;
            }
            let author = Author { who: "manager run --init".into(), origin: "this process".into() };
            let name = Name::resembling("symphony", "symphony");
            match self.init(name, ClusterSpec::default(), false, author).await {
                Ok((member, created)) => {
                    tracing::info!(service = %member.service, created, "initialised without an operator");
                    return;
                }
                Err(fault) => tracing::warn!(reason = %fault.message, "cannot init yet"),
            }
            tokio::time::sleep(backoff.next(fastrand::f64())).await;
        }
    }

    /// Creates the cluster, or joins it where there is one; says which. With `recover` one that is created takes over what
    /// block services have on their disks.
    pub(super) async fn init(
        self: &Arc<Self>,
        name: Name,
        spec: ClusterSpec,
        recover: bool,
        author: Author,
    ) -> Result<(Arc<Member>, bool), Fault> {
        let _one_at_a_time = self.init.lock().await;
        match self.stage() {
            Stage::Member(member) => {
                let (service, cluster) = (member.service, &member.cluster.meta.name);
                let message = format!("this manager is already service {service} of cluster '{cluster}'");
                return Err(Fault::new(FaultKind::AlreadyExists, message));
            }
            Stage::Starting(reason) => {
                return Err(Fault::new(FaultKind::Unavailable, format!("cannot init now: {reason}")));
            }
            Stage::Stranded(reason) if !recover => return Err(Fault::new(FaultKind::Precondition, reason)),
            Stage::Stranded(_) | Stage::Uninitialised(_) => {}
        }
        if recover {
            self.give_up_lost_membership().await?;
        }
        let mut identity = self.candidate().map_err(internal)?;
        let (cluster, created) = match self.create_or_join(&identity, name.clone(), spec, recover, &author).await {
            // The id of an init that was cut off, removed since: it has had its life.
            Err(Refusal::NotMember(_)) => {
                put_aside(&self.dir.identity(), "refused").map_err(|error| internal(error.to_string()))?;
                identity = self.candidate().map_err(internal)?;
                self.create_or_join(&identity, name, spec, recover, &author).await?
            }
            other => other?,
        };
        let membership =
            Membership { cluster: cluster.meta.id, cluster_name: cluster.meta.name.clone(), managers: Vec::new() };
        identity.membership = Some(membership.clone());
        save_document(&self.dir.identity(), &identity).map_err(|error| internal(error.to_string()))?;
        Ok((self.enter_ready(&identity, &membership).await?, created))
    }

    /// Serves as a member, and waits until others see it.
    pub(super) async fn enter_ready(
        self: &Arc<Self>,
        identity: &Identity,
        membership: &Membership,
    ) -> Result<Arc<Member>, Fault> {
        let member = self.enter(identity, membership).await.map_err(|error| match error {
            Stranded::Store(error) => Fault::from(Refusal::from(error)),
            other => Fault::new(FaultKind::Precondition, other.to_string()),
        })?;
        // A store that goes away right now makes nothing fail.
        if tokio::time::timeout(FIRST_LEASE, member.ready()).await.is_err() {
            tracing::warn!("a member, but not yet able to show itself in the store");
        }
        Ok(member)
    }

    /// A membership whose cluster is in no store any more is put aside. Refused where the store holds a cluster that lives.
    async fn give_up_lost_membership(&self) -> Result<(), Fault> {
        let entry = self.store().await.map_err(Refusal::from)?.get(&Key::cluster()).await.map_err(Refusal::from)?;
        if let Some(entry) = entry {
            let cluster: Cluster = decode(&entry).map_err(Refusal::from)?;
            if cluster.recovering.is_none() {
                let (id, name) = (cluster.meta.id, cluster.meta.name);
                let text = format!(
                    "the store holds cluster '{name}' ({id}), so there is nothing to recover: join it with `symphony ctl … \
                     manager init`, or give this manager an empty store"
                );
                return Err(Fault::new(FaultKind::Precondition, text));
            }
        }
        let known: Option<Identity> =
            load_document(&self.dir.identity()).map_err(|error| internal(error.to_string()))?;
        if known.is_some_and(|identity| identity.membership.is_some()) {
            self.keyring.forget();
            put_aside(&self.dir.identity(), "lost").map_err(|error| internal(error.to_string()))?;
        }
        Ok(())
    }

    /// The identity to init with: the one of an init that was cut off, else a new one, on disk before it is used.
    pub(super) fn candidate(&self) -> Result<Identity, String> {
        let path = self.dir.identity();
        if let Some(identity) = load_document::<Identity>(&path).map_err(|error| error.to_string())? {
            return Ok(identity);
        }
        let identity = Identity::candidate(ServiceType::Manager);
        save_document(&path, &identity).map_err(|error| error.to_string())?;
        Ok(identity)
    }

    async fn create_or_join(
        &self,
        identity: &Identity,
        name: Name,
        spec: ClusterSpec,
        recover: bool,
        author: &Author,
    ) -> Result<(Cluster, bool), Refusal> {
        let now = self.clock.wall();
        let host_name = crate::host::host_name().unwrap_or_else(|_| "unknown".into());
        let record = new_service(identity.service, ServiceType::Manager, host_name, VERSION.into(), now);
        let put_record = Op::Put { key: Service::key(record.meta.id), value: encode(&record)?, lease: None };
        let joined = (Some(Kind::Service), record.meta.id, &record.status.host_name);
        let event = audit::entry(EventId::generate(), now, author, "service.join", joined);
        let put_event = Op::Put { key: Event::key(event.id), value: encode(&event)?, lease: None };
        let (meta, recovering) = (Meta::new(ClusterId::generate(), name, now), recover.then_some(now));
        let cluster = Cluster { meta, spec, history: History::default(), recovering };
        let put_cluster = Op::Put { key: Key::cluster(), value: encode(&cluster)?, lease: None };
        let create = Txn {
            compares: vec![Compare::Absent(Key::cluster()), Compare::Absent(Key::filling())],
            ops: vec![put_cluster, authority::found(&cluster, now)?, put_record.clone(), put_event.clone()],
        };
        if let Commit::Done(_) = self.store().await?.commit(create).await? {
            return Ok((cluster, true));
        }
        if let Some(with) = filling::unfinished(&self.store().await?).await? {
            return Err(Refusal::Precondition(format!(
                "the store is being filled, or was when that was cut off: {with}; repeat that to go on with it"
            )));
        }
        // Somebody's cluster is there, perhaps from an init of this very service that was cut off.
        let join = Txn {
            compares: vec![Compare::Present(Key::cluster()), Compare::Absent(Service::key(record.meta.id))],
            ops: vec![put_record, put_event],
        };
        let joined = self.store().await?.commit(join).await?;
        let entry = self.store().await?.get(&Key::cluster()).await?.ok_or(Refusal::Busy)?;
        if joined == Commit::Conflict {
            let known = self.store().await?.get(&Service::key(record.meta.id)).await?.ok_or(Refusal::Busy)?;
            if decode::<Service>(&known)?.meta.is_removed() {
                return Err(Refusal::NotMember(record.meta.id));
            }
        }
        Ok((decode(&entry)?, false))
    }
}

pub(super) fn internal(message: String) -> Fault {
    Fault::new(FaultKind::Internal, message)
}
