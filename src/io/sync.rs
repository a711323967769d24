//! Durability: one sync at a time, shared by all who wait for it, and a failure that is never forgotten.
//!
//! A kernel reports a failed write-back once and then forgets it, having dropped the pages. Whoever syncs next would
//! be told that all is well. Here the first failure is the answer to every sync from then on.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Lets many threads share syncs: a sync covers every caller that asked before it began.
#[derive(Debug, Default)]
pub(super) struct SyncOnce {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    begun: u64,
    ended: u64,
    running: bool,
    failure: Option<Failure>,
}

#[derive(Clone, Debug)]
struct Failure {
    code: Option<i32>,
    kind: io::ErrorKind,
    text: String,
}

impl Failure {
    fn remember(error: &io::Error) -> Self {
        Self { code: error.raw_os_error(), kind: error.kind(), text: error.to_string() }
    }

    /// The operating system's number survives, so that a full disk stays a full disk.
    fn again(&self) -> io::Error {
        match self.code {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(self.kind, self.text.clone()),
        }
    }
}

impl SyncOnce {
    /// Returns when a `sync` that began after this call has succeeded; `sync` runs in one of the waiting threads.
    pub(super) fn sync(&self, sync: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.lock();
        let needed = state.begun + 1;
        loop {
            if let Some(failure) = &state.failure {
                return Err(failure.again());
            }
            if state.ended >= needed {
                return Ok(());
            }
            if state.running {
                state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.running = true;
            state.begun += 1;
            drop(state);
            let outcome = sync();
            state = self.lock();
            state.running = false;
            state.ended = state.begun;
            if let Err(error) = &outcome {
                state.failure = Some(Failure::remember(error));
            }
            self.ended.notify_all();
        }
    }

    /// The answer to every sync from now on. Says whether it is the first one of its kind.
    pub(super) fn remember(&self, error: &io::Error) -> bool {
        let mut state = self.lock();
        let first = state.failure.is_none();
        state.failure.get_or_insert_with(|| Failure::remember(error));
        first
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn a_failure_is_remembered_with_its_number() {
        let syncs = SyncOnce::default();
        assert!(syncs.sync(|| Ok(())).is_ok());
        let full = nix::errno::Errno::ENOSPC as i32;
        let failed = syncs.sync(|| Err(io::Error::from_raw_os_error(full)));
        assert_eq!(failed.map_err(|error| error.raw_os_error()), Err(Some(full)));
        let later = syncs.sync(|| Ok(()));
        assert_eq!(later.map_err(|error| error.raw_os_error()), Err(Some(full)));
    }

    #[test]
    fn a_write_before_the_call_is_covered_by_the_sync_that_answers_it() {
        let syncs = SyncOnce::default();
        let written = AtomicU64::new(0);
        let durable = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
                        let outcome = syncs.sync(|| {
                            let seen = written.load(Ordering::SeqCst);
                            std::thread::yield_now();
                            durable.fetch_max(seen, Ordering::SeqCst);
                            Ok(())
                        });
                        assert!(outcome.is_ok());
                        assert!(durable.load(Ordering::SeqCst) >= mine);
                    }
                });
            }
        });
    }
}
