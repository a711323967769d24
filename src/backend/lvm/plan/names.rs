//! What logical volumes are called, and what a name says. Pure. LVM keeps `snapshot` and `pvmove` for itself.
//!
//! | name | what |
//! |---|---|
//! | `<volume id>` | a volume |
//! | `s-<snapshot id>` | a snapshot; of a thick one that is wiped, its room alone |
//! | `next-<volume id>` | of a thin volume that is put back: what takes its place |
//! | `from-<volume id>` | of a thick volume in the making: the volume that it is a copy of, held still |

use crate::model::{SnapshotId, VolumeId};

/// What a logical volume is there for, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Volume(VolumeId),
    Snapshot(SnapshotId),
    Next(VolumeId),
    From(VolumeId),
}

pub fn volume(id: VolumeId) -> String {
    id.to_string()
}

pub fn snapshot(id: SnapshotId) -> String {
    format!("s-{id}")
}

pub fn next(id: VolumeId) -> String {
    format!("next-{id}")
}

pub fn from(id: VolumeId) -> String {
    format!("from-{id}")
}

impl Role {
    /// None for what nobody here has named so.
    pub fn of(name: &str) -> Option<Self> {
        let told = match name.split_once('-') {
            Some(("s", id)) => Some((id, id.parse().map(Role::Snapshot).ok())),
            Some(("next", id)) => Some((id, id.parse().map(Role::Next).ok())),
            Some(("from", id)) => Some((id, id.parse().map(Role::From).ok())),
            _ => None,
        };
        match told {
            Some((_, role)) => role,
            None => name.parse().map(Role::Volume).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_says_what_it_is_the_name_of_and_no_other_does() {
        let (one, other) = (VolumeId::generate(), SnapshotId::generate());
        let roles = [Role::Volume(one), Role::Snapshot(other), Role::Next(one), Role::From(one)];
        let names = [volume(one), snapshot(other), next(one), from(one)];
        for (name, role) in names.iter().zip(roles) {
            assert_eq!(Role::of(name), Some(role), "{name}");
        }
        for name in ["", "s-", "thin-pool", "thin-pool_tmeta", "lvol0", "next-x", "from", &format!("x-{one}")] {
            assert_eq!(Role::of(name), None, "{name}");
        }
    }
}
