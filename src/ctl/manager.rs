//! `ctl manager …`

use super::connect::{Session, answer};
use super::output::{self, fields, say};
use super::recover::{self, RECOVERING};
use super::{authority, backup, client, lost, token};
use crate::model::{ClusterSpec, Kind, Object, ServiceState, Timestamp};
use crate::rpc::proto;
use anyhow::Result;
use clap::Subcommand;
use serde_json::json;
use std::path::PathBuf;
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
        after_help = "Refused while the service holds pools or volumes. With --lost they are closed here, after it was said \
                            what that means, and their data stay on the service's disks as orphans: see `orphans`."
    )]
    Remove {
        /// The service's id, or its host name where only it has that
        service: String,
        /// The service will not come back: close what it holds
        #[arg(long, env = "SYMPHONY_LOST", value_parser = clap::builder::BoolishValueParser::new())]
        lost: bool,
        /// Do not ask at a terminal
        #[arg(long, env = "SYMPHONY_YES", value_parser = clap::builder::BoolishValueParser::new())]
        yes: bool,
    },
    /// Make a new cluster of what block services have on their disks, after the store is gone for good
    #[command(after_help = RECOVERING)]
    Recover {
        /// What to call the cluster
        #[arg(long, env = "SYMPHONY_CLUSTER_NAME")]
        name: Option<String>,
        /// End the recovery: what was not taken over is served no more, and stays on its disks as orphans
        #[arg(long, env = "SYMPHONY_FINISH", conflicts_with_all = ["name", "status"])]
        #[arg(value_parser = clap::builder::BoolishValueParser::new())]
        finish: bool,
        /// Show how far it is
        #[arg(long, env = "SYMPHONY_STATUS", conflicts_with = "name")]
        #[arg(value_parser = clap::builder::BoolishValueParser::new())]
        status: bool,
    },
    /// Show this manager
    Status,
    /// Copy the whole state into a file, with the private key of the cluster's authority
    #[command(after_help = backup::BACKUP)]
    Backup {
        /// Where to; - for standard output
        file: PathBuf,
    },
    /// Make a cluster of what a backup holds, in an empty store
    #[command(after_help = backup::RESTORE)]
    Restore {
        /// What `backup` wrote; - for standard input
        file: PathBuf,
    },
    /// Move the state from this manager's embedded store to etcd
    #[command(after_help = backup::MIGRATE)]
    Migrate(backup::Destination),
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
        Verb::Remove { service, lost, yes } => remove(session, service, lost, yes).await,
        Verb::Recover { name, finish, status } => recover::run(session, name, finish, status).await,
        Verb::Status => status(session).await,
        Verb::Backup { file } => backup::backup(session, file).await,
        Verb::Restore { file } => backup::restore(session, file).await,
        Verb::Migrate(to) => backup::migrate(session, to).await,
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
    let request = proto::InitClusterRequest { name, spec: Some(spec), recover: false };
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

async fn remove(session: &Session, service: String, lost: bool, yes: bool) -> Result<()> {
    if lost {
        lost::announce(session, Kind::Service, &service, yes).await?;
    }
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
        "stale_since": status.stale_since.map(Timestamp::from_millis),
        "history": {
            "epoch": status.epoch,
            "rewound_at": status.rewound_at.map(Timestamp::from_millis),
            "rewound": status.rewound,
        },
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
    let at = |millis: Option<u64>| millis.map(|millis| Timestamp::from_millis(millis).to_string());
    let stale = at(status.stale_since).map(|since| fields(&[("Stale", format!("since {since}"))]));
    let rewound = at(status.rewound_at).map(|when| {
        let reason = status.rewound.as_deref().unwrap_or_default();
        fields(&[("Put back", format!("{when}: {reason}"))])
    });
    let text = [text, stale.unwrap_or_default(), rewound.unwrap_or_default()].concat();
    match session.format {
        output::Format::Table | output::Format::Wide => say(&text),
        _ => output::one(session.format, &document, &status.service_id.unwrap_or_default(), |_| String::new()),
    }
}
