//! `ctl device …`: the disks of hosts, as their block services see them now.
//!
//! The block service is asked itself, like for figures: managers never dial block services.

use super::connect::{Session, answer};
use super::failure::Failure;
use super::output::{self, Format, table};
use crate::model::{DeviceFacts, Kind, Service, ServiceId, ServiceState, ServiceType};
use crate::rpc::{Fault, FaultKind, proto};
use anyhow::{Context, Result};
use clap::Subcommand;
use serde::Serialize;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// All disks and partitions: what they are, what they carry, and who uses them
    #[command(visible_alias = "ls", after_help = HELP)]
    List {
        /// The block service: id or host name [default: all that are up]
        #[arg(long, env = "SYMPHONY_DEVICE_SERVICE")]
        service: Option<String>,
    },
}

const HELP: &str = "\
A pool may have what carries nothing and is used by nobody; what carries something only if --wipe names it.
Examples:
  symphony ctl device list
  symphony ctl --socket=.config/block-01/control.sock device list -o wide
  symphony ctl device list -o json | jq -r '.[] | select(.carries == null and .uses == [] and .unfit == null) | .path'";

/// One device and whose it is.
#[derive(Debug, Serialize)]
struct Found {
    /// Unknown where a block service's own socket was asked.
    service: Option<ServiceId>,
    host: Option<String>,
    #[serde(flatten)]
    device: DeviceFacts,
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let Verb::List { service } = verb;
    let found = find(session, service.as_deref()).await?;
    let wide = session.format == Format::Wide;
    output::list(session.format, &found, |found| found.device.path.display().to_string(), |found| people(found, wide))
}

async fn find(session: &Session, service: Option<&str>) -> Result<Vec<Found>> {
    if service.is_none()
        && let Some(mut own) = session.own_devices().await?
    {
        match answer(own.list_devices(proto::ListDevicesRequest {}).await, "block service") {
            Ok(listed) => return read(listed, None),
            // The socket is a manager's.
            Err(error) if error.downcast_ref::<Fault>().is_some_and(|it| it.kind == FaultKind::Unsupported) => {}
            Err(error) => return Err(error),
        }
    }
    let mut manager = session.manager().await?;
    let services: Vec<Service> = match service {
        Some(reference) => vec![super::service::expect(manager.get(Kind::Service, reference).await?)?],
        None => {
            let all = manager.list(Kind::Service).await?.into_iter().map(super::service::expect);
            let all: Vec<Service> = all.collect::<Result<_>>()?;
            let asked =
                |it: &Service| it.spec.service_type == ServiceType::Block && it.status.state == ServiceState::Ready;
            all.into_iter().filter(asked).collect()
        }
    };
    if services.is_empty() {
        let text = "no block service is up: see `symphony ctl service list`";
        return Err(Failure::Unfulfilled(text.into()).into());
    }
    let mut found = Vec::new();
    for service in services {
        let (id, host) = (service.meta.id, &service.status.host_name);
        let asking = || format!("asking block service {id} on {host} about its devices");
        let mut client = session.devices(&service).await.with_context(asking)?;
        let listed = client.list_devices(proto::ListDevicesRequest {}).await;
        let listed = answer(listed, "block service").with_context(asking)?;
        found.extend(read(listed, Some(&service)).with_context(asking)?);
    }
    Ok(found)
}

fn read(listed: proto::ListDevicesResponse, of: Option<&Service>) -> Result<Vec<Found>> {
    let found = |message| {
        let device = DeviceFacts::try_from(message).context("reading the block service's answer")?;
        let (service, host) = (of.map(|it| it.meta.id), of.map(|it| it.status.host_name.clone()));
        Ok(Found { service, host, device })
    };
    listed.devices.into_iter().map(found).collect()
}

fn people(found: &[Found], wide: bool) -> String {
    let mut header = vec!["PATH", "SIZE", "KIND", "MODEL", "ROTATIONAL", "CARRIES", "USED", "HOST"];
    if wide {
        header.extend(["STABLE PATH", "SERIAL", "UNFIT", "SERVICE"]);
    }
    table(&header, found.iter().map(|found| row(found, wide)).collect())
}

fn row(found: &Found, wide: bool) -> Vec<String> {
    let none = || "-".to_owned();
    let Found { service, host, device } = found;
    let uses = if device.uses.is_empty() { none() } else { device.uses.join("; ") };
    let mut row = vec![
        device.path.display().to_string(),
        device.size.to_string(),
        device.kind.clone(),
        device.model.clone().unwrap_or_else(none),
        if device.rotational { "yes" } else { "no" }.to_owned(),
        device.carries.clone().unwrap_or_else(none),
        uses,
        host.clone().unwrap_or_else(none),
    ];
    if wide {
        let stable = device.stable_path.as_ref().map(|path| path.display().to_string());
        let service = service.map(|id| id.to_string());
        row.extend([stable, device.serial.clone(), device.unfit.clone(), service].map(|it| it.unwrap_or_else(none)));
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ByteSize;

    #[test]
    fn a_device_is_one_row_and_says_what_it_carries_and_who_has_it() {
        let device = DeviceFacts {
            path: "/dev/vdb".into(),
            stable_path: None,
            size: ByteSize::mib(64),
            model: None,
            serial: Some("s1".into()),
            rotational: true,
            read_only: false,
            removable: false,
            kind: "disk".into(),
            carries: Some("an ext4 file system".into()),
            uses: vec!["mounted at /srv".into(), "the kernel swaps to it".into()],
            unfit: None,
        };
        let found = [Found { service: None, host: Some("one".into()), device }];
        let text = people(&found, true);
        for word in ["/dev/vdb", "64MiB", "yes", "ext4", "mounted at /srv; the kernel swaps to it", "one", "s1"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(!people(&found, false).contains("s1"));
    }
}
