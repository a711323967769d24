//! Block I/O on what a backend opens: the one interface between where bytes are kept and who asks for them.
//!
//! Never here: protocols, names, assignments. Every call blocks; the data threads own their connections.

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
    fn read(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()>;

    /// Writes all of `buffer` at `offset`; with `fua` it is on the medium before this returns.
    fn write(&self, buffer: &[u8], offset: u64, fua: bool) -> std::io::Result<()>;

    /// Makes all acknowledged writes durable.
    fn flush(&self) -> std::io::Result<()>;

    /// Gives the space of a range back; it reads as zeros afterwards.
    fn trim(&self, offset: u64, length: u64) -> std::io::Result<()>;

    /// Zeroes a range. With `may_punch` the space may be given back, else it stays allocated.
    fn zero(&self, offset: u64, length: u64, may_punch: bool) -> std::io::Result<()>;

    /// Data and holes of a range, in order, without gaps, starting at `offset` and ending at its end; at most
    /// `limit` extents, so that the answer may end early. Whoever cannot tell answers one extent of data.
    fn extents(&self, offset: u64, length: u64, limit: usize) -> std::io::Result<Vec<Extent>>;
}
