//! A door that many pass at once, and that can be shut to be alone behind it.
//!
//! Whoever passes never waits on the way through: a shut door says so, and leaves it to the caller to wait or to come
//! back when called. Used where writes in flight must end before something may happen that they would spoil.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Set in the count while the door is shut.
const SHUT: usize = 1 << (usize::BITS - 1);

/// Called once when the door has been opened.
type Call = Box<dyn FnOnce() + Send>;

/// See the module. The count of those inside, and whether the door is shut, are one number.
#[derive(Default)]
pub struct WriteGate {
    inside: AtomicUsize,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    calls: VecDeque<Call>,
    /// Somebody holds the door shut.
    shut: bool,
}

/// Leave to be inside; given back when dropped.
pub struct Pass(Arc<WriteGate>);

/// The door stays shut until this is dropped.
pub struct Shut(Arc<WriteGate>);

impl WriteGate {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Goes in, unless the door is shut.
    pub fn enter(self: &Arc<Self>) -> Option<Pass> {
        if self.inside.fetch_add(1, Ordering::SeqCst) & SHUT == 0 {
            return Some(Pass(Arc::clone(self)));
        }
        self.leave();
        None
    }

    /// As [`Self::enter`]; if the door is shut, `call` is called when it opens.
    pub fn enter_or_call(self: &Arc<Self>, call: impl FnOnce() + Send + 'static) -> Option<Pass> {
        if let Some(pass) = self.enter() {
            return Some(pass);
        }
        let mut waiting = self.lock();
        if !waiting.shut
            && let Some(pass) = self.enter()
        {
            return Some(pass);
        }
        waiting.calls.push_back(Box::new(call));
        None
    }

    /// Goes in, waiting for the door to open first if need be.
    pub fn wait_in(self: &Arc<Self>) -> Pass {
        loop {
            if let Some(pass) = self.enter() {
                return pass;
            }
            let waiting = self.lock();
            if waiting.shut {
                drop(self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    /// Shuts the door and returns when nobody is inside any more. One at a time: others wait for their turn.
    pub fn shut(self: &Arc<Self>) -> Shut {
        let far = Instant::now() + Duration::from_secs(u32::MAX.into());
        loop {
            if let Some(shut) = self.shut_by(far) {
                return shut;
            }
        }
    }

    /// As [`Self::shut`]; `None` if that took longer than to the deadline, and then the door is open again.
    pub fn shut_by(self: &Arc<Self>, deadline: Instant) -> Option<Shut> {
        let mut waiting = self.lock();
        while waiting.shut {
            waiting = self.wait_until(waiting, deadline)?;
        }
        waiting.shut = true;
        self.inside.fetch_or(SHUT, Ordering::SeqCst);
        drop(waiting);
        // Opens the door again on every way out.
        let shut = Shut(Arc::clone(self));
        let mut waiting = self.lock();
        while self.inside.load(Ordering::SeqCst) != SHUT {
            waiting = self.wait_until(waiting, deadline)?;
        }
        drop(waiting);
        Some(shut)
    }

    fn wait_until<'a>(&self, waiting: MutexGuard<'a, Waiting>, deadline: Instant) -> Option<MutexGuard<'a, Waiting>> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        Some(self.changed.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    fn leave(&self) {
        // The last one out tells whoever shut the door; the lock keeps the word from being lost.
        if self.inside.fetch_sub(1, Ordering::SeqCst) == SHUT | 1 {
            drop(self.lock());
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for WriteGate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inside = self.inside.load(Ordering::Relaxed);
        write!(f, "WriteGate({} inside, shut: {})", inside & !SHUT, inside & SHUT != 0)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Drop for Shut {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.shut = false;
        self.0.inside.fetch_and(!SHUT, Ordering::SeqCst);
        let calls = std::mem::take(&mut waiting.calls);
        drop(waiting);
        self.0.changed.notify_all();
        calls.into_iter().for_each(|call| call());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn nobody_is_inside_while_the_door_is_shut() {
        let gate = WriteGate::new();
        let alone = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let _pass = gate.wait_in();
                        assert!(!alone.load(Ordering::SeqCst));
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _shut = gate.shut();
                        assert!(!alone.swap(true, Ordering::SeqCst));
                        std::thread::yield_now();
                        alone.store(false, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(gate.enter().is_some());
    }

    #[test]
    fn who_found_the_door_shut_is_called_when_it_opens_and_a_deadline_opens_it_too() {
        let gate = WriteGate::new();
        let pass = gate.enter();
        assert!(gate.shut_by(Instant::now()).is_none(), "somebody is inside");
        drop(pass);
        let shut = gate.shut();
        let called = Arc::new(AtomicBool::new(false));
        let bell = Arc::clone(&called);
        assert!(gate.enter_or_call(move || bell.store(true, Ordering::SeqCst)).is_none());
        assert!(!called.load(Ordering::SeqCst));
        drop(shut);
        assert!(called.load(Ordering::SeqCst) && gate.enter().is_some());
    }
}
