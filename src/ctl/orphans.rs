//! `ctl orphans …`: what lies on disks and belongs to nobody.

use super::connect::{Session, answer, object};
use super::failure::Failure;
use super::lost::confirm;
use super::output::{self, Format, table};
use super::wait::{Until, spinner, wait_for};
use crate::model::{ByteSize, Generation, Orphan, OrphanId, OrphanOrigin, OrphanStanding};
use crate::rpc::proto::{self, recovery_client::RecoveryClient};
use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::json;
use tonic::transport::Channel;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// What block services have on their disks and the cluster knows nothing of
    #[command(visible_alias = "ls")]
    List {
        /// Of one block service: its id or host name
        #[arg(long, env = "SYMPHONY_SERVICE")]
        service: Option<String>,
    },
    /// Take an orphan back into the cluster under its own id: a pool, a volume with its snapshots, or a snapshot
    #[command(after_help = ADOPTING)]
    Adopt {
        /// Id
        orphan: String,
        /// What to call it [default: its name on disk]
        #[arg(long, env = "SYMPHONY_NAME", conflicts_with = "all")]
        name: Option<String>,
        /// Of a pool: its volumes and snapshots, too
        #[arg(long, env = "SYMPHONY_ALL", value_parser = clap::builder::BoolishValueParser::new())]
        all: bool,
        /// Where a name is taken, take another one that comes close to it, and say so
        #[arg(long, env = "SYMPHONY_RENAME", value_parser = clap::builder::BoolishValueParser::new())]
        rename: bool,
        /// The block service that has it, where several do: id or host name
        #[arg(long, env = "SYMPHONY_SERVICE")]
        service: Option<String>,
    },
    /// Destroy an orphan's bytes for ever; a volume's snapshots go before it
    Purge {
        /// Id
        orphan: String,
        /// Do not ask
        #[arg(long, env = "SYMPHONY_YES", value_parser = clap::builder::BoolishValueParser::new())]
        yes: bool,
        /// The block service that has it, where several do: id or host name
        #[arg(long, env = "SYMPHONY_SERVICE")]
        service: Option<String>,
    },
}

const ADOPTING: &str = "\
A pool is adopted before what is in it, or together with it by --all, which replaces names that are taken.
Examples:
  symphony ctl orphans list
  symphony ctl orphans adopt 0198c1f2-6c3e-7d1a-9b1f-3f0f5d0a7c11 --name db-old
  symphony ctl orphans adopt 0198c1f2-6c3e-7d1a-9b1f-3f0f5d0a7c12 --all";

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let mut recovery = session.recovery().await?;
    match verb {
        Verb::List { service } => {
            let (orphans, unasked) = all(&mut recovery, service).await?;
            for sentence in unasked {
                eprintln!("note: {sentence}");
            }
            output::list(
                session.format,
                &orphans,
                |orphan| orphan.id.to_string(),
                |orphans| listing(orphans, session.format == Format::Wide),
            )
        }
        Verb::Adopt { orphan, name, all, rename, service } => {
            let (name, service) = (name.unwrap_or_default(), service.unwrap_or_default());
            let shown = shown(&mut recovery, &orphan, &service).await?;
            let generation = shown.iter().find(|it| it.id.to_string() == orphan).map(|it| it.generation.as_u64());
            let request = proto::AdoptOrphanRequest { id: orphan, name, generation, all, rename, service };
            adopt(session, &mut recovery, request).await
        }
        Verb::Purge { orphan, yes, service } => {
            let service = service.unwrap_or_default();
            let shown = shown(&mut recovery, &orphan, &service).await?;
            purge(session, &mut recovery, &orphan, &service, &shown, yes).await
        }
    }
}

async fn all(recovery: &mut RecoveryClient<Channel>, service: Option<String>) -> Result<(Vec<Orphan>, Vec<String>)> {
    let request = proto::ListOrphansRequest { service: service.unwrap_or_default() };
    let bar = spinner("looking at the disks".into());
    let found = recovery.list_orphans(request).await;
    bar.finish_and_clear();
    let found = answer(found, "manager")?;
    let orphans = found.orphans.into_iter().map(Orphan::try_from).collect::<Result<_, _>>();
    Ok((orphans.context("reading the manager's answer")?, found.unasked))
}

/// The orphan that is meant, and what was taken of it.
async fn shown(recovery: &mut RecoveryClient<Channel>, id: &str, service: &str) -> Result<Vec<Orphan>> {
    let (orphans, _) = all(recovery, Some(service.to_owned())).await?;
    let is_meant =
        |orphan: &Orphan| orphan.id.to_string() == id || orphan.volume.is_some_and(|volume| volume.to_string() == id);
    Ok(orphans.into_iter().filter(is_meant).collect())
}

