//! `ctl block …`: asked of a block service's own socket.

use super::connect::{Session, answer};
use super::output::{self, fields};
use super::wait::spinner;
use crate::rpc::proto;
use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Join a cluster through any of its managers
    #[command(after_help = "Example: symphony ctl --socket=.config/block-01/control.sock block init 127.0.0.1:15760")]
    Init {
        /// HOST or HOST:PORT of a manager
        manager: String,
    },
    /// Show this block service
    Status,
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let mut block = session.block().await?;
    match verb {
        Verb::Init { manager } => {
            let bar = spinner(format!("joining through {manager}"));
            let done = block.init_block(proto::InitBlockRequest { manager }).await;
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
                "addresses": {"rpc": addresses.rpc, "nbd": addresses.nbd},
                "pools": status.pools,
                "volumes": status.volumes,
                "version": status.version,
            });
            let none = || "-".to_owned();
            let id = status.service_id.clone().unwrap_or_else(none);
            output::one(session.format, &document, &id, |_| {
                fields(&[
                    ("State", status.state.clone()),
                    ("Message", status.message.clone().unwrap_or_else(none)),
                    ("Service", id.clone()),
                    ("Manager", status.manager.clone().unwrap_or_else(none)),
                    ("NBD", addresses.nbd.clone().unwrap_or_else(none)),
                    ("Pools", status.pools.to_string()),
                    ("Volumes", status.volumes.to_string()),
                    ("Version", status.version.clone()),
                ])
            })
        }
    }
}
