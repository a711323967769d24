//! Running a manager: config directory, store, listeners, and the end in order.

use super::control::Face;
use super::init::Manager;
use super::metrics;
use super::migrate;
use super::standing::Standing;
use super::store_config::StoreConfig;
use crate::host::directory::FileError;
use crate::host::{ConfigDir, ConfigDirError, DocumentError, SocketError, load_document};
use crate::model::{Identity, ServiceType};
use crate::pki::Keyring;
use crate::rpc::{ListenError, Listener, MAX_MESSAGE, MAX_REQUEST, advertised, local_peers, proto};
use crate::runtime::metrics::{Fill, Page};
use crate::runtime::{Clock, Shutdown, SystemClock};
use crate::store::StoreError;
use proto::control_server::ControlServer;
use proto::dispatcher_server::DispatcherServer;
use proto::enrollment_server::EnrollmentServer;
use proto::recovery_server::RecoveryServer;
use proto::stores_server::StoresServer;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub struct ManagerConfig {
    pub config_dir: PathBuf,
    pub store: StoreConfig,
    pub listen: SocketAddr,
    /// `host:port` that others are told; absent: what `listen` allows to conclude.
    pub advertise: Option<String>,
    /// Where monitoring may read figures; absent: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Init by itself; else it waits for `manager init`.
    pub init: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    #[error(transparent)]
    ConfigDir(#[from] ConfigDirError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Identity(#[from] DocumentError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot serve metrics on {address}; choose another place with --metrics-listen")]
    Metrics { address: SocketAddr, source: std::io::Error },
    #[error("the gRPC server failed")]
    Serve(#[from] tonic::transport::Error),
}

/// Runs a manager until `shutdown` is requested. `ready` is told the address once calls are answered.
///
/// # Errors
/// If the manager cannot start: directory, identity, ports, embedded store. A missing etcd is waited for.
pub async fn run(
    config: ManagerConfig,
    shutdown: Shutdown,
    ready: impl FnOnce(SocketAddr) + Send,
) -> Result<(), ManagerError> {
    let dir = ConfigDir::open(&config.config_dir, ServiceType::Manager)?;
    let identity: Option<Identity> = load_document(&dir.identity())?;
    // Empty until there is a membership: TLS peers are hung up on till then.
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let keyring = Keyring::empty(clock.clone());
    let tcp = Listener::tcp(config.listen, local_peers(), keyring.clone()).await?;
    let control = Listener::unix(&dir.free_control_socket()?)?;
    let bound = tcp.address().unwrap_or(config.listen);
    // An embedded store that cannot be opened ends the start; an etcd that is away is waited for.
    let store = match config.store {
        StoreConfig::Embedded if !migrate::is_elsewhere(&dir)? => Some(config.store.connect(&dir).await?),
        StoreConfig::Embedded => None,
        StoreConfig::Etcd { .. } => None,
    };
    let address = advertised(config.advertise.as_deref(), bound);
    tracing::info!(%bound, %address, store = %config.store, socket = %dir.control_socket().display(), "manager starts");
    let fresh = identity.as_ref().is_none_or(|identity| identity.membership.is_none());
    let removed = dir.was_removed().map_err(|source| FileError::new("look at", dir.path(), source))?;
    if config.init && fresh && removed {
        tracing::warn!(
            directory = %dir.path().display(),
            "--init does nothing here: this manager was removed from a cluster; move its identity.removed* away first"
        );
    }
    let unattended = config.init && fresh && !removed;
    let manager = Manager::new(dir, address, config.store, store, keyring, clock, shutdown.clone());
    if let Some(address) = config.metrics {
        let watched = manager.clone();
        let fill: Fill = Arc::new(move |page: &mut Page| metrics::fill(&watched, page));
        let served = crate::runtime::metrics::serve(address, fill, &shutdown).await;
        let bound = served.map_err(|source| ManagerError::Metrics { address, source })?;
        tracing::info!(%bound, "metrics");
    }
    shutdown.spawn(manager.clone().bring_up(identity));
    if unattended {
        shutdown.spawn_until_end(manager.clone().init_unattended());
    }
    let (first, second) = (serve(manager.clone(), tcp, shutdown.clone()), serve(manager, control, shutdown.clone()));
    ready(bound);
    let served = tokio::try_join!(first, second);
    shutdown.finish().await;
    served?;
    tracing::info!("manager stopped");
    Ok(())
}

async fn serve(manager: Arc<Manager>, listener: Listener, shutdown: Shutdown) -> Result<(), tonic::transport::Error> {
    let face = Face(manager);
    let (_reporter, health) = tonic_health::server::health_reporter();
    let overdue = shutdown.clone();
    let served = crate::rpc::server()
        .add_service(health)
        .add_service(Standing::of(&face, ControlServer::new(face.clone()).max_decoding_message_size(MAX_REQUEST)))
        .add_service(StoresServer::new(face.clone()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(RecoveryServer::new(face.clone()).max_decoding_message_size(MAX_REQUEST))
        .add_service(EnrollmentServer::new(face.clone()).max_decoding_message_size(MAX_REQUEST))
        .add_service(DispatcherServer::new(face).max_decoding_message_size(MAX_MESSAGE))
        .serve_with_incoming_shutdown(listener.incoming(), async move { shutdown.requested().await });
    tokio::select! {
        served = served => served,
        () = overdue.overdue() => Ok(()),
    }
}
