//! Files made here, by the format's description, whole and damaged; `tests/scenarios` has qemu's own.

use super::*;
use crate::image::Part;
use proptest::prelude::*;

const CLUSTER: usize = 512;

/// How a cluster is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Missing,
    Zero,
    /// All bytes the same.
    Plain(u8),
    Packed(u8),
}

/// A file of version 3 with clusters of 512 bytes: the header, a table of reference counts that counts nothing, the L1 table
/// (up to 64 entries), then tables and clusters as they come.
fn file(size: u64, clusters: &[How], compression: Compression) -> Vec<u8> {
    let mut file = vec![0; 3 * CLUSTER];
    let tables = clusters.len().div_ceil(CLUSTER / 8);
    put(&mut file, 0, b"QFI\xfb");
    put(&mut file, 4, &3u32.to_be_bytes());
    put(&mut file, 20, &9u32.to_be_bytes());
    put(&mut file, 24, &size.to_be_bytes());
    put(&mut file, 36, &(tables as u32).to_be_bytes());
    put(&mut file, 40, &(2 * CLUSTER as u64).to_be_bytes());
    put(&mut file, 48, &(CLUSTER as u64).to_be_bytes());
    put(&mut file, 56, &1u32.to_be_bytes());
    put(&mut file, 96, &4u32.to_be_bytes());
    put(&mut file, 100, &112u32.to_be_bytes());
    if compression == Compression::Zstd {
        put(&mut file, 72, &8u64.to_be_bytes());
        file[104] = 1;
    }
    for (number, described) in clusters.chunks(CLUSTER / 8).enumerate() {
        if described.iter().all(|how| *how == How::Missing) {
            continue;
        }
        let table = file.len();
        file.resize(table + CLUSTER, 0);
        put(&mut file, 2 * CLUSTER + 8 * number, &(table as u64 | 1 << 63).to_be_bytes());
        for (place, how) in described.iter().enumerate() {
            let entry = add(&mut file, *how, compression);
            put(&mut file, table + 8 * place, &entry.to_be_bytes());
        }
    }
    file
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes a cluster behind the others; its entry in the table.
fn add(file: &mut Vec<u8>, how: How, compression: Compression) -> u64 {
    match how {
        How::Missing => 0,
        How::Zero => 1,
        How::Plain(byte) => {
            let offset = file.len();
            file.resize(offset + CLUSTER, byte);
            offset as u64 | 1 << 63
        }
        How::Packed(byte) => {
            let offset = file.len();
            let packed = pack(&[byte; CLUSTER], compression);
            let last = (offset % 512 + packed.len() - 1) / 512;
            file.extend(packed);
            file.resize(file.len().next_multiple_of(CLUSTER), 0xee);
            1 << 62 | (last as u64) << 61 | offset as u64
        }
    }
}

fn pack(bytes: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::Zlib => miniz_oxide::deflate::compress_to_vec(bytes, 6),
        Compression::Zstd => ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Uncompressed),
    }
}

fn disk(file: &[u8]) -> io::Result<Disk<impl Read + use<>>> {
    let bytes = file.to_vec();
    let read = move |buffer: &mut [u8], offset: u64| {
        let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)?.get(..buffer.len()));
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    };
    Disk::open(read, file.len() as u64)
}

fn content(file: &[u8], most: u64) -> io::Result<Vec<u8>> {
    let mut disk = disk(file)?;
    let mut content = Vec::new();
    while let Some(part) = disk.next(most)? {
        assert!((1..=most).contains(&part.length()));
        match part {
            Part::Data(data) => content.extend(data),
            Part::Zeros(length) => content.resize(content.len() + length as usize, 0),
        }
    }
    assert_eq!(content.len() as u64, disk.size());
    Ok(content)
}

fn refusal(file: &[u8]) -> String {
    content(file, 1 << 20).expect_err("a refusal").to_string()
}

/// A file of four clusters, one of each kind.
fn whole() -> Vec<u8> {
    file(2048, &[How::Plain(1), How::Missing, How::Packed(2), How::Zero], Compression::Zlib)
}

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = whole();
    put(&mut file, at, bytes);
    file
}

/// Where the only L2 table of [`whole`] is.
const L2: usize = 3 * CLUSTER;

#[test]
fn every_kind_of_cluster_is_read_and_the_content_can_be_read_again() {
    let expected: Vec<u8> = [1u8, 0, 2, 0].iter().flat_map(|byte| [*byte; CLUSTER]).collect();
    assert_eq!(content(&whole(), 1 << 20).unwrap(), expected);
    let mut disk = disk(&whole()).unwrap();
    let first = disk.next(1 << 20).unwrap();
    assert!(disk.rewind().unwrap());
    assert_eq!(disk.next(1 << 20).unwrap(), first);
}

