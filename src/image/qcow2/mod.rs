//! QEMU's copy-on-write format, for reading: versions 2 and 3, compressed and zero clusters, as in qemu's
//! `docs/interop/qcow2.txt`.
//!
//! ```text
//!   header ──▶ L1 table: where each L2 table is ──▶ L2 table: where each cluster is, and how it is written
//! ```
//! A file comes from anywhere, so nothing in it is believed: what it points at must lie within it, no table is used twice, no
//! more clusters are read than it can hold, and a compressed cluster that unpacks to anything but a cluster is refused.
//! Reference counts are not needed for reading; of internal snapshots the present state is read.
//!
//! Refused by name: backing files, encryption, external data files, subclusters, files that are marked corrupt, and features
//! that this version does not know.

mod header;
mod tables;
mod unpack;

pub use header::{Compression, Header, Place};
pub use tables::{Kept, Run};
pub use unpack::unpack;

use super::{Content, PIECE, Part, STRIDE};
use std::collections::VecDeque;
use std::io;

/// Why a file cannot be read as qcow2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Qcow2Error {
    #[error("it is no qcow2 file: it does not begin like one")]
    Magic,
    #[error("it is of qcow2's version {0}: 2 and 3 are known")]
    Version(u32),
    #[error("it {0}, which cannot be imported: `qemu-img convert -O raw` may make a file of it that can")]
    Unsupported(String),
    #[error("it is marked as corrupt: see `qemu-img check`")]
    Corrupt,
    #[error("the file is damaged or cut short: {0}")]
    Damaged(String),
}

impl From<Qcow2Error> for io::Error {
    fn from(error: Qcow2Error) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// Fills a buffer from an offset of the file.
pub trait Read: FnMut(&mut [u8], u64) -> io::Result<()> {}

impl<F: FnMut(&mut [u8], u64) -> io::Result<()>> Read for F {}

/// The content of one file, in order.
pub struct Disk<R> {
    read: R,
    file: u64,
    header: Header,
    /// Where each L2 table is; none: zeros.
    tables: Vec<Option<Place>>,
    /// The next L2 table.
    next_table: usize,
    /// What is left of the present one.
    runs: VecDeque<Run>,
    /// Clusters that were found written as they are.
    plain: u64,
    /// Compressed clusters that are being handed out, and how much of them was.
    unpacked: Option<(Vec<u8>, usize)>,
}

impl<R: Read> Disk<R> {
    /// Looks at the header and the first table of a file of `file` bytes.
    ///
    /// # Errors
    /// A [`Qcow2Error`] within what [`io::Error`] carries, or what reading fails with.
    pub fn open(mut read: R, file: u64) -> io::Result<Self> {
        let mut start = vec![0; file.min(Header::LONGEST) as usize];
        read(&mut start, 0)?;
        let header = Header::parse(&start, file)?;
        let place = header.first_table();
        let mut table = vec![0; place.length as usize];
        read(&mut table, place.offset)?;
        let tables = header.tables(&table, file)?;
        let (runs, unpacked) = (VecDeque::new(), None);
        Ok(Self { read, file, header, tables, next_table: 0, runs, plain: 0, unpacked })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads the next L2 table; false behind the last.
    fn survey(&mut self) -> io::Result<bool> {
        let number = self.next_table;
        let Some(place) = self.tables.get(number).copied() else { return Ok(false) };
        self.next_table += 1;
        let runs = match place {
            None => vec![Run { length: self.header.span_of(number), kept: Kept::Zeros }],
            Some(place) => {
                let mut table = vec![0; place.length as usize];
                (self.read)(&mut table, place.offset)?;
                self.header.runs(number, &table, self.file, &mut self.plain)?
            }
        };
        self.runs = runs.into();
        Ok(true)
    }

    /// Compressed clusters that follow one another, to be handed out together.
    fn unpack_some(&mut self) -> io::Result<()> {
        let mut data = Vec::new();
        while let Some(Run { length: content, kept: Kept::Compressed { offset, length } }) = self.runs.front().copied()
        {
            let mut packed = vec![0; length as usize];
            (self.read)(&mut packed, offset)?;
            let cluster = unpack(self.header.compression(), &packed, self.header.cluster_size() as usize)?;
            data.extend_from_slice(cluster.get(..content as usize).unwrap_or(&cluster));
            self.runs.pop_front();
            if data.len() as u64 >= PIECE {
                break;
            }
        }
        self.unpacked = Some((data, 0));
        Ok(())
    }

    fn unpacked_part(&mut self, most: u64) -> Option<Part> {
        let (cluster, from) = self.unpacked.as_mut()?;
        let rest = cluster.get(*from..).unwrap_or_default();
        let count = rest.len().min(usize::try_from(most.min(PIECE)).unwrap_or(usize::MAX));
        let part = Part::Data(rest.get(..count).unwrap_or_default().to_vec());
        *from += count;
        if *from >= cluster.len() {
            self.unpacked = None;
        }
        Some(part)
    }
}

impl<R: Read> Content for Disk<R> {
    fn size(&self) -> u64 {
        self.header.size()
    }

    fn next(&mut self, most: u64) -> io::Result<Option<Part>> {
        if most == 0 {
            return Ok(None);
        }
        if let Some(part) = self.unpacked_part(most) {
            return Ok(Some(part));
        }
        while self.runs.is_empty() {
            if !self.survey()? {
                return Ok(None);
            }
        }
        let Some(run) = self.runs.front_mut() else { return Ok(None) };
        match run.kept {
            Kept::Zeros => {
                let length = run.length.min(most).min(STRIDE);
                run.length -= length;
                if run.length == 0 {
                    self.runs.pop_front();
                }
                Ok(Some(Part::Zeros(length)))
            }
            Kept::Plain { offset } => {
                let length = run.length.min(most).min(PIECE);
                run.length -= length;
                run.kept = Kept::Plain { offset: offset.saturating_add(length) };
                if run.length == 0 {
                    self.runs.pop_front();
                }
                let mut data = vec![0; length as usize];
                (self.read)(&mut data, offset)?;
                Ok(Some(Part::Data(data)))
            }
            Kept::Compressed { .. } => {
                self.unpack_some()?;
                Ok(self.unpacked_part(most))
            }
        }
    }

    fn rewind(&mut self) -> io::Result<bool> {
        self.next_table = 0;
        self.runs.clear();
        self.plain = 0;
        self.unpacked = None;
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
