//! `ctl block …`: asked of a block service's own socket.

use super::connect::{Session, answer};
use super::failure::Failure;
use super::output::{self, fields};
use super::wait::spinner;
use crate::model::Timestamp;
use crate::rpc::proto::{self, block_control_client::BlockControlClient};
use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::json;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::transport::Channel;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Join a cluster through any of its managers
    #[command(after_help = JOINING)]
    Init {
        /// HOST or HOST:PORT of a manager
        manager: String,
        /// The token to join with, where the manager is on another host; other users of this one see a command line
        #[arg(long, env = "SYMPHONY_JOIN_TOKEN", hide_env_values = true, conflicts_with = "token_file")]
        token: Option<String>,
        /// A file that holds the token
        #[arg(long, env = "SYMPHONY_JOIN_TOKEN_FILE", value_name = "PATH")]
        token_file: Option<PathBuf>,
        /// The store of its cluster is gone for good: pass to the cluster that is being made of the disks, and serve on
        #[arg(long, env = "SYMPHONY_RECOVER", value_parser = clap::builder::BoolishValueParser::new())]
        recover: bool,
    },
    /// Show this block service
    Status,
    /// Run a newer executable in place of the running one: local clients without TLS notice a short pause
    #[command(after_help = RESTARTING)]
    Restart {
        /// What to run [default: what is now where the running one was started from]
        #[arg(long, env = "SYMPHONY_RESTART_EXECUTABLE", value_name = "PATH")]
        executable: Option<PathBuf>,
    },
}

const RESTARTING: &str = "\
The process stays the same, its arguments too. An executable that does not start, or knows nothing of this, is refused,
and nothing happens. Clients over TLS connect again by themselves, if they can.";

const JOINING: &str = "\
A manager on the same host needs no token:
  symphony ctl --socket=.config/block-01/control.sock block init 127.0.0.1:15760
On another host, with a token that `symphony ctl … manager token create` made on a manager's host:
  symphony ctl --socket=.config/block-01/control.sock block init HOST:15760 --token-file=token";

/// How often to look how far a restart is.
const LOOK: Duration = Duration::from_millis(10);

/// A token is some two hundred bytes long; much more is another file.
const LONGEST_TOKEN: u64 = 4096;

/// The token that was given, if one was.
fn join_token(token: Option<String>, file: Option<&Path>) -> Result<Option<String>> {
    let Some(path) = file else { return Ok(token) };
    let read = || {
        let mut text = String::new();
        std::fs::File::open(path)?.take(LONGEST_TOKEN).read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    };
    let text = read().with_context(|| format!("reading the token in {}", path.display()))?;
    Ok(Some(text.trim().to_owned()))
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let mut block = session.block().await?;
    match verb {
        Verb::Restart { executable } => restart(session, block, executable).await,
        Verb::Init { manager, token, token_file, recover } => {
            let token = join_token(token, token_file.as_deref())?;
            let bar = spinner(format!("joining through {manager}"));
            let done = block.init_block(proto::InitBlockRequest { manager, token, recover }).await;
            bar.finish_and_clear();
            let done = answer(done, "block service")?;
            let document = json!({
                "cluster": {"id": done.cluster_id, "name": done.cluster_name},
                "service": {"id": done.service_id},
            });
            output::one(session.format, &document, &done.service_id, |_| {
                format!("joined cluster '{}' as block service {}\n", done.cluster_name, done.service_id)
            })
        }
        Verb::Status => {
            let status = answer(block.get_block_status(proto::GetBlockStatusRequest {}).await, "block service")?;
            let addresses = status.addresses.unwrap_or_default();
            let document = json!({
                "state": status.state,
                "message": status.message,
                "service": {"id": status.service_id},
                "cluster": {"id": status.cluster_id},
                "manager": status.manager,
                "certificate": status.certificate.as_ref().map(|certificate| json!({
                    "expires_at": Timestamp::from_millis(certificate.expires_at),
                    "root": certificate.root,
                    "public_key": certificate.public_key,
                })),
                "certificate_message": status.certificate_message,
                "addresses": {"rpc": addresses.rpc, "nbd": addresses.nbd},
                "nbd_engine": status.nbd_engine,
                "pools": status.pools,
                "volumes": status.volumes,
                "version": status.version,
                "instance": status.instance,
            });
            let none = || "-".to_owned();
            let certificate = match &status.certificate {
                Some(it) => format!("until {}, root {}", Timestamp::from_millis(it.expires_at), it.root),
                None => none(),
            };
            let certificate = match &status.certificate_message {
                Some(message) => format!("{certificate} ({message})"),
                None => certificate,
            };
            let id = status.service_id.clone().unwrap_or_else(none);
            output::one(session.format, &document, &id, |_| {
                fields(&[
                    ("State", status.state.clone()),
                    ("Message", status.message.clone().unwrap_or_else(none)),
                    ("Service", id.clone()),
                    ("Manager", status.manager.clone().unwrap_or_else(none)),
                    ("Certificate", certificate.clone()),
                    ("NBD", addresses.nbd.clone().unwrap_or_else(none)),
                    ("NBD engine", status.nbd_engine.clone()),
                    ("Pools", status.pools.to_string()),
                    ("Volumes", status.volumes.to_string()),
                    ("Version", status.version.clone()),
                ])
            })
        }
    }
}

