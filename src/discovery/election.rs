//! One leader among the managers: whoever holds the leased key `/leader`.
//!
//! Leadership is only ever proved inside a transaction: a leader's writes carry [`Leadership::guard`], so that a
//! paused process that still believes itself leader writes nothing.

use super::Presence;
use crate::model::ServiceId;
use crate::runtime::{Backoff, Shutdown};
use crate::store::{Commit, Compare, Event, Key, LeaseId, Op, Revision, SharedStore, StoreError, Txn, decode};
use std::time::Duration;
use tokio::sync::watch;
use tokio_stream::StreamExt;

/// A term of office, from the revision that began it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    began: Revision,
}

impl Leadership {
    /// The term that `began` began.
    #[cfg(test)]
    pub fn of(began: Revision) -> Self {
        Self { began }
    }

    /// Holds as long as this term lasts.
    pub fn guard(&self) -> Compare {
        Compare::Unchanged(Key::leader(), self.began)
    }

    /// The revision that began the term.
    pub fn began(&self) -> Revision {
        self.began
    }
}

/// Stands for election until shutdown; the receiver tells whether this manager is the leader now.
pub fn campaign(
    store: SharedStore,
    candidate: ServiceId,
    ttl: Duration,
    shutdown: &Shutdown,
) -> watch::Receiver<Option<Leadership>> {
    let (sender, receiver) = watch::channel(None);
    let group = shutdown.clone();
    shutdown.spawn(async move {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        while !group.is_requested() {
            match term(&store, candidate, ttl, &sender, &group).await {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    tracing::debug!(%error, "the election is interrupted");
                    let wait = backoff.next(fastrand::f64());
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = group.requested() => {}
                    }
                }
            }
        }
    });
    receiver
}

/// Waits for the office to be free, takes it, and holds it until it is lost.
async fn term(
    store: &SharedStore,
    candidate: ServiceId,
    ttl: Duration,
    sender: &watch::Sender<Option<Leadership>>,
    group: &Shutdown,
) -> Result<(), StoreError> {
    let (is_free, former) = tokio::select! {
        vacancy = vacancy(store, candidate) => vacancy?,
        () = group.requested() => return Ok(()),
    };
    let presence = Presence::begin(store.clone(), ttl).await?;
    let value = serde_json::to_vec(&candidate).map_err(|error| StoreError::Refused(error.to_string()))?;
    let taken = store.commit(Txn {
        compares: vec![is_free],
        ops: vec![Op::Put { key: Key::leader(), value, lease: Some(presence.lease()) }],
    });
    let began = match taken.await? {
        Commit::Done(revision) => revision,
        Commit::Conflict => return presence.release().await,
    };
    if let Some(former) = former {
        store.revoke(former).await?;
    }
    tracing::info!("this manager is the leader now");
    sender.send_replace(Some(Leadership { began }));
    let held = hold(&presence, ttl, group).await;
    sender.send_replace(None);
    presence.release().await?;
    held
}

/// Completes once the office is free: nobody holds it, or an earlier life of the candidate does, for whose lease nobody has
/// to wait. What holds as long as it is free, and that lease.
async fn vacancy(store: &SharedStore, candidate: ServiceId) -> Result<(Compare, Option<LeaseId>), StoreError> {
    let listing = store.list(&Key::leader()).await?;
    let Some(held) = listing.entries.first() else { return Ok((Compare::Absent(Key::leader()), None)) };
    if decode::<ServiceId>(held).is_ok_and(|holder| holder == candidate) {
        return Ok((Compare::Unchanged(Key::leader(), held.revision), held.lease));
    }
    let mut watch = store.watch(&Key::leader(), listing.revision).await?;
    while let Some(batch) = watch.next().await {
        if batch?.events.iter().any(|event| matches!(event, Event::Delete(_))) {
            return Ok((Compare::Absent(Key::leader()), None));
        }
    }
    Err(StoreError::Unavailable("the watch on the leader ended".into()))
}

/// Renews the lease until it is lost or the end is requested. A store that is away for shorter than the lease is no loss.
async fn hold(presence: &Presence, ttl: Duration, group: &Shutdown) -> Result<(), StoreError> {
    let mut renewed = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(ttl / 4) => {}
            () = group.requested() => return Ok(()),
        }
        match presence.renew().await {
            Ok(()) => renewed = tokio::time::Instant::now(),
            Err(error @ StoreError::LeaseGone(_)) => return Err(error),
            Err(error) if renewed.elapsed() >= ttl => return Err(error),
            Err(error) => tracing::debug!(%error, "cannot renew the leadership yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::EmbeddedStore;
    use std::sync::Arc;

    /// So long that no test sees it end.
    const LEASE: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_manager_that_was_killed_in_office_takes_it_over_and_another_waits() {
        let directory = tempfile::tempdir().unwrap();
        let store: SharedStore = Arc::new(EmbeddedStore::open(&directory.path().join("store")).unwrap());
        let (killed, other) = (ServiceId::generate(), ServiceId::generate());
        let lease = store.grant(LEASE).await.unwrap();
        let value = serde_json::to_vec(&killed).unwrap();
        let op = Op::Put { key: Key::leader(), value, lease: Some(lease) };
        let Commit::Done(term) = store.commit(Txn { compares: Vec::new(), ops: vec![op] }).await.unwrap() else {
            panic!("nothing was compared");
        };

        let group = Shutdown::new();
        let waits = campaign(store.clone(), other, LEASE, &group);
        let mut back = campaign(store.clone(), killed, LEASE, &group);
        let again = back.wait_for(Option::is_some).await.unwrap().unwrap();
        assert!(again.began() > term);
        assert_eq!(*waits.borrow(), None);
        assert!(
            matches!(store.keep_alive(lease).await, Err(StoreError::LeaseGone(_))),
            "the earlier life may do nothing"
        );
        group.request();
    }
}
