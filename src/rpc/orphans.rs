//! Orphans and losses between their model and their protobuf form.

use super::objects::{enumerated, number};
use super::{Malformed, proto};
use crate::model::*;
use proto::orphan::{Origin as WireOrigin, Standing as WireStanding};

impl From<&Orphan> for proto::Orphan {
    fn from(orphan: &Orphan) -> Self {
        let standing = match &orphan.standing {
            OrphanStanding::Whole => WireStanding::Whole(true),
            OrphanStanding::ImageBase => WireStanding::ImageBase(true),
            OrphanStanding::Unfinished => WireStanding::Unfinished(true),
            OrphanStanding::Damaged(why) => WireStanding::Damaged(why.clone()),
        };
        let origin = match orphan.origin {
            OrphanOrigin::InPool => WireOrigin::InPool(true),
            OrphanOrigin::RemovedService => WireOrigin::RemovedService(true),
            OrphanOrigin::Cluster(id) => WireOrigin::Cluster(id.to_string()),
        };
        Self {
            kind: number::<proto::Kind>(orphan.id.kind()),
            id: orphan.id.to_string(),
            name: orphan.name.clone(),
            service: orphan.service.to_string(),
            host_name: orphan.host_name.clone(),
            pool: orphan.pool.to_string(),
            pool_name: orphan.pool_name.clone(),
            volume: orphan.volume.map(|id| id.to_string()),
            size: orphan.size.map(ByteSize::as_u64),
            generation: orphan.generation.as_u64(),
            data: orphan.data.map(ByteSize::as_u64),
            standing: Some(standing),
            origin: Some(origin),
        }
    }
}

impl TryFrom<proto::Orphan> for Orphan {
    type Error = Malformed;

    fn try_from(orphan: proto::Orphan) -> Result<Self, Malformed> {
        let id = match enumerated::<proto::Kind, Kind>(orphan.kind)? {
            Kind::Pool => OrphanId::Pool(orphan.id.parse()?),
            Kind::Volume => OrphanId::Volume(orphan.id.parse()?),
            Kind::Snapshot => OrphanId::Snapshot(orphan.id.parse()?),
            other => return Err(Malformed(format!("a {other} that is an orphan"))),
        };
        let standing = match orphan.standing.ok_or_else(|| Malformed::missing("how an orphan stands"))? {
            WireStanding::Whole(_) => OrphanStanding::Whole,
            WireStanding::ImageBase(_) => OrphanStanding::ImageBase,
            WireStanding::Unfinished(_) => OrphanStanding::Unfinished,
            WireStanding::Damaged(why) => OrphanStanding::Damaged(why),
        };
        let origin = match orphan.origin.ok_or_else(|| Malformed::missing("where an orphan comes from"))? {
            WireOrigin::InPool(_) => OrphanOrigin::InPool,
            WireOrigin::RemovedService(_) => OrphanOrigin::RemovedService,
            WireOrigin::Cluster(id) => OrphanOrigin::Cluster(id.parse()?),
        };
        Ok(Self {
            id,
            name: orphan.name,
            service: orphan.service.parse()?,
            host_name: orphan.host_name,
            pool: orphan.pool.parse()?,
            pool_name: orphan.pool_name,
            volume: orphan.volume.map(|id| id.parse()).transpose()?,
            size: orphan.size.map(ByteSize::bytes),
            generation: Generation::new(orphan.generation),
            data: orphan.data.map(ByteSize::bytes),
            standing,
            origin,
        })
    }
}

impl From<Loss> for proto::Loss {
    fn from(loss: Loss) -> Self {
        let Loss { services, attachments, snapshots, volumes, images, images_gone, pools, starved } = loss;
        Self { services, attachments, snapshots, volumes, images, images_gone, pools, starved }
    }
}

impl From<proto::Loss> for Loss {
    fn from(loss: proto::Loss) -> Self {
        let proto::Loss { services, attachments, snapshots, volumes, images, images_gone, pools, starved } = loss;
        Self { services, attachments, snapshots, volumes, images, images_gone, pools, starved }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orphans_of_every_kind_survive_the_wire() {
        let ids = [
            OrphanId::Pool(PoolId::from_bytes([1; 16])),
            OrphanId::Volume(VolumeId::from_bytes([2; 16])),
            OrphanId::Snapshot(SnapshotId::from_bytes([3; 16])),
        ];
        let standings = [OrphanStanding::Whole, OrphanStanding::Unfinished, OrphanStanding::Damaged("bent".into())];
        let origins =
            [OrphanOrigin::InPool, OrphanOrigin::RemovedService, OrphanOrigin::Cluster(ClusterId::from_bytes([4; 16]))];
        for ((id, standing), origin) in ids.into_iter().zip(standings).zip(origins) {
            let orphan = Orphan {
                id,
                name: "db".into(),
                service: ServiceId::from_bytes([5; 16]),
                host_name: "one".into(),
                pool: PoolId::from_bytes([1; 16]),
                pool_name: "main".into(),
                volume: Some(VolumeId::from_bytes([2; 16])),
                size: Some(ByteSize::mib(3)),
                generation: Generation::new(7),
                data: None,
                standing,
                origin,
            };
            assert_eq!(Orphan::try_from(proto::Orphan::from(&orphan)), Ok(orphan));
        }
        assert!(Orphan::try_from(proto::Orphan::default()).is_err());
    }
}
