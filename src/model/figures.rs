//! What clients have asked of a volume, and how it went, as numbers. All of them only grow, but where it says "now".

use super::{Limits, Name, VolumeId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What is counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    Read,
    Write,
    Flush,
    Trim,
    Zero,
    /// Questions about what is allocated, and hints.
    Other,
}

impl Operation {
    pub const ALL: [Self; 6] = [Self::Read, Self::Write, Self::Flush, Self::Trim, Self::Zero, Self::Other];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::Zero => "zero",
            Self::Other => "other",
        }
    }
}

/// How many took how long: counts by upper bounds, in nanoseconds. Bounds ascend and are not reached; counts are not 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latency(Vec<(u64, u64)>);

impl Latency {
    /// Takes bounds in any order and as often as they come.
    pub fn new(counts: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut this = Self(counts.into_iter().filter(|(_, count)| *count > 0).collect());
        this.0.sort_unstable();
        this.0.dedup_by(|(bound, count), (before, sum)| {
            let same = bound == before;
            if same {
                *sum = sum.saturating_add(*count);
            }
            same
        });
        this
    }

    pub fn buckets(&self) -> &[(u64, u64)] {
        &self.0
    }

    pub fn count(&self) -> u64 {
        self.0.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// How many took no longer than this: those that surely did not, so that a bucket across the bound is left out.
    pub fn within(&self, bound: Duration) -> u64 {
        let bound = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        self.0.iter().take_while(|(upper, _)| *upper <= bound).fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// What so many in a thousand did not exceed: the upper bound of the bucket it falls into. None if there are none.
    pub fn per_mille(&self, share: u64) -> Option<Duration> {
        let rank = u128::from(self.count()) * u128::from(share.min(1000));
        let rank = rank.div_ceil(1000).max(1);
        let mut seen = 0;
        let found = self.0.iter().find(|(_, count)| {
            seen += u128::from(*count);
            seen >= rank
        });
        found.map(|(bound, _)| Duration::from_nanos(*bound))
    }

    /// Both together.
    pub fn merged(&self, other: &Self) -> Self {
        Self::new(self.0.iter().chain(&other.0).copied())
    }

    /// What has come since an earlier look at the same counts.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |bound: u64| {
            let found = earlier.0.binary_search_by_key(&bound, |(bound, _)| *bound);
            found.ok().and_then(|place| earlier.0.get(place)).map_or(0, |(_, count)| *count)
        };
        Self::new(self.0.iter().map(|(bound, count)| (*bound, count.saturating_sub(before(*bound)))))
    }
}

/// What became of one kind of operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperationFigures {
    /// Of all that have ended, well or not.
    pub latency: Latency,
    /// Those that took part in [`Self::latency`], added up.
    pub time: Duration,
    /// Read, written, trimmed or zeroed by those that ended well.
    pub bytes: u64,
    /// Those that did not.
    pub errors: u64,
}

impl OperationFigures {
    pub fn operations(&self) -> u64 {
        self.latency.count()
    }

    /// Both together.
    pub fn merged(&self, other: &Self) -> Self {
        Self {
            latency: self.latency.merged(&other.latency),
            time: self.time.saturating_add(other.time),
            bytes: self.bytes.saturating_add(other.bytes),
            errors: self.errors.saturating_add(other.errors),
        }
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            latency: self.latency.since(&earlier.latency),
            time: self.time.saturating_sub(earlier.time),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            errors: self.errors.saturating_sub(earlier.errors),
        }
    }
}

/// What was counted of one export since `elapsed` before now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// By a clock that is never set; read after the counts, so that no rate is overstated.
    pub elapsed: Duration,
    /// In the order of [`Operation::ALL`].
    pub operations: [OperationFigures; Operation::ALL.len()],
    /// Requests that were declined before anything was done: malformed, beyond the end, not allowed, too late.
    pub refused: u64,
    /// Requests that had to wait for the export's limits.
    pub throttled: u64,
    /// Requests that have been read and not answered, now.
    pub in_flight: u64,
    /// Clients' connections, now.
    pub connections: u64,
}

impl Figures {
    pub fn of(&self, operation: Operation) -> &OperationFigures {
        // Both have one entry for each operation, in the same order.
        let [read, write, flush, trim, zero, other] = &self.operations;
        match operation {
            Operation::Read => read,
            Operation::Write => write,
            Operation::Flush => flush,
            Operation::Trim => trim,
            Operation::Zero => zero,
            Operation::Other => other,
        }
    }

    /// All kinds of operations together.
    pub fn total(&self) -> OperationFigures {
        self.operations.iter().fold(OperationFigures::default(), |sum, each| sum.merged(each))
    }

    /// What has come since an earlier look; what is so now stays.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut pairs = self.operations.iter().zip(&earlier.operations);
        Self {
            elapsed: self.elapsed.saturating_sub(earlier.elapsed),
            operations: std::array::from_fn(|_| pairs.next().map(|(now, then)| now.since(then)).unwrap_or_default()),
            refused: self.refused.saturating_sub(earlier.refused),
            throttled: self.throttled.saturating_sub(earlier.throttled),
            ..*self
        }
    }
}

/// The figures of a volume on its block service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFigures {
    pub id: VolumeId,
    pub name: Name,
    /// In force.
    pub limits: Limits,
    pub figures: Figures,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_quantile_is_the_bound_that_so_many_stay_below() {
        let latency = Latency::new([(300, 1), (100, 98), (200, 1), (50, 0)]);
        let at = |share| latency.per_mille(share).map(|it| it.as_nanos());
        assert_eq!((at(0), at(500), at(980)), (Some(100), Some(100), Some(100)));
        assert_eq!((at(990), at(991), at(1000), at(5000)), (Some(200), Some(300), Some(300), Some(300)));
        assert_eq!(Latency::default().per_mille(500), None);
        assert_eq!((latency.within(Duration::from_nanos(199)), latency.within(Duration::MAX)), (98, 100));
        assert_eq!(Latency::new([(1, u64::MAX), (2, 7)]).count(), u64::MAX);
    }

    proptest! {
        #[test]
        fn what_came_later_is_what_was_added(
            first in proptest::collection::vec((1u64..50, 0u64..9), 0..30),
            then in proptest::collection::vec((1u64..50, 0u64..9), 0..30),
        ) {
            let (before, more) = (Latency::new(first), Latency::new(then));
            let after = before.merged(&more);
            prop_assert_eq!(after.count(), before.count() + more.count());
            prop_assert_eq!(after.since(&before), more);
            prop_assert!(after.buckets().windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
    }

    #[test]
    fn figures_since_an_earlier_look_are_what_has_come_and_what_is_so_now() {
        let mut now = Figures { elapsed: Duration::from_secs(3), in_flight: 5, ..Figures::default() };
        let then = Figures { elapsed: Duration::from_secs(1), in_flight: 9, refused: 1, ..Figures::default() };
        now.refused = 4;
        now.operations[1] = OperationFigures { latency: Latency::new([(7, 3)]), bytes: 12, ..Default::default() };
        let since = now.since(&then);
        assert_eq!((since.elapsed, since.in_flight, since.refused), (Duration::from_secs(2), 5, 3));
        assert_eq!((since.of(Operation::Write).operations(), since.total().bytes), (3, 12));
    }
}
