//! A state that became older than it was: how that is seen, what is done about it, and what becomes of every object.
//!
//! It happens when etcd's members are restored from a snapshot beneath running managers, when an older copy takes the
//! place of the embedded store's file, and when a backup is restored.
//!
//! # How it is seen
//!
//! * Every manager remembers, in its config directory and in its view, in which history the state was, up to which
//!   revision, and the latest entry of the record of changes with the revision that wrote it ([`Memory`]). A store that
//!   is in an earlier history or at an earlier revision, or lacks that entry though it holds an older one, was put back.
//!   It is looked for at the start and whenever a watch begins: a store cannot be put back beneath a watch that lasts.
//! * Every block service remembers the last [`Mark`] that it was told and says so when it opens a session. Its word is
//!   believed as far as its own objects go, and no further.
//!
//! A store that was put back while nobody who remembers was running, and has since passed the revision of old, is still
//! seen by the entry that it lacks, unless that has been dropped from the record (10,000 changes later).
//!
//! # What is done
//!
//! One manager begins a new history, in one transaction with the entry `cluster.rewind` in the record: the epoch in
//! `/cluster` is above every one that was known. From then on no plan made on an older view can be committed. All
//! sessions end and open again, exports go on; before a service is given its COMPLETE set, its objects are carried over
//! ([`super::plan::carry_over`]).
//!
//! # What becomes of what
//!
//! The state's word holds again, except where bytes would be lost by it.
//!
//! | object | since then | now |
//! |---|---|---|
//! | any | changed | lifted to a generation above all that devices have seen; the older spec holds |
//! | volume | grown | keeps the size on its device; the state follows, with an entry `volume.resize` |
//! | volume | shrunk | grows again, by zeros |
//! | volume | limits changed | has the older limits |
//! | volume | put back, or shrinking, not known to be done | that order is dropped |
//! | volume | was being moved | stays where the state says that it is; its copy, which may be more than that by now, is an orphan |
//! | volume, snapshot, pool | made | an orphan: no longer served, its data left alone |
//! | volume, snapshot, pool | removed | `failed`, as missing; never made anew |
//! | the same | was being removed | is removed: a tombstone is never taken back |
//! | attachment | made | its client is cut off, and must be attached again |
//! | attachment | ended | stays ended: who was cut off is not let in again, and the record of it goes |
//! | block service | joined | unknown to the cluster: it serves what it holds, and is refused |
//! | block service | removed | a member that is down: remove it again |
//! | manager | joined | takes its place again by itself |
//! | client | removed | its certificate is good again: remove it again |
//! | client | made | its certificate is believed, and there is nothing it may do: make it again under another name |
//! | join token | any | good for nothing: make another one |
//! | authority | exchanged | members that trust only the newer root refuse managers: block services must init anew |

use super::audit;
use super::member::Member;
use super::refusal::Refusal;
use super::view::View;
use crate::host::{Document, DocumentError};
use crate::model::{
    Author, Cluster, ClusterId, Epoch, Event, EventId, Generation, Mark, Service, ServiceId, Timestamp,
};
use crate::session::Greeting;
use crate::store::{Commit, Compare, Key, Op, Revision, SharedStore, StoreError, Txn, encode};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a manager remembers of its store; `memory.json` in its config directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub cluster: ClusterId,
    pub mark: Mark,
    /// The latest entry in the record of changes, and the revision that wrote it.
    latest: Option<(EventId, i64)>,
}

impl Document for Memory {
    const FORMAT: &'static str = "symphony manager memory";
    const VERSION: u32 = 1;
}

impl Memory {
    /// None of a store without a cluster.
    pub fn of(view: &View) -> Option<Self> {
        let latest = view.last_event().map(|(revision, id)| (id, revision.0));
        Some(Self { cluster: view.cluster.as_ref()?.meta.id, mark: view.mark(), latest })
    }

    /// Why the store, as it was just read, cannot have followed from what is remembered; none if it can.
    pub fn contradicted_by(&self, found: &View) -> Option<String> {
        let mark = found.mark();
        if found.cluster.as_ref()?.meta.id != self.cluster || mark.epoch > self.mark.epoch {
            return None;
        }
        if mark.epoch < self.mark.epoch {
            let (epoch, known) = (mark.epoch, self.mark.epoch);
            return Some(format!("the store is in history {epoch} and was in history {known}"));
        }
        if mark.revision < self.mark.revision {
            let (revision, known) = (mark.revision, self.mark.revision);
            return Some(format!("the store is at revision {revision} and was at revision {known}"));
        }
        let (id, revision) = self.latest?;
        let held = found.events.get(&id).map(|held| held.revision.0);
        let unreadable = found.unreadable.contains_key(&Key::event(id));
        // Entries are dropped from the oldest on.
        let dropped = || found.first_event().is_some_and(|(oldest, _)| oldest.0 > revision);
        match held {
            Some(held) if held == revision => None,
            None if unreadable || dropped() => None,
            _ => Some(format!("the store lacks a change that it held at revision {revision}")),
        }
    }
}

