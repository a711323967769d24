//! One export's limits at work: the rules of [`Throttle`] with a clock, for many threads.
//!
//! An export without limits costs its connections one look at a flag.

use super::limits::{Member, Throttle, Verdict};
use crate::model::Limits;
use crate::runtime::Clock;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Calls whoever waits, from any thread: it is to ask again. Must not block.
pub(super) type Waker = Arc<dyn Fn() + Send + Sync>;

pub(super) struct Quota {
    clock: Arc<dyn Clock>,
    /// The zero of the rules' times.
    origin: Instant,
    limited: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    limits: Limits,
    throttle: Throttle,
    /// By the numbers of members.
    wakers: HashMap<u64, Waker>,
}

/// One connection's hold on the quota; to be given back with [`Quota::leave`].
pub(super) struct Ration {
    member: Member,
    /// It is in the queue.
    waits: bool,
}

impl Quota {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let (limited, state, changed) = (AtomicBool::new(false), Mutex::default(), Condvar::new());
        Self { origin: clock.now(), clock, limited, state, changed }
    }

    /// A connection comes. Its waker, if any, is called when what it was told to wait for may have come nearer.
    pub(super) fn join(&self, waker: Option<Waker>) -> Ration {
        let mut state = self.lock();
        let member = state.throttle.join();
        if let Some(waker) = waker {
            state.wakers.insert(member.number(), waker);
        }
        Ration { member, waits: false }
    }

    pub(super) fn leave(&self, ration: &mut Ration) {
        let mut state = self.lock();
        let waker = state.wakers.remove(&ration.member.number());
        let earlier = std::mem::take(&mut ration.waits) && state.throttle.withdraw(&ration.member);
        drop(state);
        drop(waker);
        if earlier {
            self.wake();
        }
    }

    /// Asks for one operation that moves so many bytes; how long it has to wait before [`Self::ask_again`] makes sense,
    /// if it has to.
    pub(super) fn ask(&self, ration: &mut Ration, bytes: u64) -> Option<Duration> {
        if !self.limited.load(Ordering::Relaxed) {
            return None;
        }
        let mut state = self.lock();
        let now = self.now();
        let verdict = state.throttle.ask(&mut ration.member, bytes, now);
        let left = left(verdict, now);
        ration.waits = left.is_some();
        left
    }

    /// As [`Self::ask`], for what had to wait.
    pub(super) fn ask_again(&self, ration: &mut Ration) -> Option<Duration> {
        let mut state = self.lock();
        self.ask_again_in(&mut state, ration)
    }

    fn ask_again_in(&self, state: &mut State, ration: &mut Ration) -> Option<Duration> {
        let now = self.now();
        let left = left(state.throttle.ask_again(&mut ration.member, now), now);
        ration.waits = left.is_some();
        left
    }

    /// Lets what waits go without waiting any longer, as if it had never asked.
    pub(super) fn waive(&self, ration: &mut Ration) {
        if std::mem::take(&mut ration.waits) && self.lock().throttle.withdraw(&ration.member) {
            self.wake();
        }
    }

    /// Blocks until what waits may begin, or nobody wants it any more: `over` is asked again after every
    /// [`Self::wake`].
    pub(super) fn wait(&self, ration: &mut Ration, over: impl Fn() -> bool) {
        let mut state = self.lock();
        loop {
            if over() {
                drop(state);
                return self.waive(ration);
            }
            let Some(left) = self.ask_again_in(&mut state, ration) else { return };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Other limits from now on, for those too who wait.
    pub(super) fn set(&self, limits: Limits) {
        let mut state = self.lock();
        if state.limits == limits {
            return;
        }
        state.limits = limits;
        let now = self.now();
        state.throttle.set(&limits, now);
        self.limited.store(!limits.is_none(), Ordering::Relaxed);
        drop(state);
        self.wake();
    }

    pub(super) fn limits(&self) -> Limits {
        self.lock().limits
    }

    /// Connections that have to wait now.
    pub(super) fn waiting(&self) -> usize {
        self.lock().throttle.queue().count()
    }

    /// Has everybody who waits look again: at the time, and at whether it still wants what it waits for.
    pub(super) fn wake(&self) {
        let state = self.lock();
        let wakers: Vec<Waker> =
            state.throttle.queue().filter_map(|number| state.wakers.get(&number).cloned()).collect();
        drop(state);
        self.changed.notify_all();
        wakers.iter().for_each(|waker| waker());
    }

    fn now(&self) -> u64 {
        let since = self.clock.now().saturating_duration_since(self.origin);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn left(verdict: Verdict, now: u64) -> Option<Duration> {
    match verdict {
        Verdict::Go => None,
        Verdict::Wait(until) => Some(Duration::from_nanos(until.saturating_sub(now))),
    }
}
