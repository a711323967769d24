//! Extents, the room of snapshots, and the sizes of thin pools. Pure arithmetic.

use super::command::ThinPoolSize;
use crate::model::{ByteSize, fitted_room};

/// dm-thin's smallest and usual chunk, in bytes.
const SMALLEST_CHUNK: u64 = 64 << 10;
const LARGEST_CHUNK: u64 = 1 << 30;
/// What dm-thin needs to remember one chunk, in bytes.
const PER_CHUNK: u64 = 64;
/// A snapshot repeats what its origin has; metadata for so many times the data.
const HEADROOM: u64 = 2;
/// dm-thin addresses no more metadata than a little above this, in bytes.
const LARGEST_METADATA: u64 = 15 << 30;

/// Used, in percent, from which on a thin pool with a ceiling is extended, and by how much of what it has: as LVM's
/// `thin_pool_autoextend_threshold` and `thin_pool_autoextend_percent` are usually set.
pub const EXTEND_AT: u64 = 70;
const EXTEND_BY: u64 = 20;

/// What a classic snapshot has for changes of its origin, where nobody has said how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub least: ByteSize,
    /// Of the origin's size.
    pub percent: u8,
}

impl Default for Room {
    fn default() -> Self {
        Self { least: ByteSize::mib(1024), percent: 20 }
    }
}

impl Room {
    /// How many extents a classic snapshot of a volume has for itself: its share, at most what the whole volume can need.
    pub fn extents(self, origin: ByteSize, extent: u64) -> u64 {
        let share = u128::from(origin.as_u64()) * u128::from(self.percent) / 100;
        let share = ByteSize::bytes(u64::try_from(share).unwrap_or(u64::MAX)).max(self.least);
        extents(fitted_room(share, origin, ByteSize::bytes(extent)), extent)
    }
}

/// Whole extents for so many bytes.
pub fn extents(size: ByteSize, extent: u64) -> u64 {
    size.as_u64().div_ceil(extent.max(1))
}

/// The thin pool that fills a group of so many extents: data, metadata, and as much again to repair the metadata in.
/// `chunk` is that of a pool that is there already. None if the group is too small for any.
pub fn thin_pool(total: u64, extent: u64, chunk: Option<u64>) -> Option<ThinPoolSize> {
    let bytes = total.checked_mul(extent)?;
    let chunk_bytes = chunk.unwrap_or_else(|| chunk_for(bytes)).clamp(SMALLEST_CHUNK, LARGEST_CHUNK);
    let needed = bytes.div_ceil(chunk_bytes).saturating_mul(PER_CHUNK * HEADROOM).min(LARGEST_METADATA);
    let metadata = needed.div_ceil(extent).max(1);
    let data_extents = total.checked_sub(metadata.checked_mul(2)?).filter(|data| *data > 0)?;
    Some(ThinPoolSize { data_extents, metadata_bytes: metadata.checked_mul(extent)?, chunk_bytes })
}

/// What a thin pool can be extended to at most: all that the group holds, or data of so many bytes.
pub fn thin_pool_within(total: u64, extent: u64, chunk: Option<u64>, ceiling: ByteSize) -> Option<ThinPoolSize> {
    let chunk = chunk.unwrap_or_else(|| chunk_for(ceiling.as_u64().min(total.saturating_mul(extent))));
    let all = thin_pool(total, extent, Some(chunk))?;
    let data_extents = all.data_extents.min((ceiling.as_u64() / extent).max(1));
    Some(with_metadata(ThinPoolSize { data_extents, ..all }, extent))
}

/// How a thin pool begins that is to be extended to `most`: with a quarter of the data, at least one gibibyte.
pub fn thin_pool_at_first(most: ThinPoolSize, extent: u64) -> ThinPoolSize {
    let least = extents(ByteSize::mib(1024), extent);
    let data_extents = (most.data_extents / 4).max(least).min(most.data_extents);
    with_metadata(ThinPoolSize { data_extents, ..most }, extent)
}

/// How much data, in extents, a thin pool is to have that has so many of them used: as many as it has while less than
/// [`EXTEND_AT`] of them are used, else [`EXTEND_BY`] more, and again; no more than `most`.
pub fn extended(present: u64, used: u64, most: u64) -> u64 {
    let mut data = present;
    while data < most && u128::from(used) * 100 >= u128::from(data) * u128::from(EXTEND_AT) {
        let more = u128::from(data) * u128::from(EXTEND_BY) / 100;
        data = data.saturating_add(u64::try_from(more).unwrap_or(u64::MAX).max(1)).min(most);
    }
    data.max(present)
}

/// The metadata that so many extents of data need, and as much again, in bytes.
pub fn metadata_for(data_extents: u64, of: &ThinPoolSize, extent: u64) -> u64 {
    let bytes = data_extents.saturating_mul(extent);
    let needed = bytes.div_ceil(of.chunk_bytes).saturating_mul(PER_CHUNK * HEADROOM).min(LARGEST_METADATA);
    needed.div_ceil(extent).max(1).saturating_mul(extent)
}

fn with_metadata(size: ThinPoolSize, extent: u64) -> ThinPoolSize {
    ThinPoolSize { metadata_bytes: metadata_for(size.data_extents, &size, extent), ..size }
}

