//! What a block service says of its own devices.

use super::{
    AssignedId, Attachment, AttachmentId, ByteSize, Export, Fill, Generation, Phase, Pool, PoolId, PoolMetadata,
    Progress, Snapshot, SnapshotId, Timestamp, Volume, VolumeId,
};
use serde::{Deserialize, Serialize};

/// A fact about the world outside: nobody knows, it is known not to be, or it is known to be so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Observed<T> {
    #[default]
    Unknown,
    Absent,
    Known(T),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    Pool(PoolReport),
    Volume(VolumeReport),
    Snapshot(SnapshotReport),
    Attachment(AttachmentReport),
}

impl Report {
    /// What it speaks of.
    pub fn id(&self) -> AssignedId {
        match self {
            Report::Pool(report) => AssignedId::Pool(report.id),
            Report::Volume(report) => AssignedId::Volume(report.id),
            Report::Snapshot(report) => AssignedId::Snapshot(report.id),
            Report::Attachment(report) => AssignedId::Attachment(report.id),
        }
    }

    /// Why the assignment could not be fulfilled.
    pub fn failure(&self) -> Option<&str> {
        match self {
            Report::Pool(report) => report.failure.as_deref(),
            Report::Volume(report) => report.failure.as_deref(),
            Report::Snapshot(report) => report.failure.as_deref(),
            Report::Attachment(report) => report.failure.as_deref(),
        }
    }
}

/// `generation` is the one of the assignment that this speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolReport {
    pub id: PoolId,
    pub generation: Generation,
    pub capacity: Observed<PoolCapacity>,
    /// Why the assignment could not be fulfilled.
    pub failure: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCapacity {
    /// What it can hold at most: as it is, or as it can be extended to.
    pub capacity: ByteSize,
    pub used: ByteSize,
    /// Of a thin pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<PoolMetadata>,
    /// Whether volumes can be copied without their bytes being copied: else there are no snapshots and no copies.
    #[serde(default)]
    pub copies: bool,
    /// Space is taken in whole pieces of this size; absent: by the byte, as far as promises go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extent: Option<ByteSize>,
    /// How large it is now, of a pool that is extended as it fills up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeReport {
    pub id: VolumeId,
    pub generation: Generation,
    pub volume: Observed<ServedVolume>,
    /// Of what takes long and is under way.
    pub progress: Option<Progress>,
    /// Why the assignment could not be fulfilled.
    pub failure: Option<String>,
}

/// A volume that is there, and how it can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedVolume {
    pub size: ByteSize,
    pub exports: Vec<Export>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotReport {
    pub id: SnapshotId,
    pub generation: Generation,
    pub snapshot: Observed<TakenSnapshot>,
    /// More of its volume was changed than it had room for: so it stays.
    pub spoilt: bool,
    /// While its room is overwritten.
    pub progress: Option<Progress>,
    /// Why the assignment could not be fulfilled.
    pub failure: Option<String>,
}

/// A snapshot that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenSnapshot {
    pub size: ByteSize,
    /// By the block service's clock.
    pub at: Timestamp,
    /// If it has room of its own.
    pub fill: Option<Fill>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentReport {
    pub id: AttachmentId,
    pub generation: Generation,
    /// Known: the client may come in. Absent: it was cut off, nothing of it is in flight, and it cannot come back.
    pub in_force: Observed<()>,
    /// Why the assignment could not be fulfilled.
    pub failure: Option<String>,
}

fn phase(removed: bool, current: bool, known: bool, failed: bool) -> Phase {
    match (removed, failed) {
        (true, _) => Phase::Removing,
        (false, true) => Phase::Failed,
        (false, false) if current && known => Phase::Ready,
        (false, false) => Phase::Pending,
    }
}

