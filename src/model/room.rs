//! How much of a pool may be promised, and from when on it counts as full.

use super::ByteSize;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A pool's rules for promising its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRules {
    /// Promised, in percent of what there is: 100 promises no more than that.
    pub overcommit_percent: u32,
    /// Used, in percent, from which on people are told.
    pub warn_percent: u32,
    /// Used, in percent, from which on nothing new is promised.
    pub refuse_percent: u32,
}

impl Default for PoolRules {
    fn default() -> Self {
        Self { overcommit_percent: 100, warn_percent: 80, refuse_percent: 95 }
    }
}

impl PoolRules {
    const MOST_OVERCOMMIT: u32 = 10_000;

    /// Says what is wrong with these numbers, if anything.
    pub fn fault(&self) -> Option<String> {
        let Self { overcommit_percent: overcommit, warn_percent: warn, refuse_percent: refuse } = *self;
        if !(100..=Self::MOST_OVERCOMMIT).contains(&overcommit) {
            let (ratio, most) = (Ratio(overcommit), Ratio(Self::MOST_OVERCOMMIT));
            return Some(format!(
                "an overcommit of {ratio} is not between 1, which promises what there is, and {most}"
            ));
        }
        if warn == 0 || warn > refuse || refuse > 100 {
            return Some(format!(
                "warning at {warn}% and refusing at {refuse}% does not fit: both are between 1% and 100%, and the warning \
                 comes first"
            ));
        }
        None
    }

    /// How much of what there is may be promised.
    pub fn promisable(&self, of: ByteSize) -> ByteSize {
        let promised = u128::from(of.as_u64()) * u128::from(self.overcommit_percent) / 100;
        ByteSize::bytes(u64::try_from(promised).unwrap_or(u64::MAX))
    }

    /// How full something is, that was at a level `before`: it leaves a level only when it is clearly below it, so that
    /// one at its edge is not told of again and again.
    pub fn level(&self, used: ByteSize, of: ByteSize, before: Level) -> Level {
        /// Percent.
        const CLEARLY: u32 = 2;
        let used = u128::from(used.as_u64()) * 100;
        let reaches = |level: Level, percent: u32| {
            let edge = if before >= level { percent.saturating_sub(CLEARLY).max(1) } else { percent };
            used >= u128::from(of.as_u64()) * u128::from(edge)
        };
        match () {
            () if of == ByteSize::ZERO => Level::Ok,
            () if reaches(Level::Full, self.refuse_percent) => Level::Full,
            () if reaches(Level::High, self.warn_percent) => Level::High,
            () => Level::Ok,
        }
    }
}

/// For people.
impl fmt::Display for PoolRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { overcommit_percent, warn_percent: warn, refuse_percent: refuse } = *self;
        f.pad(&format!("overcommit {}, warns at {warn}%, refuses at {refuse}%", Ratio(overcommit_percent)))
    }
}

/// How full a pool is, by its rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    #[default]
    Ok,
    /// People ought to know.
    High,
    /// Nothing new is promised.
    Full,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::High => "high",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The room for what a thin pool must remember: which of its chunks belong to what. A pool without any is as stuck as one
/// without space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolMetadata {
    pub capacity: ByteSize,
    pub used: ByteSize,
    /// What is remembered as one.
    pub chunk: ByteSize,
}

impl PoolMetadata {
    /// To remember one chunk, in bytes: what `thin_metadata_size` of thin-provisioning-tools counts.
    pub const OF_A_CHUNK: u64 = 64;

    /// The most that LVM wants to stay free, in bytes; of metadata below four times that a quarter.
    const KEPT_FREE: u64 = 4 << 20;
    /// LVM's reports are in hundredths of a percent.
    const REPORTED_IN: u64 = 10_000;
    /// In percent of the capacity, as [`PoolRules::level`] has it.
    const CLEARLY: u64 = 2;

    /// Whether LVM makes nothing new in the pool any more, whatever its rules say; one that was at the level `before` must be
    /// clearly better off before it is said that it does.
    ///
    /// LVM refuses a thin volume or snapshot from `used >= 100 % - min(25 %, 4 MiB / capacity)` on: its
    /// `thin_pool_metadata_min_threshold()`, called `pool_metadata_min_threshold()` before 2.03.17, which
    /// `thin_pool_below_threshold()` compares with what the kernel says. We know that in hundredths of a percent, rounded, and
    /// so say it one of them earlier: never later than LVM.
    pub fn is_short(&self, before: Level) -> bool {
        let capacity = self.capacity.as_u64();
        let kept = Self::KEPT_FREE.min(capacity.div_ceil(4));
        let margin = match before {
            Level::Full => (capacity / 100).saturating_mul(Self::CLEARLY),
            Level::Ok | Level::High => capacity.div_ceil(Self::REPORTED_IN),
        };
        capacity > 0 && self.used.as_u64() >= capacity.saturating_sub(kept.saturating_add(margin))
    }

    /// How many bytes of data can be remembered at most.
    pub fn holds(&self) -> ByteSize {
        let chunks = self.capacity.as_u64() / Self::OF_A_CHUNK;
        ByteSize::bytes(chunks.saturating_mul(self.chunk.as_u64()))
    }
}

