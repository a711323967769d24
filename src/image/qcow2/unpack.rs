//! Compressed clusters. Whatever they claim, they unpack to one cluster or not at all.

use super::{Compression, Qcow2Error};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::io::Read;

/// The largest window that a Zstandard frame may ask for, in bytes: what qemu writes asks for 2 MiB at most.
const MAX_WINDOW: u64 = 8 << 20;

fn damaged(reason: &str) -> Qcow2Error {
    Qcow2Error::Damaged(format!("a compressed cluster {reason}"))
}

/// The `size` bytes of a cluster. What follows its end in `packed` is another's.
pub fn unpack(compression: Compression, packed: &[u8], size: usize) -> Result<Vec<u8>, Qcow2Error> {
    // One more, to see that there is no more.
    let mut cluster = vec![0; size.saturating_add(1)];
    let count = match compression {
        Compression::Zlib => inflate(packed, &mut cluster)?,
        Compression::Zstd => zstd(packed, &mut cluster)?,
    };
    match count.cmp(&size) {
        std::cmp::Ordering::Less => Err(damaged("unpacks to less than a cluster")),
        std::cmp::Ordering::Greater => Err(damaged("unpacks to more than a cluster")),
        std::cmp::Ordering::Equal => {
            cluster.truncate(size);
            Ok(cluster)
        }
    }
}

fn inflate(packed: &[u8], cluster: &mut [u8]) -> Result<usize, Qcow2Error> {
    let mut state = DecompressorOxide::new();
    let (status, _, count) = decompress(&mut state, packed, cluster, 0, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF);
    match status {
        // Full: what comes then is for the caller to count.
        TINFLStatus::Done | TINFLStatus::HasMoreOutput => Ok(count),
        TINFLStatus::NeedsMoreInput | TINFLStatus::FailedCannotMakeProgress => Ok(count),
        _ => Err(damaged("cannot be unpacked")),
    }
}

fn zstd(packed: &[u8], cluster: &mut [u8]) -> Result<usize, Qcow2Error> {
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(MAX_WINDOW);
    let mut source = packed;
    let failed = |error: &dyn std::error::Error| damaged(&format!("cannot be unpacked: {error}"));
    decoder.init(&mut source).map_err(|error| failed(&error))?;
    let mut count = 0;
    while !decoder.is_finished() && count < cluster.len() {
        let step = BlockDecodingStrategy::UptoBlocks(1);
        decoder.decode_blocks(&mut source, step).map_err(|error| failed(&error))?;
        let room = cluster.get_mut(count..).unwrap_or_default();
        count += decoder.read(room).map_err(|error| failed(&error))?;
    }
    let room = cluster.get_mut(count..).unwrap_or_default();
    count += decoder.read(room).map_err(|error| failed(&error))?;
    Ok(count)
}
