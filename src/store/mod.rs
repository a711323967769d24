//! The store: where the cluster's state lives. A narrow trait, two implementations, one conformance suite.
//!
//! Keys are spelled in [`keys`] only, values are JSON a person can read. Only managers use this module.
//!
//! Never here: what the objects mean, retries of a caller's own transactions, an in-memory view of the state.

mod embedded;
mod etcd;
mod keys;
mod txn;
mod typed;

pub use embedded::{Clock, EmbeddedOptions, EmbeddedStore};
pub use etcd::{EtcdAccess, EtcdOptions, EtcdStore};
pub use keys::{Key, Place};
pub use txn::{Commit, Compare, MAX_TXN_BYTES, MAX_TXN_OPS, Op, Txn};
pub use typed::{decode, encode};

use async_trait::async_trait;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio_stream::Stream;

/// The store's version: grows by one with every successful commit that writes, and by what leases take away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

/// A lease: keys attached to it disappear when it is not kept alive for its time to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// One key's value and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Key,
    pub value: Vec<u8>,
    pub revision: Revision,
    pub lease: Option<LeaseId>,
}

/// A consistent listing: everything under a prefix as of one revision, in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub entries: Vec<Entry>,
    pub revision: Revision,
}

/// One commit's changes under a watched prefix, whole: a transaction is never split over two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub revision: Revision,
    pub events: Vec<Event>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Put(Entry),
    Delete(Key),
}

impl Event {
    pub fn key(&self) -> &Key {
        match self {
            Event::Put(entry) => &entry.key,
            Event::Delete(key) => key,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be reached, has no quorum or no space. Of a commit: whether it happened is not known, unless
    /// the text says so.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// History is not kept back to where the caller asked; this is the oldest revision known to be kept.
    #[error("the store's history is compacted: list again from revision {}", .0.0)]
    Compacted(Revision),
    #[error("lease {:x} does not exist any more", .0.0)]
    LeaseGone(LeaseId),
    /// The store's own files are damaged or not ours.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// An embedded store serves one process at a time.
    #[error("the store {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// The state is somewhere else now; what is here is old.
    #[error("the state that was in {} was moved to {to}, and what is left there is not served any more", .path.display())]
    Moved { path: PathBuf, to: String },
    /// The caller broke the rules (too many operations, a key twice, a key that is not ours).
    #[error("the store refused the request: {0}")]
    Refused(String),
}

impl StoreError {
    /// Whether the same request may succeed later without anybody acting. It does not say that repeating is safe: a
    /// commit whose outcome is not known must be looked up first.
    pub fn retryable(&self) -> bool {
        match self {
            StoreError::Unavailable(_) => true,
            StoreError::Compacted(_)
            | StoreError::LeaseGone(_)
            | StoreError::Damaged(_)
            | StoreError::InUse(_)
            | StoreError::Moved { .. }
            | StoreError::Refused(_) => false,
        }
    }
}

pub type Watch = std::pin::Pin<Box<dyn Stream<Item = Result<Batch, StoreError>> + Send>>;

/// See the module's text. All reads are linearizable. A future that is dropped before it answers leaves the outcome
/// open, as a lost connection does.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError>;

    /// Everything under `prefix`, however much it is; or the one key, if `prefix` does not end in a slash.
    async fn list(&self, prefix: &Key) -> Result<Listing, StoreError>;

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError>;

    /// Every commit after `after` that touches `prefix`, in order, without gaps; ends with an error, never silently.
    /// A transaction of `delete` and `put` on keys outside `prefix` produces nothing.
    ///
    /// [`StoreError::Compacted`] is the stream's first item where history does not reach back to `after`, and where
    /// `after` lies ahead of the store, which was then put back in time. After [`StoreError::Unavailable`] the caller
    /// watches again from the last revision it saw.
    async fn watch(&self, prefix: &Key, after: Revision) -> Result<Watch, StoreError>;

    /// A new lease. Its time is rounded up to whole seconds, and to two at least.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Starts the lease's time anew; [`StoreError::LeaseGone`] if it ran out.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends the lease now and deletes its keys; a lease that is gone already is no error.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;
}

pub type SharedStore = Arc<dyn Store>;

/// A lease's time as both stores keep it.
fn whole_seconds(ttl: Duration) -> Result<u32, StoreError> {
    let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0)).max(2);
    u32::try_from(seconds).map_err(|_| StoreError::Refused(format!("a lease of {seconds} seconds is too long")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_s_time_is_rounded_up_to_what_every_store_can_keep() {
        assert_eq!(whole_seconds(Duration::ZERO), Ok(2));
        assert_eq!(whole_seconds(Duration::from_millis(4001)), Ok(5));
        assert!(matches!(whole_seconds(Duration::MAX), Err(StoreError::Refused(_))));
    }
}
