//! What lies in a pool's directory: names, the marker, the sidecars.

use crate::backend::{PoolIdentity, VolumeLayout};
use crate::host::document::Document;
use crate::model::{ByteSize, ClusterId, Generation, Name, PoolId, VolumeId};
use serde::{Deserialize, Serialize};

pub(super) const MARKER: &str = "symphony-pool.json";
pub(super) const VOLUMES: &str = "volumes";
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
            lineage: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Image,
    Sidecar,
}

pub(super) fn image(id: VolumeId) -> String {
    format!("{id}.img")
}

pub(super) fn sidecar(id: VolumeId) -> String {
    format!("{id}.json")
}

/// Which part of which volume a name in `volumes/` stands for, if any.
pub(super) fn part(name: &str) -> Option<(VolumeId, Part)> {
    let (id, part) = match name.rsplit_once('.')? {
        (id, "img") => (id, Part::Image),
        (id, "json") => (id, Part::Sidecar),
        _ => return None,
    };
    let id: VolumeId = id.parse().ok()?;
    // An id in capitals is the same id and another file.
    let spelled = match part {
        Part::Image => image(id),
        Part::Sidecar => sidecar(id),
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
        let shouted = VolumeId::from_bytes([0xab; 16]).to_string().to_uppercase();
        for name in ["", "x.img", "notes.json", &id.to_string(), &format!("{shouted}.img")] {
            assert_eq!(part(name), None, "{name}");
        }
    }
}
