//! `symphony manager run` and `symphony block run`.

use crate::block::{self, BlockConfig, EngineChoice, FaultFile, Join, Lineage, SimulationConfig};
use crate::ctl::{EtcdArgs, default_config_dir};
use crate::host::{Inheritance, Program, Supervisor};
use crate::manager::{self, EtcdFiles, ManagerConfig, Password, StoreConfig};
use crate::rpc::{BLOCK_PORT, MANAGER_PORT};
use crate::runtime::{Shutdown, termination};
use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Where NBD is served, as registered with IANA.
pub const NBD_PORT: u16 = 10809;

#[derive(Debug, Subcommand)]
pub enum ManagerCommand {
    /// Run a manager in the foreground
    #[command(
        after_help = "Then initialise it once: symphony ctl --socket=DIR/control.sock manager init\n\nA state that was moved to etcd by `manager migrate` is found there without --etcd-endpoints."
    )]
    Run(ManagerArgs),
}

#[derive(Debug, Subcommand)]
pub enum BlockCommand {
    /// Run a block service in the foreground
    #[command(after_help = RUNNING)]
    Run(BlockArgs),
    /// Say which running block services this executable can take over from, and whether it understands their arguments
    #[command(hide = true)]
    HandoverVersion {
        /// Those of the running one, behind `--`
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
}

const RUNNING: &str = "\
Then join it once: symphony ctl --socket=DIR/control.sock block init MANAGER[:PORT]

SIGUSR2, or `symphony ctl … block restart`, runs the executable that is now at this one's path in place of this one, with
the same arguments: local clients without TLS notice a short pause. With a service manager that keeps descriptors
(FileDescriptorStoreMax=) so does its restart.";

#[derive(Debug, Args)]
pub struct ManagerArgs {
    /// Where identity, control socket and embedded store live [default: /var/lib/symphony/manager]
    #[arg(long, env = "SYMPHONY_MANAGER_CONFIG_DIR")]
    config_dir: Option<PathBuf>,
    /// Create the cluster or join the one in the store by itself, instead of waiting for `manager init`
    #[arg(long, env = "SYMPHONY_MANAGER_INIT", value_parser = clap::builder::BoolishValueParser::new())]
    init: bool,
    /// Keep state in this etcd cluster instead of the embedded store
    #[arg(long, env = "SYMPHONY_ETCD_ENDPOINTS", value_delimiter = ',', value_name = "URL,URL,…")]
    etcd_endpoints: Vec<String>,
    #[command(flatten)]
    etcd: EtcdArgs,
    /// The port for block services and operators; 0 takes a free one
    #[arg(long, env = "SYMPHONY_MANAGER_LISTEN_PORT", default_value_t = MANAGER_PORT)]
    listen_port: u16,
    /// The address to listen on; peers that are not local need a certificate
    #[arg(long, env = "SYMPHONY_MANAGER_LISTEN_ADDRESS", default_value = "0.0.0.0")]
    listen_address: IpAddr,
    /// Serve figures for monitoring here, as http://ADDRESS:PORT/metrics; anybody who reaches it may read them
    #[arg(long, env = "SYMPHONY_MANAGER_METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    metrics_listen: Option<SocketAddr>,
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
    /// Join through one of these by itself, trying until it is a member, instead of waiting for `block init`
    #[arg(long, env = "SYMPHONY_BLOCK_JOIN", value_delimiter = ',', value_name = "HOST[:PORT],…")]
    join: Vec<String>,
    /// Holds the token to join with, where the managers are on other hosts
    #[arg(long, env = "SYMPHONY_BLOCK_TOKEN_FILE", value_name = "FILE", requires = "join")]
    token_file: Option<PathBuf>,
    /// Serve figures for monitoring here, as http://ADDRESS:PORT/metrics; anybody who reaches it may read them
    #[arg(long, env = "SYMPHONY_BLOCK_METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// The service's own gRPC port (health); 0 takes a free one
    #[arg(long, env = "SYMPHONY_BLOCK_LISTEN_PORT", default_value_t = BLOCK_PORT)]
    listen_port: u16,
    /// The port volumes are exported on over NBD; 0 takes a free one
    #[arg(long, env = "SYMPHONY_BLOCK_NBD_PORT", default_value_t = NBD_PORT)]
    nbd_port: u16,
    /// What carries NBD requests out: auto, uring (io_uring), or threads (one per connection)
    #[arg(long, env = "SYMPHONY_BLOCK_NBD_ENGINE", default_value = "auto")]
    nbd_engine: EngineChoice,
    /// The address to listen on; peers that are not local need a certificate
    #[arg(long, env = "SYMPHONY_BLOCK_LISTEN_ADDRESS", default_value = "0.0.0.0")]
    listen_address: IpAddr,
    /// The host that others are told [default: the listening address, 127.0.0.1 where that is all addresses]
    #[arg(long, env = "SYMPHONY_BLOCK_ADVERTISE_ADDRESS")]
    advertise_address: Option<String>,
    /// Be N block services that hold nothing, to load managers with: each joins and says that all it is given is there
    #[arg(long, env = "SYMPHONY_BLOCK_SIMULATE", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=20_000))]
    simulate: Option<u16>,
    /// While FILE is there, fail as many of a thousand operations on volumes as it says: to test what uses them
    #[arg(long, env = "SYMPHONY_BLOCK_FAIL_IO", value_name = "FILE")]
    fail_io: Option<PathBuf>,
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
    // Never an option: everybody on a host can read the arguments of its processes.
    let given = std::env::var("SYMPHONY_ETCD_PASSWORD").ok().map(Password::Given);
    let access = EtcdFiles {
        ca: args.etcd.etcd_ca,
        cert: args.etcd.etcd_cert,
        key: args.etcd.etcd_key,
        user: args.etcd.etcd_user,
        password: args.etcd.etcd_password_file.map(Password::File).or(given),
    };
    let store = match args.etcd_endpoints.is_empty() {
        true => StoreConfig::Embedded,
        false => StoreConfig::Etcd { endpoints: args.etcd_endpoints, prefix: args.etcd.etcd_prefix, access },
    };
    let config = ManagerConfig {
        config_dir: args.config_dir.unwrap_or_else(|| default_config_dir().join("manager")),
        store,
        listen: SocketAddr::new(args.listen_address, args.listen_port),
        advertise: args.advertise_address,
        metrics: args.metrics_listen,
        init: args.init,
    };
    let supervisor = Supervisor::from_environment();
    let ready = |_| supervisor.iter().for_each(Supervisor::ready);
    manager::run(config, shutdown, ready).await.context("running the manager")
}

/// Where this process comes from. To be asked for before anything is opened: descriptors may have been left to it.
pub fn lineage() -> Lineage {
    let inheritance = Inheritance::take_from_environment();
    let program = Program::of_this_process();
    let program =
        program.inspect_err(|error| tracing::warn!(%error, "no restarts in place: whose executable is this?"));
    Lineage { inheritance, supervisor: Supervisor::from_environment(), program: program.ok() }
}

pub async fn block(args: BlockArgs, lineage: Lineage) -> Result<()> {
    let shutdown = Shutdown::new();
    end_on_signal(&shutdown);
    let config_dir = args.config_dir.unwrap_or_else(|| default_config_dir().join("block"));
    let join = (!args.join.is_empty()).then_some(Join { managers: args.join, token_file: args.token_file });
    if let Some(count) = args.simulate {
        let config = SimulationConfig { config_dir, count: count.into(), managers: args.managers, join };
        return block::simulate(config, shutdown, || {}).await.context("simulating block services");
    }
    let config = BlockConfig {
        config_dir,
        listen: SocketAddr::new(args.listen_address, args.listen_port),
        nbd_listen: SocketAddr::new(args.listen_address, args.nbd_port),
        nbd_engine: args.nbd_engine,
        advertise: args.advertise_address,
        managers: args.managers,
        join,
        metrics: args.metrics_listen,
        fault_file: args.fail_io.map(FaultFile::new),
    };
    block::run(config, lineage, shutdown, || {}).await.context("running the block service")
}

/// Answers a running block service that asks whether this executable can take its place.
pub fn handover_version(arguments: Vec<OsString>) -> Result<()> {
    let program = OsString::from("symphony");
    super::Cli::try_parse_from(std::iter::once(program).chain(arguments))
        .map_err(|error| anyhow::anyhow!("the arguments are not understood: {error}"))?;
    println!("{}", block::handover::sort_of_documents());
    Ok(())
}
