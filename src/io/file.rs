//! [`BlockIo`] over a regular file, through the page cache, or a block device, around it. Engines may go around it always.
//!
//! Limitations: on a block device space is given back only where zeros are certain afterwards: where the kernel promises
//! them (`FALLOC_FL_PUNCH_HOLE`), and whole chunks of thin volumes (`BLKDISCARD`). No block device tells its holes: those of
//! a thin volume are told by an [`Allocation`], all others are data.

use super::{Allocation, BlockIo, ChunkMap, Extent, RawFile, check_range, push_extent};
use crate::host::block_device::discard;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Zeros for media that cannot zero by themselves, in bytes.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// Block devices zero and discard whole logical blocks only; none in use has larger ones.
const DEVICE_BLOCK: u64 = 4096;

/// What a device zeroes or discards at once, in bytes, while nobody can change parts of blocks: they wait no longer than that
/// takes. A multiple of every block.
const PIECE: u64 = 16 << 20;

/// A file or block device. All connections to a volume share one, so that a flush by any covers the writes of all.
#[derive(Debug)]
pub struct FileIo {
    raw: RawFile,
    size: AtomicU64,
    device: bool,
    /// Its users see a part of it, from the beginning: the rest is slack of whoever keeps it.
    part: bool,
    /// Of a thin volume: discarding whole chunks of this size, in bytes, makes zeros of them.
    chunk: Option<u64>,
    /// Held while the file grows: of two that set its length, the one that comes last could make it smaller.
    growing: Mutex<()>,
}

