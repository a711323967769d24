//! Counts of how long things took, in buckets that are fine where times are short: sixteen for every doubling.
//!
//! Below a microsecond buckets are 64 ns wide, above they are a sixteenth of their lower bound at most; what takes longer
//! than 68 s is in the last one. The memory is fixed, and counting is one addition.

use std::sync::atomic::{AtomicU64, Ordering};

/// The width of the narrowest buckets is two to this power, in nanoseconds.
const UNIT: u32 = 6;
/// Buckets for every doubling, two to this power.
const FINE: u32 = 4;
/// Two to this power of units are the upper bound of the last bucket.
const DOUBLINGS: u32 = 30;
const BUCKETS: usize = ((DOUBLINGS - FINE + 1) << FINE) as usize;

pub(super) struct Histogram([AtomicU64; BUCKETS]);

impl Histogram {
    pub(super) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; BUCKETS])
    }

    /// Counts so many that took so many nanoseconds each.
    pub(super) fn count(&self, nanos: u64, times: u64) {
        if let Some(bucket) = self.0.get(place(nanos)) {
            bucket.fetch_add(times, Ordering::Relaxed);
        }
    }

    /// Upper bounds in nanoseconds and counts, without empty buckets.
    pub(super) fn counts(&self) -> impl Iterator<Item = (u64, u64)> {
        let counts = self.0.iter().enumerate().map(|(place, count)| (bound(place), count.load(Ordering::Relaxed)));
        counts.filter(|(_, count)| *count > 0)
    }
}

/// The bucket for a time.
fn place(nanos: u64) -> usize {
    let units = nanos >> UNIT;
    let place = match units.checked_ilog2() {
        Some(doubling @ FINE..) => {
            let within = (units >> (doubling - FINE)) & ((1 << FINE) - 1);
            (u64::from(doubling - FINE + 1) << FINE) + within
        }
        _ => units,
    };
    (place as usize).min(BUCKETS - 1)
}

/// What times in a bucket do not reach, in nanoseconds.
fn bound(place: usize) -> u64 {
    let (doubling, within) = ((place >> FINE) as u32, (place & ((1 << FINE) - 1)) as u64);
    let units = match doubling {
        0 => within + 1,
        doubling => (within + 1 + (1 << FINE)) << (doubling - 1),
    };
    units << UNIT
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_follow_each_other_without_gaps_up_to_a_minute() {
        let mut lower = 0;
        for each in 0..BUCKETS {
            assert_eq!(place(lower), each, "the first of bucket {each}");
            assert_eq!(place(bound(each) - 1), each, "the last of bucket {each}");
            assert!(bound(each) - lower <= (lower / 16).max(64), "bucket {each} is too wide");
            lower = bound(each);
        }
        assert!(lower > 60_000_000_000);
        assert_eq!(place(u64::MAX), BUCKETS - 1);
    }

    proptest! {
        #[test]
        fn every_time_is_counted_once_and_near_to_what_it_is(nanos in prop_oneof![any::<u64>(), 0u64..1 << 36]) {
            let histogram = Histogram::new();
            histogram.count(nanos, 3);
            let counts: Vec<_> = histogram.counts().collect();
            prop_assert!(matches!(counts[..], [(_, 3)]), "{:?}", counts);
            let bound = counts[0].0;
            prop_assert!(bound > nanos || bound == 1 << 36, "{} for {}", bound, nanos);
            prop_assert!(bound - nanos.min(bound) <= (nanos / 16).max(64));
        }
    }
}
