//! What only the leader does: it notices services whose lease ran out, takes the steps of an exchange of roots, keeps the
//! record of changes within its bound, and forgets what ended long ago.

use super::audit;
use super::draft::Draft;
use super::member::Member;
use super::plan;
use super::refusal::Refusal;
use crate::discovery::Leadership;
use crate::model::{EVENTS_KEPT, ServiceId, ServiceState, Session, Timestamp};
use crate::runtime::Backoff;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the records of removed services and clients stay after their end and that of their certificates, so that
/// they can be told; and that clocks may differ.
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a token that lets nobody in stays, so that its holder can be told why.
const TOKEN_RETENTION: Duration = Duration::from_secs(24 * 3600);
/// How often to look where nothing changes.
const PERIOD: Duration = Duration::from_secs(60);

/// Serves whenever this manager is the leader, for ever.
pub async fn serve(member: Arc<Member>) {
    let mut leadership = member.leadership.clone();
    let mut changes = member.view.changes();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
    let mut purged: Option<Instant> = None;
    loop {
        let term = *leadership.borrow_and_update();
        changes.mark_unchanged();
        let mut pause = PERIOD;
        if let Some(term) = term {
            let mut done = sweep(&member, term).await;
            if done.is_ok() && purged.is_none_or(|at| at.elapsed() >= PERIOD) {
                done = purge(&member, term).await;
                purged = Some(Instant::now());
            }
            match done {
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

/// Services that are thought ready and hold no lease.
fn silent(member: &Member) -> Vec<ServiceId> {
    let view = member.view.read();
    let services = view.services.values().map(|service| &*service.value);
    services
        .filter(|service| service.status.state == ServiceState::Ready && view.get::<Session>(service.meta.id).is_none())
        .map(|service| service.meta.id)
        .collect()
}

fn before(now: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_millis(now.as_millis().saturating_sub(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
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
    let author = audit::leader(member.service);
    for id in silent(member) {
        tracing::warn!(service = %id, "the lease ran out: the service is down");
        let author = author.clone();
        let plan =
            move |draft: &mut Draft<'_>| in_office(draft, term).and_then(|()| plan::mark_down(draft, &author, id));
        member.writer.write(plan).await?;
    }
    let exchanging = member.view.read().authority.as_ref().is_some_and(|held| held.value.rotation().is_some());
    if exchanging {
        let plan =
            move |draft: &mut Draft<'_>| in_office(draft, term).and_then(|()| plan::advance_rotation(draft, &author));
        member.writer.write(plan).await?;
    }
    let crowded = member.view.read().events.len() >= EVENTS_KEPT + plan::PRUNED_AT_ONCE;
    let prune =
        move |draft: &mut Draft<'_>| in_office(draft, term).and_then(|()| plan::prune_events(draft, EVENTS_KEPT));
    while crowded && member.writer.write(prune).await? {}
    Ok(())
}

/// Forgets what ended long ago.
async fn purge(member: &Member, term: Leadership) -> Result<(), Refusal> {
    let now = member.clock.wall();
    let (limit, tokens_limit) = (before(now, RETENTION), before(now, TOKEN_RETENTION));
    let (services, clients, tokens) = plan::past(&member.view.read(), limit, tokens_limit);
    for id in services {
        let plan =
            move |draft: &mut Draft<'_>| in_office(draft, term).and_then(|()| plan::purge_service(draft, id, limit));
        member.writer.write(plan).await?;
    }
    for id in clients {
        let plan =
            move |draft: &mut Draft<'_>| in_office(draft, term).and_then(|()| plan::purge_client(draft, id, limit));
        member.writer.write(plan).await?;
    }
    for id in tokens {
        let plan = move |draft: &mut Draft<'_>| {
            in_office(draft, term).and_then(|()| plan::purge_token(draft, id, tokens_limit))
        };
        member.writer.write(plan).await?;
    }
    Ok(())
}
