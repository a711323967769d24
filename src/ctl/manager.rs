//! `ctl manager …`

use super::connect::{Session, answer};
use super::output::{self, fields, say};
use super::{authority, client, token};
use crate::model::{ClusterSpec, Object, ServiceState};
use crate::rpc::proto;
use anyhow::Result;
use clap::Subcommand;
use serde_json::json;
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create the cluster, or join the one that the manager's store already holds
    #[command(after_help = "Fails on a manager that is a member already.")]
    Init {
        /// What to call a cluster that is created
        #[arg(long, env = "SYMPHONY_CLUSTER_NAME")]
        name: Option<String>,
        /// How often services speak, for a cluster that is created [default: 1s]
        #[arg(long, value_parser = humantime::parse_duration, env = "SYMPHONY_HEARTBEAT")]
        heartbeat: Option<Duration>,
        /// How long a silent service counts as alive, for a cluster that is created [default: 4s]
        #[arg(long, value_parser = humantime::parse_duration, env = "SYMPHONY_LEASE")]
        lease: Option<Duration>,
        /// How long services' certificates last, for a cluster that is created [default: 30days]
        #[arg(long, value_parser = humantime::parse_duration, env = "SYMPHONY_CERTIFICATE_LIFETIME")]
        certificate_lifetime: Option<Duration>,
    },
    /// Take a service out of the cluster
    #[command(
        after_help = "Refused while the service holds pools or volumes. With --lost they are closed here, and their \
                            data stay on the service's disks as orphans."
    )]
    Remove {
        /// The service's id, or its host name where only it has that
        service: String,
        /// The service will not come back: close what it holds
        #[arg(long, env = "SYMPHONY_LOST", value_parser = clap::builder::BoolishValueParser::new())]
        lost: bool,
    },
    /// Show this manager
    Status,
    /// Invitations for services on other hosts
    #[command(subcommand)]
    Token(token::Verb),
    /// Operators at a distance, and users of volumes
    #[command(subcommand)]
    Client(client::Verb),
    /// The cluster's certificate authority
    #[command(subcommand)]
    Ca(authority::Verb),
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    match verb {
        Verb::Init { name, heartbeat, lease, certificate_lifetime } => {
            init(session, name, [heartbeat, lease, certificate_lifetime]).await
        }
        Verb::Remove { service, lost } => remove(session, service, lost).await,
        Verb::Status => status(session).await,
        Verb::Token(verb) => token::run(session, verb).await,
        Verb::Client(verb) => client::run(session, verb).await,
        Verb::Ca(verb) => authority::run(session, verb).await,
    }
}

async fn init(
    session: &Session,
    name: Option<String>,
    [heartbeat, lease, certificate_lifetime]: [Option<Duration>; 3],
) -> Result<()> {
    let mut manager = session.manager().await?;
    let defaults = ClusterSpec::default();
    let millis = |period: Option<Duration>, default: u64| {
        period.map_or(default, |period| u64::try_from(period.as_millis()).unwrap_or(u64::MAX))
    };
    let spec = proto::ClusterSpec {
        heartbeat_ms: millis(heartbeat, defaults.heartbeat_ms),
        lease_ms: millis(lease, defaults.lease_ms),
        certificate_lifetime_ms: millis(certificate_lifetime, defaults.certificate_lifetime_ms),
    };
    let request = proto::InitClusterRequest { name, spec: Some(spec) };
    let done = answer(manager.client.init_cluster(request).await, "manager")?;
    let did = if done.created { "created" } else { "joined" };
    let document = json!({
        "cluster": {"id": done.cluster_id, "name": done.cluster_name},
        "service": {"id": done.service_id},
        "created": done.created,
    });
    output::one(session.format, &document, &done.service_id, |_| {
        format!("{did} cluster '{}' as manager {}\n", done.cluster_name, done.service_id)
    })
}

async fn remove(session: &Session, service: String, lost: bool) -> Result<()> {
    let mut manager = session.manager().await?;
    let request = proto::RemoveServiceRequest { id: service, lost };
    let removed = super::connect::object(answer(manager.client.remove_service(request).await, "manager")?)?;
    let (id, kept) = (removed.id(), if lost { "; what it held stays on its disks" } else { "" });
    debug_assert!(matches!(&removed, Object::Service(service) if service.status.state == ServiceState::Removed));
    output::one(session.format, &removed, &id, |_| format!("removed service {id}{kept}\n"))
}

async fn status(session: &Session) -> Result<()> {
    let mut manager = session.manager().await?;
    let status = answer(manager.client.get_manager_status(proto::GetManagerStatusRequest {}).await, "manager")?;
    let document = json!({
        "state": status.state,
        "message": status.message,
        "service": {"id": status.service_id},
        "cluster": {"id": status.cluster_id, "name": status.cluster_name},
        "store": status.store,
        "leader": status.leader,
        "address": status.address,
        "version": status.version,
    });
    let none = || "-".to_owned();
    let text = fields(&[
        ("State", status.state.clone()),
        ("Message", status.message.clone().unwrap_or_else(none)),
        ("Service", status.service_id.clone().unwrap_or_else(none)),
        ("Cluster", status.cluster_name.clone().unwrap_or_else(none)),
        ("Leader", status.leader.clone().unwrap_or_else(none)),
        ("Store", status.store.clone()),
        ("Address", status.address.clone()),
        ("Version", status.version.clone()),
    ]);
    match session.format {
        output::Format::Table | output::Format::Wide => say(&text),
        _ => output::one(session.format, &document, &status.service_id.unwrap_or_default(), |_| String::new()),
    }
}
