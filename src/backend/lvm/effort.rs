//! Work that takes as long as a volume or a room is large: how far it has come, and how it is ended before its end.

use super::lock;
use crate::model::{AssignedId, ByteSize, Progress};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What is done for one volume, or one snapshot.
#[derive(Debug, Default)]
pub struct Effort {
    /// In bytes.
    done: AtomicU64,
    of: AtomicU64,
    abandoned: AtomicBool,
}

impl Effort {
    /// Has so much more before it.
    pub fn expect(&self, bytes: u64) {
        self.of.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Has done so much more of it.
    ///
    /// # Errors
    /// If it is not to go on.
    pub fn advance(&self, bytes: u64) -> io::Result<()> {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        match self.abandoned.load(Ordering::Relaxed) {
            true => Err(io::Error::new(
                io::ErrorKind::Interrupted,
                "it was ended before its end, since it is wanted no longer",
            )),
            false => Ok(()),
        }
    }

    fn progress(&self) -> Option<Progress> {
        let of = self.of.load(Ordering::Relaxed);
        let done = self.done.load(Ordering::Relaxed).min(of);
        (of > 0).then_some(Progress { done: ByteSize::bytes(done), of: ByteSize::bytes(of) })
    }
}

/// All that is under way in a pool, one at most for each object.
#[derive(Debug, Default)]
pub struct Efforts(Mutex<HashMap<AssignedId, Arc<Effort>>>);

/// An effort as long as it is under way.
#[derive(Debug)]
pub struct Underway<'e> {
    efforts: &'e Efforts,
    on: AssignedId,
    pub effort: Arc<Effort>,
}

impl Efforts {
    /// The caller has its turn on the object.
    pub fn begin(&self, on: impl Into<AssignedId>) -> Underway<'_> {
        let (on, effort) = (on.into(), Arc::new(Effort::default()));
        lock(&self.0).insert(on, Arc::clone(&effort));
        Underway { efforts: self, on, effort }
    }

    pub fn progress(&self) -> Vec<(AssignedId, Progress)> {
        let efforts = lock(&self.0);
        efforts.iter().filter_map(|(on, effort)| Some((*on, effort.progress()?))).collect()
    }

    /// On one object, or on all.
    pub fn abandon(&self, on: Option<AssignedId>) {
        let efforts = lock(&self.0);
        let meant = efforts.iter().filter(|(id, _)| on.is_none_or(|on| on == **id));
        meant.for_each(|(_, effort)| effort.abandoned.store(true, Ordering::Relaxed));
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        lock(&self.efforts.0).remove(&self.on);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{SnapshotId, VolumeId};

    #[test]
    fn an_effort_is_seen_as_long_as_it_lasts_and_ends_at_its_next_step_once_it_is_abandoned() {
        let efforts = Efforts::default();
        let (one, other) = (AssignedId::from(VolumeId::generate()), AssignedId::from(SnapshotId::generate()));
        let (first, second) = (efforts.begin(one), efforts.begin(other));
        assert!(efforts.progress().is_empty(), "nothing long is before them");
        first.effort.expect(10);
        first.effort.advance(4).unwrap();
        let seen = Progress { done: ByteSize::bytes(4), of: ByteSize::bytes(10) };
        assert_eq!(efforts.progress(), [(one, seen)]);
        efforts.abandon(Some(one));
        assert_eq!(first.effort.advance(1).unwrap_err().kind(), io::ErrorKind::Interrupted);
        second.effort.advance(1).unwrap();
        drop(first);
        let again = efforts.begin(one);
        again.effort.advance(1).unwrap();
        efforts.abandon(None);
        assert!(again.effort.advance(1).is_err() && second.effort.advance(1).is_err());
    }
}
