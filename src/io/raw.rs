//! What an engine may do with a file by itself, without the blocking calls of [`BlockIo`](super::BlockIo).
//!
//! Two handles on one file: one through the page cache, one around it. Data that is cached is read from the cache;
//! everything else, writes above all, goes around it, which neither blocks nor pollutes. Both see the same bytes: the
//! kernel writes back and forgets cached pages that a direct access meets. One thing it cannot do: a write through the
//! cache while a direct write of the same page is in flight can bring old bytes back, and counts as an I/O error of the
//! file, which the next flush is told of. Hence the gate: direct writes pass it, writes through the cache shut it.
//!
//! A block device is neither read nor written through the cache. A thin volume's pool may have no room for what is written:
//! that must be refused to who writes it, and the kernel would tell it to who flushes, as a loss. And of a device the kernel
//! forgets cached pages only before a direct write that nobody waits for, not behind it: who read one meanwhile would leave
//! old bytes in the cache for good. What is no whole block is read, changed and written by itself.

use super::cached::CacheView;
use super::sync::SyncOnce;
use super::{Allocation, Pass, WriteGate, loss};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statfs::{FsType, fstatfs};
use rustix::io::ReadWriteFlags;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::sync::Arc;

/// File systems that live in memory: nothing on them waits for a disk. tmpfs and ramfs.
const IN_MEMORY: [FsType; 2] = [FsType(0x0102_1994), FsType(0x8584_58f6_u32 as _)];

/// Memory for direct accesses begins at multiples of this, in bytes; no device asks for more.
const MEMORY_BLOCK: usize = 4096;

/// Bytes that are copied at once on their way around the page cache; a multiple of every block.
const BATCH: usize = 1 << 20;

/// A file that bypasses the page cache.
#[derive(Debug)]
pub struct Direct {
    file: File,
    /// Offsets and lengths must be multiples of this, in bytes: a power of two.
    block: u32,
}

/// See the module.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    direct: Option<Direct>,
    in_memory: bool,
    /// Of a block device: nothing goes through the page cache, in or out.
    around: bool,
    writes: Arc<WriteGate>,
    syncs: SyncOnce,
    cache: CacheView,
    /// What is known of its holes, where somebody else has to find out.
    allocation: Option<Allocation>,
}

impl RawFile {
    /// Probes an open file once: which file system it is on, whether and how it may be accessed directly, and whether
    /// writes have been lost on it, so that no flush may succeed.
    ///
    /// # Errors
    /// What the system said about the file system.
    pub(super) fn probe(file: File) -> io::Result<Self> {
        let in_memory = is_in_memory(&file)?;
        let direct = if in_memory { None } else { Direct::probe(&file) };
        let around = direct.is_some() && file.metadata()?.file_type().is_block_device();
        Ok(Self { around, ..Self::of(file, direct, in_memory) })
    }

    /// Takes the second file for the way around the first one's page cache, whatever it is: for tests of who waits for it.
    #[cfg(test)]
    pub fn around(file: File, direct: File) -> Self {
        Self::of(file, Some(Direct { file: direct, block: 512 }), false)
    }

    /// The same, as if they were handles on a block device.
    #[cfg(test)]
    pub fn of_device(file: File, direct: File) -> Self {
        Self { around: true, ..Self::around(file, direct) }
    }

    fn of(file: File, direct: Option<Direct>, in_memory: bool) -> Self {
        let (writes, syncs, cache) = (WriteGate::new(), SyncOnce::default(), CacheView::new());
        if let Some(error) = loss::noted(&file) {
            syncs.remember(&error);
        }
        Self { file, direct, in_memory, around: false, writes, syncs, cache, allocation: None }
    }

    pub(super) fn with(self, allocation: Allocation) -> Self {
        Self { allocation: Some(allocation), ..self }
    }

    pub(super) fn allocation(&self) -> Option<&Allocation> {
        self.allocation.as_ref()
    }

    /// A range is about to be written, by whoever has passed or shut the gate.
    pub(super) fn mark(&self, offset: u64, length: u64) {
        if let Some(allocation) = &self.allocation {
            allocation.mark(offset, length);
        }
    }

    /// Goes in to have the medium itself change a range, such as to zero it. Nobody who changes parts of blocks is under way
    /// meanwhile: they would bring back what they have read before.
    pub(super) fn wait_to_change(&self, offset: u64, length: u64) -> Pass {
        let pass = self.writes.wait_in();
        self.mark(offset, length);
        pass
    }

    /// Goes in to write a range around the page cache, unless the gate is shut.
    pub fn begin_write(&self, offset: u64, length: u64) -> Option<Pass> {
        let pass = self.writes.enter()?;
        self.mark(offset, length);
        Some(pass)
    }

    /// Through the page cache.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Around the page cache; absent where the file system cannot, or where there is no need.
    pub fn direct(&self) -> Option<&Direct> {
        self.direct.as_ref()
    }

    /// Whether the file's bytes are memory, so that reading and writing them cannot wait for a device.
    pub fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// Passed by direct writes while they are in flight, and shut by writes through the cache.
    pub fn writes(&self) -> &Arc<WriteGate> {
        &self.writes
    }

