//! Extents and the sizes of thin pools. Pure arithmetic.

use super::command::ThinPoolSize;
use crate::model::ByteSize;

/// dm-thin's smallest and usual chunk, in bytes.
const SMALLEST_CHUNK: u64 = 64 << 10;
const LARGEST_CHUNK: u64 = 1 << 30;
/// What dm-thin needs to remember one chunk, in bytes.
const PER_CHUNK: u64 = 64;
/// A snapshot repeats what its origin has; metadata for so many times the data.
const HEADROOM: u64 = 2;
/// dm-thin addresses no more metadata than a little above this, in bytes.
const LARGEST_METADATA: u64 = 15 << 30;

/// What a classic snapshot keeps of its origin, and at least keeps, of the changes to it.
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
    /// How many extents a classic snapshot of a volume has for itself: its share, at most what the whole volume takes.
    pub fn extents(self, origin: ByteSize, extent: u64) -> u64 {
        let size = origin.as_u64();
        // dm-snapshot needs sixteen bytes for each chunk of four kibibytes, and one chunk for itself.
        let whole = size.saturating_add(size / 128).saturating_add(1 << 20);
        let share = u128::from(size) * u128::from(self.percent) / 100;
        let share = u64::try_from(share).unwrap_or(u64::MAX).max(self.least.as_u64());
        extents(ByteSize::bytes(whole.min(share)), extent).max(1)
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
        assert_eq!(extents(ByteSize::mib(512)), 130);
        assert_eq!(extents(ByteSize::mib(2048)), 256);
        assert_eq!(extents(ByteSize::mib(100 << 10)), 20 * 256);
        assert_eq!(Room { least: ByteSize::ZERO, percent: 0 }.extents(ByteSize::mib(1024), EXTENT), 1);
        assert!(extents(ByteSize::bytes(u64::MAX)) > 0);
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

    proptest! {
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
