//! `symphony dev`: a manager on the embedded store and a block service with a file pool, in one process, initialised,
//! joined, and ready for the first volume. What it does is what the README's user would type.

use super::roles::{NBD_PORT, end_on_signal};
use crate::block::{self, BlockConfig, EngineChoice, Lineage};
use crate::ctl::default_config_dir;
use crate::manager::{self, ManagerConfig, StoreConfig};
use crate::model::Driver;
use crate::rpc::{BLOCK_PORT, Fault, MANAGER_PORT, dial_socket, proto};
use crate::runtime::Shutdown;
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use proto::block_control_client::BlockControlClient;
use proto::control_client::ControlClient;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tonic::transport::Channel;

#[derive(Debug, Args)]
#[command(after_help = "\
Sockets: DIR/manager/control.sock and DIR/block/control.sock; the pool `default` keeps its files in DIR/pool.
Everything listens on loopback only. A second start on the same directory goes on where the first one ended.")]
pub struct DevArgs {
    /// Where everything lives [default: /var/lib/symphony]
    #[arg(long, env = "SYMPHONY_DEV_CONFIG_DIR")]
    config_dir: Option<PathBuf>,
    /// The manager's port; 0 takes a free one
    #[arg(long, env = "SYMPHONY_DEV_LISTEN_PORT", default_value_t = MANAGER_PORT)]
    listen_port: u16,
    /// The block service's own gRPC port; 0 takes a free one
    #[arg(long, env = "SYMPHONY_DEV_BLOCK_PORT", default_value_t = BLOCK_PORT)]
    block_port: u16,
    /// The port volumes are exported on over NBD; 0 takes a free one
    #[arg(long, env = "SYMPHONY_DEV_NBD_PORT", default_value_t = NBD_PORT)]
    nbd_port: u16,
    /// What carries NBD requests out: auto, uring (io_uring), or threads (one per connection)
    #[arg(long, env = "SYMPHONY_DEV_NBD_ENGINE", default_value = "auto")]
    nbd_engine: EngineChoice,
}

/// How long the parts may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pool that is there from the start.
const POOL: &str = "default";

pub async fn run(args: DevArgs) -> Result<()> {
    let began = Instant::now();
    let shutdown = Shutdown::new();
    end_on_signal(&shutdown);
    let dir = args.config_dir.unwrap_or_else(default_config_dir);
    let dir = std::path::absolute(&dir).with_context(|| format!("finding {}", dir.display()))?;
    let local = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let (address, bound) = oneshot::channel();
    let manager = manager::run(
        ManagerConfig {
            config_dir: dir.join("manager"),
            store: StoreConfig::Embedded,
            listen: local(args.listen_port),
            advertise: None,
            metrics: None,
            init: false,
        },
        shutdown.child(),
        move |bound| {
            if address.send(bound).is_err() {
                tracing::debug!("nobody waits for the manager any more");
            }
        },
    );
    let (up, serving) = oneshot::channel();
    let block = async {
        let Ok(manager) = bound.await else { return Ok(()) };
        let config = BlockConfig {
            config_dir: dir.join("block"),
            listen: local(args.block_port),
            nbd_listen: local(args.nbd_port),
            nbd_engine: args.nbd_engine,
            advertise: None,
            // Its port may be another one at every start.
            managers: vec![manager.to_string()],
            join: None,
            metrics: None,
            fault_file: None,
        };
        let ready = move || {
            if up.send(manager).is_err() {
                tracing::debug!("nobody waits for the block service any more");
            }
        };
        block::run(config, Lineage::default(), shutdown.child(), ready).await
    };
    let prepare = async {
        let address = serving.await.map_err(|_| anyhow!("the parts did not start"))?;
        let prepared = tokio::time::timeout(PATIENCE, prepare(&dir, address)).await;
        prepared.map_err(|_| anyhow!("the parts were not ready within {PATIENCE:?}"))??;
        let socket = dir.join("manager/control.sock");
        let took = began.elapsed().as_millis();
        eprintln!("symphony is ready after {took}ms. Try:");
        eprintln!("  export SYMPHONY_SOCKET={}", socket.display());
        eprintln!("  symphony ctl volume create first --size 1GiB");
        shutdown.requested().await;
        anyhow::Ok(())
    };
    // Whatever ends first, well or badly, ends the others in order.
    let end = |result| {
        shutdown.request();
        result
    };
    let manager = async { end(manager.await.context("running the manager")) };
    let block = async { end(block.await.context("running the block service")) };
    let prepare = async { end(prepare.await) };
    let (manager, block, prepare) = tokio::join!(manager, block, prepare);
    shutdown.finish().await;
    // The cause before its consequences.
    manager.and(block).and(prepare)
}

