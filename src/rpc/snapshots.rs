//! Snapshots, and what volumes are made of and put back to, between their model and their protobuf form.

use super::objects::{enumerated, number, required};
use super::{Malformed, proto};
use crate::model::*;

/// The most snapshots that are taken at one instant.
const MAX_SET: usize = 64;

impl From<Source> for proto::Source {
    fn from(source: Source) -> Self {
        let source = match source {
            Source::Snapshot(id) => proto::source::Source::Snapshot(id.to_string()),
            Source::Volume(id) => proto::source::Source::Volume(id.to_string()),
        };
        Self { source: Some(source) }
    }
}

impl TryFrom<proto::Source> for Source {
    type Error = Malformed;

    fn try_from(source: proto::Source) -> Result<Self, Malformed> {
        Ok(match required(source.source, "what a volume is made from")? {
            proto::source::Source::Snapshot(id) => Source::Snapshot(id.parse()?),
            proto::source::Source::Volume(id) => Source::Volume(id.parse()?),
        })
    }
}

impl From<Revert> for proto::Revert {
    fn from(revert: Revert) -> Self {
        Self { to: revert.to.to_string(), since: revert.since.as_u64() }
    }
}

impl TryFrom<proto::Revert> for Revert {
    type Error = Malformed;

    fn try_from(revert: proto::Revert) -> Result<Self, Malformed> {
        Ok(Self { to: revert.to.parse()?, since: Generation::new(revert.since) })
    }
}

impl From<&SnapshotMember> for proto::SnapshotMember {
    fn from(member: &SnapshotMember) -> Self {
        Self {
            snapshot: member.snapshot.to_string(),
            name: member.name.to_string(),
            volume: member.volume.to_string(),
            pool: member.pool.to_string(),
            room: member.room.map(ByteSize::as_u64),
        }
    }
}

impl TryFrom<proto::SnapshotMember> for SnapshotMember {
    type Error = Malformed;

    fn try_from(member: proto::SnapshotMember) -> Result<Self, Malformed> {
        Ok(Self {
            snapshot: member.snapshot.parse()?,
            name: member.name.parse()?,
            volume: member.volume.parse()?,
            pool: member.pool.parse()?,
            room: member.room.map(ByteSize::bytes),
        })
    }
}

fn members(set: Vec<proto::SnapshotMember>) -> Result<Vec<SnapshotMember>, Malformed> {
    if set.len() > MAX_SET {
        return Err(Malformed(format!("{} snapshots of one instant, {MAX_SET} are the most", set.len())));
    }
    set.into_iter().map(TryInto::try_into).collect()
}

impl From<&Snapshot> for proto::Snapshot {
    fn from(snapshot: &Snapshot) -> Self {
        let (spec, status) = (&snapshot.spec, &snapshot.status);
        Self {
            meta: Some((&snapshot.meta).into()),
            spec: Some(proto::SnapshotSpec {
                volume: spec.volume.to_string(),
                volume_name: spec.volume_name.to_string(),
                set: spec.set.iter().map(Into::into).collect(),
                room: spec.room.map(Into::into),
                wipe: spec.wipe,
            }),
            status: Some(proto::SnapshotStatus {
                phase: number::<proto::Phase>(status.phase),
                observed_generation: status.observed_generation.as_u64(),
                placement: status.placement.iter().map(Into::into).collect(),
                promised: status.promised.as_u64(),
                size: status.size.map(ByteSize::as_u64),
                taken_at: status.taken_at.map(Timestamp::as_millis),
                fill: status.fill.map(Into::into),
                level: number::<proto::Level>(status.level),
                spoilt: status.spoilt,
                room: status.room.map(ByteSize::as_u64),
                progress: status.progress.map(Into::into),
                message: status.message.clone(),
            }),
        }
    }
}

impl TryFrom<proto::Snapshot> for Snapshot {
    type Error = Malformed;

