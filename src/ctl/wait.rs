//! Waiting until what was asked for is so, and showing that something happens.

use super::connect::{Session, answer, object};
use super::failure::Failure;
use crate::model::{Kind, Object, Phase};
use crate::rpc::{Fault, FaultKind, proto};
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    Ready,
    Gone,
}

/// A spinner on standard error, where that is a terminal.
pub fn spinner(text: String) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_style(
        ProgressStyle::with_template("{spinner} {msg} ({elapsed})")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    bar.set_message(text);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Waits until `object` is as it should be; answers with it as it was last seen. A manager that goes away meanwhile is
/// asked again for as long as there is time.
///
/// # Errors
/// If it cannot be, as far as the block service can tell, or time runs out.
pub async fn settle(session: &Session, first: Object, until: Until) -> Result<Object> {
    match session.wait {
        true => wait_for(session, first, until).await,
        false => Ok(first),
    }
}

/// As [`settle`], whether or not the user wants to wait: for what has to be done before the next step.
///
/// # Errors
/// As those of [`settle`].
pub async fn wait_for(session: &Session, first: Object, until: Until) -> Result<Object> {
    let (kind, id, name) = (first.kind(), first.id(), first.label());
    let doing = match until {
        Until::Ready => format!("waiting for {kind} '{name}'"),
        Until::Gone => format!("removing {kind} '{name}'"),
    };
    let bar = spinner(doing.clone());
    let mut last = first;
    let waited = tokio::time::timeout(session.timeout, async {
        loop {
            match follow(session, kind, &id, until, (&mut last, &bar)).await {
                Err(error) if is_passing(&error) => {
                    bar.set_message(format!("{doing}: {error}"));
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                other => return other,
            }
        }
    })
    .await;
    bar.finish_and_clear();
    match waited {
        Ok(outcome) => outcome.map(|()| last),
        Err(_) => {
            let what = format!("{kind} '{name}' is {}", last.phase().0);
            Err(Failure::TimedOut { limit: session.timeout, what, look: format!("{kind} get {name}") }.into())
        }
    }
}

/// Whether a manager may be back soon.
pub fn is_passing(error: &anyhow::Error) -> bool {
    let retryable = error.downcast_ref::<Fault>().is_some_and(|fault| fault.kind.retryable());
    retryable || error.is::<crate::rpc::DialError>()
}

async fn follow(
    session: &Session,
    kind: Kind,
    id: &str,
    until: Until,
    (last, bar): (&mut Object, &ProgressBar),
) -> Result<()> {
    let mut manager = session.manager().await?;
    let request = proto::GetRequest { kind: proto::Kind::from(kind).into(), reference: id.into() };
    let mut changes = match answer(manager.client.watch(request).await, "manager") {
        Ok(changes) => changes,
        Err(error) if until == Until::Gone && is_missing(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    loop {
        let message = changes.message().await.map_err(Fault::from)?;
        let Some(message) = message else {
            return Err(Fault::new(FaultKind::Unavailable, "the manager stopped answering").into());
        };
        let Some(current) = message.object else {
            return match until {
                Until::Gone => Ok(()),
                Until::Ready => {
                    Err(Fault::new(FaultKind::NotFound, format!("{kind} {id} was removed meanwhile")).into())
                }
            };
        };
        *last = object(current)?;
        show(last, bar);
        if judge(last, until)? {
            return Ok(());
        }
    }
}

/// A spinner becomes a bar as soon as somebody says how far it has come.
pub fn show(object: &Object, bar: &ProgressBar) {
    let progress = match object {
        Object::Volume(volume) => volume.status.progress,
        Object::Snapshot(snapshot) => snapshot.status.progress,
        _ => None,
    };
    let Some(progress) = progress else { return };
    if bar.length().is_none() {
        let template = "{msg} [{wide_bar}] {binary_bytes}/{binary_total_bytes} ({eta})";
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    }
    bar.set_length(progress.of.as_u64());
    bar.set_position(progress.done.as_u64());
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Fault>().is_some_and(|fault| fault.kind == FaultKind::NotFound)
}

/// Whether the wait is over.
fn judge(object: &Object, until: Until) -> Result<bool> {
    let (kind, name) = (object.kind(), object.label());
    let failed = |what: &str, why: &str| {
        let text = format!(
            "{kind} '{name}' {what}: {why} (it is tried again; `symphony ctl {kind} get {name}` shows how it stands)"
        );
        Err(Failure::Unfulfilled(text).into())
    };
    match (object.phase(), until) {
        ((Phase::Ready, _), Until::Ready) => Ok(true),
        // What was reported of an older wish says nothing of this one.
        ((Phase::Failed, _), Until::Ready) | ((Phase::Removing, Some(_)), Until::Gone) if !object.is_observed() => {
            Ok(false)
        }
        ((Phase::Failed, why), Until::Ready) => failed("is not ready", why.unwrap_or("no reason was given")),
        ((Phase::Removing, Some(why)), Until::Gone) => failed("cannot be removed", why),
        ((Phase::Removing, _), Until::Ready) => failed("will not be ready", "it is being removed"),
        _ => Ok(false),
    }
}
