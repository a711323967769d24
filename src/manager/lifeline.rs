//! The one lease in the store that all sessions of this manager hang on.
//!
//! It lives as long as this manager does: should it die, all its block services are without a session at once, unless they
//! have opened one elsewhere. What becomes silent while the manager lives is told to the store by the manager itself, a
//! lease's time after it was last heard of.

use super::draft::Draft;
use super::member::Member;
use super::plan;
use super::refusal::Refusal;
use crate::discovery::Presence;
use crate::model::{ServiceId, SessionId};
use crate::runtime::Backoff;
use crate::store::{LeaseId, StoreError};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often to look for what has been silent for too long.
const TICK: Duration = Duration::from_millis(250);
/// Each is one operation of a transaction.
const CLOSED_AT_ONCE: usize = 100;

/// A session's place on the lease.
pub struct Hold {
    lease: LeaseId,
    lifeline: watch::Receiver<Option<LeaseId>>,
}

impl Hold {
    /// # Errors
    /// If there is no lease within `patience`.
    pub async fn on(mut lifeline: watch::Receiver<Option<LeaseId>>, patience: Duration) -> Result<Self, Refusal> {
        let held = tokio::time::timeout(patience, lifeline.wait_for(Option::is_some)).await;
        match held.ok().and_then(Result::ok).and_then(|held| *held) {
            Some(lease) => Ok(Self { lease, lifeline }),
            None => Err(Refusal::Store("this manager has no lease in the store now".into())),
        }
    }

    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    /// Completes once the lease is lost.
    pub async fn lost(&mut self) {
        let lease = Some(self.lease);
        if self.lifeline.wait_for(|held| *held != lease).await.is_err() {
            tracing::debug!("the lease's holder is gone");
        }
    }
}

/// Holds the lease, or else tries to have one, for ever. It is not released at the end: block services that move to other
/// managers are not to look gone meanwhile.
pub async fn serve(member: Arc<Member>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        match Presence::begin(member.store.clone(), member.cluster.spec.lease()).await {
            Ok(presence) => {
                backoff.reset();
                member.sessions.hang_on(Some(presence.lease()));
                let error = keep(&presence, member.cluster.spec.heartbeat(), member.cluster.spec.lease()).await;
                tracing::warn!(%error, "the lease of all sessions is lost");
                member.sessions.hang_on(None);
            }
            Err(error) => tracing::warn!(%error, "no lease can be had for sessions"),
        }
        tokio::time::sleep(backoff.next(fastrand::f64())).await;
    }
}

/// Renews the lease until it is gone, as far as this manager can tell: others may reach the store where it does not.
async fn keep(presence: &Presence, period: Duration, ttl: Duration) -> StoreError {
    let mut renewed = Instant::now();
    loop {
        tokio::time::sleep(period).await;
        let begun = Instant::now();
        match presence.renew().await {
            Ok(()) => renewed = begun,
            Err(error @ StoreError::LeaseGone(_)) => return error,
            Err(error) if renewed.elapsed() >= ttl => return error,
            Err(error) => tracing::warn!(%error, "cannot renew the lease of all sessions yet"),
        }
    }
}

/// Tells the store which sessions are over, for ever: those that it shows as this manager's, and that are not open here.
pub async fn tidy(member: Arc<Member>) {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = member.sessions.parted() => {}
        }
        let over = member.sessions.over(&shown(&member), member.cluster.spec.lease(), Instant::now());
        for part in over.chunks(CLOSED_AT_ONCE) {
            let part = part.to_vec();
            let plan = move |draft: &mut Draft<'_>| plan::close_sessions(draft, &part);
            if let Err(error) = member.writer.write(plan).await {
                tracing::debug!(%error, "cannot tell the store yet that sessions are over");
                break;
            }
        }
    }
}

/// The sessions of block services that the view shows as this manager's.
fn shown(member: &Member) -> Vec<(ServiceId, SessionId)> {
    let view = member.view.read();
    let sessions = view.sessions.values().map(|session| &*session.value);
    sessions
        .filter(|session| session.manager == member.service && session.service != member.service)
        .map(|session| (session.service, session.id))
        .collect()
}
