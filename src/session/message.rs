//! What the two ends say to each other.

use crate::model::{
    Addresses, AssignmentSet, Changes, ClusterId, Inventory, Mark, Report, ServiceId, SessionId, Trust,
};
use std::time::Duration;

/// A position in a session's chain of assignment messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step(pub u64);

/// The block service's introduction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    pub service: ServiceId,
    pub cluster: ClusterId,
    pub host_name: String,
    pub addresses: Addresses,
    pub version: String,
    /// The last that it was told of how far the state had come.
    pub mark: Mark,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    pub session: SessionId,
    pub heartbeat: Duration,
    pub lease: Duration,
    /// `host:port` of every manager, the speaking one first.
    pub managers: Vec<String>,
    /// How far the state has come, whatever was said before.
    pub mark: Mark,
}

/// From the block service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upward {
    Hello(Greeting),
    Heartbeat,
    Reports { sequence: u64, reports: Vec<Report> },
    Inventory { nonce: u64, inventory: Inventory },
    Goodbye,
}

/// From the manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Downward {
    Welcome(Welcome),
    /// Everything the service must hold; where `partial`, what is not named is kept as it is.
    Complete {
        set: AssignmentSet,
        partial: bool,
        results_in: Step,
    },
    Incremental {
        changes: Changes,
        applies_to: Step,
        results_in: Step,
    },
    HeartbeatAck,
    ReportsAck {
        sequence: u64,
    },
    InventoryRequest {
        nonce: u64,
    },
    /// `host:port` of every manager, as in [`Welcome`].
    Managers(Vec<String>),
    /// How far the state has come; before the assignments that follow from it.
    Mark(Mark),
    /// Whose certificates to believe from now on.
    Trust(Trust),
    Removed,
}
