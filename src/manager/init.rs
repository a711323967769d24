//! Becoming a member: at start, by what is on disk; by `manager init`; and back again when removed.

use super::audit;
use super::authority;
use super::enrollment::new_service;
use super::member::{Member, Stranded};
use super::refusal::Refusal;
use super::view::Stored;
use super::{Stage, StoreConfig};
use crate::host::{ConfigDir, load_document, put_aside, save_document};
use crate::model::*;
use crate::pki::Keyring;
use crate::rpc::{Fault, FaultKind};
use crate::runtime::{Backoff, Clock, Shutdown, VERSION};
use crate::store::{Commit, Compare, Key, Op, SharedStore, StoreError, Txn, decode, encode};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OnceCell, watch};

/// How long an init waits for the new member's lease.
const FIRST_LEASE: Duration = Duration::from_secs(5);

/// A running manager, member or not.
pub struct Manager {
    pub(super) dir: ConfigDir,
    /// Where others reach this manager, `host:port`.
    pub(super) address: String,
    store_config: StoreConfig,
    /// Once it could be reached.
    store: OnceCell<SharedStore>,
    stage: watch::Sender<Stage>,
    /// One init at a time.
    init: Mutex<()>,
    /// What this manager presents and believes; empty while it is no member.
    pub(super) keyring: Keyring,
    clock: Arc<dyn Clock>,
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
        let store = OnceCell::new_with(store);
        Arc::new(Self { dir, address, store_config, store, stage, init: Mutex::default(), keyring, clock, shutdown })
    }

    pub(super) fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }

    pub(super) fn store_text(&self) -> String {
        self.store_config.to_string()
    }

    /// The store, connecting to it first if that did not succeed yet.
    async fn store(&self) -> Result<&SharedStore, StoreError> {
        self.store.get_or_try_init(|| self.store_config.connect(&self.dir)).await
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
            if !error.retryable() {
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
        let address = self.address.clone();
        let started = Member::start(
            identity,
            membership,
            address,
            self.store().await?.clone(),
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
                () = manager.shutdown.requested() => {}
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
            match self.init(name, ClusterSpec::default(), author).await {
                Ok((member, created)) => {
                    tracing::info!(service = %member.service, created, "initialised without an operator");
                    return;
                }
                Err(fault) => tracing::warn!(reason = %fault.message, "cannot init yet"),
            }
            tokio::time::sleep(backoff.next(fastrand::f64())).await;
        }
    }

    /// Creates the cluster, or joins it where there is one; says which.
    pub(super) async fn init(
        self: &Arc<Self>,
        name: Name,
        spec: ClusterSpec,
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
            Stage::Stranded(reason) => return Err(Fault::new(FaultKind::Precondition, reason)),
            Stage::Uninitialised(_) => {}
        }
        let mut identity = self.candidate().map_err(internal)?;
        let (cluster, created) = match self.create_or_join(&identity, name.clone(), spec, &author).await {
            // The id of an init that was cut off, removed since: it has had its life.
            Err(Refusal::NotMember(_)) => {
                put_aside(&self.dir.identity(), "refused").map_err(|error| internal(error.to_string()))?;
                identity = self.candidate().map_err(internal)?;
                self.create_or_join(&identity, name, spec, &author).await?
            }
            other => other?,
        };
        let membership =
            Membership { cluster: cluster.meta.id, cluster_name: cluster.meta.name.clone(), managers: Vec::new() };
        identity.membership = Some(membership.clone());
        save_document(&self.dir.identity(), &identity).map_err(|error| internal(error.to_string()))?;
        let member = self.enter(&identity, &membership).await.map_err(|error| match error {
            Stranded::Store(error) => Fault::from(Refusal::from(error)),
            other => Fault::new(FaultKind::Precondition, other.to_string()),
        })?;
        // Done is when others see it; a store that goes away right now does not make the init fail.
        if tokio::time::timeout(FIRST_LEASE, member.ready()).await.is_err() {
            tracing::warn!("initialised, but not yet able to show itself in the store");
        }
        Ok((member, created))
    }

    /// The identity to init with: the one of an init that was cut off, else a new one, on disk before it is used.
    fn candidate(&self) -> Result<Identity, String> {
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
        author: &Author,
    ) -> Result<(Cluster, bool), Refusal> {
        let now = self.clock.wall();
        let host_name = crate::host::host_name().unwrap_or_else(|_| "unknown".into());
        let record = new_service(identity.service, ServiceType::Manager, host_name, VERSION.into(), now);
        let put_record = Op::Put { key: Service::key(record.meta.id), value: encode(&record)?, lease: None };
        let joined = (Some(Kind::Service), record.meta.id, &record.status.host_name);
        let event = audit::entry(EventId::generate(), now, author, "service.join", joined);
        let put_event = Op::Put { key: Event::key(event.id), value: encode(&event)?, lease: None };
        let cluster = Cluster { meta: Meta::new(ClusterId::generate(), name, now), spec };
        let put_cluster = Op::Put { key: Key::cluster(), value: encode(&cluster)?, lease: None };
        let create = Txn {
            compares: vec![Compare::Absent(Key::cluster())],
            ops: vec![put_cluster, authority::found(&cluster, now)?, put_record.clone(), put_event.clone()],
        };
        if let Commit::Done(_) = self.store().await?.commit(create).await? {
            return Ok((cluster, true));
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

fn internal(message: String) -> Fault {
    Fault::new(FaultKind::Internal, message)
}
