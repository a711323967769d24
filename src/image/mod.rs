//! What disks hold, and how it is written in image files.
//!
//! A content is taken in parts, from its first byte to its last, zeros told of and not written out. [`qcow2`] reads one form
//! of it. Never here: files and sockets; the caller opens them.

pub mod qcow2;

use crate::model::Digest;
use sha2::{Digest as _, Sha256};
use std::io::{self, Read};

/// Data come in parts of at most so many bytes.
pub const PIECE: u64 = 1 << 20;
/// Zeros come in parts of at most so many bytes.
pub const STRIDE: u64 = 64 << 20;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A part of a content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Data(Vec<u8>),
    Zeros(u64),
}

impl Part {
    /// In bytes.
    pub fn length(&self) -> u64 {
        match self {
            Part::Data(data) => data.len() as u64,
            Part::Zeros(length) => *length,
        }
    }
}

/// What a disk holds.
pub trait Content {
    /// In bytes.
    fn size(&self) -> u64;

    /// The next part, of at most `most` bytes and at most [`PIECE`] of data or [`STRIDE`] of zeros; never empty. None behind
    /// the last.
    fn next(&mut self, most: u64) -> io::Result<Option<Part>>;

    /// Begins anew; false if that cannot be done.
    fn rewind(&mut self) -> io::Result<bool>;
}

/// SHA-256 over a content: of every byte, zeros and all.
#[derive(Clone, Default)]
pub struct Sum {
    hash: Sha256,
    length: u64,
}

impl Sum {
    pub fn add_data(&mut self, data: &[u8]) {
        self.hash.update(data);
        self.length = self.length.saturating_add(data.len() as u64);
    }

    pub fn add_zeros(&mut self, length: u64) {
        self.length = self.length.saturating_add(length);
        runs_of_zeros(length).for_each(|zeros| self.hash.update(zeros));
    }

    pub fn add(&mut self, part: &Part) {
        match part {
            Part::Data(data) => self.add_data(data),
            Part::Zeros(length) => self.add_zeros(*length),
        }
    }

    /// How many bytes were added.
    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn digest(&self) -> Digest {
        Digest::from_bytes(self.hash.clone().finalize().into())
    }
}

/// So many zeros, some at a time.
pub fn runs_of_zeros(length: u64) -> impl Iterator<Item = &'static [u8]> {
    let most = ZEROS.len() as u64;
    (0..length.div_ceil(most)).map(move |number| {
        let count = length.saturating_sub(number * most).min(most);
        ZEROS.get(..usize::try_from(count).unwrap_or(0)).unwrap_or_default()
    })
}

/// Reads until the buffer is full or the source has ended; says how much came.
pub fn fill(source: &mut dyn Read, mut buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while !buffer.is_empty() {
        match source.read(buffer) {
            Ok(0) => break,
            Ok(count) => {
                filled += count;
                buffer = buffer.get_mut(count..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_count_as_if_they_were_written_out() {
        for length in [0u64, 1, 65_535, 65_536, 65_537, 1 << 20] {
            let (mut told, mut written) = (Sum::default(), Sum::default());
            told.add(&Part::Zeros(length));
            written.add(&Part::Data(vec![0; length as usize]));
            assert_eq!((told.digest(), told.length()), (written.digest(), length));
            assert_eq!(runs_of_zeros(length).map(<[u8]>::len).sum::<usize>() as u64, length);
        }
    }
}
