//! The view, shared by all of a manager's tasks: how it is read, how it is brought up to date, and who is told.

use super::View;
use crate::model::{ServiceId, Timestamp};
use crate::runtime::Clock;
use crate::store::{Batch, Revision};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// How long to wait for the watch to show what was committed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What shows that the view is up to date: that the watch lasts, and that the manager's lease could be renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    Watch,
    Lease,
}

/// What the view lacks, and since when it has lacked anything.
#[derive(Debug, Default)]
struct Freshness {
    missing: Vec<Sign>,
    /// What was committed through this manager and acknowledged, although the view does not show it.
    behind: Option<Revision>,
    /// How often the view has started over.
    listings: u64,
    since: Option<Timestamp>,
}

/// How often a view had started over by the time something was committed.
#[derive(Clone, Copy, Debug)]
pub struct Listing(u64);

impl Freshness {
    fn settle(&mut self) {
        if self.missing.is_empty() && self.behind.is_none() {
            self.since = None;
        }
    }
}

/// The view, shared: one task applies, everybody reads, whoever is concerned is woken.
pub struct ViewHandle {
    view: RwLock<View>,
    revision: watch::Sender<Revision>,
    concerned: Mutex<BTreeMap<ServiceId, Vec<Weak<Notify>>>>,
    freshness: Mutex<Freshness>,
}

impl ViewHandle {
    pub fn new(view: View) -> Self {
        let revision = watch::Sender::new(view.revision);
        Self { view: RwLock::new(view), revision, concerned: Mutex::default(), freshness: Mutex::default() }
    }

