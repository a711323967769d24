//! What can only be tried with time and the disk in one's hand.

use super::*;
use crate::store::{Compare, Event, Op};
use redb::{BackendError, StorageBackend, backends::FileBackend};
use std::{
    fs::OpenOptions,
    io,
    ops::Bound,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};
use tempfile::TempDir;
use tokio_stream::StreamExt;

fn put(key: &str, lease: Option<LeaseId>) -> Txn {
    let op = Op::Put { key: Key::raw(key), value: b"x".to_vec(), lease };
    Txn { compares: vec![], ops: vec![op] }
}

/// A clock that is set by hand.
#[derive(Clone, Default)]
struct HandClock(Arc<AtomicU64>);

impl HandClock {
    fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }

    fn options(&self) -> EmbeddedOptions {
        let seconds = self.0.clone();
        let clock: Clock = Arc::new(move || Duration::from_secs(seconds.load(Ordering::SeqCst)));
        EmbeddedOptions { clock, ..EmbeddedOptions::default() }
    }
}

#[tokio::test]
async fn a_lease_runs_out_exactly_when_its_time_is_over() {
    let (directory, clock) = (TempDir::new().unwrap(), HandClock::default());
    let store = EmbeddedStore::open_with(&directory.path().join("store"), clock.options()).unwrap();
    let lease = store.grant(Duration::from_secs(4)).await.unwrap();
    store.commit(put("/a", Some(lease))).await.unwrap();
    clock.advance(3);
    store.keep_alive(lease).await.unwrap();
    clock.advance(3);
    store.tend().await.unwrap();
    let listing = store.list(&Key::root()).await.unwrap();
    assert_eq!(listing.entries.len(), 1, "kept alive after three seconds, and three more have passed");
    let mut watch = store.watch(&Key::root(), listing.revision).await.unwrap();
    clock.advance(1);
    store.tend().await.unwrap();
    let batch = watch.next().await.unwrap().unwrap();
    assert_eq!(batch.revision, Revision(listing.revision.0 + 1));
    assert_eq!(batch.events, [Event::Delete(Key::raw("/a"))]);
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseGone(lease)));
    assert_eq!(store.commit(put("/b", Some(lease))).await, Err(StoreError::LeaseGone(lease)));
}

#[tokio::test]
async fn a_lease_s_time_starts_anew_with_the_store() {
    let (directory, clock) = (TempDir::new().unwrap(), HandClock::default());
    let path = directory.path().join("store");
    let store = EmbeddedStore::open_with(&path, clock.options()).unwrap();
    let lease = store.grant(Duration::from_secs(4)).await.unwrap();
    clock.advance(3);
    drop(store);
    clock.advance(100);
    let store = EmbeddedStore::open_with(&path, clock.options()).unwrap();
    clock.advance(3);
    store.tend().await.unwrap();
    store.keep_alive(lease).await.unwrap();
    clock.advance(4);
    store.tend().await.unwrap();
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseGone(lease)));
}

/// A disk that can be made to fail.
#[derive(Debug, Default)]
struct Faults {
    /// Writes fail and leave nothing.
    writes: AtomicBool,
    /// What was written stays in doubt: syncing fails.
    syncs: AtomicBool,
    reads: AtomicBool,
}

#[derive(Debug)]
struct FaultyDisk {
    file: FileBackend,
    faults: Arc<Faults>,
}

fn fails(fault: &AtomicBool) -> io::Result<()> {
    if fault.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
}

