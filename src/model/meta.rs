//! What every object has: identity, name, generation, times and, once it is to go, a tombstone.

use super::{Epoch, Name, Timestamp};
use serde::{Deserialize, Serialize};

/// Number of an object's spec, from 1. A receiver refuses an older one.
///
/// Where the state was rewound, the generations of the history that began have a floor of their own, so that they are
/// above all that came before, whatever nobody remembers: those of epoch 2 are 2,000,000,000 and up. The floor itself
/// says that the object was *carried over*: it is what an older state said, and its devices may know better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(u64);

impl Generation {
    pub const FIRST: Self = Self(1);
    /// Generations of one history.
    const STRIDE: u64 = 1_000_000_000;

    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// That of what is carried over into a history; all that are made or changed in it are above.
    pub const fn floor(epoch: Epoch) -> Self {
        Self(epoch.as_u64().saturating_mul(Self::STRIDE))
    }

    /// Whether it is the generation of what was carried over and not changed since.
    pub const fn is_carried(self) -> bool {
        self.0 > 0 && self.0.is_multiple_of(Self::STRIDE)
    }

    /// The history that it belongs to, or a later one; none for a number that no history reaches.
    pub fn epoch(self) -> Option<Epoch> {
        Epoch::new(self.0 / Self::STRIDE)
    }

    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Who an object is. `I` is the identity type of its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta<I> {
    pub id: I,
    pub name: Name,
    pub generation: Generation,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Since when the object is to be removed. Setting it is a new generation; it is never unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed_at: Option<Timestamp>,
}

impl<I> Meta<I> {
    pub fn new(id: I, name: Name, now: Timestamp) -> Self {
        Self { id, name, generation: Generation::FIRST, created_at: now, updated_at: now, removed_at: None }
    }

    pub fn is_removed(&self) -> bool {
        self.removed_at.is_some()
    }

    /// Marks a change of the spec.
    pub fn touch(&mut self, now: Timestamp) {
        self.generation = self.generation.next();
        self.updated_at = now;
    }

    /// Sets the tombstone; says whether that was new.
    pub fn bury(&mut self, now: Timestamp) -> bool {
        if self.is_removed() {
            return false;
        }
        self.touch(now);
        self.removed_at = Some(now);
        true
    }
}
