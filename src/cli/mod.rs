//! The command line: one executable, a subcommand a role. Composes roles; knows no protocol.

mod dev;
mod roles;

use crate::ctl::{self, CtlArgs};
use crate::runtime::telemetry::{self, LogFormat};
use anyhow::{Context, Result};
use clap::{ArgAction, CommandFactory, Parser, Subcommand, ValueEnum};
use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

/// Block storage from Linux hosts: managers, block services and their client in one executable.
#[derive(Debug, Parser)]
#[command(name = "symphony", version, propagate_version = true, after_help = HELP)]
pub struct Cli {
    /// More logs on standard error: -v info, -vv debug, -vvv everything (RUST_LOG overrides)
    #[arg(short, long, global = true, action = ArgAction::Count, env = "SYMPHONY_VERBOSE")]
    verbose: u8,
    /// How logs are written
    #[arg(long, global = true, value_enum, default_value_t, env = "SYMPHONY_LOG_FORMAT")]
    log_format: LogFormatArg,
    #[command(subcommand)]
    role: Role,
}

const HELP: &str = "\
Try it on one machine:
  symphony dev --config-dir ./dev &
  export SYMPHONY_SOCKET=./dev/manager/control.sock
  symphony ctl volume create first --size 1GiB

Every option can also be set by the environment variable that its help names.";

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LogFormatArg {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Keep the cluster's state and serve operators and block services
    #[command(subcommand)]
    Manager(roles::ManagerCommand),
    /// Own devices on this host and serve volumes from them
    #[command(subcommand)]
    Block(roles::BlockCommand),
    /// Everything for one machine, ready for the first volume
    Dev(dev::DevArgs),
    /// Ask and tell a running cluster
    Ctl(CtlArgs),
    /// Print shell completions: `source <(symphony completions bash)`
    Completions { shell: clap_complete::Shell },
}

impl Cli {
    /// Runs the chosen role to its end.
    pub fn run(self) -> ExitCode {
        let daemon = !matches!(self.role, Role::Ctl(_) | Role::Completions { .. });
        let format = match self.log_format {
            LogFormatArg::Text => LogFormat::Text,
            LogFormatArg::Json => LogFormat::Json,
        };
        let default = if daemon { "info" } else { "warn" };
        if let Err(error) = telemetry::start(default, self.verbose, format) {
            eprintln!("symphony: {error}");
            return ExitCode::from(2);
        }
        if daemon && let Err(error) = crate::host::raise_open_files() {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
        match self.dispatch() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("symphony: {error:#}");
                ExitCode::from(ctl::exit_code(&error))
            }
        }
    }

    fn dispatch(self) -> Result<()> {
        match self.role {
            Role::Completions { shell } => {
                clap_complete::generate(shell, &mut Self::command(), "symphony", &mut std::io::stdout());
                Ok(())
            }
            Role::Ctl(args) => execute(1, ctl::run(args)),
            Role::Manager(roles::ManagerCommand::Run(args)) => execute(2, roles::manager(args)),
            Role::Block(roles::BlockCommand::Run(args)) => execute(2, roles::block(args, roles::lineage())),
            Role::Block(roles::BlockCommand::HandoverVersion { arguments }) => roles::handover_version(arguments),
            Role::Dev(args) => execute(2, dev::run(args)),
        }
    }
}

/// How long threads that are stuck in the kernel may hold up the end of the process.
const FAREWELL: Duration = Duration::from_secs(2);

fn execute(threads: usize, role: impl Future<Output = Result<()>>) -> Result<()> {
    let executor = executor(threads)?;
    let outcome = executor.block_on(role);
    executor.shutdown_timeout(FAREWELL);
    outcome
}

fn executor(threads: usize) -> Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(threads).enable_all().build().context("starting the executor")
}
