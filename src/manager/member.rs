//! A manager that is a member: its view, its writer, its own lease, its part in the election.

use super::authority::{self, NoAuthority, Own};
use super::plan;
use super::refusal::Refusal;
use super::sessions::Sessions;
use super::view::{Sign, View, ViewHandle};
use super::writer::Writer;
use crate::discovery::{Leadership, Presence, campaign};
use crate::host::DocumentError;
use crate::model::{Addresses, Cluster, Identity, Membership, Service, ServiceId, ServiceState, Session, SessionId};
use crate::pki::{self, Keyring};
use crate::rpc::Caller;
use crate::runtime::{Backoff, Clock, Shutdown, VERSION};
use crate::session::Greeting;
use crate::store::{SharedStore, StoreError};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Why a config directory's identity does not make this manager a member.
#[derive(Debug, thiserror::Error)]
pub enum Stranded {
    #[error(
        "the store holds no cluster, though this manager is service {service} of cluster '{cluster}': is this the right store?"
    )]
    NoCluster { service: ServiceId, cluster: String },
    #[error(
        "the store holds another cluster ({found}) than the one this manager is a member of ({expected}): give it its own store, or another config directory"
    )]
    OtherCluster { found: String, expected: String },
    #[error("service {0} was removed from the cluster")]
    Removed(ServiceId),
    #[error(
        "the cluster does not know service {0}: if it shall join anew, move its identity.json away and run `symphony ctl … manager init`"
    )]
    Unknown(ServiceId),
    #[error(transparent)]
    Memory(#[from] DocumentError),
    #[error(transparent)]
    Authority(#[from] pki::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<NoAuthority> for Stranded {
    fn from(error: NoAuthority) -> Self {
        match error {
            NoAuthority::Pki(error) => Self::Authority(error),
            NoAuthority::Store(error) => Self::Store(error),
        }
    }
}

/// See the module's text. Lives until its [`Shutdown`] group ends.
pub struct Member {
    pub service: ServiceId,
    pub cluster: Cluster,
    /// Where others reach this manager, `host:port`.
    pub address: String,
    /// Where it remembers how far the store had come.
    pub directory: PathBuf,
    pub store: SharedStore,
    pub view: Arc<ViewHandle>,
    pub writer: Writer,
    pub sessions: Sessions,
    pub leadership: watch::Receiver<Option<Leadership>>,
    pub clock: Arc<dyn Clock>,
    pub group: Shutdown,
}

/// Where a manager is found, and where it keeps what is its own.
pub struct Seat {
    /// `host:port`.
    pub address: String,
    /// Its config directory.
    pub directory: PathBuf,
}

impl Member {
    /// Checks `identity` against the store and starts the member's tasks in `group`.
    ///
    /// # Errors
    /// If the store cannot be read, or says that this manager is no member.
    pub async fn start(
        identity: &Identity,
        membership: &Membership,
        Seat { address, directory }: Seat,
        store: SharedStore,
        keyring: Keyring,
        clock: Arc<dyn Clock>,
        group: Shutdown,
    ) -> Result<Arc<Self>, Stranded> {
        let service = identity.service;
        let view = super::watch::settle(&store, service, &directory, membership, clock.as_ref()).await?;
        let cluster = known_cluster(&view, service, membership)?;
        match view.get::<Service>(service) {
            Some(record) if record.meta.is_removed() => return Err(Stranded::Removed(service)),
            Some(_) => {}
            None => return Err(Stranded::Unknown(service)),
        }
        let view = authority::ensure(&store, view, clock.wall()).await?;
        // Before the first call is answered, so that nobody meets a manager without a certificate.
        let mut own = Own::new(keyring, service, &address);
        if let Err(error) = own.follow(&view, clock.wall()) {
            // Local peers need none, and among them is whoever can mend this.
            tracing::error!(%error, "this manager has no certificate yet");
        }
        let view = Arc::new(ViewHandle::new(view));
        let lease = cluster.spec.lease();
        let member = Arc::new(Self {
            service,
            address,
            directory,
            writer: Writer::start(store.clone(), view.clone(), clock.clone(), &group),
            leadership: campaign(store.clone(), service, lease, &group),
            sessions: Sessions::default(),
            cluster,
            store,
            view,
            clock,
            group: group.clone(),
        });
        group.spawn_until_end(super::watch::follow_store(member.clone()));
        group.spawn(super::watch::remember(member.clone()));
        group.spawn(member.clone().stay_present());
        group.spawn_until_end(super::lifeline::serve(member.clone()));
        group.spawn_until_end(super::lifeline::tidy(member.clone()));
        group.spawn_until_end(authority::serve(member.clone(), own));
        group.spawn_until_end(super::leader::serve(member.clone()));
        group.spawn_until_end(super::recovering::serve(member.clone()));
        Ok(member)
    }

    /// Holds a lease of its own, for as long as the member lives.
    async fn stay_present(self: Arc<Self>) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        while !self.group.is_requested() {
            match self.be_present().await {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    if matches!(error, Refusal::Store(_) | Refusal::InDoubt(_)) {
                        self.view.miss(Sign::Lease, self.clock.wall());
                    }
                    tracing::warn!(%error, "cannot show itself in the store");
                    let wait = backoff.next(fastrand::f64());
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = self.group.requested() => {}
                    }
                }
            }
        }
    }

    async fn be_present(&self) -> Result<(), Refusal> {
        let presence = Presence::begin(self.store.clone(), self.cluster.spec.lease()).await?;
        let session = Session {
            id: SessionId::generate(),
            service: self.service,
            manager: self.service,
            since: self.clock.wall(),
        };
        let greeting = Greeting {
            service: self.service,
            cluster: self.cluster.meta.id,
            host_name: crate::host::host_name().unwrap_or_else(|_| "unknown".into()),
            addresses: Addresses { rpc: Some(self.address.clone()), nbd: None },
            version: VERSION.into(),
            mark: self.view.read().mark(),
        };
        let lease = presence.lease();
        self.writer.write(move |draft| plan::admit_session(draft, &session, &greeting, lease)).await?;
        self.view.see(Sign::Lease);
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.cluster.spec.heartbeat()) => {}
                () = self.group.requested() => break,
            }
            match presence.renew().await {
                Ok(()) => self.view.see(Sign::Lease),
                Err(error @ StoreError::LeaseGone(_)) => return Err(error.into()),
                Err(error) => {
                    self.view.miss(Sign::Lease, self.clock.wall());
                    tracing::debug!(%error, "cannot renew the lease yet");
                }
            }
        }
        presence.release().await.map_err(Into::into)
    }

    /// Why a caller that was let in once is let in no longer, if so. To be asked again by what lasts longer than a call.
    pub fn dismisses(&self, caller: &Caller) -> Option<Refusal> {
        let Caller::Certified(bearer) = caller else { return None };
        let revoked = self.view.read().revoked().contains(&bearer.id);
        revoked.then(|| Refusal::Denied(format!("{bearer} was removed from the cluster")))
    }

    /// Completes once the view shows that this manager was removed.
    pub async fn removed(&self) {
        self.becomes(|own| own.meta.is_removed()).await;
    }

    /// Completes once the view shows that this manager holds its lease.
    pub async fn ready(&self) {
        self.becomes(|own| own.status.state == ServiceState::Ready).await;
    }

    async fn becomes(&self, wanted: impl Fn(&Service) -> bool) {
        let mut changes = self.view.changes();
        loop {
            let reached = self.view.read().get::<Service>(self.service).is_some_and(&wanted);
            if reached || changes.changed().await.is_err() {
                return;
            }
        }
    }
}

fn known_cluster(view: &View, service: ServiceId, membership: &Membership) -> Result<Cluster, Stranded> {
    let Some(cluster) = &view.cluster else {
        return Err(Stranded::NoCluster { service, cluster: membership.cluster_name.to_string() });
    };
    if cluster.meta.id != membership.cluster {
        return Err(Stranded::OtherCluster {
            found: cluster.meta.id.to_string(),
            expected: membership.cluster.to_string(),
        });
    }
    Ok(cluster.clone())
}
