//! What belongs to an export however often it is published anew: what was counted of it, and what it is limited to.

use super::meter::Meter;
use super::quota::Quota;
use crate::model::{Figures, Limits};
use crate::runtime::{Clock, SystemClock};
use std::sync::Arc;
use std::time::Instant;

/// One export's counts and limits. Whoever publishes the export keeps it.
pub struct Account {
    pub(super) meter: Meter,
    pub(super) quota: Quota,
    clock: Arc<dyn Clock>,
    since: Instant,
}

impl Account {
    /// Nothing counted, nothing limited.
    pub fn new() -> Arc<Self> {
        Self::with_clock(Arc::new(SystemClock))
    }

    /// With another clock for the limits, and for [`Figures::elapsed`].
    pub fn with_clock(clock: Arc<dyn Clock>) -> Arc<Self> {
        let (meter, quota, since) = (Meter::default(), Quota::new(Arc::clone(&clock)), clock.now());
        Arc::new(Self { meter, quota, clock, since })
    }

    /// Limits what clients may ask of the export from now on. Those who have to wait at this moment go as soon as the new
    /// limits allow it.
    pub fn limit(&self, limits: Limits) {
        self.quota.set(limits);
    }

    /// In force.
    pub fn limits(&self) -> Limits {
        self.quota.limits()
    }

    /// All that was counted since this was made.
    pub fn figures(&self) -> Figures {
        let counted = self.meter.figures();
        Figures { elapsed: self.clock.now().saturating_duration_since(self.since), ..counted }
    }

    /// Connections of which a request waits for the limits, now.
    pub fn waiting(&self) -> usize {
        self.quota.waiting()
    }

    /// Whoever waits for the limits looks whether it still wants to.
    pub(super) fn wake(&self) {
        self.quota.wake();
    }
}