/// The smallest chunk with which the pool can still grow fourfold.
fn chunk_for(bytes: u64) -> u64 {
    let fits = |chunk: &u64| (bytes / *chunk).saturating_mul(4 * PER_CHUNK) <= LARGEST_METADATA;
    let mut chunks = (0..=14).map(|power| SMALLEST_CHUNK << power);
    chunks.find(fits).unwrap_or(LARGEST_CHUNK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXTENT: u64 = 4 << 20;

    #[test]
    fn a_size_takes_whole_extents() {
        for (bytes, count) in [(0, 0), (1, 1), (EXTENT, 1), (EXTENT + 512, 2)] {
            assert_eq!(extents(ByteSize::bytes(bytes), EXTENT), count);
        }
        assert_eq!(extents(ByteSize::bytes(u64::MAX), 1), u64::MAX);
    }

    #[test]
    fn a_classic_snapshot_has_a_share_of_its_origin_and_a_small_origin_can_change_as_a_whole() {
        let extents = |origin| Room::default().extents(origin, EXTENT);
        assert_eq!(extents(ByteSize::mib(4)), 2);
        assert_eq!(extents(ByteSize::mib(512)), 129);
        assert_eq!(extents(ByteSize::mib(2048)), 256);
        assert_eq!(extents(ByteSize::mib(100 << 10)), 20 * 256);
        assert_eq!(Room { least: ByteSize::ZERO, percent: 0 }.extents(ByteSize::mib(1024), EXTENT), 1);
        assert!(extents(ByteSize::MAX) > 0);
        let model = |mib| crate::model::room_of(None, ByteSize::mib(mib), ByteSize::bytes(EXTENT)).as_u64() / EXTENT;
        assert!(
            [4, 512, 2048, 100 << 10].iter().all(|mib| model(*mib) == extents(ByteSize::mib(*mib))),
            "managers count as we do"
        );
    }

    #[test]
    fn a_terabyte_has_small_chunks_and_two_gibibytes_of_metadata_and_a_petabyte_has_larger_ones() {
        let one = thin_pool((1 << 40) / EXTENT, EXTENT, None).unwrap();
        assert_eq!((one.chunk_bytes, one.metadata_bytes), (64 << 10, 2 << 30));
        let many = thin_pool((1 << 50) / EXTENT, EXTENT, None).unwrap();
        assert!(many.chunk_bytes > one.chunk_bytes && many.metadata_bytes <= LARGEST_METADATA);
    }

    #[test]
    fn a_group_of_two_extents_is_too_small() {
        assert_eq!(thin_pool(2, EXTENT, None), None);
        assert_eq!(thin_pool(3, EXTENT, None).unwrap().data_extents, 1);
    }

    #[test]
    fn a_pool_with_a_ceiling_begins_with_a_quarter_of_it_and_grows_by_fifths_when_it_is_seventy_percent_full() {
        let at = |gib: u64| (gib << 30) / EXTENT;
        let most = thin_pool_within(at(4096), EXTENT, None, ByteSize::mib(1 << 20)).unwrap();
        assert_eq!((most.data_extents, most.chunk_bytes), (at(1024), 64 << 10));
        assert_eq!(thin_pool_at_first(most, EXTENT).data_extents, at(256));
        let small = thin_pool_within(at(4096), EXTENT, None, ByteSize::mib(2048)).unwrap();
        assert_eq!(thin_pool_at_first(small, EXTENT).data_extents, at(1));
        let tiny = thin_pool_within(at(4096), EXTENT, None, ByteSize::mib(6)).unwrap();
        assert_eq!((tiny.data_extents, thin_pool_at_first(tiny, EXTENT)), (1, tiny));
        assert_eq!([0, 69, 70, 84, 100].map(|used| extended(100, used, 1000)), [100, 100, 120, 144, 144]);
        assert_eq!([extended(100, 100, 110), extended(100, 100, 100), extended(100, 0, 50)], [110, 100, 100]);
        assert_eq!(extended(1, 1, 1000), 2, "a fifth of little is something too");
    }

    proptest! {
        #[test]
        fn a_pool_with_a_ceiling_never_has_more_than_its_ceiling_and_its_group(
            total in 3..1u64 << 40, ceiling in 1..1u64 << 50, used in 0..=100u64,
        ) {
            let most = thin_pool_within(total, EXTENT, None, ByteSize::bytes(ceiling)).unwrap();
            prop_assert!(most.data_extents * EXTENT <= ceiling.max(EXTENT));
            prop_assert!(most.data_extents + 2 * (most.metadata_bytes / EXTENT) <= total);
            let first = thin_pool_at_first(most, EXTENT);
            prop_assert!(first.data_extents <= most.data_extents && first.metadata_bytes <= most.metadata_bytes);
            let now = first.data_extents;
            let used = u64::try_from(u128::from(now) * u128::from(used) / 100).unwrap();
            let next = extended(now, used, most.data_extents);
            prop_assert!(next >= now && next <= most.data_extents);
            let eased = u128::from(used) * 100 < u128::from(next) * u128::from(EXTEND_AT);
            prop_assert!(next == most.data_extents || eased);
        }

        #[test]
        fn data_metadata_and_spare_fill_the_group_and_the_metadata_suffices(total in 3..u64::MAX / EXTENT) {
            let size = thin_pool(total, EXTENT, None).unwrap();
            prop_assert_eq!(size.data_extents + 2 * (size.metadata_bytes / EXTENT), total);
            let chunks = size.data_extents.saturating_mul(EXTENT) / size.chunk_bytes;
            prop_assert!(size.metadata_bytes > LARGEST_METADATA - EXTENT || chunks.saturating_mul(PER_CHUNK) <= size.metadata_bytes);
        }

        #[test]
        fn a_larger_group_never_wants_a_smaller_part(total in 3..1u64 << 30, more in 0..1u64 << 30) {
            let before = thin_pool(total, EXTENT, None).unwrap();
            let after = thin_pool(total + more, EXTENT, Some(before.chunk_bytes)).unwrap();
            prop_assert!(after.metadata_bytes >= before.metadata_bytes && after.chunk_bytes == before.chunk_bytes);
            // One more extent may be for the metadata, and one for its spare.
            prop_assert!(after.data_extents + 2 >= before.data_extents);
        }
    }
}
