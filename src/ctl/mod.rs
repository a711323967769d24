//! `symphony ctl`: what people and scripts type.
//!
//! Talks to one socket or manager, waits until what was asked for is so, and says what happened. Whom to ask is said by
//! options, or by a context that the user keeps. Results go to standard output, everything else to standard error. Never
//! here: state of the cluster, devices, the store.

mod attachment;
mod authority;
mod backup;
mod block;
pub mod bundle;
mod check;
mod client;
mod connect;
mod context;
mod contexts;
mod copy;
mod device;
mod drain;
mod etcd;
mod events;
mod failure;
mod image;
mod limits;
mod lost;
mod manager;
mod moving;
mod orphans;
mod output;
mod pool;
mod recover;
mod rules;
mod service;
mod snapshot;
mod stats;
mod token;
mod volume;
mod wait;

pub use connect::{ConnectArgs, default_config_dir};
pub use etcd::EtcdArgs;
pub use failure::{Failure, exit_code};
pub use output::Format;

use anyhow::Result;
use clap::{Args, Subcommand};
use connect::Session;
use std::time::Duration;

/// Everything after `symphony ctl`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct CtlArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// How results are printed
    #[arg(short, long, global = true, value_enum, default_value_t, env = "SYMPHONY_OUTPUT")]
    pub output: Format,
    /// Return as soon as the request is accepted, not when it is done
    #[arg(long, global = true, env = "SYMPHONY_NO_WAIT", value_parser = clap::builder::BoolishValueParser::new())]
    pub no_wait: bool,
    /// How long to wait for it to be done
    #[arg(long, global = true, default_value = "60s", value_parser = humantime::parse_duration, env = "SYMPHONY_TIMEOUT")]
    pub timeout: Duration,
    #[command(subcommand)]
    noun: Noun,
}

const HELP: &str = "\
Examples:
  symphony ctl volume create db --size 10GiB         a volume, ready when this returns
  symphony ctl volume upload db disk.img             fill it
  symphony ctl volume get db -o json | jq -r '.status.exports[0].uri'
  symphony ctl image import noble.qcow2 --name noble
  symphony ctl volume create web --image noble       in under a second from then on
  symphony ctl --socket=.config/manager-01/control.sock manager init
  symphony ctl context add prod --bundle ./prod      from now on, ask that cluster

Exit codes: 0 done, 1 failed, 2 asked wrongly, 3 no such object, 4 not allowed by the current state,
5 nobody answers or the store is away, 6 not done within --timeout.";

#[derive(Debug, Subcommand)]
enum Noun {
    /// Initialise a manager, take services out, see how it is
    #[command(subcommand)]
    Manager(manager::Verb),
    /// Make a block service join, see how it is
    #[command(subcommand)]
    Block(block::Verb),
    /// The members of the cluster
    #[command(subcommand, alias = "services")]
    Service(service::Verb),
    /// Disks of block services' hosts, of which pools are made
    #[command(subcommand, alias = "devices")]
    Device(device::Verb),
    /// Capacity on block services
    #[command(subcommand, alias = "pools")]
    Pool(pool::Verb),
    /// Block devices in pools
    #[command(subcommand, alias = "volumes")]
    Volume(volume::Verb),
    /// Volumes as they were at one instant
    #[command(subcommand, alias = "snapshots")]
    Snapshot(snapshot::Verb),
    /// Contents that volumes are made of
    #[command(subcommand, alias = "images")]
    Image(image::Verb),
    /// The clusters that you work with
    #[command(subcommand, alias = "contexts")]
    Context(context::Verb),
    /// Who may use which volume: made by `volume attach`, ended by `volume detach`
    #[command(subcommand, alias = "attachments")]
    Attachment(attachment::Verb),
    /// What lies on disks and belongs to nobody: left by hosts and clusters that died, or closed with --lost
    #[command(subcommand, alias = "orphan")]
    Orphans(orphans::Verb),
    /// Who changed what, from where: the record of changes, oldest first
    Events(events::EventsArgs),
    /// Compare store, managers' view and devices
    Check,
}

/// Runs one command to its end.
///
/// # Errors
/// What to tell the user; [`exit_code`] says how to end.
pub async fn run(args: CtlArgs) -> Result<()> {
    let session = Session { connect: args.connect, format: args.output, wait: !args.no_wait, timeout: args.timeout };
    match args.noun {
        Noun::Manager(verb) => manager::run(&session, verb).await,
        Noun::Block(verb) => block::run(&session, verb).await,
        Noun::Service(verb) => service::run(&session, verb).await,
        Noun::Device(verb) => device::run(&session, verb).await,
        Noun::Pool(verb) => pool::run(&session, verb).await,
        Noun::Volume(verb) => volume::run(&session, verb).await,
        Noun::Snapshot(verb) => snapshot::run(&session, verb).await,
        Noun::Image(verb) => image::run(&session, verb).await,
        Noun::Context(verb) => context::run(&session, verb),
        Noun::Attachment(verb) => attachment::run(&session, verb).await,
        Noun::Orphans(verb) => orphans::run(&session, verb).await,
        Noun::Events(args) => events::run(&session, args).await,
        Noun::Check => check::run(&session).await,
    }
}
