//! The stores under test, and the few words in which the cases speak to them.

use crate::support::etcd::Etcd;
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use symphony::store::{
    Batch, Commit, Compare, EmbeddedOptions, EmbeddedStore, EtcdOptions, EtcdStore, Key, LeaseId, Listing, Op,
    Revision, SharedStore, StoreError, Txn, Watch,
};
use tempfile::TempDir;
use tokio::{sync::Mutex, task::JoinSet};
use tokio_stream::StreamExt;

/// A test that waits longer than this for something that must come has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// So much history do the embedded stores under test keep.
const HISTORY: usize = 4096;

/// An empty store, gone with the test.
pub struct Subject {
    pub store: SharedStore,
    home: Home,
}

enum Home {
    Embedded { _directory: TempDir },
    Etcd(Arc<Etcd>),
}

impl Subject {
    pub fn embedded() -> Self {
        let directory = TempDir::new().expect("a directory");
        let options = EmbeddedOptions { history_batches: HISTORY, ..EmbeddedOptions::default() };
        let store = EmbeddedStore::open_with(&directory.path().join("store"), options).expect("open");
        Self { store: Arc::new(store), home: Home::Embedded { _directory: directory } }
    }

    /// A prefix of its own in an etcd that is shared by the tests running now.
    pub async fn etcd() -> Self {
        static SHARED: Mutex<Weak<Etcd>> = Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        let etcd = match shared.upgrade() {
            Some(etcd) => etcd,
            None => Arc::new(Etcd::start(1).await),
        };
        *shared = Arc::downgrade(&etcd);
        drop(shared);
        Self::in_etcd(etcd).await
    }

    pub async fn etcd_of_its_own() -> Self {
        Self::in_etcd(Arc::new(Etcd::start(1).await)).await
    }

    async fn in_etcd(etcd: Arc<Etcd>) -> Self {
        let prefix = format!("/test/{}", uuid::Uuid::new_v4());
        let options = EtcdOptions { prefix, ..EtcdOptions::default() };
        let store = EtcdStore::connect(&etcd.endpoints(), options).await.expect("connect");
        Self { store: Arc::new(store), home: Home::Etcd(etcd) }
    }

    /// Makes the store forget how it came to where it is now.
    pub async fn forget_history(&self) {
        match &self.home {
            Home::Embedded { .. } => {
                let mut commits = JoinSet::new();
                for _ in 0..=HISTORY {
                    let (store, ops) = (self.store.clone(), vec![put("/filler", "x")]);
                    commits.spawn(async move { store.commit(Txn { compares: vec![], ops }).await });
                }
                for commit in commits.join_all().await {
                    done(commit.expect("commit"));
                }
            }
            Home::Etcd(etcd) => {
                let revision = self.put("/filler", "x").await;
                let mut client = etcd_client::Client::connect(etcd.endpoints(), None).await.expect("connect");
                client.compact(revision.0, None).await.expect("compact");
            }
        }
    }

    pub async fn commit<const C: usize, const O: usize>(&self, compares: [Compare; C], ops: [Op; O]) -> Commit {
        self.try_commit(compares.into(), ops.into()).await.expect("commit")
    }

    pub async fn try_commit(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Commit, StoreError> {
        self.store.commit(Txn { compares, ops }).await
    }

    pub async fn put(&self, key: &str, value: &str) -> Revision {
        done(self.commit([], [put(key, value)]).await)
    }

    /// A key's value as text; none if it is absent.
    pub async fn value(&self, key: &str) -> Option<String> {
        let entry = self.store.get(&Key::raw(key)).await.expect("get")?;
        assert_eq!(entry.key, Key::raw(key));
        Some(String::from_utf8(entry.value).expect("text"))
    }

    pub async fn list(&self, prefix: &str) -> Listing {
        self.store.list(&Key::raw(prefix)).await.expect("list")
    }

    pub async fn revision(&self) -> Revision {
        self.list("/nothing/here").await.revision
    }

    pub async fn watch(&self, prefix: &str, after: Revision) -> Watch {
        self.store.watch(&Key::raw(prefix), after).await.expect("watch")
    }

    pub async fn lease(&self, seconds: u64) -> LeaseId {
        self.store.grant(Duration::from_secs(seconds)).await.expect("grant")
    }
}

pub fn put(key: &str, value: &str) -> Op {
    Op::Put { key: Key::raw(key), value: value.into(), lease: None }
}

pub fn put_leased(key: &str, value: &str, lease: LeaseId) -> Op {
    Op::Put { key: Key::raw(key), value: value.into(), lease: Some(lease) }
}

pub fn delete(key: &str) -> Op {
    Op::Delete { key: Key::raw(key) }
}

pub fn done(commit: Commit) -> Revision {
    match commit {
        Commit::Done(revision) => revision,
        Commit::Conflict => panic!("a conflict where none was expected"),
    }
}

/// What a watch says next.
pub async fn next(watch: &mut Watch) -> Result<Batch, StoreError> {
    let item = tokio::time::timeout(PATIENCE, watch.next()).await.expect("the watch says nothing");
    item.expect("a watch ends with an error, never silently")
}
