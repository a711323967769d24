//! `symphony manager run` and `symphony block run`.

use crate::block::{self, BlockConfig};
use crate::ctl::default_config_dir;
use crate::manager::{self, ManagerConfig, StoreConfig};
use crate::rpc::{BLOCK_PORT, MANAGER_PORT};
use crate::runtime::{Shutdown, termination};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Where NBD is served, as registered with IANA.
pub const NBD_PORT: u16 = 10809;

#[derive(Debug, Subcommand)]
pub enum ManagerCommand {
    /// Run a manager in the foreground
    #[command(after_help = "Then initialise it once: symphony ctl --socket=DIR/control.sock manager init")]
    Run(ManagerArgs),
}

#[derive(Debug, Subcommand)]
pub enum BlockCommand {
    /// Run a block service in the foreground
    #[command(after_help = "Then join it once: symphony ctl --socket=DIR/control.sock block init MANAGER[:PORT]")]
    Run(BlockArgs),
}

#[derive(Debug, Args)]
pub struct ManagerArgs {
    /// Where identity, control socket and embedded store live [default: /var/lib/symphony/manager]
    #[arg(long, env = "SYMPHONY_MANAGER_CONFIG_DIR")]
    config_dir: Option<PathBuf>,
    /// Keep state in this etcd cluster instead of the embedded store
    #[arg(long, env = "SYMPHONY_ETCD_ENDPOINTS", value_delimiter = ',', value_name = "URL,URL,…")]
    etcd_endpoints: Vec<String>,
    /// Put before every key in etcd, as /lab
    #[arg(long, env = "SYMPHONY_ETCD_PREFIX", default_value = "", hide_default_value = true)]
    etcd_prefix: String,
    /// The port for block services and operators; 0 takes a free one
    #[arg(long, env = "SYMPHONY_MANAGER_LISTEN_PORT", default_value_t = MANAGER_PORT)]
    listen_port: u16,
    /// The address to listen on; peers that are not local are refused wherever they come from
    #[arg(long, env = "SYMPHONY_MANAGER_LISTEN_ADDRESS", default_value = "0.0.0.0")]
    listen_address: IpAddr,
    /// HOST:PORT that others are told [default: the listening address, 127.0.0.1 where that is all addresses]
    #[arg(long, env = "SYMPHONY_MANAGER_ADVERTISE_ADDRESS")]
    advertise_address: Option<String>,
}

#[derive(Debug, Args)]
pub struct BlockArgs {
    /// Where identity, control socket and ledger live [default: /var/lib/symphony/block]
    #[arg(long, env = "SYMPHONY_BLOCK_CONFIG_DIR")]
    config_dir: Option<PathBuf>,
    /// Managers to try before those it has learned of
    #[arg(long, env = "SYMPHONY_BLOCK_MANAGERS", value_delimiter = ',', value_name = "HOST:PORT,…")]
    managers: Vec<String>,
    /// The service's own gRPC port (health); 0 takes a free one
    #[arg(long, env = "SYMPHONY_BLOCK_LISTEN_PORT", default_value_t = BLOCK_PORT)]
    listen_port: u16,
    /// The port volumes are exported on over NBD; 0 takes a free one
    #[arg(long, env = "SYMPHONY_BLOCK_NBD_PORT", default_value_t = NBD_PORT)]
    nbd_port: u16,
    /// The address to listen on; peers that are not local are refused wherever they come from
    #[arg(long, env = "SYMPHONY_BLOCK_LISTEN_ADDRESS", default_value = "0.0.0.0")]
    listen_address: IpAddr,
    /// The host that others are told [default: the listening address, 127.0.0.1 where that is all addresses]
    #[arg(long, env = "SYMPHONY_BLOCK_ADVERTISE_ADDRESS")]
    advertise_address: Option<String>,
}

/// Requests the end of `shutdown` at the first SIGTERM or SIGINT.
pub fn end_on_signal(shutdown: &Shutdown) {
    let group = shutdown.clone();
    shutdown.spawn_until_end(async move {
        match termination().await {
            Ok(()) => group.request(),
            Err(error) => tracing::error!(%error, "cannot listen for signals"),
        }
    });
}

pub async fn manager(args: ManagerArgs) -> Result<()> {
    let shutdown = Shutdown::new();
    end_on_signal(&shutdown);
    let store = match args.etcd_endpoints.is_empty() {
        true => StoreConfig::Embedded,
        false => StoreConfig::Etcd { endpoints: args.etcd_endpoints, prefix: args.etcd_prefix },
    };
    let config = ManagerConfig {
        config_dir: args.config_dir.unwrap_or_else(|| default_config_dir().join("manager")),
        store,
        listen: SocketAddr::new(args.listen_address, args.listen_port),
        advertise: args.advertise_address,
    };
    manager::run(config, shutdown, |_| {}).await.context("running the manager")
}

pub async fn block(args: BlockArgs) -> Result<()> {
    let shutdown = Shutdown::new();
    end_on_signal(&shutdown);
    let config = BlockConfig {
        config_dir: args.config_dir.unwrap_or_else(|| default_config_dir().join("block")),
        listen: SocketAddr::new(args.listen_address, args.listen_port),
        nbd_listen: SocketAddr::new(args.listen_address, args.nbd_port),
        advertise: args.advertise_address,
        managers: args.managers,
    };
    block::run(config, shutdown, || {}).await.context("running the block service")
}