#[test]
fn version_two_has_no_features_and_no_zero_clusters() {
    let mut old = whole();
    put(&mut old, 4, &2u32.to_be_bytes());
    assert!(refusal(&old).contains("bits that mean nothing"));
    put(&mut old, L2 + 24, &[0; 8]);
    assert_eq!(content(&old, 1 << 20).unwrap().len(), 2048);
}

#[test]
fn a_disk_may_end_within_a_cluster_and_a_file_behind_what_the_disk_needs() {
    let mut file = file(700, &[How::Plain(1), How::Plain(2)], Compression::Zlib);
    file.truncate(file.len() - CLUSTER + 188);
    let content = content(&file, 1 << 20).unwrap();
    assert_eq!((content.len(), content[511], content[699]), (700, 1, 2));
    file.pop();
    assert!(refusal(&file).contains("is not within its"), "a byte that the disk has is missing");
}

#[test]
fn features_that_are_not_supported_are_refused_by_their_names() {
    for (file, words) in [
        (with(0, b"QFI\x00"), "no qcow2 file"),
        (with(4, &1u32.to_be_bytes()), "version 1"),
        (with(4, &u32::MAX.to_be_bytes()), "version 4294967295"),
        (with(72, &2u64.to_be_bytes()), "corrupt"),
        (with(72, &4u64.to_be_bytes()), "another file"),
        (with(72, &16u64.to_be_bytes()), "subclusters"),
        (with(72, &(1u64 << 40).to_be_bytes()), "incompatible feature 40"),
        (with(32, &2u32.to_be_bytes()), "encrypted"),
        (with(8, &u64::MAX.to_be_bytes()), "backing file ('?')"),
        (with(104, &[9]), "compressed in a way (9)"),
        (with(104, &[1]), "contradicts itself"),
    ] {
        let refused = refusal(&file);
        assert!(refused.contains(words), "{words}: {refused}");
    }
    let mut backed = whole();
    put(&mut backed, 8, &200u64.to_be_bytes());
    put(&mut backed, 16, &9u32.to_be_bytes());
    put(&mut backed, 200, b"b\nse.qcow");
    assert!(refusal(&backed).contains(r"backing file ('b\nse.qcow')"));
}

#[test]
fn a_file_that_was_not_closed_in_order_is_read_all_the_same() {
    assert_eq!(content(&with(72, &1u64.to_be_bytes()), 4096).unwrap().len(), 2048);
}

#[test]
fn headers_that_lie_about_sizes_are_refused() {
    for (file, words) in [
        (with(24, &0u64.to_be_bytes()), "size of zero"),
        (with(24, &(1u64 << 63).to_be_bytes()), "no device has"),
        (with(24, &u64::MAX.to_be_bytes()), "no device has"),
        // More than the first table can be about.
        (with(24, &(1u64 << 50).to_be_bytes()), "needs"),
        (with(20, &0u32.to_be_bytes()), "clusters of 2^0"),
        (with(20, &22u32.to_be_bytes()), "clusters of 2^22"),
        (with(20, &u32::MAX.to_be_bytes()), "clusters of 2^"),
        (with(40, &(1u64 << 62).to_be_bytes()), "first table"),
        (with(40, &u64::MAX.to_be_bytes()), "first table"),
        (with(40, &0u64.to_be_bytes()), "first table"),
        (with(40, &1000u64.to_be_bytes()), "first table"),
        (with(36, &0u32.to_be_bytes()), "0 entries"),
        (with(48, &(1u64 << 40).to_be_bytes()), "reference counts"),
        (with(48, &u64::MAX.to_be_bytes()), "reference counts"),
        (with(56, &u32::MAX.to_be_bytes()), "reference counts"),
        (with(96, &7u32.to_be_bytes()), "reference counts of 2^7 bits"),
        (with(100, &8u32.to_be_bytes()), "header says that it has 8 bytes"),
    ] {
        let refused = refusal(&file);
        assert!(refused.contains(words), "{words}: {refused}");
    }
    // A table as large as such a disk would need is more than anybody reads.
    let mut vast = with(24, &(1u64 << 62).to_be_bytes());
    put(&mut vast, 36, &u32::MAX.to_be_bytes());
    assert!(refusal(&vast).contains("entries"), "{}", refusal(&vast));
}