/// Begins a new history of the state in `found`, which contradicts what was known up to `known`. Of several managers
/// that do so at once one succeeds; the state is to be read again either way.
///
/// # Errors
/// If the store cannot be written.
pub async fn begin(
    store: &SharedStore,
    found: &View,
    known: Epoch,
    reason: &str,
    manager: ServiceId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (Some(cluster), Some(revision)) = (&found.cluster, found.cluster_revision) else { return Ok(()) };
    let author = Author { who: format!("manager {manager}"), origin: "its memory".into() };
    let rewound = Cluster { history: cluster.history.rewound(known, now, reason.into()), ..cluster.clone() };
    let epoch = rewound.history.epoch;
    let event = rewind_entry(&rewound, now, &author, reason);
    let txn = Txn {
        compares: vec![Compare::Unchanged(Key::cluster(), revision)],
        ops: vec![
            Op::Put { key: Key::cluster(), value: encode(&rewound)?, lease: None },
            Op::Put { key: Key::event(event.id), value: encode(&event)?, lease: None },
        ],
    };
    if let Commit::Done(_) = store.commit(txn).await? {
        tracing::error!(
            %epoch,
            reason,
            "the store was put back in time: a new history begins, all block services are synchronised anew, \
             and nothing is destroyed; see `symphony ctl check` for what is missing and what is an orphan"
        );
    }
    Ok(())
}

/// The entry in the record of changes that tells of a new history.
pub fn rewind_entry(cluster: &Cluster, now: Timestamp, author: &Author, reason: &str) -> Event {
    let (id, name) = (cluster.meta.id, &cluster.meta.name);
    let entry = audit::entry(EventId::generate(), now, author, "cluster.rewind", (None, id, name));
    let detail = Some(format!("{reason}: history {} begins", cluster.history.epoch));
    Event { detail, ..entry }.bounded()
}

/// Puts a member's record back that the state does not know yet.
///
/// # Errors
/// If the store cannot be written.
pub async fn readmit(store: &SharedStore, found: &View, record: &Service) -> Result<(), StoreError> {
    let Some(revision) = found.cluster_revision else { return Ok(()) };
    let key = Key::service(record.meta.id);
    let txn = Txn {
        compares: vec![Compare::Unchanged(Key::cluster(), revision), Compare::Absent(key.clone())],
        ops: vec![Op::Put { key, value: encode(record)?, lease: None }],
    };
    if let Commit::Done(_) = store.commit(txn).await? {
        tracing::warn!(service = %record.meta.id, "this manager takes its place again, which the older state did not know");
    }
    Ok(())
}

/// The history to which a service's objects are to be lifted before it hears of them, and why.
///
/// # Errors
/// If the store cannot be read.
pub async fn floor_for(member: &Member, greeting: &Greeting) -> Result<(Epoch, String), Refusal> {
    let (history, shown, written) = {
        let view = member.view.read();
        (view.history(), view.mark(), view.cluster_revision)
    };
    let reason = history.rewound.as_ref().map(|rewind| rewind.reason.clone()).unwrap_or_default();
    let own = greeting.mark;
    if own <= shown {
        return Ok((history.floor(), reason));
    }
    // This view may lag; the store itself does not.
    let listing = member.store.list(&Key::cluster()).await?;
    let Revision(revision) = listing.revision;
    if listing.entries.first().map(|entry| entry.revision) != written {
        return Err(Refusal::Store("this manager's view is behind the store".into()));
    }
    if own <= (Mark { epoch: shown.epoch, revision }) {
        return Ok((history.floor(), reason));
    }
    let reason = format!(
        "it was told of revision {} in history {}, and the store is at revision {revision} in history {}",
        own.revision, own.epoch, shown.epoch
    );
    tracing::error!(service = %greeting.service, reason, "a block service knows of a later state than the store");
    Ok((history.floor().max(own.epoch.next()), reason))
}

/// Where a manager's memory lies.
pub fn path(directory: &Path) -> PathBuf {
    directory.join("memory.json")
}

/// What is remembered, if it can be read: one that is damaged is worth nothing, and is written anew.
///
/// # Errors
/// If the disk does not answer.
pub fn recall(directory: &Path) -> Result<Option<Memory>, DocumentError> {
    match crate::host::load_document::<Memory>(&path(directory)) {
        Err(error) if error.is_damage() => {
            tracing::warn!(%error, "what this manager remembers of its store cannot be read");
            Ok(None)
        }
        other => other,
    }
}

/// The first generation of what is made in the state's present history.
pub fn first_generation(view: &View) -> Generation {
    Generation::floor(view.history().floor()).next()
}

#[cfg(test)]
mod tests;
