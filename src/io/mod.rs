//! Block I/O on what a backend opens: the one interface between where bytes are kept and who asks for them.
//!
//! [`FileIo`] serves a file or block device, [`MemoryIo`] is the naive oracle that the others are compared with,
//! [`FaultIo`] is a layer over any of them that fails, tears or holds chosen operations, and [`crash`] has a medium that
//! loses what nobody flushed and the checker of what clients were promised.
//!
//! Never here: protocols, names, assignments. Every call blocks; the data threads own their connections.

mod allocation;
mod cached;
pub mod crash;
mod fault;
mod file;
mod gate;
mod loss;
mod memory;
mod raw;
mod sync;

pub use allocation::{Allocation, ChunkMap};
pub use fault::{Effect, Fault, FaultFile, FaultIo, Gate, Operation, Performed};
pub use file::FileIo;
pub use gate::{Pass, Shut, WriteGate};
pub use memory::MemoryIo;
pub use raw::{Direct, RawFile};

use std::io;

/// A run of bytes that is either data or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
    /// Reads as zeros and occupies nothing.
    pub hole: bool,
}

/// A random-access block store of a fixed or growing size. Offsets and lengths are in bytes.
///
/// Callers check requests against [`Self::size`] first; an implementation still answers `InvalidInput` to a request
/// beyond it and never grows by being written to. Acknowledged writes may sit in caches until [`Self::flush`] returns.
/// Once a flush has failed every later one fails too: the medium may have dropped what it could not keep.
pub trait BlockIo: Send + Sync + 'static {
    /// Current size in bytes.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset`.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buffer` at `offset`; with `fua` it is on the medium before this returns.
    fn write(&self, buffer: &[u8], offset: u64, fua: bool) -> io::Result<()>;

    /// Makes all acknowledged writes durable.
    fn flush(&self) -> io::Result<()>;

    /// Gives the space of a range back. What was given back reads as zeros; what the medium cannot give back, such as
    /// part of one of its blocks, stays as it was.
    fn trim(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Zeroes a range. With `may_punch` the space may be given back, else it stays allocated.
    fn zero(&self, offset: u64, length: u64, may_punch: bool) -> io::Result<()>;

    /// Zeroes a range as [`Self::zero`] does, but only if that is faster than writing as many zeros.
    ///
    /// # Errors
    /// `EOPNOTSUPP` at once, with nothing changed, where it is not.
    fn zero_fast(&self, _offset: u64, _length: u64, _may_punch: bool) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(nix::errno::Errno::EOPNOTSUPP as i32))
    }

    /// Says that a range is going to be read soon. A hint: nothing may come of it.
    fn prefetch(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Ok(())
    }

    /// The file below, for engines that read and write it by themselves. `None` where every operation must come
    /// through this trait.
    fn raw(&self) -> Option<&RawFile> {
        None
    }

    /// Says that somebody is going to ask for [`Self::extents`]: whoever has to find out first may begin. Never waits.
    fn expect_questions(&self) {}

    /// Data and holes of a range, in order, without gaps, starting at `offset` and ending at its end; at most
    /// `limit` extents (one at least), so that the answer may end early. Whoever cannot tell answers one extent of
    /// data. An empty range has no extents.
    fn extents(&self, offset: u64, length: u64, limit: usize) -> io::Result<Vec<Extent>>;
}

/// `InvalidInput` unless `offset .. offset + length` lies within `size`.
fn check_range(size: u64, offset: u64, length: u64) -> io::Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{length} bytes at offset {offset} do not lie within {size} bytes"),
        )),
    }
}

/// Puts an extent behind others, joining it with the last one where both are alike.
fn push_extent(extents: &mut Vec<Extent>, extent: Extent) {
    match extents.last_mut() {
        Some(last) if last.hole == extent.hole => last.length += extent.length,
        _ => extents.push(extent),
    }
}

#[cfg(test)]
mod tests;
