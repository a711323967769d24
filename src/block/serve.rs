//! Running a block service: config directory, exports, listeners, membership, and the end in order.

use super::agent::{Agent, Notice};
use super::face::Face;
use super::ledger::Ledger;
use super::link::{Link, LinkState};
use super::worker::{Doors, Worker, chain};
use crate::export::{ExportTable, NbdServer, ServerConfig, ServerError};
use crate::host::{
    ConfigDir, ConfigDirError, DocumentError, SocketError, is_local_peer, load_document, put_aside, save_document,
};
use crate::model::{Addresses, ClusterId, Identity, Membership, ServiceId, ServiceType};
use crate::rpc::{
    Fault, FaultKind, ListenError, Listener, MANAGER_PORT, advertised, dial_address, gate, local_peers, proto,
    with_default_port,
};
use crate::runtime::{Shutdown, VERSION};
use crate::session::Greeting;
use proto::block_control_server::BlockControlServer;
use proto::enrollment_client::EnrollmentClient;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Notify, mpsc, watch};

#[derive(Clone, Debug)]
pub struct BlockConfig {
    pub config_dir: PathBuf,
    /// The service's own gRPC endpoint.
    pub listen: SocketAddr,
    /// NBD over TCP; port 0 takes a free one.
    pub nbd_listen: SocketAddr,
    /// The host that clients and managers are told; absent: what the listeners allow to conclude.
    pub advertise: Option<String>,
    /// `host:port` of managers to try before those that were learned of.
    pub managers: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    #[error(transparent)]
    ConfigDir(#[from] ConfigDirError),
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot serve NBD; choose another port with --nbd-port (0 takes a free one)")]
    Export(#[from] ServerError),
    #[error("the gRPC server failed")]
    Serve(#[from] tonic::transport::Error),
    #[error("cannot tell the host's name")]
    HostName(#[source] std::io::Error),
}

/// How long `block init` waits for its first session.
const FIRST_SESSION: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(super) enum Stage {
    /// What happened, if it was a member before.
    Uninitialised(Option<String>),
    Member(Arc<Active>),
}

/// A membership at work.
pub(super) struct Active {
    pub service: ServiceId,
    pub cluster: ClusterId,
    cluster_name: String,
    pub notices: mpsc::Sender<Notice>,
    link: watch::Receiver<LinkState>,
    /// Ends the membership without word from a manager.
    dismissed: Notify,
}

impl Active {
    pub fn link(&self) -> LinkState {
        self.link.borrow().clone()
    }
}

/// A running block service, member or not.
pub struct Block {
    dir: ConfigDir,
    host_name: String,
    pub(super) addresses: Addresses,
    exports: Arc<ExportTable>,
    doors: Doors,
    stage: watch::Sender<Stage>,
    /// Managers to try first.
    managers: Vec<String>,
    /// One init at a time.
    init: Mutex<()>,
    shutdown: Shutdown,
}

/// Runs a block service until `shutdown` is requested. `ready` is called once calls are answered.
///
/// # Errors
/// If it cannot start: directory, identity, ledger, ports.
pub async fn run(config: BlockConfig, shutdown: Shutdown, ready: impl FnOnce() + Send) -> Result<(), BlockError> {
    let dir = ConfigDir::open(&config.config_dir, ServiceType::Block)?;
    let identity: Option<Identity> = load_document(&dir.identity())?;
    let tcp = Listener::tcp(config.listen, local_peers()).await?;
    let control = Listener::unix(&dir.free_control_socket()?)?;
    let exports = ExportTable::new();
    let nbd_socket = absolute(dir.free_nbd_socket()?);
    let mut nbd = NbdServer::start(
        ServerConfig {
            tcp: Some(config.nbd_listen),
            unix: Some(nbd_socket.clone()),
            ..ServerConfig::new(Arc::new(|peer, local| {
                is_local_peer(*peer, *local).map_err(|refused| refused.to_string())
            }))
        },
        exports.clone(),
    )?;
    let host = config.advertise.as_deref();
    let rpc = tcp.address().map(|bound| advertised(host, bound));
    let nbd_address = nbd.tcp_address().map(|bound| advertised(host, bound));
    let block = Arc::new(Block {
        host_name: crate::host::host_name().map_err(BlockError::HostName)?,
        addresses: Addresses { rpc, nbd: nbd_address.clone() },
        exports,
        doors: Doors { tcp: nbd_address, unix: nbd_socket },
        stage: watch::Sender::new(Stage::Uninitialised(None)),
        managers: config.managers,
        init: Mutex::default(),
        shutdown: shutdown.clone(),
        dir,
    });
    tracing::info!(addresses = ?block.addresses, socket = %block.dir.control_socket().display(), "block service starts");
    match &identity {
        Some(identity) if identity.membership.is_some() => block.enter(identity)?,
        _ => tracing::info!("not initialised: waiting for `block init`"),
    }
    ready();
    let served = tokio::try_join!(serve(&block, tcp, true), serve(&block, control, false));
    shutdown.finish().await;
    // After the agent: nothing is published any more. In-flight requests finish.
    tokio::task::spawn_blocking(move || nbd.shutdown()).await.unwrap_or_else(|error| {
        tracing::error!(%error, "the NBD server did not stop in order");
    });
    served?;
    tracing::info!("block service stopped");
    Ok(())
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

async fn serve(block: &Arc<Block>, listener: Listener, open: bool) -> Result<(), tonic::transport::Error> {
    let shutdown = block.shutdown.clone();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let control = (!open).then(|| BlockControlServer::new(Face(block.clone())));
    let overdue = shutdown.clone();
    let served = tonic::transport::Server::builder()
        .layer(tonic::service::InterceptorLayer::new(gate))
        .max_concurrent_streams(Some(256))
        .add_service(health)
        .add_optional_service(control)
        .serve_with_incoming_shutdown(listener.incoming(), async move { shutdown.requested().await });
    tokio::select! {
        served = served => served,
        () = overdue.overdue() => Ok(()),
    }
}

impl Block {
    pub(super) fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }

    /// Starts what a member runs: agent and link.
    fn enter(self: &Arc<Self>, identity: &Identity) -> Result<(), DocumentError> {
        let Some(membership) = identity.membership.clone() else { return Ok(()) };
        let group = self.shutdown.child();
        let ledger = Ledger::new(self.dir.ledger(), identity.service);
        let assigned = ledger.load()?;
        let worker = Arc::new(Worker::new(membership.cluster, self.exports.clone(), self.doors.clone()));
        let (notices, told) = mpsc::channel(256);
        let (learned, managers) = mpsc::channel(4);
        let state = watch::Sender::new(LinkState::Connecting(None));
        let link = Link {
            greeting: Greeting {
                service: identity.service,
                cluster: membership.cluster,
                host_name: self.host_name.clone(),
                addresses: self.addresses.clone(),
                version: VERSION.into(),
            },
            managers: self.managers.iter().chain(&membership.managers).cloned().collect(),
            seeds: self.managers.clone(),
            notices: notices.clone(),
            state: state.clone(),
            learned,
        };
        let active = Arc::new(Active {
            service: identity.service,
            cluster: membership.cluster,
            cluster_name: membership.cluster_name.to_string(),
            notices,
            link: state.subscribe(),
            dismissed: Notify::new(),
        });
        let agent = Agent::new(ledger, worker.clone(), assigned);
        group.spawn(agent.run(told, group.clone()));
        let ends = group.clone();
        group.spawn(async move { link.run(ends).await });
        let accompany = self.clone().accompany(identity.clone(), managers, active.clone(), worker, group);
        self.shutdown.spawn(accompany);
        self.stage.send_replace(Stage::Member(active));
        Ok(())
    }

    /// Remembers the managers that the link learns of, and ends the membership when the service is removed.
    async fn accompany(
        self: Arc<Self>,
        mut identity: Identity,
        mut managers: mpsc::Receiver<Vec<String>>,
        active: Arc<Active>,
        worker: Arc<Worker>,
        group: Shutdown,
    ) {
        let mut link = active.link.clone();
        loop {
            tokio::select! {
                () = active.dismissed.notified() => break,
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
                        return group.finish().await;
                    }
                    if *link.borrow_and_update() == LinkState::Removed {
                        break;
                    }
                }
                () = self.shutdown.requested() => return group.finish().await,
            }
        }
        tracing::warn!("removed from the cluster: this service stops serving and keeps all data");
        group.finish().await;
        if let Err(error) = tokio::task::spawn_blocking(move || worker.close()).await {
            tracing::error!(%error, "closing the pools panicked");
        }
        self.leave(identity.service);
    }

    /// Puts identity and ledger aside, so that the service may init again.
    fn leave(&self, service: ServiceId) {
        for path in [self.dir.identity(), self.dir.ledger()] {
            if path.exists()
                && let Err(error) = put_aside(&path, "removed")
            {
                tracing::error!(error = %chain(&error), path = %path.display(), "cannot put a file aside");
            }
        }
        let note = format!("service {service} was removed from the cluster");
        self.stage.send_replace(Stage::Uninitialised(Some(note)));
    }

    /// Enrols with the manager at `address` and opens the first session.
    pub(super) async fn init(self: &Arc<Self>, address: &str) -> Result<Identity, Fault> {
        let _one_at_a_time = self.init.lock().await;
        if let Stage::Member(active) = self.stage() {
            let (service, cluster) = (active.service, &active.cluster_name);
            if !matches!(active.link(), LinkState::Unknown(_)) {
                let message = format!("this block service is already service {service} of cluster '{cluster}'");
                return Err(Fault::new(FaultKind::AlreadyExists, message));
            }
            // The cluster forgot it, and an operator says where it belongs now.
            active.dismissed.notify_one();
            self.stage
                .subscribe()
                .wait_for(|stage| matches!(stage, Stage::Uninitialised(_)))
                .await
                .map_err(|error| internal(&error))?;
        }
        let address = with_default_port(address, MANAGER_PORT);
        let channel = dial_address(&address).await;
        let channel = channel.map_err(|error| Fault::new(FaultKind::Unavailable, chain(&error)))?;
        let mut client = EnrollmentClient::new(channel);
        let mut identity = self.candidate().map_err(|error| internal(&error))?;
        let joined = match self.join(&mut client, &identity).await {
            // The id of an init that was cut off, removed since: it has had its life.
            Err(fault) if fault.kind == FaultKind::Denied => {
                put_aside(&self.dir.identity(), "refused").map_err(|error| internal(&error))?;
                identity = self.candidate().map_err(|error| internal(&error))?;
                self.join(&mut client, &identity).await?
            }
            other => other?,
        };
        let mut managers = joined.managers;
        if !managers.contains(&address) {
            managers.insert(0, address);
        }
        let parsed =
            |text: String| Fault::new(FaultKind::Internal, format!("the manager's answer makes no sense: {text}"));
        identity.membership = Some(Membership {
            cluster: joined
                .cluster_id
                .parse()
                .map_err(|error: crate::model::ParseIdError| parsed(error.to_string()))?,
            cluster_name: joined
                .cluster_name
                .parse()
                .map_err(|error: crate::model::NameError| parsed(error.to_string()))?,
            managers,
        });
        save_document(&self.dir.identity(), &identity).map_err(|error| internal(&error))?;
        self.enter(&identity).map_err(|error| internal(&error))?;
        self.first_session().await?;
        Ok(identity)
    }

    async fn join(
        &self,
        client: &mut EnrollmentClient<tonic::transport::Channel>,
        identity: &Identity,
    ) -> Result<proto::JoinResponse, Fault> {
        let request = proto::JoinRequest {
            service_id: identity.service.to_string(),
            r#type: proto::ServiceType::Block.into(),
            host_name: self.host_name.clone(),
            addresses: Some((&self.addresses).into()),
            version: VERSION.into(),
        };
        client.join(request).await.map(tonic::Response::into_inner).map_err(Fault::from)
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

    /// The identity to join with: the one of an init that was cut off, else a new one, on disk before it is used.
    fn candidate(&self) -> Result<Identity, DocumentError> {
        let path = self.dir.identity();
        if let Some(identity) = load_document::<Identity>(&path)? {
            return Ok(identity);
        }
        let identity = Identity::candidate(ServiceType::Block);
        save_document(&path, &identity)?;
        Ok(identity)
    }
}

fn internal(error: &dyn std::error::Error) -> Fault {
    Fault::new(FaultKind::Internal, chain(error))
}
