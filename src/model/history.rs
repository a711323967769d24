//! The store's histories: what tells a store that went on from one that was put back in time.
//!
//! Within one history revisions and generations only grow. A new history begins when the state is moved to another store,
//! restored from a backup, or found to be older than somebody remembers. Only the last two *rewind*: then what the
//! devices hold may be ahead of the state, and generations are numbered from a higher floor on.

use super::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Number of a history of the state, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    pub const FIRST: Self = Self(0);
    /// Nobody puts a store back so often: what claims to know more is not believed.
    pub const LAST: Self = Self(1_000_000);

    /// None beyond [`Self::LAST`].
    pub fn new(number: u64) -> Option<Self> {
        (number <= Self::LAST.0).then_some(Self(number))
    }

    pub const fn as_u64(self) -> u64 {
        self.0
    }

    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1).min(Self::LAST.0))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How far the state had come: a store that is behind a mark that it once gave was put back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark {
    pub epoch: Epoch,
    /// The store's revision; means something within its epoch only.
    pub revision: i64,
}

/// Which history the state is in; part of the cluster's record, so that it is read and written with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    pub epoch: Epoch,
    /// The last time that the state became older than what the devices may hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewound: Option<Rewind>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewind {
    /// The history that began with it.
    pub epoch: Epoch,
    pub at: Timestamp,
    /// A sentence on what was seen or done.
    pub reason: String,
}

impl History {
    pub fn is_first(&self) -> bool {
        *self == Self::default()
    }

    /// The next history, of a state that went on elsewhere.
    #[must_use]
    pub fn continued(&self) -> Self {
        Self { epoch: self.epoch.next(), rewound: self.rewound.clone() }
    }

    /// The next history, of a state that is older than what somebody knew, at most up to `known`.
    #[must_use]
    pub fn rewound(&self, known: Epoch, at: Timestamp, reason: String) -> Self {
        let epoch = self.epoch.max(known).next();
        Self { epoch, rewound: Some(Rewind { epoch, at, reason }) }
    }

    /// The history whose generations objects are lifted to.
    pub fn floor(&self) -> Epoch {
        self.rewound.as_ref().map_or(Epoch::FIRST, |rewind| rewind.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_history_is_ahead_of_everything_anybody_knew() {
        let first = History::default();
        let known = Mark { epoch: Epoch(4), revision: i64::MAX };
        let next = first.rewound(known.epoch, Timestamp::EPOCH, "because".into());
        assert!(Mark { epoch: next.epoch, revision: 0 } > known);
        assert_eq!(next.floor(), next.epoch);
        let moved = next.continued();
        assert!(moved.epoch > next.epoch && moved.floor() == next.epoch, "a move rewinds nothing");
    }

    #[test]
    fn a_claim_beyond_all_reason_is_no_epoch() {
        assert_eq!(Epoch::new(u64::MAX), None);
        assert_eq!(Epoch::LAST.next(), Epoch::LAST);
    }
}
