//! What the stores do by themselves: the transaction of a volume's creation, without symphony around it.

use anyhow::{Context, Result, bail};
use std::sync::Arc;
use std::time::{Duration, Instant};
use symphony::store::{Commit, Compare, EmbeddedStore, EtcdOptions, EtcdStore, Key, Op, SharedStore, Txn};

/// Transactions per second with one client and with 32.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    pub one: f64,
    pub many: f64,
}

const SPAN: Duration = Duration::from_secs(3);
pub const MANY: usize = 32;

pub async fn embedded() -> Result<Rates> {
    let dir = tempfile::Builder::new().prefix("symphony-bench").tempdir_in("/var/tmp")?;
    let store = EmbeddedStore::open(&dir.path().join("store.redb")).context("opening a store")?;
    rates(Arc::new(store)).await
}

pub async fn etcd(endpoints: &[String]) -> Result<Rates> {
    let options = EtcdOptions { prefix: "/raw".into(), ..EtcdOptions::default() };
    rates(Arc::new(EtcdStore::connect(endpoints, options).await?)).await
}

async fn rates(store: SharedStore) -> Result<Rates> {
    Ok(Rates { one: rate(&store, 1).await?, many: rate(&store, MANY).await? })
}

async fn rate(store: &SharedStore, clients: usize) -> Result<f64> {
    let began = Instant::now();
    let tasks: Vec<_> = (0..clients).map(|client| tokio::spawn(commit_for(store.clone(), clients, client))).collect();
    let mut commits = 0u64;
    for task in tasks {
        commits += task.await??;
    }
    Ok(commits as f64 / began.elapsed().as_secs_f64())
}

/// Two new keys and one overwritten, as when a volume is created.
async fn commit_for(store: SharedStore, clients: usize, client: usize) -> Result<u64> {
    let began = Instant::now();
    let put = |key: &Key| Op::Put { key: key.clone(), value: vec![b'x'; 600], lease: None };
    let pool = Key::raw(format!("/pool/{clients}-{client}"));
    let mut commits = 0;
    while began.elapsed() < SPAN {
        let volume = Key::raw(format!("/volume/{clients}-{client}-{commits}"));
        let name = Key::raw(format!("/name/volume/{clients}-{client}-{commits}"));
        let compares = vec![Compare::Absent(volume.clone()), Compare::Absent(name.clone())];
        let txn = Txn { compares, ops: vec![put(&volume), put(&name), put(&pool)] };
        match store.commit(txn).await? {
            Commit::Done(_) => commits += 1,
            Commit::Conflict => bail!("a conflict where there is none"),
        }
    }
    Ok(commits)
}
