//! What only the leader does: it notices services whose lease ran out, and forgets those removed long ago.

use super::draft::Draft;
use super::member::Member;
use super::plan;
use super::refusal::Refusal;
use crate::discovery::Leadership;
use crate::model::{ServiceId, ServiceState, Session, Timestamp};
use crate::runtime::Backoff;
use std::sync::Arc;
use std::time::Duration;

/// How long a removed service's record stays, so that the service can be told.
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often to look where nothing changes.
const PERIOD: Duration = Duration::from_secs(60);

/// Serves whenever this manager is the leader, for ever.
pub async fn serve(member: Arc<Member>) {
    let mut leadership = member.leadership.clone();
    let mut changes = member.view.changes();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
    loop {
        let term = *leadership.borrow_and_update();
        changes.mark_unchanged();
        let mut pause = PERIOD;
        if let Some(term) = term {
            match sweep(&member, term).await {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    tracing::debug!(%error, "a leader's duty is put off");
                    pause = backoff.next(fastrand::f64());
                }
            }
        }
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Services to act upon.
fn overdue(member: &Member, limit: Timestamp) -> (Vec<ServiceId>, Vec<ServiceId>) {
    let view = member.view.read();
    let services = || view.services.values().map(|service| &*service.value);
    let silent = services()
        .filter(|service| service.status.state == ServiceState::Ready && view.get::<Session>(service.meta.id).is_none())
        .map(|service| service.meta.id)
        .collect();
    let old = services()
        .filter(|service| service.meta.removed_at.is_some_and(|at| at < limit))
        .map(|service| service.meta.id)
        .collect();
    (silent, old)
}

/// Ties the transaction to the term. A term that the view shows to be over is refused at once: its guard would fail
/// again and again, for everybody who shares the transaction.
fn in_office(draft: &mut Draft<'_>, term: Leadership) -> Result<(), Refusal> {
    match &draft.view().leader {
        Some(leader) if leader.revision == term.began() => {
            draft.require(term.guard());
            Ok(())
        }
        _ => Err(Refusal::Busy),
    }
}

async fn sweep(member: &Member, term: Leadership) -> Result<(), Refusal> {
    let retention = u64::try_from(RETENTION.as_millis()).unwrap_or(u64::MAX);
    let limit = Timestamp::from_millis(member.clock.wall().as_millis().saturating_sub(retention));
    let (silent, old) = overdue(member, limit);
    for id in silent {
        tracing::warn!(service = %id, "the lease ran out: the service is down");
        let plan = move |draft: &mut Draft<'_>| in_office(draft, term).and_then(|()| plan::mark_down(draft, id));
        member.writer.write(plan).await?;
    }
    for id in old {
        let plan =
            move |draft: &mut Draft<'_>| in_office(draft, term).and_then(|()| plan::purge_service(draft, id, limit));
        member.writer.write(plan).await?;
    }
    Ok(())
}