    fn try_from(snapshot: proto::Snapshot) -> Result<Self, Malformed> {
        let spec = required(snapshot.spec, "a snapshot's spec")?;
        let status = required(snapshot.status, "a snapshot's status")?;
        Ok(Self {
            meta: required(snapshot.meta, "a snapshot's meta")?.try_into()?,
            spec: SnapshotSpec {
                volume: spec.volume.parse()?,
                volume_name: spec.volume_name.parse()?,
                set: members(spec.set)?,
                room: spec.room.map(TryInto::try_into).transpose()?,
                wipe: spec.wipe,
            },
            status: SnapshotStatus {
                phase: enumerated::<proto::Phase, _>(status.phase)?,
                observed_generation: Generation::new(status.observed_generation),
                placement: status.placement.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
                promised: ByteSize::bytes(status.promised),
                size: status.size.map(ByteSize::bytes),
                taken_at: status.taken_at.map(Timestamp::from_millis),
                fill: status.fill.map(Into::into),
                // Managers of before say nothing of it.
                level: if status.level == 0 { Level::Ok } else { enumerated::<proto::Level, _>(status.level)? },
                spoilt: status.spoilt,
                room: status.room.map(ByteSize::bytes),
                progress: status.progress.map(Into::into),
                message: status.message,
            },
        })
    }
}

impl From<&SnapshotAssignment> for proto::SnapshotAssignment {
    fn from(snapshot: &SnapshotAssignment) -> Self {
        Self {
            id: snapshot.id.to_string(),
            name: snapshot.name.to_string(),
            generation: snapshot.generation.as_u64(),
            volume: snapshot.volume.to_string(),
            pool: snapshot.pool.to_string(),
            set: snapshot.set.iter().map(Into::into).collect(),
            room: snapshot.room.map(ByteSize::as_u64),
            wipe: snapshot.wipe,
            made: snapshot.made,
            removed: snapshot.removed,
        }
    }
}

impl TryFrom<proto::SnapshotAssignment> for SnapshotAssignment {
    type Error = Malformed;

    fn try_from(snapshot: proto::SnapshotAssignment) -> Result<Self, Malformed> {
        Ok(Self {
            id: snapshot.id.parse()?,
            name: snapshot.name.parse()?,
            generation: Generation::new(snapshot.generation),
            volume: snapshot.volume.parse()?,
            pool: snapshot.pool.parse()?,
            set: members(snapshot.set)?,
            room: snapshot.room.map(ByteSize::bytes),
            wipe: snapshot.wipe,
            made: snapshot.made,
            removed: snapshot.removed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_survive_the_wire_and_sets_without_end_are_refused() {
        let (volume, pool) = (VolumeId::from_bytes([1; 16]), PoolId::from_bytes([2; 16]));
        let (id, service) = (SnapshotId::from_bytes([3; 16]), ServiceId::from_bytes([4; 16]));
        let name: Name = "s".parse().unwrap();
        let room = Some(ByteSize::mib(8));
        let member = SnapshotMember { snapshot: id, name: name.clone(), volume, pool, room };
        let words = Some(Room::Percent(20));
        let (volume_name, set) = ("v".parse().unwrap(), vec![member.clone()]);
        let spec = SnapshotSpec { volume, volume_name, set, room: words, wipe: true };
        let meta = Meta::new(id, name, Timestamp::from_millis(1));
        let mut snapshot = Snapshot::new(meta, spec, vec![Replica { pool, service }], ByteSize::mib(1));
        snapshot.status.size = Some(ByteSize::mib(1));
        snapshot.status.taken_at = Some(Timestamp::from_millis(7));
        (snapshot.status.room, snapshot.status.level, snapshot.status.spoilt) = (room, Level::High, true);
        snapshot.status.fill = Some(Fill { room: ByteSize::mib(8), used: ByteSize::mib(7) });
        snapshot.status.progress = Some(Progress { done: ByteSize::mib(3), of: ByteSize::mib(8) });
        assert_eq!(Snapshot::try_from(proto::Snapshot::from(&snapshot)), Ok(snapshot.clone()));
        let assigned = SnapshotAssignment::of(&snapshot, service).unwrap();
        assert_eq!(SnapshotAssignment::try_from(proto::SnapshotAssignment::from(&assigned)), Ok(assigned.clone()));
        let endless = SnapshotAssignment { set: vec![member; MAX_SET + 1], ..assigned };
        assert!(SnapshotAssignment::try_from(proto::SnapshotAssignment::from(&endless)).is_err());
    }
}
