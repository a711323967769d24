//! What block services report, between its model and its protobuf form.

use super::objects::bounded;
use super::{MAX_FAILURE, Malformed, proto};
use crate::model::*;

/// The most ways to reach one volume.
const MAX_EXPORTS: usize = 16;

fn failure(text: String) -> Result<String, Malformed> {
    bounded(text, MAX_FAILURE, "a failure's text")
}

fn observation<T>(observed: &Observed<T>) -> i32 {
    match observed {
        Observed::Unknown => proto::Observation::Unknown,
        Observed::Absent => proto::Observation::Absent,
        Observed::Known(_) => proto::Observation::Known,
    }
    .into()
}

fn observed<T>(observation: i32, known: impl FnOnce() -> Result<T, Malformed>) -> Result<Observed<T>, Malformed> {
    Ok(match proto::Observation::try_from(observation)? {
        proto::Observation::Unknown => Observed::Unknown,
        proto::Observation::Absent => Observed::Absent,
        proto::Observation::Known => Observed::Known(known()?),
    })
}

impl From<&PoolReport> for proto::PoolReport {
    fn from(report: &PoolReport) -> Self {
        let (capacity, used, copies, metadata) = match &report.capacity {
            Observed::Known(known) => {
                (known.capacity.as_u64(), known.used.as_u64(), known.copies, known.metadata.map(Into::into))
            }
            Observed::Unknown | Observed::Absent => (0, 0, false, None),
        };
        Self {
            id: report.id.to_string(),
            generation: report.generation.as_u64(),
            observation: observation(&report.capacity),
            capacity,
            used,
            copies,
            metadata,
            failure: report.failure.clone(),
        }
    }
}

impl TryFrom<proto::PoolReport> for PoolReport {
    type Error = Malformed;

    fn try_from(report: proto::PoolReport) -> Result<Self, Malformed> {
        let (capacity, used) = (ByteSize::bytes(report.capacity), ByteSize::bytes(report.used));
        let metadata = report.metadata.map(Into::into);
        let capacity = || Ok(PoolCapacity { capacity, used, metadata, copies: report.copies });
        Ok(Self {
            id: report.id.parse()?,
            generation: Generation::new(report.generation),
            capacity: observed(report.observation, capacity)?,
            failure: report.failure.map(failure).transpose()?,
        })
    }
}

impl From<&VolumeReport> for proto::VolumeReport {
    fn from(report: &VolumeReport) -> Self {
        let (size, exports) = match &report.volume {
            Observed::Known(served) => (served.size.as_u64(), served.exports.iter().map(Into::into).collect()),
            Observed::Unknown | Observed::Absent => (0, Vec::new()),
        };
        Self {
            id: report.id.to_string(),
            generation: report.generation.as_u64(),
            observation: observation(&report.volume),
            size,
            exports,
            failure: report.failure.clone(),
        }
    }
}

impl TryFrom<proto::VolumeReport> for VolumeReport {
    type Error = Malformed;

    fn try_from(report: proto::VolumeReport) -> Result<Self, Malformed> {
        let (size, exports) = (report.size, report.exports);
        if exports.len() > MAX_EXPORTS {
            return Err(Malformed(format!("{} exports of one volume", exports.len())));
        }
        let volume = || {
            Ok(ServedVolume {
                size: ByteSize::bytes(size),
                exports: exports.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            })
        };
        Ok(Self {
            id: report.id.parse()?,
            generation: Generation::new(report.generation),
            volume: observed(report.observation, volume)?,
            failure: report.failure.map(failure).transpose()?,
        })
    }
}

