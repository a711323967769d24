//! A large request in pieces, for whoever has no memory for all of it: what comes next, what goes out in front of its
//! data, and how its client is told that a piece has failed. Section "Structured reply chunk message".
//!
//! A read is answered with a chunk for each piece where its client takes chunks, and else with one header for all of it,
//! behind which only the end of the connection can say that something is wrong. A write is answered once, when all of
//! its pieces are where they are to be. Never here: memory, and the bytes themselves.

use super::request::{Command, Headers, Request};

/// Length of a piece at most, in bytes. Pieces end at multiples of it, so that all but the outer ones consist of whole
/// blocks.
pub const PIECE: u32 = 256 << 10;

/// A read or a write, and how much of it has been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pieces {
    request: Request,
    /// In bytes.
    done: u32,
    flushed: bool,
}

/// What is left to be said when a piece has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setback {
    /// The error, once so many bytes of payload have gone by.
    Tell { after: u32 },
    /// Nothing: its data has been announced, and will not come.
    HangUp,
}

impl Pieces {
    /// Nothing of the request has been done yet.
    pub fn of(request: Request) -> Self {
        Self { request, done: 0, flushed: false }
    }

    /// Whether the next piece is the first one.
    pub fn at_start(&self) -> bool {
        self.done == 0
    }

    /// The whole.
    pub fn request(&self) -> Request {
        self.request
    }

    /// What is to be done next; `None` when all has been done. A write that is to be durable ends with a flush.
    pub fn next(&self) -> Option<Command> {
        let (length, done) = (self.length(), u64::from(self.done));
        match self.request.command {
            Command::Read { offset, whole, .. } if length > 0 => {
                Some(Command::Read { offset: offset.saturating_add(done), length, whole })
            }
            Command::Write { offset, .. } if length > 0 => {
                Some(Command::Write { offset: offset.saturating_add(done), length, fua: false })
            }
            Command::Write { fua: true, .. } if !self.flushed => Some(Command::Flush),
            _ => None,
        }
    }

    /// What was next has been done.
    pub fn advance(&mut self) {
        let length = self.length();
        self.flushed |= length == 0;
        self.done = self.done.saturating_add(length);
    }

    /// Writes what goes out in front of the next piece's data.
    pub fn header(&self, output: &mut Vec<u8>) {
        let (Command::Read { offset, length, .. }, reply) = (self.request.command, self.request.reply) else { return };
        if !self.in_chunks() {
            if self.done == 0 {
                reply.data(length, output);
            }
            return;
        }
        let (here, last) = (offset.saturating_add(self.done.into()), self.rest() == 0);
        reply.data_part(here, self.length(), last, output);
    }

    /// What was next has failed, and the payload of a write's piece has been received.
    pub fn setback(&self) -> Setback {
        match self.request.command {
            Command::Read { .. } if self.done > 0 && !self.in_chunks() => Setback::HangUp,
            Command::Write { .. } => Setback::Tell { after: self.rest() },
            _ => Setback::Tell { after: 0 },
        }
    }

    fn in_chunks(&self) -> bool {
        let whole = matches!(self.request.command, Command::Read { whole: true, .. });
        self.request.reply.headers != Headers::Compact && !whole
    }

    /// Of the next piece, in bytes; zero when there is none.
    fn length(&self) -> u32 {
        let (Command::Read { offset, length, .. } | Command::Write { offset, length, .. }) = self.request.command
        else {
            return 0;
        };
        let here = offset.saturating_add(self.done.into());
        let room = PIECE - (here % u64::from(PIECE)) as u32;
        length.saturating_sub(self.done).min(room)
    }

    /// Bytes behind the next piece.
    fn rest(&self) -> u32 {
        let (Command::Read { length, .. } | Command::Write { length, .. }) = self.request.command else { return 0 };
        length.saturating_sub(self.done).saturating_sub(self.length())
    }
}

#[cfg(test)]
mod tests {
    use super::super::reply::Reply;
    use super::super::wire::*;
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 4 << 20;

    fn byte(at: u64) -> u8 {
        (at / 3) as u8 ^ (at >> 18) as u8
    }

    fn bytes(offset: u64, length: u32) -> Vec<u8> {
        (offset..offset + u64::from(length)).map(byte).collect()
    }

    /// All that goes out for a read of which a piece fails, or none; and whether its connection ends.
    fn read(request: Request, failing: Option<usize>) -> (Vec<u8>, bool) {
        let (mut pieces, mut output, mut number) = (Pieces::of(request), Vec::new(), 0);
        while let Some(Command::Read { offset, length, .. }) = pieces.next() {
            assert!(
                0 < length
                    && length <= PIECE
                    && offset / u64::from(PIECE) == (offset + u64::from(length) - 1) / u64::from(PIECE)
            );
            if failing == Some(number) {
                if pieces.setback() == Setback::HangUp {
                    return (output, true);
                }
                assert_eq!(pieces.setback(), Setback::Tell { after: 0 });
                request.reply.error(crate::nbd::NbdErrno::Io, "it failed", &mut output);
                return (output, false);
            }
            pieces.header(&mut output);
            output.extend(bytes(offset, length));
            pieces.advance();
            number += 1;
        }
        (output, false)
    }

