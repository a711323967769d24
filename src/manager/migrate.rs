//! Moving from the embedded store to etcd, and finding the store again at the next start.
//!
//! ```text
//!   embedded ──copy──▶ etcd: /filling …      nothing is written down here: a start finds the embedded store
//!            ──`store.json`: moving──▶       a start asks etcd whether it is a cluster, and prevents it from then on if not
//!            ──seal──▶ etcd: /cluster        this is the instant
//!            ──`store.json`: moved──▶        a start goes to etcd
//!            ──`/moved` in the old file──▶   nobody serves it any more, wherever it is carried
//! ```
//!
//! While the state is on its way no member runs, so that nothing is written; block services serve on and connect again.

use super::backup::content;
use super::filling::{self, Filling};
use super::init::{Manager, internal};
use super::member::Member;
use super::refusal::Refusal;
use super::store_config::{EtcdFiles, Password, StoreConfig};
use super::{Stage, audit};
use crate::host::{ConfigDir, Document, DocumentError, load_document, save_document};
use crate::model::*;
use crate::rpc::{Fault, FaultKind};
use crate::store::{EmbeddedStore, Key, Op, SharedStore, Store, StoreError, Txn, encode};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `store.json`: where the state went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whereabouts {
    cluster: Cluster,
    endpoints: Vec<String>,
    #[serde(default)]
    prefix: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cert: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// Absent: the password is in `$SYMPHONY_ETCD_PASSWORD`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password_file: Option<PathBuf>,
    state: Moved,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Moved {
    /// Whether it got there, etcd knows.
    Moving,
    Moved,
}

impl Document for Whereabouts {
    const FORMAT: &'static str = "symphony whereabouts of a store";
    const VERSION: u32 = 1;
}

fn path(dir: &ConfigDir) -> PathBuf {
    dir.path().join("store.json")
}

impl Whereabouts {
    fn new(cluster: Cluster, config: &StoreConfig) -> Option<Self> {
        let StoreConfig::Etcd { endpoints, prefix, access } = config else { return None };
        let password_file = match &access.password {
            Some(Password::File(path)) => Some(path.clone()),
            Some(Password::Given(_)) | None => None,
        };
        Some(Self {
            cluster,
            endpoints: endpoints.clone(),
            prefix: prefix.clone(),
            ca: access.ca.clone(),
            cert: access.cert.clone(),
            key: access.key.clone(),
            user: access.user.clone(),
            password_file,
            state: Moved::Moving,
        })
    }

    fn config(&self) -> StoreConfig {
        let given = || std::env::var("SYMPHONY_ETCD_PASSWORD").ok().map(Password::Given);
        let password = self.password_file.clone().map(Password::File).or_else(given).filter(|_| self.user.is_some());
        let access = EtcdFiles {
            ca: self.ca.clone(),
            cert: self.cert.clone(),
            key: self.key.clone(),
            user: self.user.clone(),
            password,
        };
        StoreConfig::Etcd { endpoints: self.endpoints.clone(), prefix: self.prefix.clone(), access }
    }
}

fn unwritten(error: &DocumentError) -> StoreError {
    StoreError::Unavailable(format!("cannot note where the state is: {error}"))
}

/// Whether the state of this directory was moved, or was about to be: then only its store can tell where it is.
///
/// # Errors
/// If the note cannot be read.
pub fn is_elsewhere(dir: &ConfigDir) -> Result<bool, DocumentError> {
    Ok(load_document::<Whereabouts>(&path(dir))?.is_some())
}

/// The store to serve from, and what it is: as configured, unless the state has moved from the embedded store to etcd.
///
/// # Errors
/// If the store cannot be opened, or nobody can tell yet which one is the right one.
pub async fn open(dir: &ConfigDir, config: &StoreConfig) -> Result<(StoreConfig, SharedStore), StoreError> {
    let configured = async || Ok((config.clone(), config.connect(dir).await?));
    let StoreConfig::Embedded = config else { return configured().await };
    let note = load_document::<Whereabouts>(&path(dir));
    let note = note.map_err(|error| StoreError::Damaged(format!("where the state is is not known: {error}")))?;
    let Some(mut note) = note else { return configured().await };
    let target = note.config();
    let etcd = target.connect(dir).await?;
    if note.state == Moved::Moving {
        if !filling::settle(&etcd, &note.cluster).await? {
            tracing::warn!(%target, "a move of the state to etcd was cut off: the embedded store serves on");
            std::fs::remove_file(path(dir))
                .map_err(|error| StoreError::Unavailable(format!("cannot remove {}: {error}", path(dir).display())))?;
            return configured().await;
        }
        note.state = Moved::Moved;
        save_document(&path(dir), &note).map_err(|error| unwritten(&error))?;
    }
    retire_file(&dir.store(), &target).await?;
    tracing::info!(%target, "the state of this directory was moved there");
    Ok((target, etcd))
}

/// Sees to it that nobody serves the file any more.
async fn retire_file(file: &Path, target: &StoreConfig) -> Result<(), StoreError> {
    let there = file.try_exists();
    if !there.map_err(|error| StoreError::Unavailable(format!("cannot look at {}: {error}", file.display())))? {
        return Ok(());
    }
    match EmbeddedStore::open(file) {
        Ok(store) => retire(&store, target).await,
        Err(StoreError::Moved { .. }) => Ok(()),
        // It serves nobody either.
        Err(error @ StoreError::Damaged(_)) => {
            tracing::warn!(%error, "the former store cannot be marked as moved");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

async fn retire(store: &dyn Store, target: &StoreConfig) -> Result<(), StoreError> {
    let put = Op::Put { key: Key::moved(), value: encode(&target.to_string())?, lease: None };
    store.commit(Txn { compares: Vec::new(), ops: vec![put] }).await.map(drop)
}

/// How a move ended that did not succeed.
enum Failed {
    /// The embedded store serves on.
    Before(Refusal),
    /// Etcd has to be asked.
    Open(Refusal),
}

impl Manager {
    /// Moves the state to etcd; how many values that were.
    ///
    /// # Errors
    /// If this manager is no member on an embedded store, or etcd is not empty, or anything fails on the way: then the
    /// embedded store serves on, or, if nobody knows, whichever etcd says once it answers.
    pub(super) async fn migrate(self: &Arc<Self>, target: StoreConfig, author: Author) -> Result<u64, Fault> {
        let _one_at_a_time = self.init.lock().await;
        let Stage::Member(member) = self.stage() else { return Err(self.member().err().unwrap_or_else(stopping)) };
        if !matches!(self.store_config(), StoreConfig::Embedded) {
            let text = format!("this manager's store is {} already: it can be moved once", self.store_text());
            return Err(Fault::new(FaultKind::Precondition, text));
        }
        let identity = load_document::<Identity>(&self.dir.identity()).map_err(|error| internal(error.to_string()))?;
        let joined = identity.as_ref().and_then(|identity| identity.membership.clone());
        let (Some(identity), Some(membership)) = (identity, joined) else {
            return Err(internal("this member has no identity on its disk".into()));
        };
        let etcd = target.connect(&self.dir).await.map_err(Refusal::from)?;
        // Before anybody is disturbed.
        let filling = begin(&etcd, &member, self).await?;
        self.set_stage(Stage::Starting("its state is being moved to etcd".into()));
        member.group.finish().await;
        match self.transfer(&member, filling, &target, &author).await {
            Ok(count) => {
                self.set_store(target.clone(), etcd).await;
                self.enter_ready(&identity, &membership).await?;
                tracing::info!(%target, values = count, "the state was moved");
                Ok(count)
            }
            Err(Failed::Before(refusal)) => {
                self.enter_ready(&identity, &membership).await?;
                let fault = Fault::from(refusal);
                Err(Fault::new(fault.kind, format!("{}; the embedded store serves on", fault.message)))
            }
            Err(Failed::Open(refusal)) => {
                drop(member);
                self.forget_store().await;
                self.spawn_bring_up(identity);
                Err(refusal.into())
            }
        }
    }

    async fn transfer(
        &self,
        member: &Member,
        filling: Filling,
        target: &StoreConfig,
        author: &Author,
    ) -> Result<u64, Failed> {
        let before = |refusal| Failed::Before(refusal);
        let (cluster, with, count) = prepare(member, &filling, target, author).await.map_err(before)?;
        let mut note = Whereabouts::new(cluster.clone(), target)
            .ok_or_else(|| Failed::Before(Refusal::Invalid("the state is moved to etcd only".into())))?;
        let unwritten = |error: DocumentError| Refusal::from(unwritten(&error));
        save_document(&path(&self.dir), &note).map_err(|error| Failed::Open(unwritten(error)))?;
        filling.seal(&cluster, with).await.map_err(Failed::Open)?;
        note.state = Moved::Moved;
        save_document(&path(&self.dir), &note).map_err(|error| Failed::Open(unwritten(error)))?;
        retire(&*member.store, target).await.map_err(|error| Failed::Open(error.into()))?;
        Ok(count)
    }
}

fn stopping() -> Fault {
    Refusal::Stopping.into()
}

async fn begin(etcd: &SharedStore, member: &Member, manager: &Manager) -> Result<Filling, Fault> {
    let (name, id) = (&member.cluster.meta.name, member.cluster.meta.id);
    let with = format!("`manager migrate` of cluster '{name}' ({id})");
    let begun = Filling::begin(etcd.clone(), with, manager.now()).await;
    begun.map_err(|refusal| {
        let fault = Fault::from(refusal);
        Fault::new(fault.kind, format!("{}; nothing was moved", fault.message))
    })
}

/// Copies everything but the cluster's own record, which is to come last; that, and how many values there are.
async fn prepare(
    member: &Member,
    filling: &Filling,
    target: &StoreConfig,
    author: &Author,
) -> Result<(Cluster, Vec<Op>, u64), Refusal> {
    let listing = member.store.list(&Key::root()).await?;
    let record = listing.entries.iter().find(|entry| entry.key == Key::cluster());
    let record = record.ok_or_else(|| Refusal::Store("the embedded store holds no cluster".into()))?;
    let cluster: Cluster = crate::store::decode(record)?;
    let cluster = Cluster { history: cluster.history.continued(), ..cluster };
    let content = content(listing);
    filling.write(&content).await?;
    let (id, name) = (cluster.meta.id, &cluster.meta.name);
    let moved = audit::entry(EventId::generate(), member.clock.wall(), author, "cluster.migrate", (None, id, name));
    let moved = Event { detail: Some(format!("from the embedded store to {target}")), ..moved }.bounded();
    let put = Op::Put { key: Key::event(moved.id), value: encode(&moved)?, lease: None };
    Ok((cluster, vec![put], content.len() as u64 + 1))
}
