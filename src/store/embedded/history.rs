//! The recent past: what watchers are told, kept in memory within bounds.
//!
//! Each revision that changed something has exactly one batch here, so the batches are numbered without gaps. A
//! watcher holds nothing but its place; one that falls behind what is kept is told so and lists again.

use crate::store::{Batch, Event, Key, Revision, StoreError};
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};
use tokio::sync::watch;
use tokio_stream::{Stream, wrappers::WatchStream};

/// How much of the past is kept, whichever is reached first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub batches: usize,
    pub bytes: usize,
}

#[derive(Debug)]
pub(super) struct History {
    bounds: Bounds,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    /// The batches of `floor + 1`, `floor + 2` … without gaps.
    floor: Revision,
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
}

enum Next {
    Batch(Arc<Batch>),
    NotYet,
    Lost(Revision),
}

impl Kept {
    fn latest(&self) -> Revision {
        self.batches.back().map_or(self.floor, |batch| batch.revision)
    }

    fn after(&self, place: Revision) -> Next {
        let Some(skip) = place.0.checked_sub(self.floor.0).and_then(|n| usize::try_from(n).ok()) else {
            return Next::Lost(self.floor);
        };
        self.batches.get(skip).cloned().map_or(Next::NotYet, Next::Batch)
    }
}

impl History {
    /// Nothing before `revision` is known.
    pub fn new(bounds: Bounds, revision: Revision) -> Self {
        Self { bounds, kept: Mutex::new(Kept { floor: revision, batches: VecDeque::new(), bytes: 0 }) }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn latest(&self) -> Revision {
        self.kept().latest()
    }

    /// Adds what has become durable, in order.
    pub fn push(&self, batches: Vec<Batch>) {
        let mut kept = self.kept();
        for batch in batches {
            kept.bytes = kept.bytes.saturating_add(size(&batch));
            kept.batches.push_back(Arc::new(batch));
            while kept.batches.len() > self.bounds.batches || kept.bytes > self.bounds.bytes {
                let Some(oldest) = kept.batches.pop_front() else { break };
                kept.bytes = kept.bytes.saturating_sub(size(&oldest));
                kept.floor = oldest.revision;
            }
        }
    }

    /// Forgets everything: the store is at `revision`, and how it got there is not known.
    pub fn restart(&self, revision: Revision) {
        *self.kept() = Kept { floor: revision, batches: VecDeque::new(), bytes: 0 };
    }
}

/// Roughly what a batch occupies, in bytes.
fn size(batch: &Batch) -> usize {
    let event = |event: &Event| match event {
        Event::Put(entry) => entry.key.as_str().len() + entry.value.len() + size_of::<Event>(),
        Event::Delete(key) => key.as_str().len() + size_of::<Event>(),
    };
    batch.events.iter().map(event).fold(size_of::<Batch>(), usize::saturating_add)
}

/// One watcher's place in the history.
pub(super) struct Watcher {
    history: Arc<History>,
    /// Changes with every publication, and closes with the store.
    published: WatchStream<Revision>,
    prefix: Key,
    place: Revision,
    ended: bool,
}

impl Watcher {
    pub fn new(history: Arc<History>, published: watch::Receiver<Revision>, prefix: Key, after: Revision) -> Self {
        Self { history, published: WatchStream::new(published), prefix, place: after, ended: false }
    }

    fn end(&mut self, error: StoreError) -> Poll<Option<Result<Batch, StoreError>>> {
        self.ended = true;
        Poll::Ready(Some(Err(error)))
    }

    /// What of `batch` lies under the watched prefix.
    fn visible(&self, batch: &Batch) -> Option<Batch> {
        let events: Vec<_> = batch.events.iter().filter(|event| self.prefix.covers(event.key())).cloned().collect();
        (!events.is_empty()).then_some(Batch { revision: batch.revision, events })
    }
}

impl Stream for Watcher {
    type Item = Result<Batch, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            let next = self.history.kept().after(self.place);
            match next {
                Next::Lost(floor) => return self.end(StoreError::Compacted(floor)),
                Next::Batch(batch) => {
                    self.place = batch.revision;
                    if let Some(batch) = self.visible(&batch) {
                        return Poll::Ready(Some(Ok(batch)));
                    }
                }
                Next::NotYet => {
                    if ready!(Pin::new(&mut self.published).poll_next(cx)).is_none() {
                        return self.end(StoreError::Unavailable("it was closed".into()));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt;

    fn batch(revision: i64, key: &str) -> Batch {
        Batch { revision: Revision(revision), events: vec![Event::Delete(Key::raw(key))] }
    }

    struct Fixture {
        history: Arc<History>,
        publish: watch::Sender<Revision>,
    }

    impl Fixture {
        fn new(batches: usize, bytes: usize) -> Self {
            let history = Arc::new(History::new(Bounds { batches, bytes }, Revision(10)));
            Self { history, publish: watch::Sender::new(Revision(10)) }
        }

        fn push(&self, batch: Batch) {
            self.history.push(vec![batch]);
            self.publish.send_replace(self.history.latest());
        }

        fn watch(&self, prefix: &str, after: i64) -> Watcher {
            Watcher::new(self.history.clone(), self.publish.subscribe(), Key::raw(prefix), Revision(after))
        }
    }

    #[tokio::test]
    async fn a_watcher_sees_its_prefix_from_its_place_and_then_the_end() {
        let fixture = Fixture::new(100, 1 << 20);
        fixture.push(batch(11, "/a/1"));
        let (mut all, mut late) = (fixture.watch("/a/", 10), fixture.watch("/a/", 11));
        fixture.push(batch(12, "/b/1"));
        fixture.push(batch(13, "/a/2"));
        assert_eq!(all.next().await, Some(Ok(batch(11, "/a/1"))));
        assert_eq!(all.next().await, Some(Ok(batch(13, "/a/2"))));
        assert_eq!(late.next().await, Some(Ok(batch(13, "/a/2"))));
        drop(fixture.publish);
        assert!(matches!(all.next().await, Some(Err(StoreError::Unavailable(_)))));
        assert_eq!(all.next().await, None);
    }

    #[tokio::test]
    async fn whoever_falls_behind_the_bounds_is_told_and_the_bounds_hold() {
        let fixture = Fixture::new(4, 1 << 20);
        let mut slow = fixture.watch("/", 10);
        for revision in 11..=20 {
            fixture.push(batch(revision, "/k"));
        }
        assert_eq!(fixture.history.kept().batches.len(), 4);
        assert_eq!(slow.next().await, Some(Err(StoreError::Compacted(Revision(16)))));
        assert_eq!(fixture.watch("/", 16).next().await, Some(Ok(batch(17, "/k"))));

        let small = Fixture::new(100, 3 * size(&batch(0, "/k")));
        (11..=20).for_each(|revision| small.push(batch(revision, "/k")));
        assert_eq!(small.history.kept().batches.len(), 3);
    }

    #[tokio::test]
    async fn a_restart_leaves_only_those_who_missed_nothing() {
        let fixture = Fixture::new(100, 1 << 20);
        fixture.push(batch(11, "/k"));
        let (mut behind, mut level) = (fixture.watch("/", 11), fixture.watch("/", 12));
        fixture.history.restart(Revision(12));
        fixture.push(batch(13, "/k"));
        assert_eq!(behind.next().await, Some(Err(StoreError::Compacted(Revision(12)))));
        assert_eq!(level.next().await, Some(Ok(batch(13, "/k"))));
    }
}