    /// Makes all acknowledged writes durable, through whichever handle they came. Shared by all who wait for it.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.syncs.sync(|| {
            loop {
                match self.file.sync_data() {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    outcome => return outcome.inspect_err(|error| loss::note(&self.file, error)),
                }
            }
        })
    }

    /// Writes around the page cache; `false` if that cannot be done, and perhaps some of it has been. Waits while others
    /// have to be alone.
    pub(super) fn write_around(&self, buffer: &[u8], offset: u64) -> io::Result<bool> {
        let Some(direct) = &self.direct else { return Ok(false) };
        if !direct.takes(buffer, offset) {
            return if self.around { self.write_blocks_around(direct, buffer, offset) } else { Ok(false) };
        }
        let _pass = self.wait_to_change(offset, buffer.len() as u64);
        done(direct.file.write_all_at(buffer, offset))
    }

    /// The same for what lies anywhere, in memory or on the medium: by way of memory of our own, and alone where blocks are
    /// changed in part.
    fn write_blocks_around(&self, direct: &Direct, buffer: &[u8], offset: u64) -> io::Result<bool> {
        let whole = direct.is_aligned(offset, buffer.len() as u64);
        let _gate = if whole { (Some(self.writes.wait_in()), None) } else { (None, Some(self.writes.shut())) };
        self.mark(offset, buffer.len() as u64);
        let mut memory = direct.memory(buffer.len());
        let memory = in_blocks(&mut memory);
        let (mut position, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let inside = usize::try_from(position % u64::from(direct.block)).unwrap_or_default();
            let count = rest.len().min(BATCH - inside);
            let (now, later) = rest.split_at(count);
            if !direct.change(memory, inside, now, position - inside as u64)? {
                return Ok(false);
            }
            (position, rest) = (position + count as u64, later);
        }
        Ok(true)
    }

    /// Reads around the page cache, where nothing may go through it; `false` if that is not so, or cannot be done.
    pub(super) fn read_around(&self, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
        let Some(direct) = self.direct.as_ref().filter(|_| self.around) else { return Ok(false) };
        if direct.takes(buffer, offset) {
            return done(direct.file.read_exact_at(buffer, offset));
        }
        let mut memory = direct.memory(buffer.len());
        let memory = in_blocks(&mut memory);
        let (mut position, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let inside = usize::try_from(position % u64::from(direct.block)).unwrap_or_default();
            let (now, later) = rest.split_at_mut(rest.len().min(BATCH - inside));
            let whole = (inside + now.len()).next_multiple_of(direct.block as usize);
            if !direct.fetch(memory, 0..whole, position - inside as u64)? {
                return Ok(false);
            }
            let Some(found) = memory.get(inside..inside + now.len()) else { return Ok(false) };
            now.copy_from_slice(found);
            (position, rest) = (position + now.len() as u64, later);
        }
        Ok(true)
    }

    /// Whether nothing goes through the page cache.
    pub(super) fn is_around(&self) -> bool {
        self.around
    }

    /// Remembers that a write that was to be durable has failed: whatever the medium's cache held may be lost, so that
    /// no later flush may succeed. A disk or quota that is full loses nothing that was acknowledged: the write itself
    /// was refused, and what write-back could not place is told to the next flush by the kernel, once for each handle.
    pub fn durable_write_failed(&self, error: &io::Error) {
        let full = [Errno::ENOSPC, Errno::EDQUOT, Errno::EFBIG].map(|errno| Some(errno as i32));
        if !full.contains(&error.raw_os_error()) && self.syncs.remember(error) {
            loss::note(&self.file, error);
        }
    }

    /// Reads what is in the page cache, without waiting for a device; says whether that was all of it. If not, the
    /// buffer's content is anything.
    ///
    /// What is missing is being read from the device then, in vain for a caller who does that by itself. Unless it is
    /// `likely` that all is there, the kernel is therefore asked first, at a third of the price of a read of 4 KiB.
    pub fn read_cached(&self, buffer: &mut [u8], offset: u64, likely: bool) -> bool {
        let wanted = buffer.len();
        if self.around {
            return false;
        }
        if !likely && self.cache.holds(&self.file, offset, wanted as u64) == Some(false) {
            return false;
        }
        let read = rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT);
        read == Ok(wanted)
    }
}

/// The part of memory for direct accesses that is where they take it.
fn in_blocks(memory: &mut [u8]) -> &mut [u8] {
    let start = memory.as_ptr().align_offset(MEMORY_BLOCK);
    memory.get_mut(start..).unwrap_or_default()
}

/// A device is not where the file system has its node.
fn is_in_memory(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.is_file() && IN_MEMORY.contains(&fstatfs(file)?.filesystem_type()))
}