    /// For short looks; never held across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn apply(&self, batch: Batch) {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        let touched = view.apply(batch);
        let revision = view.revision;
        drop(view);
        self.announce(revision, |service| touched.everybody || touched.services.contains(&service));
    }

    /// Since when the view may be behind the store, which cannot be reached; none if it can.
    pub fn stale_since(&self) -> Option<Timestamp> {
        self.freshness.lock().unwrap_or_else(PoisonError::into_inner).since
    }

    /// Whether every sign of being up to date is there.
    pub fn is_fresh(&self) -> bool {
        self.stale_since().is_none()
    }

    /// Takes note that a sign is missing since `now`, unless it was missing already.
    pub fn miss(&self, sign: Sign, now: Timestamp) {
        let mut freshness = self.freshness.lock().unwrap_or_else(PoisonError::into_inner);
        if !freshness.missing.contains(&sign) {
            freshness.missing.push(sign);
        }
        freshness.since.get_or_insert(now);
    }

    /// Takes note that a sign is there again.
    pub fn see(&self, sign: Sign) {
        let mut freshness = self.freshness.lock().unwrap_or_else(PoisonError::into_inner);
        freshness.missing.retain(|missing| *missing != sign);
        freshness.settle();
    }

    /// To be asked before a commit, for [`Self::owe`].
    pub fn listing(&self) -> Listing {
        Listing(self.freshness.lock().unwrap_or_else(PoisonError::into_inner).listings)
    }

    /// Waits until the view shows what was committed at `revision`, so that whoever is told finds it. If the store goes away
    /// meanwhile, it is owed.
    pub async fn catch_up(&self, revision: Revision, before: Listing, clock: &dyn Clock) {
        if !self.reached(revision).await {
            tracing::warn!("a commit is not visible yet: the view is behind the store");
            self.owe(revision, before, clock.wall());
        }
    }

    /// Takes note that somebody is told of what was committed at `revision`: until the view shows it, it is stale. Not if
    /// it has started over since: the store may have been put back to where that revision never was.
    pub fn owe(&self, revision: Revision, before: Listing, now: Timestamp) {
        let mut freshness = self.freshness.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, which whoever announces a revision takes after it.
        if *self.revision.borrow() < revision && freshness.listings == before.0 {
            freshness.behind = freshness.behind.max(Some(revision));
            freshness.since.get_or_insert(now);
        }
    }

    /// Starts over from a listing, after a gap in the watch.
    pub fn replace(&self, view: View) {
        let revision = view.revision;
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
        let mut freshness = self.freshness.lock().unwrap_or_else(PoisonError::into_inner);
        freshness.listings += 1;
        freshness.behind = None;
        freshness.settle();
        drop(freshness);
        self.announce(revision, |_| true);
    }

    fn announce(&self, revision: Revision, concerns: impl Fn(ServiceId) -> bool) {
        self.revision.send_replace(revision);
        let mut freshness = self.freshness.lock().unwrap_or_else(PoisonError::into_inner);
        if freshness.behind.is_some_and(|owed| owed <= revision) {
            freshness.behind = None;
            freshness.settle();
        }
        drop(freshness);
        let mut concerned = self.concerned.lock().unwrap_or_else(PoisonError::into_inner);
        concerned.retain(|service, subscribers| {
            subscribers.retain(|notify| match notify.upgrade() {
                Some(notify) => {
                    if concerns(*service) {
                        notify.notify_one();
                    }
                    true
                }
                None => false,
            });
            !subscribers.is_empty()
        });
    }

    /// Told once whenever something that concerns `service` has changed since the last time. Every subscriber is told: which
    /// of two sessions of a service holds is for the store to say, and not for who came last.
    pub fn subscribe(&self, service: ServiceId) -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        let mut concerned = self.concerned.lock().unwrap_or_else(PoisonError::into_inner);
        concerned.entry(service).or_default().push(Arc::downgrade(&notify));
        notify
    }

    /// Told at every change of anything.
    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// Waits until the view holds everything up to `revision`; false if it does not within [`PATIENCE`], as when the
    /// store went away right after a commit.
    #[must_use]
    pub async fn reached(&self, revision: Revision) -> bool {
        let mut changes = self.changes();
        let reached = changes.wait_for(|reached| *reached >= revision);
        matches!(tokio::time::timeout(PATIENCE, reached).await, Ok(Ok(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::enrollment::new_service;
    use crate::model::{ServiceType, Timestamp};
    use crate::store::{Entry, Event, Key};
    use std::future::Future;
    use std::task::{Context, Waker};

    /// What a commit that concerns the service looks like.
    fn news(service: ServiceId) -> Batch {
        let record = new_service(service, ServiceType::Block, "host".into(), "0".into(), Timestamp::EPOCH);
        let (key, value) = (Key::service(service), serde_json::to_vec(&record).unwrap());
        Batch {
            revision: Revision(1),
            events: vec![Event::Put(Entry { key, value, revision: Revision(1), lease: None })],
        }
    }

    #[test]
    fn a_view_that_lacks_what_somebody_was_told_is_stale_until_it_shows_it() {
        let (view, now) = (ViewHandle::new(View::default()), Timestamp::EPOCH);
        let before = view.listing();
        view.owe(Revision(1), before, now);
        assert_eq!(view.stale_since(), Some(now));
        view.miss(Sign::Watch, now);
        view.see(Sign::Watch);
        assert!(!view.is_fresh(), "the watch is back, and what it has to tell has not come yet");
        view.apply(news(ServiceId::generate()));
        assert!(view.is_fresh());
        view.owe(Revision(1), before, now);
        assert!(view.is_fresh(), "it has come in the meantime");
        view.owe(Revision(2), before, now);
        view.replace(View::default());
        assert!(view.is_fresh(), "a listing holds all that there is");
        view.owe(Revision(2), before, now);
        assert!(view.is_fresh(), "that was of a state that may be gone");
    }

    fn is_told(concern: &Notify) -> bool {
        std::pin::pin!(concern.notified()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn who_comes_late_for_a_service_takes_nothing_from_who_is_told_already() {
        let (view, service) = (ViewHandle::new(View::default()), ServiceId::generate());
        let holds = view.subscribe(service);
        // As a session does that another one of the same service has overtaken: it comes, and goes.
        let overtaken = view.subscribe(service);
        view.apply(news(service));
        assert!(is_told(&holds) && is_told(&overtaken));
        drop(overtaken);
        view.apply(news(service));
        assert!(is_told(&holds));
        view.apply(news(ServiceId::generate()));
        assert!(!is_told(&holds), "that concerns another one");
        drop(holds);
        view.apply(news(service));
        assert!(view.concerned.lock().unwrap().is_empty(), "nobody is kept in mind who has gone");
    }
}