type Block = BlockControlClient<Channel>;

async fn restart(session: &Session, mut block: Block, executable: Option<PathBuf>) -> Result<()> {
    let absolute = |path: PathBuf| std::path::absolute(&path).with_context(|| format!("finding {}", path.display()));
    let executable = executable.map(absolute).transpose()?;
    let executable = executable.map(|path| path.into_os_string().into_string()).transpose();
    let executable = executable.map_err(|path| Failure::Usage(format!("{} is not UTF-8", path.display())))?;
    let before = answer(block.get_block_status(proto::GetBlockStatusRequest {}).await, "block service")?;
    let bar = spinner("restarting".to_owned());
    // No answer is a good one: the process that was asked is another one now.
    let refused = block.restart_block(proto::RestartBlockRequest { executable }).await;
    let done = tokio::time::timeout(session.timeout, settled(session, &before.instance)).await;
    bar.finish_and_clear();
    let late = || Failure::TimedOut {
        limit: session.timeout,
        what: "no other process says yet that it goes on in place of the former one".into(),
        look: "block status".into(),
    };
    let Some(after) = done.map_err(|_| late())? else {
        return answer(refused, "block service").map(drop);
    };
    let Some(passage) = after.passage.filter(|passage| passage.from == before.instance) else {
        let text = "another process runs now, but it did not go on where the former one was; its log says why";
        return Err(Failure::Unfulfilled(text.into()).into());
    };
    let document = json!({
        "version": {"before": before.version, "after": after.version},
        "connections": {"went_on": passage.went_on, "ended": passage.ended},
    });
    output::one(session.format, &document, &after.version, |_| {
        let ended = match passage.ended {
            0 => String::new(),
            ended => format!(", {ended} could not and have to come again"),
        };
        format!("symphony {} runs now; {} NBD connections went on{ended}\n", after.version, passage.went_on)
    })
}

/// How the process after `instance` is, once nobody waits for it any more; none if that one goes on.
async fn settled(session: &Session, instance: &str) -> Option<proto::GetBlockStatusResponse> {
    loop {
        // Whoever does not answer is on its way.
        if let Ok(mut block) = session.block().await
            && let Ok(status) = block.get_block_status(proto::GetBlockStatusRequest {}).await
        {
            let status = status.into_inner();
            if status.instance == instance {
                return None;
            }
            if status.passage.as_ref().is_none_or(|passage| passage.settled) {
                return Some(status);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}