impl FileIo {
    /// Takes over a file opened for reading, and for writing if it is to be written.
    ///
    /// # Errors
    /// What the system said about the file's size; `InvalidInput` if it is neither a file nor a block device.
    pub fn new(file: File) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a regular file nor a block device"));
        }
        let device = kind.is_block_device();
        let size = AtomicU64::new(observe_size(&file)?);
        let raw = RawFile::probe(file)?;
        Ok(Self { raw, size, device, part: false, chunk: None, growing: Mutex::default() })
    }

    /// As [`Self::new`], for the first `size` bytes alone; [`Self::grow`] shows more of them. `chunk` is that of a thin
    /// volume, in bytes.
    ///
    /// # Errors
    /// As [`Self::new`]; `InvalidInput` if there are fewer bytes.
    pub fn within(file: File, size: u64, chunk: Option<u64>) -> io::Result<Self> {
        let whole = Self::new(file)?;
        let length = whole.size();
        if length < size {
            return Err(too_short(length, size));
        }
        Ok(Self { size: AtomicU64::new(size), part: true, chunk: chunk.filter(|_| whole.device), ..whole })
    }

    /// With somebody who is asked for maps of its holes, which it cannot tell itself. `chunk` is what the maps tell apart at
    /// best, in bytes; `ask` must not wait.
    #[must_use]
    pub fn mapped_by(self, chunk: u64, ask: impl Fn() + Send + Sync + 'static) -> Self {
        Self { raw: self.raw.with(Allocation::new(chunk, ask)), ..self }
    }

    /// What is known of its holes, where it cannot tell itself.
    pub fn allocation(&self) -> Option<&Allocation> {
        self.raw.allocation()
    }

    /// Begins a map of what is occupied, and sees to it that whoever looks below sees all that was written before it;
    /// `None` where there is nobody to make one, or where writes in flight did not end in time, which no write waits for.
    ///
    /// # Errors
    /// As [`BlockIo::flush`].
    pub fn begin_map(&self, deadline: Instant) -> io::Result<Option<Arc<ChunkMap>>> {
        let (Some(allocation), Some(alone)) = (self.allocation(), self.raw.writes().shut_by(deadline)) else {
            return Ok(None);
        };
        let map = allocation.begin(self.size());
        drop(alone);
        self.flush().map(|()| Some(map))
    }

    /// A regular file that is treated as if it were a block device.
    #[cfg(test)]
    pub(super) fn as_device(file: File) -> io::Result<Self> {
        Self::new(file).map(|io| Self { device: true, ..io })
    }

    /// Makes the file at least `size` bytes long, durably; every open handle sees it. Never shrinks, as long as nobody
    /// else changes the file's length.
    ///
    /// # Errors
    /// What the system said; `InvalidInput` for a block device that is smaller, since it must be grown elsewhere.
    pub fn grow(&self, size: u64) -> io::Result<()> {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.part {
            let length = observe_size(self.file())?;
            if length < size {
                return Err(too_short(length, size));
            }
            if self.size.fetch_max(size, Ordering::SeqCst) < size
                && let Some(allocation) = self.allocation()
            {
                allocation.forget();
            }
            return Ok(());
        }
        if !self.device && observe_size(self.file())? < size {
            self.file().set_len(size)?;
            // The new size is promised to clients, so it must outlive a power cut like any write.
            self.flush()?;
        }
        let seen = self.refresh_size()?;
        if seen < size { Err(too_short(seen, size)) } else { Ok(()) }
    }

    /// Looks at the size again, for media that are grown from elsewhere; answers what clients may use now, in bytes.
    /// A medium that has become smaller is not followed: reads beyond its end fail.
    pub fn refresh_size(&self) -> io::Result<u64> {
        if self.part {
            return Ok(self.size());
        }
        let seen = observe_size(self.file())?;
        Ok(self.size.fetch_max(seen, Ordering::SeqCst).max(seen))
    }

    fn file(&self) -> &File {
        self.raw.file()
    }

    /// Writes around the page cache where that can be done, else through it. The latter meets no direct write of others:
    /// not on parts of a page, since one of them could bring old bytes back, and not on whole ones, since a page that is
    /// dirty when a direct write of it ends is an I/O error of the file to the kernel, told by the next flush.
    fn put(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        if self.raw.write_around(buffer, offset)? {
            return Ok(());
        }
        let shared = self.raw.direct().is_some() || self.allocation().is_some();
        let _alone = shared.then(|| self.raw.writes().shut());
        self.raw.mark(offset, buffer.len() as u64);
        self.file().write_all_at(buffer, offset)
    }

    fn check(&self, offset: u64, length: u64) -> io::Result<()> {
        check_range(self.size(), offset, length)
    }

    /// Says whether the file system or device could do it; `Ok(false)` is for the caller to do otherwise.
    fn try_fallocate(&self, flags: FallocateFlags, offset: u64, length: u64) -> io::Result<bool> {
        // A file system sees to it that nobody is in the way, and needs no longer for more.
        let most = if self.device { PIECE } else { length };
        for (offset, length) in pieces(offset, offset + length, most) {
            let _pass = match flags {
                FallocateFlags::FALLOC_FL_PUNCH_HOLE => self.raw.writes().wait_in(),
                _ => self.raw.wait_to_change(offset, length),
            };
            if !self.fallocate(flags, offset, length)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, length: u64) -> io::Result<bool> {
        let (Ok(start), Ok(count)) = (i64::try_from(offset), i64::try_from(length)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        loop {
            match fallocate(self.file(), flags | FallocateFlags::FALLOC_FL_KEEP_SIZE, start, count) {
                Ok(()) => return Ok(true),
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(false),
                // Devices with other blocks than expected say so this way.
                Err(Errno::EINVAL | Errno::ENODEV) if self.device => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Gives the whole chunks between two offsets back; which these are, empty if none, or nothing if the volume cannot.
    fn discard_chunks(&self, chunk: u64, start: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
        let first = start.div_ceil(chunk).saturating_mul(chunk).min(end);
        let last = (end - end % chunk).max(first);
        let mut done = true;
        for (offset, length) in pieces(first, last, PIECE.next_multiple_of(chunk)) {
            let _pass = self.raw.writes().wait_in();
            done = discard(self.file(), offset, length)?;
            if !done {
                break;
            }
        }
        if let Some(allocation) = self.allocation() {
            allocation.outdate();
        }
        Ok(done.then_some((first, last)))
    }

    /// Makes holes of whole blocks; `Ok(false)` if the medium cannot. What a thin volume cannot give back of it, parts
    /// of chunks, is zeroed.
    fn punch(&self, start: u64, end: u64) -> io::Result<bool> {
        let Some(chunk) = self.chunk else {
            return self.try_fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, start, end - start);
        };
        let Some((first, last)) = self.discard_chunks(chunk, start, end)? else { return Ok(false) };
        for (from, to) in [(start, first), (last, end)] {
            let zeroed = from == to || self.try_fallocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, from, to - from)?;
            if !zeroed {
                self.write_zeros(from, to - from)?;
            }
        }
        Ok(true)
    }

    fn write_zeros(&self, mut offset: u64, mut length: u64) -> io::Result<()> {
        while length > 0 {
            let count = length.min(ZEROS.len() as u64);
            self.put(&ZEROS[..count as usize], offset)?;
            offset += count;
            length -= count;
        }
        Ok(())
    }

    /// The part of a range that the medium can zero or discard by itself: (start, end), empty if start equals end.
    fn whole_blocks(&self, offset: u64, length: u64) -> (u64, u64) {
        let end = offset + length;
        if !self.device {
            return (offset, end);
        }
        let first = offset.next_multiple_of(DEVICE_BLOCK).min(end);
        // The last block of a device may be a short one.
        let last = if end == self.size() { end } else { end - end % DEVICE_BLOCK };
        (first, last.max(first))
    }

    /// Lets the medium zero the whole blocks of a range, and writes what lies beside them; `Ok(false)` if it cannot:
    /// then nothing is changed.
    fn zero_blocks(&self, offset: u64, length: u64, may_punch: bool) -> io::Result<bool> {
        self.check(offset, length)?;
        let (start, end) = self.whole_blocks(offset, length);
        let count = end - start;
        let zeroed = count == 0
            || may_punch && self.punch(start, end)?
            || self.try_fallocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, start, count)?;
        if zeroed {
            self.write_zeros(offset, start - offset)?;
            self.write_zeros(end, offset + length - end)?;
        }
        Ok(zeroed)
    }

    /// Where the next data and the next hole after it begin, from `offset`; `None` is a hole up to the end.
    fn next_data(&self, offset: i64) -> io::Result<Option<(u64, u64)>> {
        let data = match lseek(self.file(), offset, Whence::SeekData) {
            Ok(data) => data,
            Err(Errno::ENXIO) => return Ok(None),
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(Some((offset as u64, u64::MAX))),
            Err(errno) => return Err(errno.into()),
        };
        let hole = match lseek(self.file(), data, Whence::SeekHole) {
            Ok(hole) => hole,
            // The data was punched out in between.
            Err(Errno::ENXIO) => data,
            Err(errno) => return Err(errno.into()),
        };
        let start = u64::try_from(data).map_err(|_| io::ErrorKind::InvalidData)?;
        let end = u64::try_from(hole).map_err(|_| io::ErrorKind::InvalidData)?;
        // Whoever changes the range meanwhile must not keep us here for ever: call the rest data.
        Ok(Some((start, if end > start { end } else { u64::MAX })))
    }
}

impl BlockIo for FileIo {
    fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(offset, buffer.len() as u64)?;
        if self.raw.read_around(buffer, offset)? { Ok(()) } else { self.file().read_exact_at(buffer, offset) }
    }

    fn write(&self, buffer: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        self.check(offset, buffer.len() as u64)?;
        self.put(buffer, offset)?;
        if fua { self.raw.sync() } else { Ok(()) }
    }

    fn flush(&self) -> io::Result<()> {
        self.raw.sync()
    }

    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check(offset, length)?;
        let (start, end) = self.whole_blocks(offset, length);
        if start == end {
            return Ok(());
        }
        match self.chunk {
            Some(chunk) => drop(self.discard_chunks(chunk, start, end)?),
            None => drop(self.try_fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, start, end - start)?),
        }
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64, may_punch: bool) -> io::Result<()> {
        if self.zero_blocks(offset, length, may_punch)? { Ok(()) } else { self.write_zeros(offset, length) }
    }

    fn zero_fast(&self, offset: u64, length: u64, may_punch: bool) -> io::Result<()> {
        let done = self.zero_blocks(offset, length, may_punch)?;
        if done { Ok(()) } else { Err(Errno::EOPNOTSUPP.into()) }
    }

    fn prefetch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check(offset, length)?;
        if self.raw.is_around() {
            return Ok(());
        }
        let (Ok(start), Ok(count)) = (i64::try_from(offset), i64::try_from(length)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        Ok(posix_fadvise(self.file(), start, count, PosixFadviseAdvice::POSIX_FADV_WILLNEED)?)
    }

    fn raw(&self) -> Option<&RawFile> {
        Some(&self.raw)
    }

    fn expect_questions(&self) {
        if let Some(allocation) = self.allocation() {
            allocation.prepare();
        }
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> io::Result<Vec<Extent>> {
        self.check(offset, length)?;
        if let Some(allocation) = self.allocation() {
            return Ok(allocation.extents(offset, length, limit));
        }
        let end = offset + length;
        let mut extents = Vec::new();
        let mut position = offset;
        while position < end {
            let from = i64::try_from(position).map_err(|_| io::ErrorKind::InvalidInput)?;
            let (data, hole) = self.next_data(from)?.unwrap_or((end, end));
            let data = data.clamp(position, end);
            let hole = hole.clamp(data, end);
            for (start, stop, is_hole) in [(position, data, true), (data, hole, false)] {
                if start < stop {
                    push_extent(&mut extents, Extent { offset: start, length: stop - start, hole: is_hole });
                }
            }
            position = hole;
            if extents.len() > limit.max(1) {
                break;
            }
        }
        extents.truncate(limit.max(1));
        Ok(extents)
    }
}

/// Takes a range apart: offsets and lengths of at most so many bytes each.
fn pieces(start: u64, end: u64, most: u64) -> impl Iterator<Item = (u64, u64)> {
    let step = most.max(1);
    (0..(end - start).div_ceil(step)).map(move |number| {
        let from = start + number * step;
        (from, step.min(end - from))
    })
}

fn too_short(length: u64, size: u64) -> io::Error {
    let text = format!("the device has {length} bytes, {size} were asked for");
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

fn observe_size(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    // A block device's metadata has no length. Nobody uses the position that this moves.
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

#[cfg(test)]
mod tests;