impl Pool {
    /// Takes a report over into the status. A report on an older generation than the last one is stale and ignored.
    /// Says whether anything changed.
    pub fn observe(&mut self, report: &PoolReport) -> bool {
        if report.generation < self.status.observed_generation || report.generation > self.meta.generation {
            return false;
        }
        let before = self.status.clone();
        let status = &mut self.status;
        status.observed_generation = report.generation;
        status.message = report.failure.clone();
        if let Observed::Known(known) = report.capacity {
            status.capacity = Some(known.capacity);
            status.used = Some(known.used);
            status.metadata = known.metadata;
            status.copies = Some(known.copies);
            status.extent = known.extent;
            status.size = known.size;
        }
        self.status.level = self.measured();
        let status = &mut self.status;
        let current = report.generation == self.meta.generation;
        status.phase = phase(self.meta.is_removed(), current, status.capacity.is_some(), report.failure.is_some());
        *status != before
    }

    /// Whether `report` says that a pool with a tombstone is gone from its host.
    pub fn is_let_go_by(&self, report: &PoolReport) -> bool {
        self.meta.is_removed() && report.generation == self.meta.generation && report.capacity == Observed::Absent
    }
}

impl Volume {
    /// Takes a report over into the status, as [`Pool::observe`] does.
    pub fn observe(&mut self, report: &VolumeReport) -> bool {
        if report.generation < self.status.observed_generation || report.generation > self.meta.generation {
            return false;
        }
        let before = self.status.clone();
        let status = &mut self.status;
        status.observed_generation = report.generation;
        status.message = report.failure.clone();
        match &report.volume {
            Observed::Known(served) => {
                status.size = Some(served.size);
                status.exports = served.exports.clone();
            }
            // The last known size stays: it says that there were bytes once.
            Observed::Absent | Observed::Unknown => status.exports.clear(),
        }
        status.progress = report.progress;
        let current = report.generation == self.meta.generation;
        let known = matches!(report.volume, Observed::Known(_));
        status.phase = phase(self.meta.is_removed(), current, known, report.failure.is_some());
        *status != before
    }

    /// Whether `report` says that a volume with a tombstone is gone from its host.
    pub fn is_let_go_by(&self, report: &VolumeReport) -> bool {
        self.meta.is_removed() && report.generation == self.meta.generation && report.volume == Observed::Absent
    }
}

impl Snapshot {
    /// Takes a report over into the status, as [`Pool::observe`] does.
    pub fn observe(&mut self, report: &SnapshotReport) -> bool {
        if report.generation < self.status.observed_generation || report.generation > self.meta.generation {
            return false;
        }
        let before = self.status.clone();
        let status = &mut self.status;
        status.observed_generation = report.generation;
        status.message = report.failure.clone();
        if let Observed::Known(taken) = &report.snapshot {
            status.size = Some(taken.size);
            status.taken_at = Some(taken.at);
            status.fill = taken.fill;
        }
        status.spoilt |= report.spoilt;
        status.progress = report.progress;
        if let Some(fill) = status.fill.as_mut().filter(|_| status.spoilt) {
            fill.used = fill.room;
        }
        self.status.level = self.measured();
        let status = &mut self.status;
        let current = report.generation == self.meta.generation;
        let known = matches!(report.snapshot, Observed::Known(_));
        status.phase = phase(self.meta.is_removed(), current, known, report.failure.is_some());
        *status != before
    }

    /// Whether `report` says that a snapshot with a tombstone is gone from its host.
    pub fn is_let_go_by(&self, report: &SnapshotReport) -> bool {
        self.meta.is_removed() && report.generation == self.meta.generation && report.snapshot == Observed::Absent
    }
}

impl Attachment {
    /// Takes a report over into the status, as [`Pool::observe`] does.
    pub fn observe(&mut self, report: &AttachmentReport) -> bool {
        if report.generation < self.status.observed_generation || report.generation > self.meta.generation {
            return false;
        }
        let before = self.status.clone();
        let status = &mut self.status;
        status.observed_generation = report.generation;
        status.message = report.failure.clone();
        let current = report.generation == self.meta.generation;
        let known = matches!(report.in_force, Observed::Known(()));
        status.phase = phase(self.meta.is_removed(), current, known, report.failure.is_some());
        *status != before
    }

    /// Whether `report` says that the client of an attachment is out that has a tombstone, or that was carried over from
    /// a state in which it did not have one yet.
    pub fn is_let_go_by(&self, report: &AttachmentReport) -> bool {
        (self.meta.is_removed() || self.meta.generation.is_carried())
            && report.generation == self.meta.generation
            && report.in_force == Observed::Absent
    }
}
