//! The embedded store: one file, one process, group commit. The default of a cluster with one manager.
//!
//! ```text
//!   commit, grant, revoke ──▶ queue ──▶ writer thread ──▶ file (one durable write for all that is queued)
//!                                            │
//!                                            ▼
//!   watch ◀───────────────────────────── history (bounded, in memory)
//!   get, list ◀───────────────────────── file (a snapshot of its own; never waits for a write)
//! ```
//!
//! Never here: a second process, a second writer, an acknowledgement of what is not on the medium.
//!
//! Limitations: history starts anew with every start, so that watchers list once after it; a lease's time starts anew
//! with every start, as it does in etcd with a new leader.

mod file;
mod history;
mod leases;
mod rehearsal;
mod tables;
#[cfg(test)]
mod tests;
mod writer;

use super::{Commit, Entry, Key, LeaseId, Listing, Revision, Store, StoreError, Txn, Watch, decode, whole_seconds};
use async_trait::async_trait;
use history::{Bounds, History, Watcher};
use leases::Leases;
use redb::{Database, ReadTransaction, ReadableDatabase};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, oneshot, watch};
use writer::{Ask, Open, QUEUE, Queued, Work, Writer};

/// Monotonic time since some fixed start.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What may be chosen when a store is opened.
#[derive(Clone)]
pub struct EmbeddedOptions {
    /// How many commits back a watch can begin.
    pub history_batches: usize,
    /// How many bytes those commits may occupy in memory.
    pub history_bytes: usize,
    /// What leases run by.
    pub clock: Clock,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        let start = Instant::now();
        Self { history_batches: 16 << 10, history_bytes: 16 << 20, clock: Arc::new(move || start.elapsed()) }
    }
}

/// See the module's text. Dropping it waits for what is queued and closes the file.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    clock: Clock,
    places: Arc<Semaphore>,
    published: watch::Receiver<Revision>,
    /// None once the store is being dropped.
    queue: Option<mpsc::Sender<Queued>>,
    writer: Option<JoinHandle<()>>,
}

/// What the writer thread and everybody else look at.
struct Shared {
    path: PathBuf,
    medium: RwLock<Medium>,
    history: Arc<History>,
    leases: Mutex<Leases>,
}

/// The file, or why it cannot be used now.
enum Medium {
    Open(Database),
    Broken(StoreError),
}

impl Medium {
    fn database(&self) -> Result<&Database, StoreError> {
        match self {
            Medium::Open(database) => Ok(database),
            Medium::Broken(error) => Err(error.clone()),
        }
    }
}

impl Shared {
    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, look: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let medium = self.medium.read().unwrap_or_else(PoisonError::into_inner);
        let database = medium.database()?;
        file::guarded(&self.path, || look(&database.begin_read()?))
    }
}

