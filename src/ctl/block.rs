//! `ctl block …`: asked of a block service's own socket.

use super::connect::{Session, answer};
use super::output::{self, fields};
use super::wait::spinner;
use crate::model::Timestamp;
use crate::rpc::proto;
use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::json;
use std::io::Read;
use std::path::{Path, PathBuf};

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
    },
    /// Show this block service
    Status,
}

const JOINING: &str = "\
A manager on the same host needs no token:
  symphony ctl --socket=.config/block-01/control.sock block init 127.0.0.1:15760
On another host, with a token that `symphony ctl … manager token create` made on a manager's host:
  symphony ctl --socket=.config/block-01/control.sock block init HOST:15760 --token-file=token";

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
        Verb::Init { manager, token, token_file } => {
            let token = join_token(token, token_file.as_deref())?;
            let bar = spinner(format!("joining through {manager}"));
            let done = block.init_block(proto::InitBlockRequest { manager, token }).await;
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
