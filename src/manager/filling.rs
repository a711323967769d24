//! Filling an empty store with a whole state: all of it becomes a cluster at one instant, or none of it does.
//!
//! ```text
//!   empty ──begin──▶ /filling ──write, as often as it takes──▶ /filling and everything but /cluster ──seal──▶ a cluster
//! ```
//!
//! No manager makes or serves a cluster beside `/filling`, and one that is cut off is gone on with by the next one, which
//! throws away what does not belong to its own state. Every step is tied to the marker's revision, so that of two that
//! fill at once one gives up.

use super::refusal::Refusal;
use crate::model::{Cluster, Timestamp};
use crate::store::{
    Commit, Compare, Entry, Key, MAX_TXN_BYTES, MAX_TXN_OPS, Op, Place, Revision, SharedStore, StoreError, Txn, decode,
    encode,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `/filling`.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    /// A sentence on what is under way.
    with: String,
    since: Timestamp,
}

/// Operations of one step; there is a comparison beside them.
const OPS_AT_ONCE: usize = MAX_TXN_OPS - 8;
/// Bytes of values in one step.
const BYTES_AT_ONCE: usize = MAX_TXN_BYTES / 2;

/// A whole state but the cluster's own record: values by key.
pub type Content = BTreeMap<Key, Vec<u8>>;

/// A store that is being filled by us.
pub struct Filling {
    store: SharedStore,
    marker: Revision,
}

/// What of a listing is ours, and stays: managers of a cluster that is gone may still hold leases.
fn ours(entries: Vec<Entry>) -> impl Iterator<Item = Entry> {
    entries.into_iter().filter(|entry| Place::of(&entry.key) != Place::Foreign && entry.lease.is_none())
}

/// What an unfinished filling in this store is, if there is one: nothing else may be done with the store.
///
/// # Errors
/// If the store cannot be read.
pub async fn unfinished(store: &SharedStore) -> Result<Option<String>, StoreError> {
    let Some(entry) = store.get(&Key::filling()).await? else { return Ok(None) };
    Ok(Some(decode::<Marker>(&entry)?.with))
}

fn taken() -> Refusal {
    Refusal::Precondition("somebody else changed the store at the same time: see what is in it, and try again".into())
}

impl Filling {
    /// Takes an empty store, or one whose filling was cut off; `with` says what is put into it.
    ///
    /// # Errors
    /// If the store holds a cluster, or anything of ours that nobody marked as unfinished: what is there is named.
    pub async fn begin(store: SharedStore, with: String, since: Timestamp) -> Result<Self, Refusal> {
        let found: Vec<Entry> = ours(store.list(&Key::root()).await?.entries).collect();
        if let Some(entry) = found.iter().find(|entry| entry.key == Key::cluster()) {
            let Cluster { meta, .. } = decode(entry)?;
            return Err(Refusal::Precondition(format!("the store holds cluster '{}' ({})", meta.name, meta.id)));
        }
        let marker = found.iter().find(|entry| entry.key == Key::filling()).map(|entry| entry.revision);
        if let (None, Some(first)) = (marker, found.first()) {
            return Err(Refusal::Precondition(format!(
                "the store holds no cluster, and yet {} of its keys, {} first: take another store, or another prefix in it",
                found.len(),
                first.key
            )));
        }
        let mut filling = Self { store, marker: Revision(0) };
        filling.mark(marker, &Marker { with, since }).await?;
        Ok(filling)
    }

    async fn mark(&mut self, held: Option<Revision>, marker: &Marker) -> Result<(), Refusal> {
        let key = Key::filling();
        let held = match held {
            Some(revision) => Compare::Unchanged(key.clone(), revision),
            None => Compare::Absent(key.clone()),
        };
        let ops = vec![Op::Put { key, value: encode(marker)?, lease: None }];
        match self.store.commit(Txn { compares: vec![held, Compare::Absent(Key::cluster())], ops }).await? {
            Commit::Done(revision) => {
                self.marker = revision;
                Ok(())
            }
            Commit::Conflict => Err(taken()),
        }
    }

