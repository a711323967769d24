//! What every object has: identity, name, generation, times and, once it is to go, a tombstone.

use super::{Name, Timestamp};
use serde::{Deserialize, Serialize};

/// Number of an object's spec, from 1. A receiver refuses an older one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(u64);

impl Generation {
    pub const FIRST: Self = Self(1);

    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    pub const fn as_u64(self) -> u64 {
        self.0
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
