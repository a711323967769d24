//! Running a manager: config directory, store, listeners, and the end in order.

use super::control::Face;
use super::init::Manager;
use crate::host::{ConfigDir, ConfigDirError, DocumentError, SocketError, load_document};
use crate::model::{Identity, ServiceType};
use crate::rpc::{ListenError, Listener, MAX_MESSAGE, advertised, gate, local_peers, proto};
use crate::runtime::{Shutdown, SystemClock};
use crate::store::{EmbeddedStore, EtcdOptions, EtcdStore, SharedStore, StoreError};
use proto::control_server::ControlServer;
use proto::dispatcher_server::DispatcherServer;
use proto::enrollment_server::EnrollmentServer;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Where state lives.
#[derive(Clone, Debug)]
pub enum StoreConfig {
    /// In the config directory.
    Embedded,
    Etcd {
        endpoints: Vec<String>,
        /// Put before every key; empty or like `/here`.
        prefix: String,
    },
}

#[derive(Clone, Debug)]
pub struct ManagerConfig {
    pub config_dir: PathBuf,
    pub store: StoreConfig,
    pub listen: SocketAddr,
    /// `host:port` that others are told; absent: what `listen` allows to conclude.
    pub advertise: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    #[error(transparent)]
    ConfigDir(#[from] ConfigDirError),
    #[error(transparent)]
    Identity(#[from] DocumentError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Store(#[from] StoreError),
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
    let tcp = Listener::tcp(config.listen, local_peers()).await?;
    let control = Listener::unix(&dir.free_control_socket()?)?;
    let bound = tcp.address().unwrap_or(config.listen);
    // An embedded store that cannot be opened ends the start; an etcd that is away is waited for.
    let store = match config.store {
        StoreConfig::Embedded => Some(config.store.connect(&dir).await?),
        StoreConfig::Etcd { .. } => None,
    };
    let address = advertised(config.advertise.as_deref(), bound);
    tracing::info!(%bound, %address, store = %config.store, socket = %dir.control_socket().display(), "manager starts");
    let manager = Manager::new(dir, address, config.store, store, Arc::new(SystemClock), shutdown.clone());
    shutdown.spawn(manager.clone().bring_up(identity));
    let (first, second) = (serve(manager.clone(), tcp, shutdown.clone()), serve(manager, control, shutdown.clone()));
    ready(bound);
    let served = tokio::try_join!(first, second);
    shutdown.finish().await;
    served?;
    tracing::info!("manager stopped");
    Ok(())
}

impl StoreConfig {
    pub(super) async fn connect(&self, dir: &ConfigDir) -> Result<SharedStore, StoreError> {
        Ok(match self {
            Self::Embedded => Arc::new(EmbeddedStore::open(&dir.store())?),
            Self::Etcd { endpoints, prefix } => {
                let options = EtcdOptions { prefix: prefix.clone(), ..EtcdOptions::default() };
                Arc::new(EtcdStore::connect(endpoints, options).await?)
            }
        })
    }
}

impl std::fmt::Display for StoreConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Etcd { endpoints, prefix } => write!(f, "etcd at {}{prefix}", endpoints.join(", ")),
        }
    }
}

async fn serve(manager: Arc<Manager>, listener: Listener, shutdown: Shutdown) -> Result<(), tonic::transport::Error> {
    let face = Face(manager);
    let (_reporter, health) = tonic_health::server::health_reporter();
    let overdue = shutdown.clone();
    let served = tonic::transport::Server::builder()
        .layer(tonic::service::InterceptorLayer::new(gate))
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(std::time::Duration::from_secs(10)))
        .max_concurrent_streams(Some(1024))
        .add_service(health)
        .add_service(ControlServer::new(face.clone()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(EnrollmentServer::new(face.clone()).max_decoding_message_size(64 << 10))
        .add_service(DispatcherServer::new(face).max_decoding_message_size(MAX_MESSAGE))
        .serve_with_incoming_shutdown(listener.incoming(), async move { shutdown.requested().await });
    tokio::select! {
        served = served => served,
        () = overdue.overdue() => Ok(()),
    }
}
