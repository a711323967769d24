//! What operators' requests say, in the words of plans. Nothing is decided here.

use super::plan::{Origin, WantedSnapshot, WantedVolume};
use crate::model::{ByteSize, Name, Room, SnapshotId, VolumeId};
use crate::rpc::{Fault, FaultKind, Malformed, proto};
use proto::create_volume_request::Source;
use tonic::Status;

pub fn parsed<T, E: std::fmt::Display>(text: Result<T, E>) -> Result<T, Status> {
    text.map_err(|error| Fault::new(FaultKind::Invalid, error.to_string()).into())
}

pub fn malformed<T>(value: Result<T, Malformed>) -> Result<T, Status> {
    value.map_err(|error| Fault::from(error).into())
}

/// A text that was left out is empty on the wire.
pub fn optional(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

pub fn wanted_volume(request: proto::CreateVolumeRequest) -> WantedVolume {
    let origin = request.source.map(|source| match source {
        Source::FromSnapshot(snapshot) => Origin::Snapshot(snapshot),
        Source::FromVolume(volume) => Origin::Volume(volume),
        Source::Image(reference) => Origin::Image { reference, base: VolumeId::generate() },
    });
    // A copy is as large as what it is copied from unless a size is named.
    let size = (request.size > 0 || origin.is_none()).then(|| ByteSize::bytes(request.size));
    WantedVolume { size, pool: optional(&request.pool), origin }
}

/// # Errors
/// If a name is none, or the room makes no sense.
pub fn wanted_snapshots(request: proto::CreateSnapshotsRequest) -> Result<(Vec<WantedSnapshot>, Option<Room>), Status> {
    let proto::CreateSnapshotsRequest { wanted, room } = request;
    let room = malformed(room.map(Room::try_from).transpose())?;
    let one = |one: proto::create_snapshots_request::Wanted| {
        let name = parsed(one.name.parse::<Name>())?;
        Ok(WantedSnapshot { id: SnapshotId::generate(), name, volume: one.volume })
    };
    Ok((wanted.into_iter().map(one).collect::<Result<Vec<_>, Status>>()?, room))
}
