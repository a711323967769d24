//! How much the clients of a volume may ask of it, all together.

use super::ByteSize;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

/// What is absent is not limited.
///
/// A limit is a rate that holds over time. What was not used is saved up, as much as `burst` is worth at that rate, and
/// may be used at once: with `iops` 1000 and a burst of 5s an idle volume takes 5000 operations as fast as it can, and
/// 1000 a second from then on. Without a burst a tenth of a second's worth is saved up, as with QEMU's throttling. A
/// request that is larger than all that may be saved up is let through and paid for afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Operations a second. Flushes are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Bytes a second, read and written together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<ByteSize>,
    /// In milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_ms: Option<u64>,
}

impl Limits {
    pub const NONE: Self = Self { iops: None, bandwidth: None, burst_ms: None };
    /// What is saved up where no burst is asked for, and the least that may be asked for.
    pub const SHORTEST_BURST: Duration = Duration::from_millis(100);
    const BURSTS_MS: RangeInclusive<u64> = 100..=3_600_000;
    const MOST_IOPS: u64 = 1_000_000_000;
    /// One request of the usual block size a second: less than that stops a client rather than slowing it down.
    const LEAST_BANDWIDTH: ByteSize = ByteSize::bytes(4096);

    pub fn is_none(&self) -> bool {
        self.iops.is_none() && self.bandwidth.is_none()
    }

    /// How much may be saved up, as time.
    pub fn burst(&self) -> Duration {
        self.burst_ms.map_or(Self::SHORTEST_BURST, Duration::from_millis)
    }

    /// Says what is wrong with these numbers, if anything.
    pub fn fault(&self) -> Option<String> {
        match (self.iops, self.bandwidth, self.burst_ms) {
            (Some(0), ..) => {
                Some("a volume with 0 operations a second is of no use: `--iops none` lifts the limit".into())
            }
            (Some(iops), ..) if iops > Self::MOST_IOPS => Some(format!(
                "{iops} operations a second are more than any volume serves: `--iops none` lifts the limit"
            )),
            (_, Some(bandwidth), _) if bandwidth < Self::LEAST_BANDWIDTH => Some(format!(
                "a bandwidth of {bandwidth}/s is too little, {}/s is the least: `--bandwidth none` lifts the limit",
                Self::LEAST_BANDWIDTH
            )),
            (_, Some(bandwidth), _) if bandwidth > ByteSize::MAX => Some(format!(
                "a bandwidth of {bandwidth}/s is more than any volume serves: `--bandwidth none` lifts it"
            )),
            (None, None, Some(_)) => {
                Some("a burst is a burst of a limit, and there is none: give --iops or --bandwidth too".into())
            }
            (_, _, Some(burst)) if !Self::BURSTS_MS.contains(&burst) => Some(format!(
                "a burst lasts from {}ms, which is what volumes have anyway, to one hour: {burst}ms does not",
                Self::BURSTS_MS.start()
            )),
            _ => None,
        }
    }
}

/// For people.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.iops.map(|iops| format!("{iops} operations/s")));
        parts.extend(self.bandwidth.map(|bandwidth| format!("{bandwidth}/s")));
        parts.extend(self.burst_ms.map(|burst| format!("bursts of {:?}", Duration::from_millis(burst))));
        f.pad(&if self.is_none() { "none".to_owned() } else { parts.join(", ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(iops: Option<u64>, bandwidth: Option<u64>, burst_ms: Option<u64>) -> Limits {
        Limits { iops, bandwidth: bandwidth.map(ByteSize::bytes), burst_ms }
    }

    #[test]
    fn nonsense_names_its_fault_and_what_lifts_the_limit() {
        for (nonsense, word) in [
            (limits(Some(0), None, None), "--iops none"),
            (limits(Some(u64::MAX), None, None), "--iops none"),
            (limits(None, Some(0), None), "--bandwidth none"),
            (limits(None, Some(4095), None), "4KiB/s is the least"),
            (limits(None, Some(u64::MAX), None), "--bandwidth none"),
            (limits(None, None, Some(1000)), "--iops or --bandwidth"),
            (limits(Some(1), None, Some(0)), "100ms"),
            (limits(Some(1), None, Some(99)), "100ms"),
            (limits(Some(1), None, Some(u64::MAX)), "one hour"),
        ] {
            let fault = nonsense.fault().unwrap_or_default();
            assert!(fault.contains(word), "{nonsense:?}: {fault}");
        }
        for sense in [Limits::NONE, limits(Some(1), Some(4096), Some(100)), limits(None, Some(1 << 40), None)] {
            assert_eq!(sense.fault(), None);
        }
    }

    #[test]
    fn people_and_machines_read_the_same_limits() {
        let all = limits(Some(500), Some(100 << 20), Some(2500));
        assert_eq!(all.to_string(), "500 operations/s, 100MiB/s, bursts of 2.5s");
        assert_eq!(Limits::NONE.to_string(), "none");
        let json = serde_json::to_string(&all).unwrap();
        assert_eq!(json, r#"{"iops":500,"bandwidth":104857600,"burst_ms":2500}"#);
        assert_eq!(serde_json::from_str::<Limits>(&json).unwrap(), all);
        assert_eq!(serde_json::from_str::<Limits>("{}").unwrap(), Limits::NONE);
    }
}
