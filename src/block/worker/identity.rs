//! Which bytes a volume holds, for clients that go on with it in another process.

use crate::model::{Generation, VolumeAssignment};

/// Which bytes a volume holds: clients that go on with it in another process must find the same.
pub(super) fn bytes_of(volume: &VolumeAssignment) -> uuid::Uuid {
    let put_back = volume.revert.map_or(0, |revert| revert.since.as_u64());
    let cut_off = volume.shrunk.map_or(0, Generation::as_u64);
    uuid::Uuid::from_u128(volume.id.as_uuid().as_u128() ^ u128::from(put_back) ^ u128::from(cut_off) << 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ByteSize, PoolId, Revert, SnapshotId, VolumeId};
    use std::collections::BTreeSet;

    #[test]
    fn clients_go_on_with_a_volume_only_if_nothing_of_it_was_put_back_or_cut_off() {
        let volume = VolumeAssignment {
            made: true,
            ..VolumeAssignment::bare(
                VolumeId::from_bytes([1; 16]),
                "db",
                7,
                PoolId::from_bytes([2; 16]),
                ByteSize::mib(1),
            )
        };
        let put_back = Revert { to: SnapshotId::from_bytes([3; 16]), since: Generation::new(7) };
        let put_back = VolumeAssignment { revert: Some(put_back), ..volume.clone() };
        let cut_off = VolumeAssignment { shrunk: Some(Generation::new(7)), ..volume.clone() };
        let renamed = VolumeAssignment { name: "other".parse().unwrap(), ..volume.clone() };
        assert_eq!(bytes_of(&volume), bytes_of(&renamed));
        let all = BTreeSet::from([&volume, &put_back, &cut_off].map(bytes_of));
        assert_eq!(all.len(), 3, "each of them holds other bytes");
    }
}
