//! The cluster itself.

use super::{ClusterId, Meta};
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub meta: Meta<ClusterId>,
    pub spec: ClusterSpec,
}

/// Settings that hold for the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// How often a block service speaks, in milliseconds.
    pub heartbeat_ms: u64,
    /// How long a silent service counts as alive, in milliseconds; at least twice the heartbeat.
    pub lease_ms: u64,
}

impl ClusterSpec {
    /// The longest period of a cluster, in milliseconds.
    pub const LONGEST_MS: u64 = 3_600_000;

    pub fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }

    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
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
        } else {
            None
        }
    }
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self { heartbeat_ms: 1000, lease_ms: 4000 }
    }
}