#[test]
fn tables_that_point_at_nonsense_are_refused() {
    let entry = |at: usize, entry: u64| with(at, &entry.to_be_bytes());
    for (file, words) in [
        // The first table: beyond the end, at itself, with strange bits, out of line.
        (entry(2 * CLUSTER, 1 << 40), "is not within its"),
        (entry(2 * CLUSTER, 2 * CLUSTER as u64), "where its first table is"),
        (entry(2 * CLUSTER, 1 << 57 | 512), "bits that mean nothing"),
        // The second table: the same, and compressed clusters at the header and behind the end.
        (entry(L2, 1 << 40), "is not within its"),
        (entry(L2, 2 * CLUSTER as u64), "where its first table is"),
        (entry(L2, 1 << 60 | 512), "bits that mean nothing"),
        (entry(L2, 1 << 62), "that is its header"),
        (entry(L2, 1 << 62 | 1 << 40), "behind its end"),
        // A loop: the table's own bytes as packed data.
        (entry(L2, 1 << 62 | L2 as u64), "compressed cluster"),
    ] {
        let refused = refusal(&file);
        assert!(refused.contains(words), "{words}: {refused}");
    }
}

#[test]
fn one_cluster_for_a_large_disk_and_one_table_for_two_parts_of_it_are_refused() {
    let mut bloated = file(64 * 512, &[How::Plain(1); 64], Compression::Zlib);
    let first: [u8; 8] = bloated[L2..L2 + 8].try_into().unwrap();
    (0..64).for_each(|place| put(&mut bloated, L2 + 8 * place, &first));
    bloated.truncate(L2 + 2 * CLUSTER);
    assert!(refusal(&bloated).contains("more clusters"));
    let mut twice = file(128 * 512, &[How::Plain(1); 128], Compression::Zlib);
    let first: [u8; 8] = twice[2 * CLUSTER..2 * CLUSTER + 8].try_into().unwrap();
    put(&mut twice, 2 * CLUSTER + 8, &first);
    assert!(refusal(&twice).contains("used twice"));
}

#[test]
fn a_cluster_that_unpacks_to_more_or_less_than_a_cluster_is_refused() {
    for compression in [Compression::Zlib, Compression::Zstd] {
        for (length, words) in
            [(1usize << 20, "more than a cluster"), (CLUSTER + 1, "more than"), (CLUSTER - 1, "less than")]
        {
            let packed = pack(&vec![0; length], compression);
            let error = unpack(compression, &packed, CLUSTER).unwrap_err().to_string();
            assert!(error.contains(words), "{compression:?} {length}: {error}");
        }
        let mut followed = pack(&[7; CLUSTER], compression);
        followed.extend([0xee; 100]);
        assert_eq!(unpack(compression, &followed, CLUSTER).unwrap(), [7; CLUSTER]);
        assert!(unpack(compression, &[], CLUSTER).is_err());
        assert!(unpack(compression, &[0xff; 64], CLUSTER).is_err());
    }
}

#[test]
fn a_file_that_is_cut_short_anywhere_is_refused_or_as_good_as_whole() {
    for (compression, last) in [(Compression::Zlib, How::Packed(3)), (Compression::Zstd, How::Plain(4))] {
        let whole = file(2048, &[How::Plain(1), How::Packed(2), How::Zero, last], compression);
        let expected = content(&whole, 4096).unwrap();
        for length in 0..whole.len() {
            // Nothing but what fills up the last sector may be missing.
            if let Ok(read) = content(&whole[..length], 4096) {
                assert!(read == expected, "{length} of {} bytes", whole.len());
            }
        }
    }
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![Just(How::Missing), Just(How::Zero), (1u8..).prop_map(How::Plain), (1u8..).prop_map(How::Packed)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_written_is_read_whatever_the_parts(
        clusters in proptest::collection::vec(how(), 1..200), short in 0u64..512, zstd: bool, most in 1u64..5000,
    ) {
        let compression = if zstd { Compression::Zstd } else { Compression::Zlib };
        let size = (clusters.len() * CLUSTER) as u64 - short;
        let expected = clusters.iter().flat_map(|how| match how {
            How::Missing | How::Zero => [0; CLUSTER],
            How::Plain(byte) | How::Packed(byte) => [*byte; CLUSTER],
        });
        let expected: Vec<u8> = expected.take(size as usize).collect();
        prop_assert!(content(&file(size, &clusters, compression), most).unwrap() == expected);
    }

    #[test]
    fn no_change_of_a_file_makes_it_more_than_refused(
        clusters in proptest::collection::vec(how(), 1..70), changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8),
    ) {
        let mut file = file((clusters.len() * CLUSTER) as u64, &clusters, Compression::Zlib);
        for (place, byte) in changes {
            let place = place % file.len();
            file[place] = byte;
        }
        // Parts of it only: a changed size may be large.
        if let Ok(mut disk) = disk(&file) {
            for _ in 0..200 {
                match disk.next(1 << 20) {
                    Ok(Some(part)) => prop_assert!(part.length() > 0),
                    Ok(None) | Err(_) => break,
                }
            }
        }
    }
}
