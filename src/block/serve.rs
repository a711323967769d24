//! Running a block service: config directory, exports, listeners, membership, and the end in order.

use super::agent::Notice;
use super::face::Face;
use super::handover::{Holdings, Lineage, Others, Passage, Predecessor, Restarter};
use super::keeper::Certification;
use super::link::LinkState;
use super::metrics;
use super::unattended::{self, Join};
use super::worker::{Doors, Worker, chain};
use crate::export::{EngineChoice, ExportTable, NbdServer, ServerConfig, ServerError};
use crate::host::devices::Scanner;
use crate::host::directory::FileError;
use crate::host::{ConfigDir, ConfigDirError, DocumentError, SocketError, load_document};
use crate::io::FaultFile;
use crate::model::{Addresses, ClusterId, Identity, ServiceId, ServiceType};
use crate::pki::{Keyring, Role};
use crate::rpc::proto::block_control_server::BlockControlServer;
use crate::rpc::proto::devices_server::DevicesServer;
use crate::rpc::proto::figures_server::FiguresServer;
use crate::rpc::proto::images_server::ImagesServer;
use crate::rpc::{ALPN, Fault, FaultKind, ListenError, Listener, MAX_REQUEST, advertised, local_peers, proto};
use crate::runtime::metrics::{Fill, Page};
use crate::runtime::{Clock, Shutdown, SystemClock, upgrades};
use membership::Holding;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Notify, Semaphore, mpsc, watch};

#[derive(Clone, Debug)]
pub struct BlockConfig {
    pub config_dir: PathBuf,
    /// The service's own gRPC endpoint.
    pub listen: SocketAddr,
    /// NBD over TCP; port 0 takes a free one.
    pub nbd_listen: SocketAddr,
    /// What carries NBD requests out.
    pub nbd_engine: EngineChoice,
    /// The host that clients and managers are told; absent: what the listeners allow to conclude.
    pub advertise: Option<String>,
    /// `host:port` of managers to try before those that were learned of.
    pub managers: Vec<String>,
    /// Join by itself; absent: wait for `block init`.
    pub join: Option<Join>,
    /// Where monitoring may read figures; absent: nowhere.
    pub metrics: Option<SocketAddr>,
    /// How much of what clients ask for is to fail, for tests; absent: nothing.
    pub fault_file: Option<FaultFile>,
}

