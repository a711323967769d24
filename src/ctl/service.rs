//! `ctl service …`

use super::client::short;
use super::connect::Session;
use super::drain;
use super::output::{self, Format, fields, table};
use super::token::ahead;
use crate::model::{Kind, Object, Service, Timestamp};
use anyhow::{Result, bail};
use clap::Subcommand;
use std::time::{Duration, SystemTime};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// All members: ready, down or removed, since when, and through which manager
    #[command(visible_alias = "ls")]
    List,
    /// One member
    Get {
        /// Id, or host name where only one service has it
        service: String,
    },
    /// Empty a block service: place nothing new on it, move what can move, and wait until nothing is left
    #[command(
        after_help = "Volumes that nobody uses are moved to pools on other services, of the same driver if there is room; see \
                            `volume move`. Names what the service still holds and what to do about it, and ends when there \
                            is nothing left. Interrupted, or with --no-wait, all of that goes on; `service undrain` ends it, \
                            and calls off what has not been moved yet. A service \
                            that is down is not drained but given up: `manager remove --lost`."
    )]
    Drain {
        /// Id, or host name where only one service has it
        service: String,
    },
    /// Place new volumes on a service again that was being drained, and call off what it is moving
    Undrain {
        /// Id, or host name where only one service has it
        service: String,
    },
}

/// How long ago, roughly, as people say it.
pub fn age(since: Timestamp) -> String {
    let age = since.age(Timestamp::from_system(SystemTime::now()));
    let seconds = Duration::from_secs(age.as_secs());
    let text = humantime::format_duration(seconds).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

pub fn expect(object: Object) -> Result<Service> {
    match object {
        Object::Service(service) => Ok(service),
        other => bail!("the manager answered with a {} instead of a service", other.kind()),
    }
}

/// How long its certificate lasts, and which root signed it.
fn certificate(service: &Service) -> [String; 2] {
    match &service.status.certificate {
        Some(record) => [ahead(record.expires_at).unwrap_or_else(|| "expired".into()), short(&record.root)],
        None => ["-".into(), "-".into()],
    }
}

/// With a word where it takes nothing new.
fn state(service: &Service) -> String {
    let draining = if service.spec.draining.is_some() { ", draining" } else { "" };
    format!("{}{draining}", service.status.state)
}

fn row(service: &Service, wide: bool) -> Vec<String> {
    let (meta, status) = (&service.meta, &service.status);
    let none = || "-".to_owned();
    let mut row = vec![
        meta.id.to_string(),
        service.spec.service_type.to_string(),
        status.host_name.clone(),
        state(service),
        age(status.since),
        status.manager.map_or_else(none, |id| id.to_string()),
        status.addresses.rpc.clone().unwrap_or_else(none),
    ];
    if wide {
        row.extend(certificate(service));
        row.extend([status.addresses.nbd.clone().unwrap_or_else(none), status.version.clone()]);
    }
    row
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let mut manager = session.manager().await?;
    match verb {
        Verb::List => {
            let services: Vec<Service> =
                manager.list(Kind::Service).await?.into_iter().map(expect).collect::<Result<_>>()?;
            let wide = session.format == Format::Wide;
            let mut header = vec!["ID", "TYPE", "HOST", "STATE", "SINCE", "MANAGER", "ADDRESS"];
            if wide {
                header.extend(["CERTIFICATE ENDS IN", "ROOT", "NBD", "VERSION"]);
            }
            let people =
                |services: &[Service]| table(&header, services.iter().map(|service| row(service, wide)).collect());
            output::list(session.format, &services, |service| service.meta.id.to_string(), people)
        }
        Verb::Drain { service } => drain::drain(session, service).await,
        Verb::Undrain { service } => drain::undrain(session, service).await,
        Verb::Get { service } => {
            let service = expect(manager.get(Kind::Service, &service).await?)?;
            output::one(session.format, &service, &service.meta.id.to_string(), describe)
        }
    }
}

fn describe(service: &Service) -> String {
    let status = &service.status;
    let none = || "-".to_owned();
    fields(&[
        ("Id", service.meta.id.to_string()),
        ("Type", service.spec.service_type.to_string()),
        ("Host", status.host_name.clone()),
        ("State", format!("{} for {}", state(service), age(status.since))),
        ("Manager", status.manager.map_or_else(none, |id| id.to_string())),
        ("Address", status.addresses.rpc.clone().unwrap_or_else(none)),
        ("NBD", status.addresses.nbd.clone().unwrap_or_else(none)),
        ("Version", status.version.clone()),
        (
            "Certificate",
            service
                .status
                .certificate
                .as_ref()
                .map_or_else(none, |record| format!("until {}, of root {}", record.expires_at, short(&record.root))),
        ),
        ("Joined", service.meta.created_at.to_string()),
    ])
}