async fn prepare(dir: &Path, manager: SocketAddr) -> Result<()> {
    let channel = dial_socket(&dir.join("manager/control.sock")).await?;
    let mut control = ControlClient::new(channel);
    let fresh = init_manager(&mut control).await?;
    let mut block = BlockControlClient::new(dial_socket(&dir.join("block/control.sock")).await?);
    let service = init_block(&mut block, manager).await?;
    // Made with the cluster, or after a start that was cut off before it was; never against the user's will.
    let pools = proto::ListRequest { kind: proto::Kind::Pool.into(), ..Default::default() };
    if !fresh && !control.list(pools).await.map_err(Fault::from)?.into_inner().objects.is_empty() {
        return Ok(());
    }
    let driver = Some((&Driver::File { path: dir.join("pool"), limit: None }).into());
    let request = proto::CreatePoolRequest { name: POOL.to_owned(), service, driver, rules: None };
    control.create_pool(request).await.map_err(Fault::from).context("creating the default pool")?;
    pool_ready(&mut control).await
}

/// Initialises the manager, or waits until one that is a member already serves; says whether it was initialised.
async fn init_manager(control: &mut ControlClient<Channel>) -> Result<bool> {
    loop {
        let status = control.get_manager_status(proto::GetManagerStatusRequest {}).await.map_err(Fault::from)?;
        let status = status.into_inner();
        match status.state.as_str() {
            "member" => return Ok(false),
            "uninitialised" => {
                control.init_cluster(proto::InitClusterRequest::default()).await.map_err(Fault::from)?;
                return Ok(true);
            }
            "starting" => tokio::time::sleep(Duration::from_millis(5)).await,
            other => bail!("the manager is {other}: {}", status.message.unwrap_or_default()),
        }
    }
}

/// Makes the block service join, or waits until one that is a member already is connected; its id.
async fn init_block(block: &mut BlockControlClient<Channel>, manager: SocketAddr) -> Result<String> {
    loop {
        let status = block.get_block_status(proto::GetBlockStatusRequest {}).await.map_err(Fault::from)?.into_inner();
        match (status.state.as_str(), status.service_id) {
            ("uninitialised", _) => {
                let request = proto::InitBlockRequest { manager: manager.to_string(), token: None, recover: false };
                let joined = block.init_block(request).await.map_err(Fault::from)?.into_inner();
                return Ok(joined.service_id);
            }
            ("connected", Some(service)) => return Ok(service),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn pool_ready(control: &mut ControlClient<Channel>) -> Result<()> {
    let request = proto::GetRequest { kind: proto::Kind::Pool.into(), reference: POOL.into() };
    let mut changes = control.watch(request).await.map_err(Fault::from)?.into_inner();
    while let Some(change) = changes.message().await.map_err(Fault::from)? {
        let Some(object) = change.object else { break };
        let object = crate::model::Object::try_from(object).context("reading the manager's answer")?;
        match object.phase() {
            (crate::model::Phase::Ready, _) => return Ok(()),
            (crate::model::Phase::Failed, why) => bail!("the default pool cannot be used: {}", why.unwrap_or("?")),
            _ => {}
        }
    }
    bail!("the default pool was removed while it was waited for")
}
