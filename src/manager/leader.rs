//! What only the leader does: it notices services whose lease ran out, takes the steps of moves and of an exchange of roots,
//! keeps the record of changes within its bound, and forgets what ended long ago.

use super::audit;
use super::draft::Draft;
use super::member::Member;
use super::moves;
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
/// Services that are called down in one transaction: each takes two operations, and leans on three keys.
const DOWN_AT_ONCE: usize = 25;
/// How often to look where nothing changes.
const PERIOD: Duration = Duration::from_secs(60);

/// Serves whenever this manager is the leader, for ever.
pub async fn serve(member: Arc<Member>) {
    let mut leadership = member.leadership.clone();
    let mut changes = member.view.changes();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
    let mut purged: Option<Instant> = None;
    let mut calm = Calm::new(member.cluster.spec.lease());
    loop {
        let term = *leadership.borrow_and_update();
        changes.mark_unchanged();
        let mut pause = PERIOD;
        if let Some(term) = term {
            let wait = calm.wait(term, member.view.is_fresh(), Instant::now());
            pause = wait.unwrap_or(pause);
            let mut done = sweep(&member, term, wait.is_none()).await;
            if done.is_ok() {
                done = moves::advance(&member, term).await;
            }
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

/// When a leader judges. Leases run out while a store is away or between two leaders, and whoever lives takes a new one
/// within a lease's time: nobody is called down before that has passed.
struct Calm {
    lease: Duration,
    term: Option<Leadership>,
    since: Option<Instant>,
}

impl Calm {
    fn new(lease: Duration) -> Self {
        Self { lease, term: None, since: None }
    }

    /// How long to wait yet; none if it is calm.
    fn wait(&mut self, term: Leadership, fresh: bool, now: Instant) -> Option<Duration> {
        if !fresh {
            self.since = None;
            return Some(self.lease);
        }
        if self.term != Some(term) {
            self.term = Some(term);
            self.since = None;
        }
        let since = *self.since.get_or_insert(now);
        let left = self.lease.saturating_sub(now.saturating_duration_since(since));
        (!left.is_zero()).then_some(left)
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
pub(super) fn in_office(draft: &mut Draft<'_>, term: Leadership) -> Result<(), Refusal> {
    match &draft.view().leader {
        Some(leader) if leader.revision == term.began() => {
            draft.require(term.guard());
            Ok(())
        }
        _ => Err(Refusal::Busy),
    }
}

/// `judging`: whether services without a lease may be called down.
async fn sweep(member: &Member, term: Leadership, judging: bool) -> Result<(), Refusal> {
    let author = audit::leader(member.service);
    let lost = if judging { silent(member) } else { Vec::new() };
    for some in lost.chunks(DOWN_AT_ONCE) {
        let (some, author) = (some.to_vec(), author.clone());
        tracing::warn!(services = ?some, "their leases ran out: they are down");
        let plan = move |draft: &mut Draft<'_>| {
            in_office(draft, term)?;
            some.iter().try_for_each(|id| plan::mark_down(draft, &author, *id))
        };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Leadership;
    use crate::store::Revision;

    #[test]
    fn a_leader_judges_once_its_term_and_its_store_have_lasted_for_a_lease() {
        let lease = Duration::from_secs(4);
        let (mut calm, start) = (Calm::new(lease), Instant::now());
        let (first, second) = (Leadership::of(Revision(1)), Leadership::of(Revision(2)));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(calm.wait(first, true, at(0)), Some(lease));
        assert_eq!(calm.wait(first, true, at(3)), Some(Duration::from_secs(1)));
        assert_eq!(calm.wait(first, true, at(4)), None);
        assert_eq!(calm.wait(first, false, at(5)), Some(lease), "the store is away");
        assert_eq!(calm.wait(first, true, at(60)), Some(lease), "and is back");
        assert_eq!(calm.wait(first, true, at(64)), None);
        assert_eq!(calm.wait(second, true, at(65)), Some(lease), "another term");
    }
}
