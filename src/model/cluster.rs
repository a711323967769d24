//! The cluster itself.

use super::{ClusterId, History, Meta, Timestamp};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub meta: Meta<ClusterId>,
    pub spec: ClusterSpec,
    #[serde(default, skip_serializing_if = "History::is_first")]
    pub history: History,
    /// Since when it is being made of what block services have on their disks: nothing of that is garbage meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovering: Option<Timestamp>,
}

/// Settings that hold for the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// How often a block service speaks, in milliseconds.
    pub heartbeat_ms: u64,
    /// How long a silent service counts as alive, in milliseconds; at least twice the heartbeat.
    pub lease_ms: u64,
    /// How long a service's certificate lasts, in milliseconds; services renew theirs well before.
    #[serde(default = "default_certificate_lifetime_ms")]
    pub certificate_lifetime_ms: u64,
}

/// Thirty days.
fn default_certificate_lifetime_ms() -> u64 {
    30 * 24 * 3_600_000
}

impl ClusterSpec {
    /// The longest period of a cluster, in milliseconds.
    pub const LONGEST_MS: u64 = 3_600_000;
    /// The shortest and the longest life of a service's certificate, in milliseconds: a minute, a year.
    pub const CERTIFICATE_LIFETIMES_MS: RangeInclusive<u64> = 60_000..=365 * 24 * 3_600_000;

    pub fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }

    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    pub fn certificate_lifetime(&self) -> Duration {
        Duration::from_millis(self.certificate_lifetime_ms)
    }

    /// Says what is wrong with these numbers, if anything. etcd grants leases of whole seconds, two at least.
    pub fn fault(&self) -> Option<&'static str> {
        if self.heartbeat_ms < 100 {
            Some("the heartbeat must be at least 100ms")
        } else if self.lease_ms < 2000 || !self.lease_ms.is_multiple_of(1000) {
            Some("the lease must be a whole number of seconds, at least 2s")
        } else if self.lease_ms > Self::LONGEST_MS {
            Some("the lease must be at most one hour")
        } else if self.lease_ms < self.heartbeat_ms.saturating_mul(2) {
            Some("the lease must be at least twice the heartbeat")
        } else if !Self::CERTIFICATE_LIFETIMES_MS.contains(&self.certificate_lifetime_ms) {
            Some("the lifetime of certificates must be at least one minute and at most a year of 365 days")
        } else {
            None
        }
    }
}

impl Default for ClusterSpec {
    fn default() -> Self {
        let certificate_lifetime_ms = default_certificate_lifetime_ms();
        Self { heartbeat_ms: 1000, lease_ms: 4000, certificate_lifetime_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_live_between_a_minute_and_a_year() {
        let with = |certificate_lifetime_ms| ClusterSpec { certificate_lifetime_ms, ..ClusterSpec::default() };
        for (millis, good) in [(59_999, false), (60_000, true), (31_536_000_000, true), (31_536_000_001, false)] {
            assert_eq!(with(millis).fault().is_none(), good, "{millis}");
        }
        assert_eq!(ClusterSpec::default().fault(), None);
    }

    #[test]
    fn a_cluster_from_before_certificates_had_a_lifetime_gets_the_usual_one() {
        let old = r#"{"heartbeat_ms": 1000, "lease_ms": 4000}"#;
        assert_eq!(serde_json::from_str::<ClusterSpec>(old).unwrap(), ClusterSpec::default());
    }
}