    async fn step(&self, ops: Vec<Op>) -> Result<(), Refusal> {
        let compares = vec![Compare::Unchanged(Key::filling(), self.marker)];
        match self.store.commit(Txn { compares, ops }).await? {
            Commit::Done(_) => Ok(()),
            Commit::Conflict => Err(taken()),
        }
    }

    /// Makes the store hold exactly `content`, and reads it back.
    ///
    /// # Errors
    /// If the store cannot be written, or holds something else afterwards. It can be gone on with then.
    pub async fn write(&self, content: &Content) -> Result<(), Refusal> {
        let (mut ops, mut bytes) = (Vec::new(), 0usize);
        for op in self.difference(content).await? {
            let size = match &op {
                Op::Put { value, .. } => value.len(),
                Op::Delete { .. } => 0,
            };
            if ops.len() >= OPS_AT_ONCE || !ops.is_empty() && bytes.saturating_add(size) > BYTES_AT_ONCE {
                self.step(std::mem::take(&mut ops)).await?;
                bytes = 0;
            }
            bytes = bytes.saturating_add(size);
            ops.push(op);
        }
        if !ops.is_empty() {
            self.step(ops).await?;
        }
        match self.difference(content).await?.first() {
            None => Ok(()),
            Some(op) => Err(Refusal::Store(format!("the store does not hold what was written to it: {}", op.key()))),
        }
    }

    /// What leads from what is there to `content`.
    async fn difference(&self, content: &Content) -> Result<Vec<Op>, Refusal> {
        let found = self.store.list(&Key::root()).await?;
        let held: Content = ours(found.entries)
            .filter(|entry| Place::of(&entry.key) != Place::Filling)
            .map(|entry| (entry.key, entry.value))
            .collect();
        let strangers = held.keys().filter(|key| !content.contains_key(*key));
        let deletes = strangers.map(|key| Op::Delete { key: key.clone() });
        let news = content.iter().filter(|(key, value)| held.get(*key) != Some(*value));
        let puts = news.map(|(key, value)| Op::Put { key: key.clone(), value: value.clone(), lease: None });
        Ok(deletes.chain(puts).collect())
    }

    /// Makes it a cluster, with what else belongs to that instant.
    ///
    /// # Errors
    /// [`Refusal::InDoubt`] if nobody knows whether it is one now.
    pub async fn seal(self, cluster: &Cluster, mut with: Vec<Op>) -> Result<(), Refusal> {
        let value = encode(cluster)?;
        with.push(Op::Put { key: Key::cluster(), value: value.clone(), lease: None });
        with.push(Op::Delete { key: Key::filling() });
        let compares = vec![Compare::Unchanged(Key::filling(), self.marker), Compare::Absent(Key::cluster())];
        match self.store.commit(Txn { compares, ops: with }).await {
            Ok(Commit::Done(_)) => Ok(()),
            Ok(Commit::Conflict) => Err(taken()),
            Err(error @ StoreError::Unavailable(_)) => match self.store.get(&Key::cluster()).await {
                Ok(Some(entry)) if entry.value == value => Ok(()),
                _ => Err(Refusal::InDoubt(error.to_string())),
            },
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether `cluster` was sealed in this store. If not, it cannot be any more by whoever was about to.
///
/// # Errors
/// If the store cannot be asked.
pub async fn settle(store: &SharedStore, cluster: &Cluster) -> Result<bool, StoreError> {
    loop {
        if let Some(entry) = store.get(&Key::cluster()).await? {
            return Ok(decode::<Cluster>(&entry)?.meta.id == cluster.meta.id);
        }
        let Some(marker) = store.get(&Key::filling()).await? else { return Ok(false) };
        // Written anew it has another revision, and the seal that was on its way does not fit any more.
        let txn = Txn {
            compares: vec![Compare::Unchanged(Key::filling(), marker.revision), Compare::Absent(Key::cluster())],
            ops: vec![Op::Put { key: Key::filling(), value: marker.value, lease: None }],
        };
        if let Commit::Done(_) = store.commit(txn).await? {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests;
