//! Becoming a member, being one, and ceasing to be one.
//!
//! A member holds (agent and worker, who do what is assigned) and speaks (link and keeper, who are somebody). What is held
//! may pass to another membership while it is served: see [`succession`](super::succession).

use super::{Active, Block, FIRST_SESSION, Stage, internal};
use crate::block::agent::{Agent, Notice};
use crate::block::enrolment::{Applicant, parse_token};
use crate::block::ledger::{self, Ledger};
use crate::block::link::LinkState;
use crate::block::places::Places;
use crate::block::ties::{Member, Ties};
use crate::block::tls_dir::TlsDir;
use crate::block::worker::{Peers, Worker, chain};
use crate::host::{DocumentError, put_aside, save_document};
use crate::model::{ClusterId, Identity, Mark, Membership, ServiceId};
use crate::rpc::{Fault, FaultKind};
use crate::runtime::Shutdown;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};

/// What goes on over a change of membership.
#[derive(Clone)]
pub(super) struct Holding {
    /// The agent's.
    group: Shutdown,
    pub notices: mpsc::Sender<Notice>,
    pub worker: Arc<Worker>,
    /// How far the cluster's state had come when this began.
    mark: Mark,
}

impl Holding {
    /// The same for another cluster, whose state has a history of its own.
    pub fn inherited(&self) -> Self {
        Self { mark: Mark::default(), ..self.clone() }
    }
}

impl Block {
    /// Starts what a member runs: agent, link and keeper.
    pub(super) fn enter(self: &Arc<Self>, identity: &Identity) -> Result<(), DocumentError> {
        let Some(membership) = &identity.membership else { return Ok(()) };
        let holding = self.hold(identity.service, membership.cluster)?;
        self.speak(identity, membership, holding);
        Ok(())
    }

    /// Starts the agent on what the ledger holds.
    fn hold(&self, service: ServiceId, cluster: ClusterId) -> Result<Holding, DocumentError> {
        let group = self.shutdown.child();
        let ledger = Ledger::new(self.dir.ledger(), service);
        let ledger::Page { assigned, mark } = ledger.load()?;
        let peers = Peers { runtime: Handle::current(), client: self.peers.clone() };
        let places = Arc::new(Places::open(self.dir.places())?);
        let worker = Worker::new(cluster, self.exports.clone(), self.doors.clone(), peers, places);
        let worker = Arc::new(worker.with_fault_file(self.fault_file.clone()));
        let (notices, told) = mpsc::channel(256);
        let agent = Agent::new(ledger, worker.clone(), assigned, mark);
        group.spawn(agent.run(told, group.clone()));
        Ok(Holding { group, notices, worker, mark })
    }

    /// Starts link and keeper, who speak for what is held.
    pub(super) fn speak(self: &Arc<Self>, identity: &Identity, membership: &Membership, holding: Holding) {
        let group = self.shutdown.child();
        let (notices, worker) = (holding.notices.clone(), holding.worker.clone());
        let member = Member {
            service: identity.service,
            membership,
            host_name: self.host_name.clone(),
            addresses: self.addresses.clone(),
            mark: holding.mark,
            seeds: self.managers.clone(),
            tls: TlsDir::new(self.dir.tls()),
            keyring: self.keyring.clone(),
            client: self.client.clone(),
            clock: self.clock.clone(),
            notices: notices.clone(),
        };
        let Ties { learned, link, certification } = member.tie(&group);
        let active = Arc::new(Active {
            service: identity.service,
            cluster: membership.cluster,
            cluster_name: membership.cluster_name.to_string(),
            notices,
            worker,
            holding,
            link,
            certification,
            dismissed: Notify::new(),
            succeeded: Notify::new(),
            parted: Notify::new(),
        });
        let accompany = self.clone().accompany(identity.clone(), learned, active.clone(), group);
        self.shutdown.spawn(accompany);
        self.stage.send_replace(Stage::Member(active));
    }

