//! Where a volume's first bytes come from, and what they were put back to since.

use super::{Generation, SnapshotId, VolumeId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a volume was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    Snapshot(SnapshotId),
    /// As that volume is at the moment of the copy.
    Volume(VolumeId),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Snapshot(id) => write!(f, "snapshot {id}"),
            Source::Volume(id) => write!(f, "volume {id}"),
        }
    }
}

/// A volume's bytes are put back to a snapshot's, once: by whoever holds a generation before `since`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revert {
    pub to: SnapshotId,
    /// The volume's generation that asked for it.
    pub since: Generation,
}