pub(super) fn inventory(nonce: u64, inventory: Inventory) -> proto::InventoryAnswer {
    let pool = |pool: InventoryPool| proto::InventoryPool { id: pool.id.to_string(), failure: pool.failure };
    let volume = |volume: InventoryVolume| proto::InventoryVolume {
        id: volume.id.to_string(),
        pool: volume.pool.to_string(),
        name: volume.name,
        size: volume.size.as_u64(),
        generation: volume.generation.as_u64(),
        exported: volume.exported,
        damage: volume.damage,
    };
    let snapshot = |snapshot: InventorySnapshot| proto::InventorySnapshot {
        id: snapshot.id.to_string(),
        pool: snapshot.pool.to_string(),
        volume: snapshot.volume.to_string(),
        name: snapshot.name,
        size: snapshot.size.as_u64(),
        damage: snapshot.damage,
    };
    proto::InventoryAnswer {
        nonce,
        snapshots: inventory.snapshots.into_iter().map(snapshot).collect(),
        pools: inventory.pools.into_iter().map(pool).collect(),
        volumes: inventory.volumes.into_iter().map(volume).collect(),
    }
}

impl TryFrom<proto::InventoryAnswer> for Inventory {
    type Error = Malformed;

    fn try_from(answer: proto::InventoryAnswer) -> Result<Self, Malformed> {
        let pool = |pool: proto::InventoryPool| -> Result<InventoryPool, Malformed> {
            Ok(InventoryPool { id: pool.id.parse()?, failure: pool.failure })
        };
        let volume = |volume: proto::InventoryVolume| -> Result<InventoryVolume, Malformed> {
            Ok(InventoryVolume {
                id: volume.id.parse()?,
                pool: volume.pool.parse()?,
                name: volume.name,
                size: ByteSize::bytes(volume.size),
                generation: Generation::new(volume.generation),
                exported: volume.exported,
                damage: volume.damage,
            })
        };
        let snapshot = |snapshot: proto::InventorySnapshot| -> Result<InventorySnapshot, Malformed> {
            Ok(InventorySnapshot {
                id: snapshot.id.parse()?,
                pool: snapshot.pool.parse()?,
                volume: snapshot.volume.parse()?,
                name: snapshot.name,
                size: ByteSize::bytes(snapshot.size),
                damage: snapshot.damage,
            })
        };
        Ok(Self {
            snapshots: answer.snapshots.into_iter().map(snapshot).collect::<Result<_, _>>()?,
            pools: answer.pools.into_iter().map(pool).collect::<Result<_, _>>()?,
            volumes: answer.volumes.into_iter().map(volume).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&SnapshotReport> for proto::SnapshotReport {
    fn from(report: &SnapshotReport) -> Self {
        let (size, taken_at) = match &report.snapshot {
            Observed::Known(taken) => (taken.size.as_u64(), taken.at.as_millis()),
            Observed::Unknown | Observed::Absent => (0, 0),
        };
        Self {
            id: report.id.to_string(),
            generation: report.generation.as_u64(),
            observation: observation(&report.snapshot),
            size,
            taken_at,
            failure: report.failure.clone(),
        }
    }
}

impl TryFrom<proto::SnapshotReport> for SnapshotReport {
    type Error = Malformed;

    fn try_from(report: proto::SnapshotReport) -> Result<Self, Malformed> {
        let (size, at) = (ByteSize::bytes(report.size), Timestamp::from_millis(report.taken_at));
        Ok(Self {
            id: report.id.parse()?,
            generation: Generation::new(report.generation),
            snapshot: observed(report.observation, || Ok(TakenSnapshot { size, at }))?,
            failure: report.failure.map(failure).transpose()?,
        })
    }
}

impl From<&AttachmentReport> for proto::AttachmentReport {
    fn from(report: &AttachmentReport) -> Self {
        Self {
            id: report.id.to_string(),
            generation: report.generation.as_u64(),
            observation: observation(&report.in_force),
            failure: report.failure.clone(),
        }
    }
}

impl TryFrom<proto::AttachmentReport> for AttachmentReport {
    type Error = Malformed;

    fn try_from(report: proto::AttachmentReport) -> Result<Self, Malformed> {
        Ok(Self {
            id: report.id.parse()?,
            generation: Generation::new(report.generation),
            in_force: observed(report.observation, || Ok(()))?,
            failure: report.failure.map(failure).transpose()?,
        })
    }
}