/// Hundredths as people write them: `1.5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio(pub u32);

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / 100, self.0 % 100);
        let text = match part {
            0 => whole.to_string(),
            part if part % 10 == 0 => format!("{whole}.{}", part / 10),
            part => format!("{whole}.{part:02}"),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nonsense_names_what_would_make_sense() {
        let rules = |overcommit_percent, warn_percent, refuse_percent| PoolRules {
            overcommit_percent,
            warn_percent,
            refuse_percent,
        };
        for (nonsense, word) in [
            (rules(0, 80, 95), "between 1, which"),
            (rules(99, 80, 95), "0.99"),
            (rules(10_001, 80, 95), "and 100"),
            (rules(u32::MAX, 80, 95), "and 100"),
            (rules(100, 0, 95), "between 1%"),
            (rules(100, 96, 95), "comes first"),
            (rules(100, 80, 101), "100%"),
        ] {
            let fault = nonsense.fault().unwrap_or_default();
            assert!(fault.contains(word), "{nonsense:?}: {fault}");
        }
        for sense in [PoolRules::default(), rules(10_000, 1, 100), rules(150, 95, 95)] {
            assert_eq!(sense.fault(), None);
        }
    }

    #[test]
    fn ratios_are_shown_as_people_write_them() {
        assert_eq!([100, 150, 125, 105, 10_000].map(|it| Ratio(it).to_string()), ["1", "1.5", "1.25", "1.05", "100"]);
    }

    #[test]
    fn a_pool_at_the_edge_of_a_level_stays_at_it_until_it_is_clearly_below() {
        let rules = PoolRules::default();
        let level = |used, before| rules.level(ByteSize::bytes(used), ByteSize::bytes(1000), before);
        assert_eq!([level(799, Level::Ok), level(800, Level::Ok)], [Level::Ok, Level::High]);
        assert_eq!([level(780, Level::High), level(779, Level::High)], [Level::High, Level::Ok]);
        assert_eq!([level(949, Level::High), level(950, Level::High)], [Level::High, Level::Full]);
        assert_eq!([level(930, Level::Full), level(929, Level::Full)], [Level::Full, Level::High]);
        assert_eq!(level(0, Level::Full), Level::Ok);
        assert_eq!(rules.level(ByteSize::ZERO, ByteSize::ZERO, Level::Full), Level::Ok, "nothing to be full of");
    }

    #[test]
    fn metadata_are_short_a_little_before_lvm_makes_nothing_new_and_until_they_are_clearly_not() {
        let metadata = |mib: u64, percent_of_percent: u64| {
            let capacity = ByteSize::mib(mib);
            let used = ByteSize::bytes(capacity.as_u64() * percent_of_percent / 10_000);
            PoolMetadata { capacity, used, chunk: ByteSize::bytes(64 << 10) }
        };
        // LVM's own edges: 75.00 % of 4 and of 16 MiB, 93.75 % of 64 MiB, 99.80 % of 2 GiB.
        for (mib, edge) in [(4, 7500), (16, 7500), (64, 9375), (2048, 9981)] {
            assert!(metadata(mib, edge).is_short(Level::Ok), "{mib} MiB");
            assert!(!metadata(mib, edge - 3).is_short(Level::High), "{mib} MiB");
            assert!(metadata(mib, edge - 150).is_short(Level::Full), "{mib} MiB: it is hardly better off");
            assert!(!metadata(mib, edge - 203).is_short(Level::Full), "{mib} MiB");
        }
        assert!(!metadata(0, 0).is_short(Level::Full), "nothing to be short of");
    }

    proptest! {
        #[test]
        fn lvm_never_refuses_before_the_metadata_count_as_short(blocks in 1u64..1 << 22, used in 0u64..1 << 22) {
            let used = used.min(blocks);
            // As the kernel counts, and as LVM prints it.
            let (capacity, hundredths) = (blocks * 4096, (used * 10_000 + blocks / 2) / blocks);
            let told = (u128::from(capacity) * u128::from(hundredths)).div_ceil(10_000);
            let bytes = |count| ByteSize::bytes(count);
            let seen =
                PoolMetadata { capacity: bytes(capacity), used: bytes(told as u64), chunk: bytes(64 << 10) };
            let kept = (4_194_304f64 / capacity as f64 * 100.0).min(25.0);
            let refuses = used as f64 / blocks as f64 * 100.0 >= 100.0 - kept;
            prop_assert!(!refuses || seen.is_short(Level::Ok), "{seen:?}");
        }

        #[test]
        fn more_used_is_never_a_lower_level(of: u64, used: u64, more: u64, warn in 1u32..=100, refuse in 1u32..=100) {
            let rules = PoolRules { warn_percent: warn.min(refuse), refuse_percent: refuse, ..PoolRules::default() };
            for before in [Level::Ok, Level::High, Level::Full] {
                let level = |used| rules.level(ByteSize::bytes(used), ByteSize::bytes(of), before);
                prop_assert!(level(used) <= level(used.saturating_add(more)));
            }
        }

        #[test]
        fn no_overcommit_promises_what_there_is_and_more_never_promises_less(of: u64, percent in 100u32..=10_000) {
            let of = ByteSize::bytes(of);
            prop_assert_eq!(PoolRules::default().promisable(of), of);
            let rules = PoolRules { overcommit_percent: percent, ..PoolRules::default() };
            prop_assert!(rules.promisable(of) >= of);
        }
    }
}
