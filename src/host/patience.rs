//! Work that may hang in the kernel, done aside: the caller waits for it as long as it makes progress and no longer.
//!
//! A thread that waits for a dead device cannot be ended. It is left behind, with a [`Stuck`] that says where it hangs
//! and when it is over; whoever holds that must not repeat what the thread may still be doing.

use super::proc_state::whereabouts;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Work that did not come back in time.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what} {place}")]
pub struct Stuck {
    what: String,
    place: String,
    /// Alive as long as the work is.
    life: Weak<()>,
}

impl Stuck {
    /// `task` is the directory in `/proc` of who is stuck; `life` dies with the work.
    pub(super) fn new(what: impl Into<String>, task: &std::path::Path, life: Weak<()>) -> Self {
        Self { what: what.into(), place: whereabouts(task), life }
    }

    /// The same, said as part of something larger.
    #[must_use]
    pub fn under(self, what: &str) -> Self {
        Self { what: format!("{what} {}", self.what), ..self }
    }

    /// Whether the work has ended after all.
    pub fn is_over(&self) -> bool {
        self.life.strong_count() == 0
    }
}

/// What the work and who waits for it tell each other.
#[derive(Debug, Default)]
pub struct Pulse {
    beats: AtomicU64,
    given_up: AtomicBool,
    thread: AtomicI32,
}

impl Pulse {
    /// Says that there is progress; false once nobody waits any more: the work is to end.
    pub fn beat(&self) -> bool {
        self.beats.fetch_add(1, Ordering::SeqCst);
        !self.given_up.load(Ordering::SeqCst)
    }
}

/// Does `work` on a thread of its own and waits for it; `patience` begins anew with every beat of its [`Pulse`].
///
/// # Errors
/// [`Stuck`], named by `what`, the beginning of a sentence. The work goes on, until it looks at its pulse.
pub fn within<T: Send + 'static>(
    what: impl Into<String>,
    patience: Duration,
    work: impl FnOnce(&Pulse) -> T + Send + 'static,
) -> Result<T, Stuck> {
    let what = what.into();
    let (done, outcome) = mpsc::channel();
    let (pulse, life) = (Arc::new(Pulse::default()), Arc::new(()));
    let (inner, alive) = (Arc::clone(&pulse), Arc::downgrade(&life));
    let spawned = std::thread::Builder::new().name("aside".to_owned()).spawn(move || {
        inner.thread.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst);
        let result = work(&inner);
        drop(life);
        // Nobody may be waiting any more.
        drop(done.send(result));
    });
    if let Err(error) = spawned {
        return Err(Stuck { what, place: format!("could not be begun: {error}"), life: Weak::new() });
    }
    let mut seen = 0;
    loop {
        match outcome.recv_timeout(patience) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Stuck { what, place: "ended by a panic".to_owned(), life: Weak::new() });
            }
            Err(RecvTimeoutError::Timeout) => {
                let beats = pulse.beats.load(Ordering::SeqCst);
                if beats == seen {
                    pulse.given_up.store(true, Ordering::SeqCst);
                    let thread = pulse.thread.load(Ordering::SeqCst);
                    let task = PathBuf::from(format!("/proc/self/task/{thread}"));
                    return Err(Stuck::new(what, &task, alive));
                }
                seen = beats;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn work_that_ends_hands_its_result_over() {
        assert_eq!(within("a sum", LONG, |_| 1 + 1).unwrap(), 2);
    }

    #[test]
    fn work_that_hangs_is_left_behind_and_its_end_is_seen() {
        let (hold, held) = mpsc::channel::<()>();
        let stuck = within("the test", SHORT, move |_| held.recv().is_ok()).unwrap_err();
        assert!(stuck.to_string().starts_with("the test is in state "), "{stuck}");
        assert!(!stuck.is_over());
        drop(hold);
        while !stuck.is_over() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn work_that_makes_progress_is_waited_for_and_learns_when_it_is_not() {
        let barrier = Arc::new(Barrier::new(2));
        let other = Arc::clone(&barrier);
        let stuck = within("the test", SHORT, move |pulse| {
            assert!(pulse.beat());
            other.wait();
            pulse.beat()
        });
        assert!(stuck.is_err());
        barrier.wait();
        let beats = within("beats", SHORT, |pulse| (0..1000).all(|_| pulse.beat()));
        assert!(beats.unwrap());
    }

    #[test]
    fn a_panic_is_an_error_and_not_a_wait_for_ever() {
        let error = within("the test", LONG, |_| {
            if true {
                panic!("on purpose")
            }
        })
        .unwrap_err();
        assert!(error.is_over() && error.to_string().contains("panic"), "{error}");
    }
}
