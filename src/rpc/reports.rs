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
        let known = match &report.capacity {
            Observed::Known(known) => *known,
            Observed::Unknown | Observed::Absent => PoolCapacity::default(),
        };
        let PoolCapacity { capacity, used, metadata, copies, extent, size } = known;
        Self {
            id: report.id.to_string(),
            generation: report.generation.as_u64(),
            observation: observation(&report.capacity),
            capacity: capacity.as_u64(),
            used: used.as_u64(),
            copies,
            metadata: metadata.map(Into::into),
            extent: extent.map(ByteSize::as_u64),
            size: size.map(ByteSize::as_u64),
            failure: report.failure.clone(),
        }
    }
}

impl TryFrom<proto::PoolReport> for PoolReport {
    type Error = Malformed;

    fn try_from(report: proto::PoolReport) -> Result<Self, Malformed> {
        let (capacity, used) = (ByteSize::bytes(report.capacity), ByteSize::bytes(report.used));
        let metadata = report.metadata.map(Into::into);
        let (copies, extent, size) =
            (report.copies, report.extent.map(ByteSize::bytes), report.size.map(ByteSize::bytes));
        if extent == Some(ByteSize::ZERO) {
            return Err(Malformed("a pool's extents have no size".to_owned()));
        }
        let capacity = || Ok(PoolCapacity { capacity, used, metadata, copies, extent, size });
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
            progress: report.progress.map(Into::into),
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
            progress: report.progress.map(Into::into),
            failure: report.failure.map(failure).transpose()?,
        })
    }
}

impl From<&SnapshotReport> for proto::SnapshotReport {
    fn from(report: &SnapshotReport) -> Self {
        let (size, taken_at, fill) = match &report.snapshot {
            Observed::Known(taken) => (taken.size.as_u64(), taken.at.as_millis(), taken.fill.map(Into::into)),
            Observed::Unknown | Observed::Absent => (0, 0, None),
        };
        Self {
            id: report.id.to_string(),
            generation: report.generation.as_u64(),
            observation: observation(&report.snapshot),
            size,
            taken_at,
            fill,
            spoilt: report.spoilt,
            progress: report.progress.map(Into::into),
            failure: report.failure.clone(),
        }
    }
}

impl TryFrom<proto::SnapshotReport> for SnapshotReport {
    type Error = Malformed;

    fn try_from(report: proto::SnapshotReport) -> Result<Self, Malformed> {
        let (size, at) = (ByteSize::bytes(report.size), Timestamp::from_millis(report.taken_at));
        let fill = report.fill.map(Into::into);
        Ok(Self {
            id: report.id.parse()?,
            generation: Generation::new(report.generation),
            snapshot: observed(report.observation, || Ok(TakenSnapshot { size, at, fill }))?,
            spoilt: report.spoilt,
            progress: report.progress.map(Into::into),
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
