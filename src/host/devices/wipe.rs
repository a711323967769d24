//! Making a device empty: every signature overwritten, and the kernel told that its partitions are gone.

use super::signature::{EDGE, Range, identify};
use crate::host::block_device::{open_alone, reread_partitions};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Zeros written at once, in bytes.
const PIECE: usize = 1 << 20;
/// A signature may hide another; none hide as many as this.
const ROUNDS: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum WipeError {
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} still carries {what} after it was wiped", path.display())]
    Stubborn { path: PathBuf, what: String },
}

/// Overwrites every signature on the device and both its ends, durably, and lets the kernel look for partitions
/// again. Nobody else may hold the device. It can be killed and repeated; what is not near a signature stays.
pub fn wipe(path: &Path) -> Result<(), WipeError> {
    let device = open(path)?;
    let failed = |action| move |source| WipeError::Io { action, path: path.to_owned(), source };
    let size = (&device).seek(SeekFrom::End(0)).map_err(failed("look at"))?;
    for _ in 0..ROUNDS {
        let found = findings(&device, size).map_err(failed("read"))?;
        let edges = [Range { offset: 0, length: EDGE }, Range { offset: size.saturating_sub(EDGE), length: EDGE }];
        let last = found.is_empty();
        let mut places: Vec<Range> = found.into_iter().flat_map(|finding| finding.places).chain(edges).collect();
        places.sort();
        // What the beginning says goes last: a wipe cut short leaves a device that still says what it was.
        for place in places.iter().rev() {
            zero(&device, size, *place).map_err(failed("wipe"))?;
        }
        device.sync_all().map_err(failed("sync"))?;
        if last {
            return reread_partitions(&device).map_err(failed("let the kernel look for partitions on"));
        }
    }
    let found = findings(&device, size).map_err(failed("read"))?;
    let what = found.iter().map(|finding| finding.content.to_string()).collect::<Vec<_>>().join(", ");
    Err(WipeError::Stubborn { path: path.to_owned(), what })
}

/// Zeros the first `length` bytes of a device, the last of them first, durably. Nobody else may hold the device.
pub fn blank(path: &Path, length: u64) -> Result<(), WipeError> {
    let device = open(path)?;
    let failed = |action| move |source| WipeError::Io { action, path: path.to_owned(), source };
    let size = (&device).seek(SeekFrom::End(0)).map_err(failed("look at"))?;
    let length = length.min(size);
    let piece = PIECE as u64;
    for number in (0..length.div_ceil(piece)).rev() {
        let offset = number * piece;
        let place = Range { offset, length: piece.min(length - offset) };
        zero(&device, size, place).map_err(failed("wipe"))?;
        // In this order on the medium too.
        device.sync_all().map_err(failed("sync"))?;
    }
    Ok(())
}

fn open(path: &Path) -> Result<File, WipeError> {
    open_alone(path, true).map_err(|source| WipeError::Io { action: "open", path: path.to_owned(), source })
}

fn findings(device: &File, size: u64) -> io::Result<Vec<super::Finding>> {
    identify(size, &mut |offset, length| read_up_to(device, offset, length))
}

/// Reads what is there of a range; a range behind every possible end is empty.
pub(super) fn read_up_to(device: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    if i64::try_from(offset).is_err() {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; length];
    let mut done = 0;
    while done < length {
        match device.read_at(&mut bytes[done..], offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

fn zero(device: &File, size: u64, place: Range) -> io::Result<()> {
    let end = place.offset.saturating_add(place.length).min(size);
    let zeros = vec![0; PIECE];
    let mut offset = place.offset;
    while offset < end {
        let count = (end - offset).min(PIECE as u64);
        device.write_all_at(&zeros[..count as usize], offset)?;
        offset += count;
    }
    Ok(())
}