    fn take<'a>(reply: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (now, later) = reply.split_at(count);
        *reply = later;
        now
    }

    /// What a client makes of a reply: chunks, the bytes of the read as far as they came, and whether it failed.
    fn heard(request: Request, mut reply: &[u8]) -> (usize, Vec<Option<u8>>, bool) {
        let Command::Read { offset, length, .. } = request.command else { panic!("a read") };
        let mut seen = vec![None; length as usize];
        let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        if request.reply.headers == Headers::Compact {
            let failed = number(&take(&mut reply, 16)[4..8]) != 0;
            if !failed {
                seen.iter_mut().zip(take(&mut reply, length as usize)).for_each(|(seen, byte)| *seen = Some(*byte));
            }
            assert!(reply.is_empty());
            return (1, seen, failed);
        }
        for chunks in 1.. {
            let header = take(&mut reply, if request.reply.headers == Headers::Extended { 32 } else { 20 });
            assert_eq!(number(&header[8..16]), request.reply.cookie);
            let (flags, kind) = (number(&header[4..6]) as u16, number(&header[6..8]) as u16);
            let payload = take(&mut reply, number(&header[header.len() - 4..]) as usize);
            let failed = kind == NBD_REPLY_TYPE_ERROR;
            if !failed {
                assert_eq!(kind, NBD_REPLY_TYPE_OFFSET_DATA);
                let start = (number(&payload[..8]) - offset) as usize;
                for (seen, byte) in seen[start..].iter_mut().zip(&payload[8..]) {
                    assert!(seen.replace(*byte).is_none(), "the same byte twice");
                }
            }
            if flags & NBD_REPLY_FLAG_DONE != 0 {
                assert!(reply.is_empty());
                return (chunks, seen, failed);
            }
        }
        unreachable!("every reply has an end")
    }

    fn headers() -> impl Strategy<Value = Headers> {
        prop_oneof![Just(Headers::Compact), Just(Headers::Structured), Just(Headers::Extended)]
    }

    fn range() -> impl Strategy<Value = (u64, u32)> {
        let range = prop_oneof![(0..SIZE, 1u32..3 << 20), (0..16u64, 1u32..8).prop_map(|(o, l)| (o << 18, l << 18))];
        range.prop_map(|(offset, length)| (offset, length.min((SIZE - offset) as u32)))
    }

    proptest! {
        #[test]
        fn a_read_in_pieces_tells_its_client_what_the_whole_one_does(
            headers in headers(), (offset, length) in range(), dont: bool, failing in proptest::option::of(0usize..14),
        ) {
            let whole = dont && headers != Headers::Compact;
            let reply = Reply { headers, cookie: 7, offset };
            let request = Request { reply, command: Command::Read { offset, length, whole } };
            let (first, last) = (offset >> 18, (offset + u64::from(length) - 1) >> 18);
            let count = (last - first + 1) as usize;
            let failing = failing.filter(|number| *number < count);
            let (output, ended) = read(request, failing);
            let one = headers == Headers::Compact || whole;
            prop_assert_eq!(ended, one && failing.is_some_and(|number| number > 0));
            if ended {
                // What was announced never comes.
                let mut announced = Vec::new();
                reply.data(length, &mut announced);
                prop_assert!(output.starts_with(&announced) && output.len() < announced.len() + length as usize);
                return Ok(());
            }
            let (chunks, seen, failed) = heard(request, &output);
            prop_assert_eq!(failed, failing.is_some());
            prop_assert!(seen.iter().enumerate().all(|(at, seen)| seen.is_none_or(|it| it == byte(offset + at as u64))));
            if !failed {
                prop_assert_eq!(chunks, if one { 1 } else { count });
                prop_assert!(seen.iter().all(Option::is_some));
            }
            if one && !failed {
                let mut expected = Vec::new();
                reply.data(length, &mut expected);
                expected.extend(bytes(offset, length));
                prop_assert!(output == expected, "the very same bytes");
            }
        }

        #[test]
        fn a_write_in_pieces_changes_what_the_whole_one_does_and_leaves_no_payload_behind_when_it_fails(
            (offset, length) in range(), fua: bool, failing in proptest::option::of(0usize..14),
        ) {
            let reply = Reply { headers: Headers::Compact, cookie: 7, offset };
            let mut pieces = Pieces::of(Request { reply, command: Command::Write { offset, length, fua } });
            let (mut at, mut number, mut flushed) = (offset, 0, false);
            while let Some(command) = pieces.next() {
                let count = match command {
                    Command::Write { offset, length, fua: false } => {
                        prop_assert!(offset == at && length > 0 && length <= PIECE && !flushed);
                        length
                    }
                    Command::Flush => {
                        prop_assert!(fua && !flushed && at == offset + u64::from(length));
                        flushed = true;
                        0
                    }
                    other => panic!("{other:?}"),
                };
                at += u64::from(count);
                if failing == Some(number) {
                    let after = (offset + u64::from(length) - at) as u32;
                    prop_assert_eq!(pieces.setback(), Setback::Tell { after });
                    return Ok(());
                }
                pieces.advance();
                number += 1;
            }
            prop_assert!(at == offset + u64::from(length) && flushed == fua);
        }
    }
}
