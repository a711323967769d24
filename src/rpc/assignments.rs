//! Assignments between their model and their protobuf form.

use super::objects::number;
use super::{Malformed, figures, proto};
use crate::model::*;
use crate::session::{Downward, Step};
use proto::assignments::Type;

impl From<&PoolAssignment> for proto::PoolAssignment {
    fn from(pool: &PoolAssignment) -> Self {
        Self {
            id: pool.id.to_string(),
            name: pool.name.to_string(),
            generation: pool.generation.as_u64(),
            driver: Some((&pool.driver).into()),
            made: pool.made,
            removed: pool.removed,
            formerly: pool.formerly.map(|id| id.to_string()),
        }
    }
}

impl TryFrom<proto::PoolAssignment> for PoolAssignment {
    type Error = Malformed;

    fn try_from(pool: proto::PoolAssignment) -> Result<Self, Malformed> {
        Ok(Self {
            id: pool.id.parse()?,
            name: pool.name.parse()?,
            generation: Generation::new(pool.generation),
            driver: pool.driver.ok_or_else(|| Malformed::missing("a pool's driver"))?.try_into()?,
            made: pool.made,
            removed: pool.removed,
            formerly: pool.formerly.map(|id| id.parse()).transpose()?,
        })
    }
}

impl From<&VolumeAssignment> for proto::VolumeAssignment {
    fn from(volume: &VolumeAssignment) -> Self {
        Self {
            id: volume.id.to_string(),
            name: volume.name.to_string(),
            generation: volume.generation.as_u64(),
            pool: volume.pool.to_string(),
            size: volume.size.as_u64(),
            limits: figures::limits_into(&volume.limits),
            made: volume.made,
            removed: volume.removed,
            source: volume.source.map(Into::into),
            revert: volume.revert.map(Into::into),
            shrunk: volume.shrunk.map(Generation::as_u64),
            image: volume.image.as_deref().map(Into::into),
            wipe: volume.wipe,
            moving: volume.moving.as_deref().map(Into::into),
        }
    }
}

impl TryFrom<proto::VolumeAssignment> for VolumeAssignment {
    type Error = Malformed;

    fn try_from(volume: proto::VolumeAssignment) -> Result<Self, Malformed> {
        let size = ByteSize::bytes(volume.size);
        if let Some(fault) = VolumeSpec::fault_of_size(size) {
            return Err(Malformed(fault));
        }
        Ok(Self {
            id: volume.id.parse()?,
            name: volume.name.parse()?,
            generation: Generation::new(volume.generation),
            pool: volume.pool.parse()?,
            size,
            limits: figures::limits_from(volume.limits)?,
            source: volume.source.map(TryInto::try_into).transpose()?,
            revert: volume.revert.map(TryInto::try_into).transpose()?,
            shrunk: volume.shrunk.map(Generation::new),
            image: volume.image.map(|tie| tie.try_into().map(Box::new)).transpose()?,
            moving: volume.moving.map(|moving| moving.try_into().map(Box::new)).transpose()?,
            wipe: volume.wipe,
            made: volume.made,
            removed: volume.removed,
        })
    }
}

impl From<&AttachmentAssignment> for proto::AttachmentAssignment {
    fn from(attachment: &AttachmentAssignment) -> Self {
        Self {
            id: attachment.id.to_string(),
            generation: attachment.generation.as_u64(),
            volume: attachment.volume.to_string(),
            volume_name: attachment.volume_name.to_string(),
            client: attachment.client.to_string(),
            client_name: attachment.client_name.to_string(),
            read_only: attachment.read_only,
            shared: attachment.shared,
            removed: attachment.removed,
        }
    }
}

impl TryFrom<proto::AttachmentAssignment> for AttachmentAssignment {
    type Error = Malformed;

    fn try_from(attachment: proto::AttachmentAssignment) -> Result<Self, Malformed> {
        Ok(Self {
            id: attachment.id.parse()?,
            generation: Generation::new(attachment.generation),
            volume: attachment.volume.parse()?,
            volume_name: attachment.volume_name.parse()?,
            client: attachment.client.parse()?,
            client_name: attachment.client_name.parse()?,
            read_only: attachment.read_only,
            shared: attachment.shared,
            removed: attachment.removed,
        })
    }
}