async fn adopt(
    session: &Session,
    recovery: &mut RecoveryClient<Channel>,
    request: proto::AdoptOrphanRequest,
) -> Result<()> {
    let bar = spinner("adopting".into());
    let done = recovery.adopt_orphan(request).await;
    bar.finish_and_clear();
    let done = answer(done, "manager")?;
    for remark in &done.remarks {
        eprintln!("note: {remark}");
    }
    let mut adopted = Vec::new();
    for message in done.adopted {
        let first = object(message)?;
        adopted.push(if session.wait { wait_for(session, first, Until::Ready).await? } else { first });
    }
    let more = usize::try_from(done.count).unwrap_or(usize::MAX).saturating_sub(adopted.len());
    output::list(
        session.format,
        &adopted,
        |object| object.label(),
        |adopted| {
            let line = |object: &crate::model::Object| {
                format!("{} '{}' belongs to the cluster again: {}\n", object.kind(), object.label(), object.phase().0)
            };
            let more = if more > 0 { format!("and {more} more\n") } else { String::new() };
            adopted.iter().map(line).collect::<String>() + &more
        },
    )
}

async fn purge(
    session: &Session,
    recovery: &mut RecoveryClient<Channel>,
    id: &str,
    service: &str,
    shown: &[Orphan],
    yes: bool,
) -> Result<()> {
    let meant = shown.iter().find(|orphan| orphan.id.to_string() == id);
    let snapshots: Vec<&Orphan> = shown.iter().filter(|orphan| orphan.id.to_string() != id).collect();
    if let Some(orphan) = meant {
        let size = orphan.size.map(|size| format!(" ({size})")).unwrap_or_default();
        let with = match snapshots.len() {
            0 => String::new(),
            1 => " and its snapshot".to_owned(),
            many => format!(" and its {many} snapshots"),
        };
        let kind = orphan.id.kind();
        let question =
            format!("This destroys {kind} '{}'{size} on '{}'{with} for ever.", orphan.name, orphan.host_name);
        confirm(yes, false, &question)?;
    } else if !yes {
        return Err(Failure::Usage(format!("{id} does not show as an orphan: see `symphony ctl orphans list`")).into());
    }
    let generation = |orphan: &Orphan| orphan.generation.as_u64();
    for snapshot in snapshots {
        destroy(session, recovery, &snapshot.id.to_string(), service, generation(snapshot), true).await?;
    }
    // One whose purge was begun is no orphan any more, and is gone on with.
    let shown = meant.map_or(Generation::default().as_u64(), generation);
    let gone = destroy(session, recovery, id, service, shown, session.wait).await?;
    let verb = if session.wait { "purged" } else { "purging" };
    output::one(session.format, &json!({ "id": id, "kind": gone.kind() }), id, |_| {
        format!("{verb} {} {id}\n", gone.kind())
    })
}

async fn destroy(
    session: &Session,
    recovery: &mut RecoveryClient<Channel>,
    id: &str,
    service: &str,
    generation: u64,
    wait: bool,
) -> Result<crate::model::Object> {
    let request = proto::PurgeOrphanRequest { id: id.to_owned(), generation, service: service.to_owned() };
    let first = object(answer(recovery.purge_orphan(request).await, "manager")?)?;
    if wait { wait_for(session, first, Until::Gone).await } else { Ok(first) }
}

fn origin(orphan: &Orphan) -> String {
    match orphan.origin {
        OrphanOrigin::InPool => "closed".to_owned(),
        OrphanOrigin::RemovedService => "removed service".to_owned(),
        OrphanOrigin::Cluster(id) => format!("cluster {id}"),
    }
}

fn standing(orphan: &Orphan) -> String {
    match &orphan.standing {
        OrphanStanding::Whole => "whole".to_owned(),
        OrphanStanding::ImageBase => "image content".to_owned(),
        OrphanStanding::Unfinished => "unfinished".to_owned(),
        OrphanStanding::Damaged(why) => format!("damaged: {why}"),
    }
}

fn listing(orphans: &[Orphan], wide: bool) -> String {
    let mut header = vec!["KIND", "ID", "NAME", "SIZE", "POOL", "HOST", "STATE", "FROM"];
    if wide {
        header.extend(["DATA", "GENERATION", "VOLUME", "SERVICE"]);
    }
    let none = || "-".to_owned();
    let size = |size: Option<ByteSize>| size.map_or_else(none, |size| size.to_string());
    let row = |orphan: &Orphan| {
        let mut row = vec![
            orphan.id.kind().to_string(),
            orphan.id.to_string(),
            if orphan.name.is_empty() { none() } else { orphan.name.clone() },
            size(orphan.size),
            match orphan.id {
                OrphanId::Pool(_) => none(),
                OrphanId::Volume(_) | OrphanId::Snapshot(_) => orphan.pool_name.clone(),
            },
            orphan.host_name.clone(),
            standing(orphan),
            origin(orphan),
        ];
        if wide {
            row.extend([
                size(orphan.data),
                orphan.generation.as_u64().to_string(),
                orphan.volume.map_or_else(none, |id| id.to_string()),
                orphan.service.to_string(),
            ]);
        }
        row
    };
    table(&header, orphans.iter().map(row).collect())
}