/// Whether it could be done around the page cache.
fn done(outcome: io::Result<()>) -> io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Direct {
    /// Writes the blocks from `start` on, changed from their byte `inside` on, and otherwise as they are; `false` if that
    /// cannot be done. `memory` has room for them.
    fn change(&self, memory: &mut [u8], inside: usize, with: &[u8], start: u64) -> io::Result<bool> {
        let block = self.block as usize;
        let end = inside + with.len();
        let whole = end.next_multiple_of(block);
        let Some(memory) = memory.get_mut(..whole) else { return Ok(false) };
        let last = whole - block;
        if inside > 0 && !self.fetch(memory, 0..block, start)? {
            return Ok(false);
        }
        // The first block may be the last one.
        if end < whole && (last > 0 || inside == 0) && !self.fetch(memory, last..whole, start)? {
            return Ok(false);
        }
        let Some(place) = memory.get_mut(inside..end) else { return Ok(false) };
        place.copy_from_slice(with);
        done(self.file.write_all_at(memory, start))
    }

    /// Reads the blocks `at` there of what lies from `start` on; `false` if there are none, or not all of them.
    fn fetch(&self, memory: &mut [u8], at: Range<usize>, start: u64) -> io::Result<bool> {
        let offset = start + at.start as u64;
        let Some(place) = memory.get_mut(at) else { return Ok(false) };
        match self.file.read_exact_at(place, offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            outcome => done(outcome),
        }
    }

    /// Whether it can be done from where the bytes are, or to there.
    fn takes(&self, buffer: &[u8], offset: u64) -> bool {
        buffer.as_ptr().addr().is_multiple_of(MEMORY_BLOCK) && self.is_aligned(offset, buffer.len() as u64)
    }

    /// For accesses to so many bytes anywhere, batch by batch: see [`in_blocks`].
    fn memory(&self, length: usize) -> Vec<u8> {
        let room = length.saturating_add(2 * self.block as usize).min(BATCH);
        vec![0; room + MEMORY_BLOCK]
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Smallest length and alignment of an access, in bytes.
    pub fn block(&self) -> u32 {
        self.block
    }

    /// Whether a range consists of whole blocks.
    pub fn is_aligned(&self, offset: u64, length: u64) -> bool {
        let block = u64::from(self.block);
        offset.is_multiple_of(block) && length.is_multiple_of(block)
    }

    /// Finds the smallest block by trying: the answer of the file system itself, whatever lies below it.
    fn probe(file: &File) -> Option<Self> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let writable = {
            let flags = nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_GETFL).ok()?;
            OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE == OFlag::O_RDWR
        };
        let direct = File::options().read(true).write(writable).custom_flags(OFlag::O_DIRECT.bits()).open(path);
        let direct = direct.inspect_err(|error| tracing::debug!(%error, "no direct access")).ok()?;
        let mut memory = vec![0; 2 * MEMORY_BLOCK];
        let start = memory.as_ptr().align_offset(MEMORY_BLOCK);
        let block = [512usize, 4096].into_iter().find(|block| {
            let Some(buffer) = memory.get_mut(start..start + block) else { return false };
            let read = direct.read_at(buffer, *block as u64);
            !matches!(read, Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32))
        })?;
        Some(Self { file: direct, block: block as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

    #[test]
    fn a_file_in_memory_needs_no_direct_access_and_a_cached_page_is_read_without_waiting() {
        let path = format!("/dev/shm/{}", uuid::Uuid::new_v4());
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file in memory");
        std::fs::remove_file(&path).expect("its name is not needed");
        file.set_len(8192).expect("a size");
        let raw = RawFile::probe(file).expect("a file");
        assert!(raw.is_in_memory() && raw.direct().is_none());

        let raw = RawFile::probe(tempfile::tempfile().expect("a file")).expect("a file");
        raw.file().write_all_at(&[7; 8192], 0).expect("a write through the cache");
        let mut seen = [0; 4096];
        assert!(raw.read_cached(&mut seen, 4096, false) && seen == [7; 4096]);
        assert!(!raw.read_cached(&mut seen, 8192, true), "nothing is there");
        if let Some(direct) = raw.direct() {
            assert!(direct.is_aligned(0, direct.block().into()) && !direct.is_aligned(1, 4096));
        }
    }

    #[test]
    fn a_device_is_not_in_memory_though_the_node_that_names_it_is() {
        let null = File::open("/dev/null").expect("a device that every host has");
        assert!(
            IN_MEMORY.contains(&fstatfs(&null).expect("a file system").filesystem_type()),
            "as nodes of volumes are"
        );
        assert!(!RawFile::probe(null).expect("a file").is_in_memory());
    }

    #[test]
    fn looking_for_what_the_page_cache_does_not_have_reads_nothing_from_the_device() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&[7; 1 << 20], 0).expect("a write through the cache");
        file.sync_all().expect("a sync");
        let raw = RawFile::probe(file).expect("a file");
        posix_fadvise(raw.file(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("advice");
        if raw.cache.holds(raw.file(), 0, 4096) != Some(false) {
            eprintln!("skipped: this kernel does not tell what is in its page cache, or nothing leaves it");
            return;
        }
        assert!(!raw.read_cached(&mut [0; 4096], 0, false));
        assert_eq!(raw.cache.holds(raw.file(), 0, 4096), Some(false), "it is still not there");
    }
}