impl EmbeddedStore {
    /// Opens the store in the file at `path`, and makes it first if there is none. Blocks while the file is checked.
    ///
    /// [`StoreError::InUse`] if another process has it, [`StoreError::Damaged`] if its contents are not a store's; the
    /// file is then left as it was found.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, EmbeddedOptions::default())
    }

    pub fn open_with(path: &Path, options: EmbeddedOptions) -> Result<Self, StoreError> {
        let file = path.to_owned();
        Self::start(path, Box::new(move || file::open(&file)), options)
    }

    fn start(path: &Path, open: Open, options: EmbeddedOptions) -> Result<Self, StoreError> {
        let EmbeddedOptions { history_batches, history_bytes, clock } = options;
        let database = open()?;
        let (revision, held, moved) = file::guarded(path, || {
            let read = database.begin_read()?;
            Ok((tables::revision(&read)?, tables::leases(&read)?, tables::get(&read, &Key::moved())?))
        })?;
        if let Some(moved) = moved {
            let to = decode::<String>(&moved).unwrap_or_else(|_| "another store".into());
            return Err(StoreError::Moved { path: path.to_owned(), to });
        }
        let mut leases = Leases::default();
        leases.restart(held, clock());
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            medium: RwLock::new(Medium::Open(database)),
            history: Arc::new(History::new(Bounds { batches: history_batches, bytes: history_bytes }, revision)),
            leases: Mutex::new(leases),
        });
        let (queue, requests) = mpsc::channel();
        let (publisher, published) = watch::channel(revision);
        let writer = Writer::new(shared.clone(), requests, open, clock.clone(), publisher);
        let thread = std::thread::Builder::new().name("store-writer".into()).spawn(move || writer.run());
        let thread = thread.map_err(|error| StoreError::Unavailable(format!("cannot start its writer: {error}")))?;
        let places = Arc::new(Semaphore::new(QUEUE));
        Ok(Self { shared, clock, places, published, queue: Some(queue), writer: Some(thread) })
    }

    /// Ends the leases that have run out by now and opens the file anew if it failed, both of which also happen by
    /// themselves.
    pub async fn tend(&self) -> Result<(), StoreError> {
        let (ask, answer) = Ask::new(());
        self.request(Work::Tend(ask), answer).await
    }

    async fn request<R>(&self, work: Work, answer: oneshot::Receiver<Result<R, StoreError>>) -> Result<R, StoreError> {
        let closed = || StoreError::Unavailable("it was closed".into());
        let place = self.places.clone().acquire_owned().await.map_err(|_| closed())?;
        self.queue.as_ref().ok_or_else(closed)?.send(Queued { work, place }).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Looks at a snapshot of the file on a thread that may wait for the disk; once more if the file had to be opened
    /// anew.
    async fn read<T, F>(&self, look: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&ReadTransaction) -> Result<T, redb::Error> + Clone + Send + 'static,
    {
        match self.try_read(look.clone()).await {
            Err(error) if error.retryable() && self.tend().await.is_ok() => self.try_read(look).await,
            result => result,
        }
    }

    async fn try_read<T, F>(&self, look: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&ReadTransaction) -> Result<T, redb::Error> + Send + 'static,
    {
        let shared = self.shared.clone();
        let read = tokio::task::spawn_blocking(move || shared.read(look));
        read.await.map_err(|error| StoreError::Unavailable(format!("the read ended early: {error}")))?
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        key.check()?;
        let key = key.clone();
        self.read(move |read| tables::get(read, &key)).await
    }

    async fn list(&self, prefix: &Key) -> Result<Listing, StoreError> {
        prefix.check_prefix()?;
        let prefix = prefix.clone();
        let look =
            move |read: &_| Ok(Listing { entries: tables::list(read, &prefix)?, revision: tables::revision(read)? });
        self.read(look).await
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        txn.check()?;
        let (ask, answer) = Ask::new(txn);
        self.request(Work::Commit(ask), answer).await
    }

    async fn watch(&self, prefix: &Key, after: Revision) -> Result<Watch, StoreError> {
        prefix.check_prefix()?;
        // The file may be a moment ahead of what is published, never behind.
        let current = self.read(tables::revision).await?;
        if after > current {
            return Ok(Box::pin(tokio_stream::once(Err(StoreError::Compacted(current)))));
        }
        Ok(Box::pin(Watcher::new(self.shared.history.clone(), self.published.clone(), prefix.clone(), after)))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let (ask, answer) = Ask::new(whole_seconds(ttl)?);
        self.request(Work::Grant(ask), answer).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let kept = self.shared.leases().keep_alive(lease, (self.clock)());
        if kept { Ok(()) } else { Err(StoreError::LeaseGone(lease)) }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let (ask, answer) = Ask::new(lease);
        self.request(Work::Revoke(ask), answer).await
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        drop(self.queue.take());
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the store's writer panicked");
        }
        let mut medium = self.shared.medium.write().unwrap_or_else(PoisonError::into_inner);
        *medium = Medium::Broken(StoreError::Unavailable("it was closed".into()));
    }
}
