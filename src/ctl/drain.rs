//! `ctl service drain` and `undrain`: emptying a host before it goes.

use super::connect::{Session, answer, object};
use super::output::{self, table};
use super::service::expect;
use super::wait::{is_passing, spinner};
use crate::model::{Progress, Service};
use crate::rpc::proto;
use anyhow::{Context, Result};
use serde::Serialize;
use std::time::Duration;

/// How often to look whether the service is empty.
const LOOK: Duration = Duration::from_millis(500);

/// Something that the service still holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Remnant {
    kind: String,
    id: String,
    name: String,
    advice: String,
    /// Of what is on its way to another service.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Progress>,
}

fn remnants(drain: &proto::Drain) -> Vec<Remnant> {
    let kind = |number: i32| {
        let kind = proto::Kind::try_from(number).ok().and_then(|kind| crate::model::Kind::try_from(kind).ok());
        kind.map_or_else(|| "object".to_owned(), |kind| kind.to_string())
    };
    let remnant = |it: &proto::Remnant| Remnant {
        kind: kind(it.kind),
        id: it.id.clone(),
        name: it.name.clone(),
        advice: it.advice.clone(),
        progress: it.progress.map(Into::into),
    };
    drain.remnants.iter().map(remnant).collect()
}

fn service_of(drain: &proto::Drain) -> Result<Service> {
    expect(object(drain.service.clone().context("the manager answered without a service")?)?)
}

pub async fn undrain(session: &Session, service: String) -> Result<()> {
    let mut recovery = session.recovery().await?;
    let request = proto::DrainServiceRequest { service, undo: true };
    let service = service_of(&answer(recovery.drain_service(request).await, "manager")?)?;
    let id = service.meta.id.to_string();
    output::one(session.format, &service, &id, |_| format!("service {id} takes new volumes again\n"))
}

/// Asked anew each time: the manager that was asked may be another one by now.
async fn look(session: &Session, request: &proto::DrainServiceRequest) -> Result<proto::Drain> {
    answer(session.recovery().await?.get_drain(request.clone()).await, "manager")
}

/// Ends when the service holds nothing any more; interrupted, or without waiting, the service stays closed to new things, and
/// what can move goes on moving. What cannot is seen to by people, in their own time, so there is no limit to it.
pub async fn drain(session: &Session, service: String) -> Result<()> {
    let mut recovery = session.recovery().await?;
    let request = proto::DrainServiceRequest { service, undo: false };
    let mut drain = answer(recovery.drain_service(request.clone()).await, "manager")?;
    let service = service_of(&drain)?;
    let (id, host) = (service.meta.id.to_string(), service.status.host_name.clone());
    let request = proto::DrainServiceRequest { service: id.clone(), ..request };
    let bar = spinner(format!("draining service {id}"));
    let mut shown = Vec::new();
    let emptied = async {
        loop {
            let left = remnants(&drain);
            if left.is_empty() || !session.wait {
                return Ok::<_, anyhow::Error>(left);
            }
            let facts: Vec<Remnant> = left.iter().map(|it| Remnant { progress: None, ..it.clone() }).collect();
            if facts != shown {
                bar.suspend(|| eprint!("service {id} on '{host}' still holds\n{}", listing(&left)));
                shown = facts;
            }
            bar.set_message(format!("draining service {id}: {}", summary(&left)));
            tokio::time::sleep(LOOK).await;
            match look(session, &request).await {
                Ok(now) => drain = now,
                Err(error) if is_passing(&error) => bar.set_message(format!("draining service {id}: {error}")),
                Err(error) => return Err(error),
            }
        }
    };
    let left = emptied.await;
    bar.finish_and_clear();
    let left = left?;
    let document = serde_json::json!({ "service": { "id": id }, "remnants": left });
    output::one(session.format, &document, &id, |_| match left.is_empty() {
        true => format!("service {id} is empty: take it out with `symphony ctl manager remove {id}`\n"),
        false => format!("service {id} takes nothing new, and still holds\n{}", listing(&left)),
    })
}

/// How much is left, and how far what is on its way has come.
fn summary(remnants: &[Remnant]) -> String {
    let moving = remnants.iter().filter_map(|it| Some(format!("'{}' {}", it.name, it.progress?)));
    let moving: Vec<String> = moving.collect();
    let left = format!("{} things left", remnants.len());
    if moving.is_empty() { left } else { format!("{left}; moving {}", moving.join(", ")) }
}

fn listing(remnants: &[Remnant]) -> String {
    let row = |it: &Remnant| vec![it.kind.clone(), it.name.clone(), it.advice.clone()];
    table(&["KIND", "NAME", "WHAT TO DO"], remnants.iter().map(row).collect())
}
