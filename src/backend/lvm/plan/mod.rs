//! Deciding what is to be done, from what is wanted and what LVM reports. Pure; nothing is carried out here.

pub mod copy;
pub mod names;
pub mod pool;
pub mod snapshot;
pub mod volume;
pub mod wipe;

use crate::backend::BackendError;
use crate::backend::lvm::geometry::{Room, extents};
use crate::backend::lvm::report::{Group, Lv, Reported};
use crate::backend::lvm::tags::{Kind, TagsError};
use crate::model::{ByteSize, VolumeId, fitted_room};
use names::Role;

/// A pool's group as plans see it.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'s> {
    pub kind: Kind,
    /// What a classic snapshot of a thick volume gets.
    pub room: Room,
    pub group: &'s Group,
    pub seen: &'s Reported,
}

/// One thing to do to one logical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub on: String,
    pub act: Act,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Makes it, of so many extents, which hold anything on a thick volume and zeros on a thin one.
    Make {
        extents: u64,
        tags: Vec<String>,
    },
    /// Makes it a snapshot of another; a classic one has room of its own, in extents.
    Share {
        of: String,
        room: Option<u64>,
        tags: Vec<String>,
    },
    Activate,
    /// The kernel forgets it, whatever it has taken it for.
    Deactivate,
    /// Makes a classic snapshot's room a logical volume of its own, under the snapshot's name.
    Split,
    /// By so many extents.
    Grow {
        extents: u64,
    },
    /// By so many extents.
    Shrink {
        extents: u64,
    },
    /// In bytes.
    Zero {
        from: u64,
        to: u64,
    },
    /// In bytes: zeros are written to the medium itself, whatever else it could do.
    Wipe {
        from: u64,
        to: u64,
    },
    /// Fills its first so many bytes with another's.
    Copy {
        of: String,
        length: u64,
    },
    /// The same, but only what differs is written: so it costs no room in snapshots that hold those bytes.
    PutBack {
        of: String,
        length: u64,
    },
    /// Says other things of it, all at once.
    Describe {
        present: Vec<String>,
        wanted: Vec<String>,
    },
    Rename {
        to: String,
    },
    /// Gives its space back, as far as the devices can; failing does no harm.
    Discard {
        length: u64,
    },
    Remove,
}

impl Act {
    /// How many bytes are gone through, where that takes as long as they are many.
    pub fn length(&self) -> u64 {
        match self {
            Act::Zero { from, to } | Act::Wipe { from, to } => to.saturating_sub(*from),
            Act::Copy { length, .. } | Act::PutBack { length, .. } => *length,
            Act::Make { .. } | Act::Share { .. } | Act::Grow { .. } | Act::Shrink { .. } => 0,
            Act::Activate | Act::Deactivate | Act::Split => 0,
            Act::Describe { .. } | Act::Rename { .. } | Act::Discard { .. } | Act::Remove => 0,
        }
    }

    pub fn on(self, name: &str) -> Step {
        Step { on: name.to_owned(), act: self }
    }
}

impl<'s> Sight<'s> {
    pub fn lv(&self, name: &str) -> Option<&'s Lv> {
        self.seen.lv(&self.group.name, name)
    }

    /// What would be lost with a thick volume, or hinders its growth: in words, by name.
    pub fn dependants(&self, volume: VolumeId) -> Vec<String> {
        let name = names::volume(volume);
        let of_it = |lv: &&Lv| lv.origin.as_deref() == Some(&name);
        let lvs = self.seen.lvs_of(&self.group.name).filter(|_| self.kind == Kind::Thick).filter(of_it);
        lvs.map(|lv| match Role::of(&lv.name) {
            Some(Role::Snapshot(id)) => match lv.decoded_snapshot() {
                Ok(Some(tags)) => format!("snapshot '{}' ({id})", tags.name),
                _ => format!("snapshot {id}"),
            },
            Some(Role::From(id)) => format!("the making of volume {id}"),
            _ => format!("{}/{}", lv.group, lv.name),
        })
        .collect()
    }

    /// How many extents a classic snapshot of a logical volume of that size gets: so much room, or what is usual.
    pub fn room_extents(&self, room: Option<ByteSize>, origin: ByteSize) -> u64 {
        let extent = self.group.extent;
        match room {
            Some(room) => extents(fitted_room(room, origin, ByteSize::bytes(extent)), extent),
            None => self.room.extents(origin, extent),
        }
    }

    /// A thin volume takes its space as it is written to; what may be promised is not for this place to say.
    pub fn check_room(&self, whose: &str, extents: u64) -> Result<(), BackendError> {
        let needed = ByteSize::bytes(extents.saturating_mul(self.group.extent));
        if self.kind == Kind::Thick && needed > self.group.free {
            let (free, name) = (self.group.free, &self.group.name);
            return Err(BackendError::Refused(format!("{whose} needs {needed} more, and {free} are free in {name}")));
        }
        Ok(())
    }

    /// Makes it active, if it is not. A classic snapshot becomes so with its origin, and LVM asks back if it is told otherwise.
    pub fn activation(&self, lv: &Lv) -> Option<Step> {
        let classic = lv.origin.as_ref().filter(|_| self.kind == Kind::Thick);
        (!lv.active).then(|| Act::Activate.on(classic.unwrap_or(&lv.name)))
    }
}

fn damaged(lv: &Lv, reason: &str) -> BackendError {
    BackendError::Damaged { path: format!("{}/{}", lv.group, lv.name), reason: reason.to_owned() }
}

/// What cannot be said in tags.
pub(in crate::backend::lvm) fn unspeakable(error: TagsError) -> BackendError {
    BackendError::Refused(error.to_string())
}
