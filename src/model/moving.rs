//! Moves: a volume's bytes go to another pool by way of a second volume, which takes the first one's place.
//!
//! ```text
//!   the volume     (plain) ──▶ Leaving ──────────────────────▶ Left ──▶ tombstone
//!                              nobody uses it                  ▲
//!   its copy                   Arriving ──begun──▶ whole ──────┴─▶ bears the name ──▶ served
//! ```
//! Each of the two has an id of its own, so that nothing which is said of one, however late, is ever done to the other.
//! At most one of them is served at any time, and the former is there until the new one has been.

use super::{PoolId, ServiceId, Supply, Volume, VolumeId};
use serde::{Deserialize, Serialize};

/// What a volume has to do with a move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "as", rename_all = "kebab-case")]
pub enum Moving {
    /// Nobody may use it: its bytes are read by the copy that is to take its place.
    Leaving {
        to: VolumeId,
        /// Where that one is.
        pool: PoolId,
        service: ServiceId,
        /// Nobody asked for this one by name: its service is being emptied.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        drain: bool,
    },
    /// Filled with the bytes of the volume whose place it takes.
    Arriving {
        supply: Supply,
        /// Nobody uses that volume any more; before, nothing is assigned.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        begun: bool,
    },
    /// The former bytes of the volume `to`, until that one has been served.
    Left { to: VolumeId },
}

impl Moving {
    /// How the names of copies begin, and of what they have taken the place of.
    pub const PREFIX: &str = "moving-";
}

impl Volume {
    /// Whether it is no volume of its own for people: it keeps the bytes of an image, or is one end of a move.
    pub fn is_hidden(&self) -> bool {
        let end = matches!(self.spec.moving.as_deref(), Some(Moving::Arriving { .. } | Moving::Left { .. }));
        end || self.base_of().is_some()
    }

    /// The copy that is to take its place, while it is being moved.
    pub fn successor(&self) -> Option<VolumeId> {
        match self.spec.moving.as_deref() {
            Some(Moving::Leaving { to, .. }) => Some(*to),
            Some(Moving::Arriving { .. } | Moving::Left { .. }) | None => None,
        }
    }

    /// The volume whose place it is to take.
    pub fn predecessor(&self) -> Option<VolumeId> {
        match self.spec.moving.as_deref() {
            Some(Moving::Arriving { supply, .. }) => Some(supply.volume),
            Some(Moving::Leaving { .. } | Moving::Left { .. }) | None => None,
        }
    }

    /// Where its bytes have to come from, if they are to be fetched.
    pub fn supply(&self) -> Option<&Supply> {
        match self.spec.moving.as_deref() {
            Some(Moving::Arriving { supply, .. }) => Some(supply),
            _ => self.spec.image.as_deref().and_then(super::ImageTie::supply),
        }
    }

    pub fn supply_mut(&mut self) -> Option<&mut Supply> {
        match self.spec.moving.as_deref_mut() {
            Some(Moving::Arriving { supply, .. }) => Some(supply),
            _ => self.spec.image.as_deref_mut().and_then(super::ImageTie::supply_mut),
        }
    }
}
