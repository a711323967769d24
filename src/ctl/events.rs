//! `ctl events`: the record of changes.

use super::connect::{Session, answer};
use super::output::{self, Format, table};
use crate::model::{Event, Timestamp};
use crate::rpc::{Fault, proto};
use anyhow::{Context, Result};
use clap::Args;
use std::time::SystemTime;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  symphony ctl events --since 10m\n  symphony ctl events --follow -o json | jq .action"
)]
pub struct EventsArgs {
    /// Only what is younger than this: an age as 10m or 2h, or a time as 2026-01-31T12:00:00Z
    #[arg(long, env = "SYMPHONY_EVENTS_SINCE", value_parser = since)]
    since: Option<Timestamp>,
    /// Go on with what comes
    #[arg(short, long, env = "SYMPHONY_EVENTS_FOLLOW", value_parser = clap::builder::BoolishValueParser::new())]
    follow: bool,
}

/// Reads an age or a time.
fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(age) = humantime::parse_duration(text) {
        return Ok(SystemTime::now().checked_sub(age).map_or(Timestamp::EPOCH, Timestamp::from_system));
    }
    text.parse().map_err(|error| format!("{error}, nor an age as in 10m"))
}

const HEADER: [&str; 6] = ["WHEN", "WHO", "ACTION", "OBJECT", "FROM", "DETAIL"];

pub async fn run(session: &Session, args: EventsArgs) -> Result<()> {
    let mut manager = session.manager().await?;
    let since = args.since.unwrap_or(Timestamp::EPOCH).as_millis();
    let request = proto::EventsRequest { since, follow: args.follow };
    let mut events = answer(manager.client.events(request).await, "manager")?;
    let mut known = Vec::new();
    if args.follow && session.format == Format::Table {
        output::say(&line(&HEADER.map(str::to_owned)))?;
    }
    while let Some(message) = events.message().await.map_err(Fault::from)? {
        let event = Event::try_from(message).context("reading the manager's answer")?;
        if !args.follow {
            known.push(event);
        } else if !output::offer(&one_of_many(session.format, &event)?)? {
            return Ok(());
        }
    }
    if args.follow {
        return Err(Fault::new(crate::rpc::FaultKind::Unavailable, "the manager stopped answering").into());
    }
    let people = |events: &[Event]| table(&HEADER, events.iter().map(row).map(Vec::from).collect());
    output::list(session.format, &known, |event| event.id.to_string(), people)
}

/// One entry as it comes: nobody knows yet how wide the columns will be.
fn one_of_many(format: Format, event: &Event) -> Result<String> {
    Ok(match format {
        Format::Table | Format::Wide => line(&row(event)),
        Format::Name => format!("{}\n", event.id),
        Format::Json => serde_json::to_string(event).context("writing JSON")? + "\n",
        Format::Yaml => format!("---\n{}", output::document(format, event)?),
    })
}

fn line([when, who, action, object, origin, detail]: &[String; 6]) -> String {
    let line = format!("{when:<24}  {who:<22}  {action:<17}  {object:<26}  {origin:<20}  {detail}");
    format!("{}\n", line.trim_end())
}

fn row(event: &Event) -> [String; 6] {
    [
        event.at.to_string(),
        event.author.who.clone(),
        event.action.clone(),
        event.kind.map_or_else(|| event.name.clone(), |kind| format!("{kind} {}", event.name)),
        event.author.origin.clone(),
        event.detail.clone().unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_and_a_time_are_both_understood_and_anything_else_is_named() {
        assert_eq!(since("1970-01-01T00:00:01Z").unwrap().as_millis(), 1000);
        assert!(since("10m").unwrap() > Timestamp::EPOCH);
        assert_eq!(since("1000000y").unwrap(), Timestamp::EPOCH, "older than the clock can say");
        let error = since("yesterday").unwrap_err();
        assert!(error.contains("yesterday") && error.contains("10m"), "{error}");
    }
}