impl StorageBackend for FaultyDisk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        fails(&self.faults.reads).and_then(|()| self.file.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        fails(&self.faults.writes).and_then(|()| self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        fails(&self.faults.syncs).and_then(|()| self.file.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        fails(&self.faults.writes).and_then(|()| self.file.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
}

/// A store on a disk that can be made to fail.
struct Fixture {
    store: EmbeddedStore,
    faults: Arc<Faults>,
    path: PathBuf,
    _directory: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("store");
        drop(EmbeddedStore::open(&path).unwrap());
        let faults = Arc::new(Faults::default());
        let open = {
            let (path, faults) = (path.clone(), faults.clone());
            move || {
                file::guarded(&path, || {
                    let file = FileBackend::new(OpenOptions::new().read(true).write(true).open(&path)?)?;
                    let disk = FaultyDisk { file, faults: faults.clone() };
                    Ok(Database::builder().set_cache_size(0).create_with_backend(disk)?)
                })
            }
        };
        let store = EmbeddedStore::start(&path, Box::new(open), EmbeddedOptions::default()).unwrap();
        Self { store, faults, path, _directory: directory }
    }

    async fn keys(&self) -> Vec<String> {
        let listing = self.store.list(&Key::root()).await.unwrap();
        listing.entries.into_iter().map(|entry| entry.key.as_str().to_owned()).collect()
    }
}

#[tokio::test]
async fn a_full_disk_acknowledges_nothing_and_heals_when_there_is_space() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    store.commit(put("/before", Some(lease))).await.unwrap();
    let revision = store.list(&Key::root()).await.unwrap().revision;
    let mut watch = store.watch(&Key::root(), revision).await.unwrap();

    fixture.faults.writes.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert!(matches!(store.commit(put("/lost", None)).await, Err(StoreError::Unavailable(_))));
        assert!(matches!(store.grant(Duration::from_secs(60)).await, Err(StoreError::Unavailable(_))));
    }
    fixture.faults.writes.store(false, Ordering::SeqCst);

    assert_eq!(fixture.keys().await, ["/before"]);
    let commit = store.commit(put("/after", None)).await.unwrap();
    assert_eq!(commit, Commit::Done(Revision(revision.0 + 1)));
    let batch = watch.next().await.unwrap().unwrap();
    assert_eq!((batch.revision.0, batch.events[0].key()), (revision.0 + 1, &Key::raw("/after")));
    store.keep_alive(lease).await.unwrap();

    let Fixture { store, path, _directory, .. } = fixture;
    drop(store);
    let store = EmbeddedStore::open(&path).unwrap();
    assert_eq!(store.list(&Key::root()).await.unwrap().entries.len(), 2);
}

#[tokio::test]
async fn a_commit_in_doubt_is_not_acknowledged_and_who_watches_lists_again() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    store.commit(put("/before", None)).await.unwrap();
    let revision = store.list(&Key::root()).await.unwrap().revision;
    let mut watch = store.watch(&Key::root(), revision).await.unwrap();

    fixture.faults.syncs.store(true, Ordering::SeqCst);
    assert!(matches!(store.commit(put("/doubt", None)).await, Err(StoreError::Unavailable(_))));
    fixture.faults.syncs.store(false, Ordering::SeqCst);

    // The disk has in fact kept it.
    assert_eq!(fixture.keys().await, ["/before", "/doubt"]);
    let latest = store.list(&Key::root()).await.unwrap().revision;
    assert_eq!(watch.next().await, Some(Err(StoreError::Compacted(latest))));
    let compare = Compare::Unchanged(Key::raw("/doubt"), latest);
    let txn = Txn { compares: vec![compare], ..put("/doubt", None) };
    assert_eq!(store.commit(txn).await, Ok(Commit::Done(Revision(latest.0 + 1))));
}

#[tokio::test]
async fn a_read_that_fails_once_is_tried_on_the_file_opened_anew() {
    let fixture = Fixture::new();
    fixture.store.commit(put("/a", None)).await.unwrap();
    fixture.faults.reads.store(true, Ordering::SeqCst);
    assert!(matches!(fixture.store.get(&Key::raw("/a")).await, Err(StoreError::Unavailable(_))));
    fixture.faults.reads.store(false, Ordering::SeqCst);
    assert!(fixture.store.get(&Key::raw("/a")).await.unwrap().is_some());
}
