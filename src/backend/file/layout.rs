//! What lies in a pool's directory: names, the marker, the sidecars.

use crate::backend::{PoolIdentity, VolumeLayout};
use crate::host::document::Document;
use crate::model::{ByteSize, ClusterId, Generation, Name, PoolId, SnapshotId, Timestamp, VolumeId};
use serde::{Deserialize, Serialize};

pub(super) const MARKER: &str = "symphony-pool.json";
pub(super) const VOLUMES: &str = "volumes";
pub(super) const SNAPSHOTS: &str = "snapshots";
/// What `mkfs.ext4` puts into every file system.
pub(super) const LOST_AND_FOUND: &str = "lost+found";

/// `symphony-pool.json`: whose pool the directory is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    pub cluster: ClusterId,
    pub pool: PoolId,
    pub name: Name,
}

impl Document for Marker {
    const FORMAT: &'static str = "symphony pool";
    const VERSION: u32 = 1;
}

impl From<&PoolIdentity> for Marker {
    fn from(identity: &PoolIdentity) -> Self {
        Self { cluster: identity.cluster, pool: identity.pool, name: identity.name.clone() }
    }
}

impl Marker {
    /// Whether this is the pool's marker, under whatever name.
    pub fn marks(&self, identity: &PoolIdentity) -> bool {
        self.cluster == identity.cluster && self.pool == identity.pool
    }

    pub fn owner(&self) -> String {
        format!("'{}' ({}) of cluster {}", self.name, self.pool, self.cluster)
    }
}

/// `<volume id>.json`: what the image beside it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sidecar {
    pub id: VolumeId,
    pub name: Name,
    pub size: ByteSize,
    pub generation: Generation,
    /// What the volume was made from, the nearest first; empty: it began as zeros.
    pub lineage: Vec<String>,
    /// The copy beside the image is what the volume's bytes are, and takes the image's place.
    #[serde(default, skip_serializing_if = "is_false")]
    pub swap: bool,
    /// What the image has behind the volume's end is to go.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cut: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Document for Sidecar {
    const FORMAT: &'static str = "symphony volume";
    const VERSION: u32 = 1;
}

impl From<&VolumeLayout> for Sidecar {
    fn from(layout: &VolumeLayout) -> Self {
        Self {
            id: layout.id,
            name: layout.name.clone(),
            size: layout.size,
            generation: layout.generation,
            lineage: layout.source.iter().map(ToString::to_string).collect(),
            swap: false,
            cut: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Image,
    Sidecar,
    /// Bytes that are not the volume's yet.
    Copy,
}

pub(super) fn image(id: VolumeId) -> String {
    format!("{id}.img")
}

pub(super) fn sidecar(id: VolumeId) -> String {
    format!("{id}.json")
}

pub(super) fn copy(id: VolumeId) -> String {
    format!("{id}.copy")
}

/// `snapshots/<snapshot id>.json`: what the image beside it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Card {
    pub id: SnapshotId,
    pub name: Name,
    pub volume: VolumeId,
    pub size: ByteSize,
    pub at: Timestamp,
}

impl Document for Card {
    const FORMAT: &'static str = "symphony snapshot";
    const VERSION: u32 = 1;
}

/// What is kept of a snapshot in `snapshots/`: staged bytes, what they are, and both under their final names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SnapshotFiles {
    pub staged: String,
    pub staged_card: String,
    pub image: String,
    pub card: String,
}

impl SnapshotFiles {
    pub fn of(id: SnapshotId) -> Self {
        let [staged, staged_card, image, card] =
            [".staged", ".staged.json", ".img", ".json"].map(|end| format!("{id}{end}"));
        Self { staged, staged_card, image, card }
    }

    pub fn all(&self) -> [&str; 4] {
        [&self.card, &self.image, &self.staged_card, &self.staged]
    }
}

/// Which snapshot a name in `snapshots/` belongs to, if any.
pub(super) fn snapshot_of(name: &str) -> Option<SnapshotId> {
    let id: SnapshotId = name.split_once('.')?.0.parse().ok()?;
    SnapshotFiles::of(id).all().contains(&name).then_some(id)
}

/// Which part of which volume a name in `volumes/` stands for, if any.
pub(super) fn part(name: &str) -> Option<(VolumeId, Part)> {
    let (id, part) = match name.rsplit_once('.')? {
        (id, "img") => (id, Part::Image),
        (id, "json") => (id, Part::Sidecar),
        (id, "copy") => (id, Part::Copy),
        _ => return None,
    };
    let id: VolumeId = id.parse().ok()?;
    // An id in capitals is the same id and another file.
    let spelled = match part {
        Part::Image => image(id),
        Part::Sidecar => sidecar(id),
        Part::Copy => copy(id),
    };
    (spelled == name).then_some((id, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_volumes_agree_in_both_directions() {
        let id = VolumeId::generate();
        assert_eq!(part(&image(id)), Some((id, Part::Image)));
        assert_eq!(part(&sidecar(id)), Some((id, Part::Sidecar)));
        assert_eq!(part(&copy(id)), Some((id, Part::Copy)));
        let snapshot = SnapshotId::generate();
        assert!(SnapshotFiles::of(snapshot).all().into_iter().all(|name| snapshot_of(name) == Some(snapshot)));
        assert_eq!(snapshot_of(&format!("{snapshot}.else")), None);
        let shouted = VolumeId::from_bytes([0xab; 16]).to_string().to_uppercase();
        for name in ["", "x.img", "notes.json", &id.to_string(), &format!("{shouted}.img")] {
            assert_eq!(part(name), None, "{name}");
        }
    }
}