pub(super) fn complete(set: &AssignmentSet, partial: bool, results_in: Step) -> proto::Assignments {
    proto::Assignments {
        partial,
        r#type: number::<Type>(Type::Complete),
        results_in: results_in.0,
        pools: set.pools.values().map(Into::into).collect(),
        volumes: set.volumes.values().map(Into::into).collect(),
        snapshots: set.snapshots.values().map(Into::into).collect(),
        attachments: set.attachments.values().map(Into::into).collect(),
        ..Default::default()
    }
}

pub(super) fn incremental(changes: &Changes, applies_to: Step, results_in: Step) -> proto::Assignments {
    let mut message = proto::Assignments {
        r#type: number::<Type>(Type::Incremental),
        applies_to: applies_to.0,
        results_in: results_in.0,
        ..Default::default()
    };
    for change in changes {
        match change {
            Change::Put(Assigned::Pool(pool)) => message.pools.push(pool.into()),
            Change::Put(Assigned::Volume(volume)) => message.volumes.push(volume.into()),
            Change::Put(Assigned::Snapshot(snapshot)) => message.snapshots.push(snapshot.into()),
            Change::Put(Assigned::Attachment(attachment)) => message.attachments.push(attachment.into()),
            Change::Drop(AssignedId::Pool(id)) => message.dropped_pools.push(id.to_string()),
            Change::Drop(AssignedId::Volume(id)) => message.dropped_volumes.push(id.to_string()),
            Change::Drop(AssignedId::Snapshot(id)) => message.dropped_snapshots.push(id.to_string()),
            Change::Drop(AssignedId::Attachment(id)) => message.dropped_attachments.push(id.to_string()),
        }
    }
    message
}

fn each<P, A: TryFrom<P, Error = Malformed>>(messages: Vec<P>) -> Result<Vec<A>, Malformed> {
    messages.into_iter().map(A::try_from).collect()
}

fn dropped<I>(ids: &[String]) -> Result<Changes, Malformed>
where
    I: std::str::FromStr<Err = ParseIdError> + Into<AssignedId>,
{
    ids.iter().map(|id| Ok(Change::Drop(id.parse::<I>()?.into()))).collect()
}

fn put<A: Into<Assigned>>(assignment: A) -> Change {
    Change::Put(assignment.into())
}

impl TryFrom<proto::Assignments> for Downward {
    type Error = Malformed;

    fn try_from(message: proto::Assignments) -> Result<Self, Malformed> {
        let results_in = Step(message.results_in);
        let pools: Vec<PoolAssignment> = each(message.pools)?;
        let volumes: Vec<VolumeAssignment> = each(message.volumes)?;
        let snapshots: Vec<SnapshotAssignment> = each(message.snapshots)?;
        let attachments: Vec<AttachmentAssignment> = each(message.attachments)?;
        match Type::try_from(message.r#type)? {
            Type::Unspecified => Err(Malformed::missing("the type of assignments")),
            Type::Complete => {
                let set = AssignmentSet {
                    pools: pools.into_iter().map(|pool| (pool.id, pool)).collect(),
                    volumes: volumes.into_iter().map(|volume| (volume.id, volume)).collect(),
                    snapshots: snapshots.into_iter().map(|snapshot| (snapshot.id, snapshot)).collect(),
                    attachments: attachments.into_iter().map(|attachment| (attachment.id, attachment)).collect(),
                };
                Ok(Downward::Complete { set, partial: message.partial, results_in })
            }
            Type::Incremental => {
                let mut changes: Changes = pools.into_iter().map(put).collect();
                changes.extend(volumes.into_iter().map(put));
                changes.extend(snapshots.into_iter().map(put));
                changes.extend(attachments.into_iter().map(put));
                changes.extend(dropped::<AttachmentId>(&message.dropped_attachments)?);
                changes.extend(dropped::<SnapshotId>(&message.dropped_snapshots)?);
                changes.extend(dropped::<VolumeId>(&message.dropped_volumes)?);
                changes.extend(dropped::<PoolId>(&message.dropped_pools)?);
                Ok(Downward::Incremental { changes, applies_to: Step(message.applies_to), results_in })
            }
        }
    }
}
