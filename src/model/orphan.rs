//! Orphans: what lies on disks and is assigned to nobody. And losses: what is closed without its block service's word.

use super::{ByteSize, ClusterId, Generation, Kind, PoolId, ServiceId, SnapshotId, VolumeId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which object an orphan was, and is again when it is adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", content = "id", rename_all = "lowercase")]
pub enum OrphanId {
    Pool(PoolId),
    Volume(VolumeId),
    Snapshot(SnapshotId),
}

impl OrphanId {
    pub fn kind(self) -> Kind {
        match self {
            Self::Pool(_) => Kind::Pool,
            Self::Volume(_) => Kind::Volume,
            Self::Snapshot(_) => Kind::Snapshot,
        }
    }
}

impl fmt::Display for OrphanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(id) => id.fmt(f),
            Self::Volume(id) => id.fmt(f),
            Self::Snapshot(id) => id.fmt(f),
        }
    }
}

/// Something on a block service's devices that no cluster state names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    #[serde(flatten)]
    pub id: OrphanId,
    /// As the disk has it: it need not be one.
    pub name: String,
    pub service: ServiceId,
    pub host_name: String,
    pub pool: PoolId,
    /// What its pool is or was called.
    pub pool_name: String,
    /// Of a snapshot: what it was taken of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeId>,
    /// Of a pool: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// The latest that was ever in force on its service; whoever acts on an orphan says which one was shown.
    pub generation: Generation,
    /// What it occupies, shared blocks included; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<ByteSize>,
    pub standing: OrphanStanding,
    pub origin: OrphanOrigin,
}

/// What can be done with an orphan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrphanStanding {
    /// It can be adopted.
    Whole,
    /// It kept an image's content, hidden. The image is gone; adopted, it is a volume with that content.
    ImageBase,
    /// It never came to be, or is half destroyed: nobody's bytes are in it.
    Unfinished,
    /// What describes it cannot be trusted, or it cannot be looked at: why.
    Damaged(String),
}

/// How it came to be an orphan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrphanOrigin {
    /// It was closed, and lies in a pool of the cluster.
    InPool,
    /// Its whole pool was given up together with a service that was removed.
    RemovedService,
    /// Its pool bears the mark of another cluster.
    Cluster(ClusterId),
}

/// What is closed when block services are given up for lost: names, each list for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// The services, as `id on 'host'`.
    pub services: Vec<String>,
    pub attachments: Vec<String>,
    pub snapshots: Vec<String>,
    pub volumes: Vec<String>,
    /// Images that lose what keeps their content there.
    pub images: Vec<String>,
    /// Of these, the ones that nothing else keeps: they have to be imported again.
    pub images_gone: Vec<String>,
    pub pools: Vec<String>,
    /// Volumes elsewhere that were being filled from there, and cannot be from anywhere else.
    pub starved: Vec<String>,
}

impl Loss {
    /// Whether nothing is closed.
    pub fn is_empty(&self) -> bool {
        let Self { attachments, snapshots, volumes, images, pools, .. } = self;
        [attachments, snapshots, volumes, images, pools].into_iter().all(Vec::is_empty)
    }
}