    /// Remembers the managers that the link learns of, and ends the membership when the service is removed.
    async fn accompany(
        self: Arc<Self>,
        mut identity: Identity,
        mut managers: mpsc::Receiver<Vec<String>>,
        active: Arc<Active>,
        group: Shutdown,
    ) {
        let Holding { group: held, worker, .. } = active.holding.clone();
        let stop = || async {
            group.finish().await;
            held.finish().await;
        };
        let mut link = active.link.clone();
        loop {
            tokio::select! {
                () = active.dismissed.notified() => break,
                () = active.succeeded.notified() => {
                    group.finish().await;
                    active.parted.notify_one();
                    return;
                }
                Some(learned) = managers.recv() => {
                    if let Some(membership) = &mut identity.membership {
                        membership.managers = learned;
                    }
                    if let Err(error) = save_document(&self.dir.identity(), &identity) {
                        tracing::warn!(error = %chain(&error), "cannot remember the managers");
                    }
                }
                changed = link.changed() => {
                    if changed.is_err() {
                        return stop().await;
                    }
                    if *link.borrow_and_update() == LinkState::Removed {
                        break;
                    }
                }
                () = self.shutdown.requested() => return stop().await,
            }
        }
        tracing::warn!("removed from the cluster: this service stops serving and keeps all data");
        stop().await;
        if let Err(error) = tokio::task::spawn_blocking(move || worker.close()).await {
            tracing::error!(%error, "closing the pools panicked");
        }
        self.leave(identity.service);
    }

    /// Puts identity, ledger, key and certificates aside, so that the service may init again.
    fn leave(&self, service: ServiceId) {
        self.keyring.forget();
        for path in [self.dir.identity(), self.dir.ledger()] {
            if path.exists()
                && let Err(error) = put_aside(&path, "removed")
            {
                tracing::error!(error = %chain(&error), path = %path.display(), "cannot put a file aside");
            }
        }
        if let Err(error) = TlsDir::new(self.dir.tls()).put_aside("removed") {
            tracing::error!(error = %chain(&error), "cannot put the key and the certificates aside");
        }
        let note = format!("service {service} was removed from the cluster");
        self.stage.send_replace(Stage::Uninitialised(Some(note)));
    }

    /// Enrols with the manager at `address` and opens the first session. With `recover`, a member of a cluster whose store is
    /// gone passes to one that is recovering, and serves on.
    pub(in crate::block) async fn init(
        self: &Arc<Self>,
        address: &str,
        token: Option<&str>,
        recover: bool,
    ) -> Result<Identity, Fault> {
        // Before anything changes: half a token, or a wrong address, is no reason to leave a cluster.
        let token = token.map(parse_token).transpose()?;
        let _one_at_a_time = self.init.lock().await;
        let before = self.stage();
        if let (Stage::Member(active), true) = (&before, recover) {
            let identity = self.pass_over(active, address, token.as_ref()).await?;
            self.first_session().await?;
            return Ok(identity);
        }
        if let Stage::Member(active) = &before
            && !matches!(active.link(), LinkState::Unknown(_) | LinkState::Keyless(_))
        {
            let (service, cluster) = (active.service, &active.cluster_name);
            let message = format!("this block service is already service {service} of cluster '{cluster}'");
            return Err(Fault::new(FaultKind::AlreadyExists, message));
        }
        let applicant = self.applicant(self.dir.identity(), self.dir.tls(), recover);
        let door = applicant.open(address, token.as_ref()).await?;
        if let Stage::Member(active) = before {
            // The cluster forgot it, or its key is lost, and an operator says where it belongs now.
            active.dismissed.notify_one();
            self.stage
                .subscribe()
                .wait_for(|stage| matches!(stage, Stage::Uninitialised(_)))
                .await
                .map_err(|error| internal(&error))?;
        }
        let identity = applicant.join(door, token.as_ref()).await?;
        self.enter(&identity).map_err(|error| internal(&error))?;
        self.first_session().await?;
        Ok(identity)
    }

    pub(super) fn applicant(&self, identity: PathBuf, tls: PathBuf, to_recovering: bool) -> Applicant {
        Applicant {
            identity,
            tls: TlsDir::new(tls),
            host_name: self.host_name.clone(),
            addresses: self.addresses.clone(),
            clock: self.clock.clone(),
            to_recovering,
        }
    }

    async fn first_session(&self) -> Result<(), Fault> {
        let Stage::Member(active) = self.stage() else { return Ok(()) };
        let mut link = active.link.clone();
        let connected = link.wait_for(|state| matches!(state, LinkState::Connected(_)));
        match tokio::time::timeout(FIRST_SESSION, connected).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Fault::new(
                FaultKind::Unavailable,
                format!("joined as service {}, but no session came up yet; it goes on trying", active.service),
            )),
        }
    }
}
