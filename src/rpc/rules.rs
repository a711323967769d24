//! How pools promise their space and how full things are, between its model and its protobuf form.

use super::{Malformed, proto};
use crate::model::{ByteSize, Fill, PoolMetadata, PoolRules, Progress, Room};

impl From<PoolRules> for proto::PoolRules {
    fn from(rules: PoolRules) -> Self {
        let PoolRules { overcommit_percent, warn_percent, refuse_percent } = rules;
        Self { overcommit_percent, warn_percent, refuse_percent }
    }
}

impl From<proto::PoolRules> for PoolRules {
    fn from(rules: proto::PoolRules) -> Self {
        let proto::PoolRules { overcommit_percent, warn_percent, refuse_percent } = rules;
        Self { overcommit_percent, warn_percent, refuse_percent }
    }
}

impl From<PoolMetadata> for proto::PoolMetadata {
    fn from(metadata: PoolMetadata) -> Self {
        let PoolMetadata { capacity, used, chunk } = metadata;
        Self { capacity: capacity.as_u64(), used: used.as_u64(), chunk: chunk.as_u64() }
    }
}

impl From<proto::PoolMetadata> for PoolMetadata {
    fn from(metadata: proto::PoolMetadata) -> Self {
        let proto::PoolMetadata { capacity, used, chunk } = metadata;
        let [capacity, used, chunk] = [capacity, used, chunk].map(ByteSize::bytes);
        Self { capacity, used, chunk }
    }
}

impl From<Fill> for proto::Fill {
    fn from(fill: Fill) -> Self {
        Self { room: fill.room.as_u64(), used: fill.used.as_u64() }
    }
}

impl From<proto::Fill> for Fill {
    fn from(fill: proto::Fill) -> Self {
        let room = ByteSize::bytes(fill.room);
        Self { room, used: ByteSize::bytes(fill.used).min(room) }
    }
}

impl From<Progress> for proto::Progress {
    fn from(progress: Progress) -> Self {
        Self { done: progress.done.as_u64(), of: progress.of.as_u64() }
    }
}

impl From<proto::Progress> for Progress {
    fn from(progress: proto::Progress) -> Self {
        let of = ByteSize::bytes(progress.of);
        Self { done: ByteSize::bytes(progress.done).min(of), of }
    }
}

impl From<Room> for proto::Room {
    fn from(room: Room) -> Self {
        let room = match room {
            Room::Size(size) => proto::room::Room::Size(size.as_u64()),
            Room::Percent(percent) => proto::room::Room::Percent(percent),
        };
        Self { room: Some(room) }
    }
}

impl TryFrom<proto::Room> for Room {
    type Error = Malformed;

    fn try_from(room: proto::Room) -> Result<Self, Malformed> {
        let room = match room.room {
            Some(proto::room::Room::Size(size)) => Room::Size(ByteSize::bytes(size)),
            Some(proto::room::Room::Percent(percent)) => Room::Percent(percent),
            None => return Err(Malformed::missing("how much room a snapshot is to have")),
        };
        room.fault().map_or(Ok(room), |fault| Err(Malformed(fault)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_survives_the_wire_and_nonsense_does_not() {
        for room in [Room::Size(ByteSize::mib(3)), Room::Percent(100)] {
            assert_eq!(Room::try_from(proto::Room::from(room)), Ok(room));
        }
        for nonsense in [Room::Size(ByteSize::ZERO), Room::Percent(0), Room::Percent(101)] {
            assert!(Room::try_from(proto::Room::from(nonsense)).is_err(), "{nonsense:?}");
        }
        assert!(Room::try_from(proto::Room { room: None }).is_err());
    }

    #[test]
    fn nothing_is_fuller_than_full_whatever_a_peer_says() {
        let fill = Fill::from(proto::Fill { room: 5, used: u64::MAX });
        assert_eq!(fill, Fill { room: ByteSize::bytes(5), used: ByteSize::bytes(5) });
        let progress = Progress::from(proto::Progress { done: 9, of: 5 });
        assert_eq!(progress.percent(), 100);
    }
}
