//! Snapshots: volumes as they were at one instant.

use super::{
    ByteSize, Fill, Generation, Level, Meta, Name, Phase, PoolId, PoolRules, Progress, Replica, Room, ServiceId,
    SnapshotId, Timestamp, VolumeId,
};
use serde::{Deserialize, Serialize};

/// A point-in-time copy of a volume, under `/snapshot/<id>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub meta: Meta<SnapshotId>,
    pub spec: SnapshotSpec,
    pub status: SnapshotStatus,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSpec {
    pub volume: VolumeId,
    /// What the volume was called.
    pub volume_name: Name,
    /// All that are taken at the same instant, this one among them; empty: it is taken alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<SnapshotMember>,
    /// What the user asked for in a pool of the driver `lvm`; absent: what is usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<Room>,
    /// With the tombstone: what its room holds is overwritten before that is given back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wipe: bool,
}

/// One of several snapshots that are taken at the same instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMember {
    pub snapshot: SnapshotId,
    pub name: Name,
    pub volume: VolumeId,
    pub pool: PoolId,
    /// In a pool of the driver `lvm`: for changes of the volume, in whole extents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<ByteSize>,
}

/// `placement`, `promised` and `room` are the placer's words, `level` is what `fill` amounts to, the rest the block service's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    pub phase: Phase,
    pub observed_generation: Generation,
    pub placement: Vec<Replica>,
    /// What its pool promises it: its room in a pool of the driver `lvm`, else as much as the volume has, since all of the
    /// volume's bytes may come to differ from the snapshot's.
    pub promised: ByteSize,
    /// What it is to have for changes of the volume; absent where it takes its space as they come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<ByteSize>,
    /// The volume's size at that instant; absent until the snapshot was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<Timestamp>,
    /// Of a snapshot that has room of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fill: Option<Fill>,
    #[serde(default)]
    pub level: Level,
    /// More of its volume was changed than it had room for: nothing can be made of it any more.
    #[serde(default)]
    pub spoilt: bool,
    /// While its room is overwritten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Snapshot {
    pub fn new(meta: Meta<SnapshotId>, spec: SnapshotSpec, placement: Vec<Replica>, promised: ByteSize) -> Self {
        let status = SnapshotStatus {
            phase: Phase::Pending,
            observed_generation: Generation::default(),
            placement,
            promised,
            room: None,
            size: None,
            taken_at: None,
            fill: None,
            level: Level::Ok,
            spoilt: false,
            progress: None,
            message: None,
        };
        Self { meta, spec, status }
    }

    pub fn is_on(&self, service: ServiceId) -> bool {
        self.status.placement.iter().any(|replica| replica.service == service)
    }

    pub fn is_in(&self, pool: PoolId) -> bool {
        self.status.placement.iter().any(|replica| replica.pool == pool)
    }

    /// Whether it can be copied from.
    pub fn is_taken(&self) -> bool {
        self.status.size.is_some() && !self.status.spoilt && !self.meta.is_removed()
    }

    /// How full its room is.
    pub(super) fn measured(&self) -> Level {
        let level = |fill: Fill| PoolRules::default().level(fill.used, fill.room, self.status.level);
        self.status.fill.map(level).unwrap_or_default()
    }

    /// Sets the tombstone; says whether that was new.
    pub fn bury(&mut self, now: Timestamp) -> bool {
        let new = self.meta.bury(now);
        self.status.phase = Phase::Removing;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SnapshotAssignment;

    #[test]
    fn what_was_written_before_snapshots_were_wiped_is_read_and_the_wish_is_kept() {
        let (id, pool, service) = (SnapshotId::generate(), PoolId::generate(), ServiceId::generate());
        let (volume, volume_name) = (VolumeId::generate(), "v".parse().unwrap());
        let spec = SnapshotSpec { volume, volume_name, set: Vec::new(), room: None, wipe: false };
        let meta = Meta::new(id, "s".parse().unwrap(), Timestamp::EPOCH);
        let mut snapshot = Snapshot::new(meta, spec, vec![Replica { pool, service }], ByteSize::mib(1));
        for wipe in [false, true] {
            snapshot.spec.wipe = wipe;
            snapshot.status.progress = wipe.then_some(Progress { done: ByteSize::mib(1), of: ByteSize::mib(4) });
            let assigned = SnapshotAssignment::of(&snapshot, service).unwrap();
            assert_eq!(assigned.wipe, wipe);
            let (document, held) =
                (serde_json::to_string(&snapshot).unwrap(), serde_json::to_string(&assigned).unwrap());
            for text in [&document, &held] {
                assert_eq!(text.contains("wipe"), wipe, "{text}");
            }
            assert_eq!(document.contains("progress"), wipe, "{document}");
            assert_eq!(serde_json::from_str::<Snapshot>(&document).unwrap(), snapshot);
            assert_eq!(serde_json::from_str::<SnapshotAssignment>(&held).unwrap(), assigned);
        }
    }
}
