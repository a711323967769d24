//! Which block services' sessions this manager holds, and questions to them.

use super::lifeline::Hold;
use super::refusal::Refusal;
use crate::model::{Inventory, ServiceId, SessionId};
use crate::store::LeaseId;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// A question for a service's inventory.
pub struct Ask {
    pub reply: oneshot::Sender<Inventory>,
}

/// The sessions that this manager holds.
#[derive(Default)]
pub struct Sessions {
    held: Mutex<Held>,
    /// What all of them hang on in the store; none while there is no such lease.
    lifeline: watch::Sender<Option<LeaseId>>,
    parted: Notify,
}

#[derive(Default)]
struct Held {
    open: HashMap<ServiceId, (SessionId, mpsc::Sender<Ask>)>,
    /// What is not open any more, or not yet, and when it is over for the store.
    parting: HashMap<SessionId, Instant>,
}

impl Sessions {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `service` finds on its devices; none if this manager does not hold its session, or it does not answer.
    pub async fn inventory(&self, service: ServiceId, patience: Duration) -> Option<Inventory> {
        let port = self.held().open.get(&service).map(|(_, port)| port.clone())?;
        let (reply, answer) = oneshot::channel();
        port.send(Ask { reply }).await.ok()?;
        tokio::time::timeout(patience, answer).await.ok()?.ok()
    }

    /// The sessions hang on this from now on; those that hung on another lease are over.
    pub fn hang_on(&self, lease: Option<LeaseId>) {
        self.lifeline.send_replace(lease);
    }

    /// A place on the lease.
    ///
    /// # Errors
    /// If there is none within `patience`.
    pub async fn hold(&self, patience: Duration) -> Result<Hold, Refusal> {
        Hold::on(self.lifeline.subscribe(), patience).await
    }

    /// The sessions that are open here.
    pub fn all(&self) -> Vec<(ServiceId, SessionId)> {
        self.held().open.iter().map(|(service, (session, _))| (*service, *session)).collect()
    }

    /// Takes questions to the service from now on.
    pub fn open(&self, service: ServiceId, session: SessionId) -> mpsc::Receiver<Ask> {
        let (port, asks) = mpsc::channel(4);
        // An older session of the same service loses its port, and ends.
        self.held().open.insert(service, (session, port));
        asks
    }

    /// Takes none any more, unless a later session does. The store is told `at` that time.
    pub fn close(&self, service: ServiceId, session: SessionId, at: Instant) {
        let mut held = self.held();
        if held.open.get(&service).is_some_and(|(open, _)| *open == session) {
            held.open.remove(&service);
        }
        held.parting.insert(session, at);
        drop(held);
        self.parted.notify_one();
    }

    /// Completes when a session was closed since the last time.
    pub async fn parted(&self) {
        self.parted.notified().await;
    }

    /// Which of the sessions that the store shows as held here are over. One that nobody has spoken of (its opening failed,
    /// or an earlier life of this manager held it) is given `patience`.
    pub fn over(
        &self,
        shown: &[(ServiceId, SessionId)],
        patience: Duration,
        now: Instant,
    ) -> Vec<(ServiceId, SessionId)> {
        let Held { open, parting } = &mut *self.held();
        // Whose task has ended, however it did, has dropped its end of the port.
        let is_open = |(service, session): &(ServiceId, SessionId)| {
            open.get(service).is_some_and(|(held, port)| held == session && !port.is_closed())
        };
        let vacant: HashMap<SessionId, ServiceId> =
            shown.iter().filter(|at| !is_open(at)).map(|(service, session)| (*session, *service)).collect();
        // What the store does not show may be on its way there, or be gone.
        parting.retain(|session, at| vacant.contains_key(session) || now < *at + patience);
        for session in vacant.keys() {
            parting.entry(*session).or_insert(now + patience);
        }
        vacant
            .into_iter()
            .filter(|(session, _)| parting[session] <= now)
            .map(|(session, service)| (service, session))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(4);

    #[test]
    fn a_session_that_is_closed_is_over_at_its_time_and_not_before() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let at = (ServiceId::generate(), SessionId::generate());
        let _asks = sessions.open(at.0, at.1);
        assert_eq!(sessions.over(&[at], PATIENCE, now + 10 * PATIENCE), [], "it is open");
        sessions.close(at.0, at.1, now + PATIENCE);
        assert_eq!(sessions.over(&[at], PATIENCE, now), []);
        assert_eq!(sessions.over(&[at], PATIENCE, now + PATIENCE), [at]);
        assert_eq!(sessions.over(&[at], PATIENCE, now + PATIENCE), [at], "until the store shows it no more");
        assert_eq!(sessions.over(&[], PATIENCE, now + PATIENCE), []);
    }

    #[test]
    fn a_session_that_the_store_shows_late_is_over_all_the_same() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let at = (ServiceId::generate(), SessionId::generate());
        let _asks = sessions.open(at.0, at.1);
        sessions.close(at.0, at.1, now);
        assert_eq!(sessions.over(&[], PATIENCE, now), []);
        assert_eq!(sessions.over(&[at], PATIENCE, now), [at]);
    }

    #[test]
    fn a_session_that_nobody_here_knows_is_over_after_a_while_unless_it_opens() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let (lost, slow) =
            ((ServiceId::generate(), SessionId::generate()), (ServiceId::generate(), SessionId::generate()));
        assert_eq!(sessions.over(&[lost, slow], PATIENCE, now), []);
        let _asks = sessions.open(slow.0, slow.1);
        assert_eq!(sessions.over(&[lost, slow], PATIENCE, now + PATIENCE), [lost]);
    }

    #[test]
    fn a_session_whose_task_has_died_is_over_after_a_while() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let at = (ServiceId::generate(), SessionId::generate());
        drop(sessions.open(at.0, at.1));
        assert_eq!(sessions.over(&[at], PATIENCE, now), []);
        assert_eq!(sessions.over(&[at], PATIENCE, now + PATIENCE), [at]);
    }

    #[test]
    fn a_service_that_opened_another_session_keeps_it() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let service = ServiceId::generate();
        let (old, new) = (SessionId::generate(), SessionId::generate());
        let _first = sessions.open(service, old);
        let _second = sessions.open(service, new);
        sessions.close(service, old, now);
        assert_eq!(sessions.over(&[(service, new)], PATIENCE, now + PATIENCE), []);
        assert_eq!(sessions.all(), [(service, new)]);
    }

    #[tokio::test]
    async fn whoever_holds_on_to_a_lease_hears_that_it_is_lost() {
        let sessions = Sessions::default();
        assert!(matches!(sessions.hold(Duration::ZERO).await, Err(Refusal::Store(_))));
        sessions.hang_on(Some(LeaseId(1)));
        let mut hold = sessions.hold(PATIENCE).await.unwrap();
        assert_eq!(hold.lease(), LeaseId(1));
        sessions.hang_on(Some(LeaseId(2)));
        hold.lost().await;
    }
}
