//! Leases. Those that must not run out during a test are long; those that must are the shortest there are.

use super::subject::{Subject, delete, done, next, put, put_leased};
use std::time::Duration;
use symphony::store::{Event, Key, LeaseId, StoreError, Watch};

const SHORT: u64 = 2;
const LONG: u64 = 3600;

/// The keys that go in the next batch; anything else in it fails.
async fn deleted(watch: &mut Watch) -> Vec<Key> {
    let batch = next(watch).await.expect("a batch");
    let key = |event| match event {
        Event::Delete(key) => key,
        Event::Put(entry) => panic!("{} was put", entry.key),
    };
    batch.events.into_iter().map(key).collect()
}

pub async fn a_lease_that_runs_out_takes_its_keys_along(subject: &Subject) {
    let lease = subject.lease(SHORT).await;
    let ops = [put_leased("/s/a", "1", lease), put_leased("/s/b", "2", lease), put("/s/c", "3")];
    let revision = done(subject.commit([], ops).await);
    let entry = subject.store.get(&Key::raw("/s/a")).await.expect("get").expect("there");
    assert_eq!(entry.lease, Some(lease));
    let mut watch = subject.watch("/s/", revision).await;
    assert_eq!(deleted(&mut watch).await, [Key::raw("/s/a"), Key::raw("/s/b")]);
    assert_eq!(subject.value("/s/a").await, None);
    assert_eq!(subject.value("/s/c").await.as_deref(), Some("3"));
    assert_eq!(subject.store.keep_alive(lease).await, Err(StoreError::LeaseGone(lease)));
    assert_eq!(subject.store.revoke(lease).await, Ok(()), "revoking what is gone is no error");
}

/// Of two leases of the same length, the one granted first is kept alive, and outlives the other.
pub async fn a_lease_that_is_kept_alive_stays(subject: &Subject) {
    let (kept, left) = (subject.lease(5).await, subject.lease(5).await);
    let revision = done(subject.commit([], [put_leased("/kept", "", kept), put_leased("/left", "", left)]).await);
    let mut watch = subject.watch("/left", revision).await;
    let mut beat = tokio::time::interval(Duration::from_millis(500));
    let gone = loop {
        tokio::select! {
            gone = deleted(&mut watch) => break gone,
            _ = beat.tick() => subject.store.keep_alive(kept).await.expect("a lease that is kept alive"),
        }
    };
    assert_eq!(gone, [Key::raw("/left")]);
    assert!(subject.value("/kept").await.is_some());
    assert_eq!(subject.store.keep_alive(kept).await, Ok(()));
    subject.store.revoke(kept).await.expect("revoke");
}

pub async fn a_revoked_lease_takes_its_keys_along_in_one_batch(subject: &Subject) {
    let (lease, other) = (subject.lease(LONG).await, subject.lease(LONG).await);
    let ops = [put_leased("/b", "", lease), put_leased("/a", "", lease), put_leased("/c", "", other)];
    let revision = done(subject.commit([], ops).await);
    let mut watch = subject.watch("/", revision).await;
    subject.store.revoke(lease).await.expect("revoke");
    assert_eq!(deleted(&mut watch).await, [Key::raw("/a"), Key::raw("/b")]);
    assert!(subject.value("/c").await.is_some());
    assert_eq!(subject.store.revoke(lease).await, Ok(()));
    assert_eq!(subject.store.revoke(LeaseId(4711)).await, Ok(()), "a lease that never was");
    assert_eq!(subject.store.keep_alive(lease).await, Err(StoreError::LeaseGone(lease)));
    subject.store.revoke(other).await.expect("revoke");
}

pub async fn a_put_without_the_lease_detaches_and_one_with_another_moves(subject: &Subject) {
    let (first, second) = (subject.lease(LONG).await, subject.lease(LONG).await);
    let both = [put_leased("/freed", "1", first), put_leased("/moved", "1", first), put_leased("/stays", "1", first)];
    subject.commit([], both).await;
    subject.commit([], [put("/freed", "2"), put_leased("/moved", "2", second), put_leased("/stays", "2", first)]).await;
    let mut watch = subject.watch("/", subject.revision().await).await;
    subject.store.revoke(first).await.expect("revoke");
    assert_eq!(deleted(&mut watch).await, [Key::raw("/stays")]);
    subject.store.revoke(second).await.expect("revoke");
    assert_eq!(deleted(&mut watch).await, [Key::raw("/moved")]);
    let freed = subject.store.get(&Key::raw("/freed")).await.expect("get").expect("there");
    assert_eq!(freed.lease, None);
}

pub async fn a_deleted_key_is_the_lease_s_no_more(subject: &Subject) {
    let lease = subject.lease(LONG).await;
    subject.commit([], [put_leased("/a", "1", lease), put_leased("/b", "1", lease)]).await;
    subject.commit([], [delete("/a")]).await;
    subject.put("/a", "2").await;
    let mut watch = subject.watch("/", subject.revision().await).await;
    subject.store.revoke(lease).await.expect("revoke");
    assert_eq!(deleted(&mut watch).await, [Key::raw("/b")]);
    assert_eq!(subject.value("/a").await.as_deref(), Some("2"));
}

pub async fn a_put_with_a_gone_lease_writes_nothing(subject: &Subject) {
    let (gone, held) = (subject.lease(LONG).await, subject.lease(LONG).await);
    subject.store.revoke(gone).await.expect("revoke");
    let ops = vec![put("/a", "1"), put_leased("/b", "1", held), put_leased("/c", "1", gone)];
    assert_eq!(subject.try_commit(vec![], ops).await, Err(StoreError::LeaseGone(gone)));
    let ops = vec![put("/a", "1"), put_leased("/c", "1", gone)];
    assert_eq!(subject.try_commit(vec![], ops).await, Err(StoreError::LeaseGone(gone)));
    assert_eq!(subject.list("/").await.entries, []);
    subject.store.revoke(held).await.expect("revoke");
}
