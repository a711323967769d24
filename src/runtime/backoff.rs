//! How long to wait before trying again.

use std::time::Duration;

/// Exponential backoff with full jitter between a floor and a ceiling. Randomness comes from the caller, so that the
/// sequence can be replayed.
#[derive(Clone, Debug)]
pub struct Backoff {
    floor: Duration,
    ceiling: Duration,
    attempts: u32,
}

impl Backoff {
    pub const fn new(floor: Duration, ceiling: Duration) -> Self {
        Self { floor, ceiling, attempts: 0 }
    }

    /// The next wait: between half of and the whole of `floor · 2^attempts`, at most the ceiling.
    /// `random` lies in `0.0..1.0`.
    pub fn next(&mut self, random: f64) -> Duration {
        let factor = 1u32.checked_shl(self.attempts.min(20)).unwrap_or(u32::MAX);
        self.attempts = self.attempts.saturating_add(1);
        let whole = self.floor.saturating_mul(factor).min(self.ceiling);
        whole.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_the_ceiling_and_start_over_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<u128> = (0..6).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next(0.0).as_millis(), 50);
        for _ in 0..100 {
            assert!(backoff.next(0.5) <= Duration::from_secs(1));
        }
    }
}
