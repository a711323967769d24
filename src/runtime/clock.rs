//! Time as an argument.

use crate::model::Timestamp;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

/// Where a component gets the time from.
pub trait Clock: Send + Sync + 'static {
    /// Monotonic; for deadlines.
    fn now(&self) -> Instant;
    /// Wall clock; only to be shown and stored.
    fn wall(&self) -> Timestamp;
}

#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_system(SystemTime::now())
    }
}

/// A clock that moves only when told, for tests and simulation.
#[derive(Debug)]
pub struct ManualClock(Mutex<(Instant, Timestamp)>);

impl ManualClock {
    pub fn new() -> Self {
        Self(Mutex::new((Instant::now(), Timestamp::from_millis(1_700_000_000_000))))
    }

    pub fn advance(&self, by: Duration) {
        let mut time = self.lock();
        time.0 += by;
        time.1 = Timestamp::from_millis(time.1.as_millis().saturating_add(by.as_millis() as u64));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Instant, Timestamp)> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.lock().0
    }

    fn wall(&self) -> Timestamp {
        self.lock().1
    }
}