#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    #[error(transparent)]
    ConfigDir(#[from] ConfigDirError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot serve NBD; choose another port with --nbd-port (0 takes a free one)")]
    Export(#[from] ServerError),
    #[error("cannot serve metrics on {address}; choose another place with --metrics-listen")]
    Metrics { address: SocketAddr, source: std::io::Error },
    #[error("the gRPC server failed")]
    Serve(#[from] tonic::transport::Error),
    #[error("cannot set up TLS")]
    Tls(#[from] crate::pki::Error),
    #[error("cannot tell the host's name")]
    HostName(#[source] std::io::Error),
    #[error("no descriptors are left for what another process may need one day")]
    Descriptors(#[source] std::io::Error),
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
    #[error("simulated services that are no members yet need a manager to join: name one with --join")]
    NobodyToJoin,
}

/// How long `block init` waits for its first session.
const FIRST_SESSION: Duration = Duration::from_secs(10);
/// How many may read images at once: each takes a thread.
const SUPPLIES: usize = 8;

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
    pub worker: Arc<Worker>,
    /// Agent and worker, who may outlast this membership.
    holding: Holding,
    link: watch::Receiver<LinkState>,
    certification: watch::Receiver<Certification>,
    /// Ends the membership without word from a manager.
    dismissed: Notify,
    /// Ends it for another one that goes on with what is held; answered once nobody speaks for the old one.
    succeeded: Notify,
    parted: Notify,
}

impl Active {
    pub fn link(&self) -> LinkState {
        self.link.borrow().clone()
    }

    pub fn certification(&self) -> Certification {
        self.certification.borrow().clone()
    }
}

/// A running block service, member or not.
pub struct Block {
    dir: ConfigDir,
    host_name: String,
    pub(super) addresses: Addresses,
    exports: Arc<ExportTable>,
    /// What carries NBD requests out, in a word.
    pub(super) nbd_engine: &'static str,
    doors: Doors,
    fault_file: Option<FaultFile>,
    stage: watch::Sender<Stage>,
    /// Managers to try first.
    managers: Vec<String>,
    /// What this process presents and believes, shared by its listeners and its link; empty while it is no member.
    pub(super) keyring: Keyring,
    /// TLS to managers by the keyring.
    client: Arc<rustls::ClientConfig>,
    /// The same to other block services.
    peers: Arc<rustls::ClientConfig>,
    /// How many may read images here at once.
    pub(super) supplies: Arc<Semaphore>,
    clock: Arc<dyn Clock>,
    /// For whoever asks what devices there are.
    pub(super) scanner: Arc<Scanner>,
    /// What this process could leave to another one.
    holdings: Arc<Holdings>,
    restarter: Option<Restarter>,
    /// How it went with what a former process has left.
    passage: watch::Sender<Option<Passage>>,
    /// One init at a time.
    init: Mutex<()>,
    pub(super) shutdown: Shutdown,
}

/// Runs a block service until `shutdown` is requested. `ready` is called once calls are answered.
///
/// # Errors
/// If it cannot start: directory, identity, ledger, ports.
pub async fn run(
    config: BlockConfig,
    mut lineage: Lineage,
    shutdown: Shutdown,
    ready: impl FnOnce() + Send,
) -> Result<(), BlockError> {
    let before = Predecessor::meet(&mut lineage);
    let Lineage { supervisor, program, .. } = lineage;
    let dir = ConfigDir::inherit(&config.config_dir, ServiceType::Block, before.lock)?;
    succession::complete(&dir)?;
    let identity: Option<Identity> = load_document(&dir.identity())?;
    // Empty until there is a membership: TLS peers are hung up on till then.
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let keyring = Keyring::empty(clock.clone());
    let client = keyring.client_config(&[Role::Manager], ALPN)?;
    let inherited = |socket| Listener::inherited_tcp(socket, config.listen, local_peers(), keyring.clone());
    let tcp = match before.rpc.and_then(|socket| usable(inherited(socket))) {
        Some(listener) => listener,
        None => Listener::tcp(config.listen, local_peers(), keyring.clone()).await?,
    };
    let inherited = |socket| Listener::inherited_unix(socket, &dir.control_socket());
    let control = match before.control.and_then(|socket| usable(inherited(socket))) {
        Some(listener) => listener,
        None => Listener::unix(&dir.free_control_socket()?)?,
    };
    let peers = keyring.client_config(&[Role::Block], ALPN)?;
    let exports = ExportTable::new();
    let nbd_socket = match &before.nbd.unix {
        Some(_) => absolute(dir.nbd_socket()),
        None => absolute(dir.free_nbd_socket()?),
    };
    let nbd = NbdServer::prepare(
        ServerConfig {
            tcp: Some(config.nbd_listen),
            unix: Some(nbd_socket.clone()),
            engine: config.nbd_engine,
            tls: Some(keyring.clone()),
            ..ServerConfig::new()
        },
        exports.clone(),
        before.nbd,
    )?;
    let host = config.advertise.as_deref();
    let rpc = tcp.address().map(|bound| advertised(host, bound));
    let nbd_address = nbd.tcp_address().map(|bound| advertised(host, bound));
    let second = |socket: std::io::Result<_>| socket.map_err(BlockError::Descriptors);
    let others =
        Others { lock: second(dir.lock())?, rpc: second(tcp.duplicate())?, control: second(control.duplicate())? };
    let nbd_engine = nbd.engine();
    let holdings = Arc::new(Holdings::new(nbd, others));
    let block = Arc::new(Block {
        host_name: crate::host::host_name().map_err(BlockError::HostName)?,
        addresses: Addresses { rpc, nbd: nbd_address.clone() },
        exports,
        nbd_engine,
        doors: Doors::at(nbd_address, nbd_socket),
        fault_file: config.fault_file,
        stage: watch::Sender::new(Stage::Uninitialised(None)),
        managers: config.managers,
        keyring,
        client,
        peers,
        supplies: Arc::new(Semaphore::new(SUPPLIES)),
        clock,
        restarter: program.map(|program| Restarter::new(program, holdings.clone())),
        scanner: Arc::new(Scanner::default()),
        holdings: holdings.clone(),
        passage: watch::Sender::new(before.instance.map(Passage::begun)),
        init: Mutex::default(),
        shutdown: shutdown.clone(),
        dir,
    });
    tracing::info!(addresses = ?block.addresses, socket = %block.dir.control_socket().display(), "block service starts");
    match &identity {
        Some(identity) if identity.membership.is_some() => block.enter(identity)?,
        _ => match config.join {
            Some(_)
                if block.dir.was_removed().map_err(|source| FileError::new("look at", block.dir.path(), source))? =>
            {
                tracing::warn!(
                    directory = %block.dir.path().display(),
                    "--join does nothing here: this service was removed from a cluster; move its identity.removed* away first"
                );
            }
            Some(join) => shutdown.spawn_until_end(unattended::join(block.clone(), join, shutdown.clone())),
            None => tracing::info!("not initialised: waiting for `block init`"),
        },
    }
    match before.instance {
        Some(from) => shutdown.spawn(block.clone().go_on(from, before.connections)),
        None => holdings.nbd().open()?,
    }
    if block.restarter.is_some() {
        let upgrades = upgrades().map_err(BlockError::Signals)?;
        shutdown.spawn_until_end(block.clone().restart_on_signal(upgrades));
    }
    if let Some(address) = config.metrics {
        let watched = block.clone();
        let fill: Fill = Arc::new(move |page: &mut Page| metrics::fill(&watched, page));
        let served = crate::runtime::metrics::serve(address, fill, &shutdown).await;
        let bound = served.map_err(|source| BlockError::Metrics { address, source })?;
        tracing::info!(%bound, "metrics");
    }
    ready();
    if let Some(supervisor) = &supervisor {
        supervisor.ready();
    }
    let served = tokio::try_join!(serve(&block, tcp, true), serve(&block, control, false));
    if let Some(supervisor) = &supervisor {
        supervisor.stopping();
    }
    shutdown.finish().await;
    // After the agent: nothing is published any more. In-flight requests finish.
    let supervisor = supervisor.filter(|_| served.is_ok());
    tokio::task::spawn_blocking(move || holdings.end(supervisor.as_ref())).await.unwrap_or_else(|error| {
        tracing::error!(%error, "the NBD server did not stop in order");
    });
    served?;
    tracing::info!("block service stopped");
    Ok(())
}

/// What cannot be gone on with is closed, and somewhere else is listened.
fn usable(inherited: Result<Listener, ListenError>) -> Option<Listener> {
    inherited.inspect_err(|error| tracing::warn!(error = %chain(error), "listening anew for gRPC")).ok()
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

async fn serve(block: &Arc<Block>, listener: Listener, open: bool) -> Result<(), tonic::transport::Error> {
    let shutdown = block.shutdown.clone();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let control = (!open).then(|| BlockControlServer::new(Face(block.clone())).max_decoding_message_size(MAX_REQUEST));
    let figures = FiguresServer::new(Face(block.clone())).max_decoding_message_size(MAX_REQUEST);
    let supply = ImagesServer::new(Face(block.clone())).max_decoding_message_size(MAX_REQUEST);
    let devices = DevicesServer::new(Face(block.clone())).max_decoding_message_size(MAX_REQUEST);
    let overdue = shutdown.clone();
    let served = crate::rpc::server()
        .add_service(health)
        .add_service(figures)
        .add_service(supply)
        .add_service(devices)
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

    /// The certificate in use, for `block status`.
    pub(super) fn certificate(&self) -> Option<proto::CertificateRecord> {
        let credentials = self.keyring.credentials()?;
        // Of several roots, the one that signed it.
        let root = credentials.signed_by().map_or_else(String::new, |root| root.to_string());
        let public_key = credentials.key().public_key().to_string();
        let (expires_at, names) = (credentials.expires_at().as_millis(), credentials.host_names());
        Some(proto::CertificateRecord { public_key, expires_at, root, names })
    }
}

fn internal(error: &dyn std::error::Error) -> Fault {
    Fault::new(FaultKind::Internal, chain(error))
}

mod membership;
mod restarts;
mod succession;
#[cfg(test)]
mod tests;
