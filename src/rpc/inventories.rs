//! What lies on a block service's devices, between its model and its protobuf form.

use super::objects::bounded;
use super::{MAX_FAILURE, Malformed, proto};
use crate::model::*;

fn text(text: Option<String>) -> Result<Option<String>, Malformed> {
    text.map(|text| bounded(text, MAX_FAILURE, "what ails something on a disk")).transpose()
}

/// As much of it as the other side takes.
fn brief(text: Option<String>) -> Option<String> {
    text.map(|text| text.chars().take(MAX_FAILURE / 4).collect())
}

/// A name as it was read off a disk: it need not be one.
fn name(name: String) -> Result<String, Malformed> {
    bounded(name, MAX_FAILURE, "a name on a disk")
}

impl From<PoolPlace> for proto::PoolPlace {
    fn from(place: PoolPlace) -> Self {
        Self { cluster: place.cluster.to_string(), name: place.name, driver: Some((&place.driver).into()) }
    }
}

impl TryFrom<proto::PoolPlace> for PoolPlace {
    type Error = Malformed;

    fn try_from(place: proto::PoolPlace) -> Result<Self, Malformed> {
        let driver = place.driver.ok_or_else(|| Malformed::missing("a pool's driver"))?.try_into()?;
        Ok(Self { cluster: place.cluster.parse()?, name: name(place.name)?, driver })
    }
}

pub(super) fn inventory(nonce: u64, inventory: Inventory) -> proto::InventoryAnswer {
    let pool = |pool: InventoryPool| proto::InventoryPool {
        id: pool.id.to_string(),
        failure: brief(pool.failure),
        told: pool.told.as_u64(),
        place: pool.place.map(Into::into),
    };
    let volume = |volume: InventoryVolume| proto::InventoryVolume {
        id: volume.id.to_string(),
        pool: volume.pool.to_string(),
        name: volume.name,
        size: volume.size.as_u64(),
        generation: volume.generation.as_u64(),
        told: volume.told.as_u64(),
        exported: volume.exported,
        unfinished: volume.unfinished,
        data: volume.data.map(ByteSize::as_u64),
        damage: brief(volume.damage),
    };
    let snapshot = |snapshot: InventorySnapshot| proto::InventorySnapshot {
        id: snapshot.id.to_string(),
        pool: snapshot.pool.to_string(),
        volume: snapshot.volume.to_string(),
        name: snapshot.name,
        size: snapshot.size.as_u64(),
        taken_at: snapshot.at.as_millis(),
        told: snapshot.told.as_u64(),
        data: snapshot.data.map(ByteSize::as_u64),
        room: snapshot.room.map(ByteSize::as_u64),
        damage: brief(snapshot.damage),
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
            let place = pool.place.map(TryInto::try_into).transpose()?;
            let (told, failure) = (Generation::new(pool.told), text(pool.failure)?);
            Ok(InventoryPool { id: pool.id.parse()?, told, place, failure })
        };
        let volume = |volume: proto::InventoryVolume| -> Result<InventoryVolume, Malformed> {
            Ok(InventoryVolume {
                id: volume.id.parse()?,
                pool: volume.pool.parse()?,
                name: name(volume.name)?,
                size: ByteSize::bytes(volume.size),
                generation: Generation::new(volume.generation),
                told: Generation::new(volume.told),
                exported: volume.exported,
                unfinished: volume.unfinished,
                data: volume.data.map(ByteSize::bytes),
                damage: text(volume.damage)?,
            })
        };
        let snapshot = |snapshot: proto::InventorySnapshot| -> Result<InventorySnapshot, Malformed> {
            Ok(InventorySnapshot {
                id: snapshot.id.parse()?,
                pool: snapshot.pool.parse()?,
                volume: snapshot.volume.parse()?,
                name: name(snapshot.name)?,
                size: ByteSize::bytes(snapshot.size),
                at: Timestamp::from_millis(snapshot.taken_at),
                told: Generation::new(snapshot.told),
                data: snapshot.data.map(ByteSize::bytes),
                room: snapshot.room.map(ByteSize::bytes),
                damage: text(snapshot.damage)?,
            })
        };
        Ok(Self {
            snapshots: answer.snapshots.into_iter().map(snapshot).collect::<Result<_, _>>()?,
            pools: answer.pools.into_iter().map(pool).collect::<Result<_, _>>()?,
            volumes: answer.volumes.into_iter().map(volume).collect::<Result<_, _>>()?,
        })
    }
}
