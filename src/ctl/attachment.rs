//! `ctl attachment …`: who may use which volume. They are made and ended by `ctl volume attach` and `detach`.

use super::connect::{Manager, Session};
use super::output::{self, fields, table};
use crate::model::{Attachment, Kind, Object};
use crate::rpc::proto;
use anyhow::{Result, bail};
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// All attachments, or those of one volume
    #[command(visible_alias = "ls")]
    List {
        /// Name or id
        #[arg(long, env = "SYMPHONY_VOLUME")]
        volume: Option<String>,
    },
    /// One attachment
    Get {
        /// VOLUME/CLIENT, or the attachment's id
        attachment: String,
    },
}

pub fn expect(object: Object) -> Result<Attachment> {
    match object {
        Object::Attachment(attachment) => Ok(attachment),
        other => bail!("the manager answered with a {} instead of an attachment", other.kind()),
    }
}

/// The attachments of one volume; of all, if it is empty.
pub async fn of_volume(manager: &mut Manager, volume: &str) -> Result<Vec<Attachment>> {
    let kind = proto::Kind::from(Kind::Attachment).into();
    let request = proto::ListRequest { kind, volume: volume.into(), ..Default::default() };
    manager.pages(request).await?.into_iter().map(expect).collect()
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let mut manager = session.manager().await?;
    match verb {
        Verb::List { volume } => {
            let held = of_volume(&mut manager, &volume.unwrap_or_default()).await?;
            let header = ["VOLUME", "CLIENT", "ACCESS", "MODE", "PHASE", "MESSAGE"];
            let people = |held: &[Attachment]| table(&header, held.iter().map(row).collect());
            output::list(session.format, &held, Attachment::label, people)
        }
        Verb::Get { attachment } => {
            let held = expect(manager.get(Kind::Attachment, &attachment).await?)?;
            output::one(session.format, &held, &held.label(), describe)
        }
    }
}

fn row(held: &Attachment) -> Vec<String> {
    vec![
        held.spec.volume_name.to_string(),
        held.spec.client_name.to_string(),
        held.spec.access().into(),
        held.spec.mode().into(),
        held.status.phase.to_string(),
        held.status.message.clone().unwrap_or_default(),
    ]
}

fn describe(held: &Attachment) -> String {
    let status = &held.status;
    let mut rows = vec![
        ("Id", held.meta.id.to_string()),
        ("Volume", format!("{} ({})", held.spec.volume_name, held.spec.volume)),
        ("Client", format!("{} ({})", held.spec.client_name, held.spec.client)),
        ("Access", held.spec.access().into()),
        ("Mode", held.spec.mode().into()),
        ("Phase", status.phase.to_string()),
        ("Message", status.message.clone().unwrap_or_else(|| "-".into())),
    ];
    rows.extend(status.placement.iter().map(|service| ("Let in by", format!("service {service}"))));
    rows.push(("Created", held.meta.created_at.to_string()));
    fields(&rows)
}
