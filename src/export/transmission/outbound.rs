//! Replies on their way out: gathered while more requests are at hand, so that one send takes many.

use crate::io::BlockIo;
use crate::nbd::write_both;
use std::io::{self, Write};

/// A read up to this many bytes is laid out among the other replies; a larger one goes out of its own buffer.
const INLINE: u32 = 64 << 10;

/// Gathered replies are sent at the latest when there are so many bytes of them.
const LARGE: usize = 256 << 10;

#[derive(Default)]
pub(super) struct Outbound {
    gathered: Vec<u8>,
    bulk: Vec<u8>,
}

impl Outbound {
    /// Where replies without data of their own are written.
    pub(super) fn headers(&mut self) -> &mut Vec<u8> {
        &mut self.gathered
    }

    /// Reads from the medium into a reply, whose header is laid out by `announce`. The outer error is the stream's, the
    /// inner one the medium's; with the latter nothing has been added.
    pub(super) fn read<W: Write>(
        &mut self,
        stream: &mut W,
        io: &dyn BlockIo,
        (offset, length): (u64, u32),
        announce: impl FnOnce(&mut Vec<u8>),
    ) -> io::Result<io::Result<()>> {
        if length > INLINE {
            return self.read_bulk(stream, io, (offset, length), announce);
        }
        let before = self.gathered.len();
        announce(&mut self.gathered);
        let start = self.gathered.len();
        self.gathered.resize(start + length as usize, 0);
        let outcome = io.read(self.gathered.get_mut(start..).unwrap_or_default(), offset);
        if outcome.is_err() {
            self.gathered.truncate(before);
        }
        Ok(outcome)
    }

    fn read_bulk<W: Write>(
        &mut self,
        stream: &mut W,
        io: &dyn BlockIo,
        (offset, length): (u64, u32),
        announce: impl FnOnce(&mut Vec<u8>),
    ) -> io::Result<io::Result<()>> {
        let length = length as usize;
        if self.bulk.len() < length {
            // Fresh memory comes zeroed from the system; growing would clear and copy.
            self.bulk = Vec::new();
            self.bulk = vec![0; length];
        }
        let data = self.bulk.get_mut(..length).unwrap_or_default();
        if let Err(error) = io.read(data, offset) {
            return Ok(Err(error));
        }
        announce(&mut self.gathered);
        write_both(stream, &self.gathered, data)?;
        self.gathered.clear();
        Ok(Ok(()))
    }

    pub(super) fn send_if_large<W: Write>(&mut self, stream: &mut W) -> io::Result<()> {
        if self.gathered.len() >= LARGE { self.send(stream) } else { Ok(()) }
    }

    pub(super) fn send<W: Write>(&mut self, stream: &mut W) -> io::Result<()> {
        write_both(stream, &self.gathered, &[])?;
        self.gathered.clear();
        Ok(())
    }
}
