//! A watch: etcd's responses, regrouped so that a batch is exactly one commit.
//!
//! A response holds whole revisions, in order, one or many: it is never fragmented, because that is not asked for.

use super::{Keyspace, endpoints::Endpoints, failure::Failure};
use crate::store::{Batch, Event, Revision, StoreError};
use etcd_client::{KeyValue, WatchResponse, WatchStream};
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio_stream::Stream;

pub(super) struct Watcher {
    responses: WatchStream,
    keyspace: Keyspace,
    /// What was received and not yet handed out.
    waiting: VecDeque<Batch>,
    /// The last revision received.
    place: Revision,
    end: Option<StoreError>,
    ended: bool,
    endpoints: Arc<Endpoints>,
    /// Where the stream comes from; to be left when it breaks.
    origin: usize,
}

impl Watcher {
    pub fn new(
        responses: WatchStream,
        keyspace: Keyspace,
        after: Revision,
        endpoints: Arc<Endpoints>,
        origin: usize,
    ) -> Self {
        let waiting = VecDeque::new();
        Self { responses, keyspace, waiting, place: after, end: None, ended: false, endpoints, origin }
    }

    fn receive(&mut self, response: &WatchResponse) {
        let changes = response.events().iter().filter_map(|event| event.kv());
        for batch in regroup(changes.filter_map(|kv| change(&self.keyspace, kv))) {
            if batch.revision > self.place {
                self.place = batch.revision;
                self.waiting.push_back(batch);
            }
        }
        if response.compact_revision() > 0 {
            self.end = Some(StoreError::Compacted(Revision(response.compact_revision())));
        } else if response.canceled() {
            self.break_off(format!("etcd cancelled the watch: {}", response.cancel_reason()));
        }
    }

    fn break_off(&mut self, reason: String) {
        self.endpoints.leave(self.origin);
        self.end = Some(StoreError::Unavailable(reason));
    }
}

/// One change and its revision; none of a key that cannot be ours.
fn change(keyspace: &Keyspace, kv: &KeyValue) -> Option<(Revision, Event)> {
    let key = keyspace.key(kv.key())?;
    // "A deletion resets the version to zero and any modification of the key increases its version" (mvccpb).
    let event = if kv.version() == 0 { Event::Delete(key) } else { Event::Put(super::entry(key, kv)) };
    Some((Revision(kv.mod_revision()), event))
}

/// Neighbours of one revision become one batch.
fn regroup(changes: impl Iterator<Item = (Revision, Event)>) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for (revision, event) in changes {
        match batches.last_mut() {
            Some(batch) if batch.revision == revision => batch.events.push(event),
            _ => batches.push(Batch { revision, events: vec![event] }),
        }
    }
    batches
}

impl Stream for Watcher {
    type Item = Result<Batch, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(batch) = self.waiting.pop_front() {
                return Poll::Ready(Some(Ok(batch)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            if let Some(error) = self.end.take() {
                self.ended = true;
                return Poll::Ready(Some(Err(error)));
            }
            match ready!(Pin::new(&mut self.responses).poll_next(cx)) {
                Some(Ok(response)) => self.receive(&response),
                Some(Err(error)) => match Failure::from(error).into_store_error() {
                    StoreError::Unavailable(reason) => self.break_off(reason),
                    other => self.end = Some(other),
                },
                None => self.break_off("etcd closed the watch".into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Key;

    #[test]
    fn what_shares_a_revision_becomes_one_batch_in_order() {
        let delete = |revision, key: &str| (Revision(revision), Event::Delete(Key::raw(key)));
        let batches = regroup([delete(3, "/b"), delete(3, "/a"), delete(5, "/c"), delete(6, "/c")].into_iter());
        let shape: Vec<_> = batches.iter().map(|batch| (batch.revision.0, batch.events.len())).collect();
        assert_eq!(shape, [(3, 2), (5, 1), (6, 1)]);
        assert_eq!(batches[0].events[0].key(), &Key::raw("/b"));
        assert!(regroup(std::iter::empty()).is_empty());
    }
}
