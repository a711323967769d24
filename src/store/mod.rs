//! The store: where the cluster's state lives. A narrow trait, two implementations, one conformance suite.
//!
//! Keys are spelled in [`keys`] only, values are JSON a person can read. Only managers use this module.

mod keys;

pub use keys::Key;

use async_trait::async_trait;
use std::{sync::Arc, time::Duration};
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

/// A condition on one key; a transaction writes nothing unless all hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    Absent(Key),
    Present(Key),
    /// The key was last written by exactly this revision.
    Unchanged(Key, Revision),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put { key: Key, value: Vec<u8>, lease: Option<LeaseId> },
    Delete { key: Key },
}

/// All comparisons hold and all operations happen, at one revision; or nothing does. A key is written at most once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub ops: Vec<Op>,
}

/// etcd's default limit on the operations (and, separately, the comparisons) of a transaction.
pub const MAX_TXN_OPS: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    Done(Revision),
    /// A comparison did not hold; nothing was written.
    Conflict,
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

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be reached or has no quorum. Of a commit: whether it happened is not known.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// History before this revision is gone: list again.
    #[error("the store's history is compacted: list again from revision {}", .0.0)]
    Compacted(Revision),
    #[error("lease {:x} does not exist any more", .0.0)]
    LeaseGone(LeaseId),
    /// The store's own files are damaged or not ours.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// The caller broke the rules (too many operations, a key twice, a key that is not ours).
    #[error("the store refused the request: {0}")]
    Refused(String),
}

pub type Watch = std::pin::Pin<Box<dyn Stream<Item = Result<Batch, StoreError>> + Send>>;

/// See the module's text. All reads are linearizable.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError>;

    /// Everything under `prefix`, however much it is.
    async fn list(&self, prefix: &Key) -> Result<Listing, StoreError>;

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError>;

    /// Every commit after `after` that touches `prefix`, in order, without gaps; ends with an error, never silently.
    /// A transaction of `delete` and `put` on keys outside `prefix` produces nothing.
    async fn watch(&self, prefix: &Key, after: Revision) -> Result<Watch, StoreError>;

    /// A new lease; whole seconds, at least two.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Starts the lease's time anew; [`StoreError::LeaseGone`] if it ran out.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends the lease now and deletes its keys; a lease that is gone already is no error.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;
}

pub type SharedStore = Arc<dyn Store>;
