//! `ctl volume stats`: how volumes are used, as their block services count it.
//!
//! The block service is asked itself: managers do not keep what changes with every request, and never dial block
//! services. Where each one is, a manager says; a block service's own control socket needs no manager.

use super::connect::{Manager, Session, answer};
use super::failure::Failure;
use super::output::{self, Format, table};
use crate::model::{
    Figures, Kind, Operation, OperationFigures, Service, ServiceId, ServiceState, ServiceType, Timestamp, Volume,
    VolumeFigures, VolumeId,
};
use crate::rpc::{Fault, FaultKind, proto};
use anyhow::{Context, Result};
use clap::Args;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;
use tonic::Streaming;

mod view;

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct StatsArgs {
    /// Names or ids [default: all volumes]
    volumes: Vec<String>,
    /// Go on until the volumes are gone
    #[arg(short, long, env = "SYMPHONY_STATS_FOLLOW", value_parser = clap::builder::BoolishValueParser::new())]
    follow: bool,
    /// Time between two looks, which rates are about
    #[arg(long, env = "SYMPHONY_STATS_INTERVAL", default_value = "1s", value_parser = humantime::parse_duration)]
    interval: Duration,
}

const HELP: &str = "\
Rates and latencies are those between two looks; DEPTH is the mean number of requests in flight between them. Latencies
count from a request's header to its answer, waiting for limits included; percentiles are up to 6% too high. Totals count
from the start of the block service. -o json has all of it; with --follow it is one document a line.
Examples:
  symphony ctl volume stats --follow
  symphony ctl volume stats db -o json | jq '.[0].interval.iops'
  symphony ctl --socket=.config/block-01/control.sock volume stats db";

type Source = Streaming<proto::FiguresResponse>;

/// The figures of one volume at two looks.
struct Look {
    at: Timestamp,
    now: VolumeFigures,
    /// What has come since the look before, or since counting began anew.
    since: Figures,
}

pub async fn run(session: &Session, args: StatsArgs) -> Result<()> {
    let mut sources = sources(session, &args).await?;
    if sources.is_empty() {
        let text = "no block service is up: see `symphony ctl service list`";
        return Err(Failure::Unfulfilled(text.into()).into());
    }
    let mut before = BTreeMap::new();
    let mut rounds = 0u64;
    let redraw = args.follow && session.format == Format::Table && std::io::stdout().is_terminal();
    while let Some(looks) = next_round(&mut sources, &mut before).await? {
        rounds += 1;
        // The first look has nothing to compare with.
        if rounds == 1 {
            continue;
        }
        if !args.follow {
            let name = |look: &Look| look.now.name.to_string();
            return match session.format {
                Format::Json | Format::Yaml => {
                    let documents: Vec<_> = looks.iter().map(view::document).collect();
                    output::say(&output::document(session.format, &documents)?)
                }
                Format::Name => output::say(&looks.iter().map(|look| name(look) + "\n").collect::<String>()),
                format => output::say(&view::people(&looks, format == Format::Wide)),
            };
        }
        let text = match session.format {
            _ if redraw => format!("{}{}", view::HOME, view::people(&looks, false)),
            Format::Table | Format::Wide => view::lines(&looks, rounds == 2),
            format => view::stream(format, &looks)?,
        };
        if !output::offer(&text)? {
            return Ok(());
        }
    }
    match args.follow || rounds > 1 {
        true => Ok(()),
        false => Err(Failure::Unfulfilled("the volume was removed while it was looked at".into()).into()),
    }
}

/// The next figures of all volumes; none once every source has ended.
async fn next_round(sources: &mut Vec<Source>, before: &mut BTreeMap<VolumeId, Figures>) -> Result<Option<Vec<Look>>> {
    let mut looks = Vec::new();
    let mut left = Vec::new();
    for mut source in std::mem::take(sources) {
        let Some(message) = source.message().await.map_err(Fault::from)? else { continue };
        left.push(source);
        let at = Timestamp::from_millis(message.at);
        for volume in message.volumes {
            let now = VolumeFigures::try_from(volume).context("reading the block service's answer")?;
            let then = before.insert(now.id, now.figures.clone());
            let then = then.filter(|then| then.elapsed <= now.figures.elapsed);
            let since = then.map_or_else(|| now.figures.clone(), |then| now.figures.since(&then));
            looks.push(Look { at, now, since });
        }
    }
    *sources = left;
    looks.sort_by(|one, other| one.now.name.cmp(&other.now.name));
    Ok((!sources.is_empty()).then_some(looks))
}

/// One stream for each block service that serves some of the volumes.
async fn sources(session: &Session, args: &StatsArgs) -> Result<Vec<Source>> {
    let period_ms = u64::try_from(args.interval.as_millis()).unwrap_or(u64::MAX);
    let request = |volumes| proto::WatchFiguresRequest { volumes, period_ms };
    if let Some(mut service) = session.own_figures().await? {
        match answer(service.watch_figures(request(args.volumes.clone())).await, "block service") {
            Ok(source) => return Ok(vec![source]),
            // The socket is a manager's.
            Err(error) if error.downcast_ref::<Fault>().is_some_and(|it| it.kind == FaultKind::Unsupported) => {}
            Err(error) => return Err(error),
        }
    }
    let mut manager = session.manager().await?;
    let mut sources = Vec::new();
    for (id, volumes) in places(&mut manager, &args.volumes).await? {
        let service = super::service::expect(manager.get(Kind::Service, &id.to_string()).await?)?;
        let asking = || format!("asking block service {} on {} about its volumes", id, service.status.host_name);
        let mut client = session.figures(&service).await.with_context(asking)?;
        sources.push(answer(client.watch_figures(request(volumes)).await, "block service").with_context(asking)?);
    }
    Ok(sources)
}

/// Which block services to ask, and for which volumes; none: all of the service's.
async fn places(manager: &mut Manager, references: &[String]) -> Result<BTreeMap<ServiceId, Vec<String>>> {
    let mut places: BTreeMap<ServiceId, Vec<String>> = BTreeMap::new();
    for reference in references {
        let volume: Volume = super::volume::expect(manager.get(Kind::Volume, reference).await?)?;
        let Some(replica) = volume.status.placement.first() else {
            let text = format!("volume '{}' is on no block service", volume.meta.name);
            return Err(Failure::Unfulfilled(text).into());
        };
        places.entry(replica.service).or_default().push(volume.meta.id.to_string());
    }
    if references.is_empty() {
        for object in manager.list(Kind::Service).await? {
            let service: Service = super::service::expect(object)?;
            let is_up = service.status.state == ServiceState::Ready;
            if service.spec.service_type == ServiceType::Block && is_up {
                places.insert(service.meta.id, Vec::new());
            }
        }
    }
    Ok(places)
}
