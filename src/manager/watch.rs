//! Following the store: the watch that keeps the view up to date, and the start over where it was interrupted.
//!
//! Whatever is read anew is held against what is remembered first: a state that was put back in time is announced before
//! anybody sees it (see [`super::history`]). A store that suddenly holds nothing, or another cluster, is not believed:
//! the view stays, and is stale.

use super::enrollment::new_service;
use super::history::{self, Memory};
use super::member::{Member, Stranded};
use super::view::{Sign, View};
use crate::model::{Membership, Service, ServiceId, ServiceType};
use crate::runtime::{Backoff, Clock, VERSION};
use crate::store::{Key, Revision, SharedStore, StoreError};
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio_stream::StreamExt;

/// How often what is remembered is written down at the most.
const REMEMBER_EVERY: Duration = Duration::from_secs(1);

/// Why the watch ended.
enum Interrupted {
    /// To be begun again where it ended.
    Watch(StoreError),
    /// To be begun anew from a listing, and why.
    Gap(&'static str),
}

/// Keeps the view up to date for ever: watches, and starts over from a listing after a gap.
pub async fn follow_store(member: Arc<Member>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let mut after = member.view.read().revision;
    loop {
        let began = after;
        let interrupted = follow(&member, &mut after).await;
        if after != began {
            backoff.reset();
        }
        member.view.miss(Sign::Watch, member.clock.wall());
        match interrupted {
            Interrupted::Watch(error) => tracing::warn!(%error, "the watch on the store is interrupted"),
            Interrupted::Gap(reason) => match start_over(&member).await {
                Ok(revision) => {
                    tracing::warn!(reason, "the view starts over from a listing of the store");
                    after = revision;
                }
                Err(error) => tracing::warn!(%error, reason, "the view cannot start over yet"),
            },
        }
        tokio::time::sleep(backoff.next(fastrand::f64())).await;
    }
}

async fn follow(member: &Member, after: &mut Revision) -> Interrupted {
    let interrupted = |error| match error {
        StoreError::Compacted(_) => Interrupted::Gap("its history does not reach back to where the watch ended"),
        error => Interrupted::Watch(error),
    };
    let mut watch = match member.store.watch(&Key::root(), *after).await {
        Ok(watch) => watch,
        Err(error) => return interrupted(error),
    };
    // With the watch open: it ends if the store is put back from now on.
    let latest = member.view.read().last_event();
    if let Some((revision, id)) = latest {
        match member.store.get(&Key::event(id)).await {
            Ok(Some(entry)) if entry.revision == revision => {}
            Ok(_) => return Interrupted::Gap("a change that it held is not in it any more"),
            Err(error) => return interrupted(error),
        }
    }
    let epoch = member.view.read().epoch();
    // A watch that cannot begin says so at once.
    let mut first = std::future::poll_fn(|cx| Poll::Ready(watch.as_mut().poll_next(cx))).await;
    if !matches!(first, Poll::Ready(Some(Err(_)) | None)) {
        member.view.see(Sign::Watch);
    }
    loop {
        let next = match std::mem::replace(&mut first, Poll::Pending) {
            Poll::Ready(next) => next,
            Poll::Pending => watch.next().await,
        };
        match next {
            Some(Ok(batch)) => {
                *after = batch.revision;
                member.view.apply(batch);
                // Somebody else saw what this manager could not: part of what it shows may be of a lost history.
                if member.view.read().epoch() != epoch {
                    return Interrupted::Gap("a new history of the state began");
                }
            }
            Some(Err(error)) => return interrupted(error),
            None => return Interrupted::Watch(StoreError::Unavailable("the watch ended".into())),
        }
    }
}

/// Reads everything anew; the revision to watch from.
async fn start_over(member: &Member) -> Result<Revision, StoreError> {
    let (memory, own) = {
        let view = member.view.read();
        (Memory::of(&view), view.get::<Service>(member.service).cloned())
    };
    let cluster = member.cluster.meta.id;
    let own = own.filter(|own| !own.meta.is_removed());
    let found = read(&member.store, memory.as_ref(), own.as_ref(), member.service, member.clock.as_ref()).await?;
    let revision = found.revision;
    match &found.cluster {
        Some(found) if found.meta.id == cluster => {}
        Some(found) => {
            let text = format!("it holds another cluster now, '{}' ({})", found.meta.name, found.meta.id);
            return Err(StoreError::Damaged(text));
        }
        None => return Err(StoreError::Damaged("it holds no cluster any more".into())),
    }
    member.view.replace(found);
    Ok(revision)
}

/// The state as it is, in a new history if it contradicts what is remembered, and with `own` in it if that is why it
/// was not.
async fn read(
    store: &SharedStore,
    memory: Option<&Memory>,
    own: Option<&Service>,
    service: ServiceId,
    clock: &dyn Clock,
) -> Result<View, StoreError> {
    loop {
        let found = View::load(store.list(&Key::root()).await?);
        let Some(memory) = memory else { return Ok(found) };
        if let Some(reason) = memory.contradicted_by(&found) {
            history::begin(store, &found, memory.mark.epoch, &reason, service, clock.wall()).await?;
            continue;
        }
        let rewound = found.history().floor() > memory.mark.epoch;
        let known = found.cluster.as_ref().is_some_and(|cluster| cluster.meta.id == memory.cluster);
        match own {
            Some(own) if rewound && known && !found.services.contains_key(&service) => {
                history::readmit(store, &found, own).await?;
            }
            _ => return Ok(found),
        }
    }
}

/// The state at a manager's start, held against what it remembers from before.
///
/// # Errors
/// If the store or what is remembered cannot be read.
pub async fn settle(
    store: &SharedStore,
    service: ServiceId,
    directory: &Path,
    membership: &Membership,
    clock: &dyn Clock,
) -> Result<View, Stranded> {
    let memory = history::recall(directory)?.filter(|memory| memory.cluster == membership.cluster);
    let host_name = crate::host::host_name().unwrap_or_else(|_| "unknown".into());
    let own = new_service(service, ServiceType::Manager, host_name, VERSION.into(), clock.wall());
    Ok(read(store, memory.as_ref(), Some(&own), service, clock).await?)
}

/// Writes down how far the store has come, at times and at the end, for the next start.
pub async fn remember(member: Arc<Member>) {
    let mut changes = member.view.changes();
    let mut written = None;
    loop {
        changes.mark_unchanged();
        let memory = Memory::of(&member.view.read());
        if let Some(memory) = memory
            && written.as_ref() != Some(&memory)
        {
            let path = history::path(&member.directory);
            let saved =
                tokio::task::spawn_blocking(move || crate::host::save_document(&path, &memory).map(|()| memory));
            match saved.await {
                Ok(Ok(memory)) => written = Some(memory),
                Ok(Err(error)) => tracing::warn!(%error, "cannot write down how far the store has come"),
                Err(error) => tracing::error!(%error, "writing down how far the store has come panicked"),
            }
        }
        if member.group.is_requested() {
            return;
        }
        let due = async {
            // Its sender lives in the member.
            if changes.changed().await.is_ok() {
                tokio::time::sleep(REMEMBER_EVERY).await;
            }
        };
        tokio::select! {
            () = due => {}
            () = member.group.requested() => {}
        }
    }
}
