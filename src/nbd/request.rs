//! Requests of the transmission phase: the one place where what a client sends is checked.
//!
//! Behind [`decode_request`] every request lies within the export, is aligned, asks for something that was negotiated
//! and fits into memory. Sections "Request message", "Command flags" and "Request types".

use super::errno::NbdErrno;
use super::wire::*;

/// The payload of a refused write is read and dropped if it has up to this many bytes; a client that sends more has
/// not listened to the limits and is disconnected.
const MAX_DISCARDED: u32 = 2 * MAX_PAYLOAD;

/// What was agreed on for this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub read_only: bool,
    pub structured_replies: bool,
    pub block_status: bool,
    /// In bytes, a power of two.
    pub minimum_block: u32,
}

/// A request that may be carried out as it stands. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's name for the request.
    pub cookie: u64,
    pub command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Read {
        offset: u64,
        length: u32,
    },
    /// The payload follows the request.
    Write {
        offset: u64,
        length: u32,
        fua: bool,
    },
    Flush,
    Trim {
        offset: u64,
        length: u32,
        fua: bool,
    },
    WriteZeroes {
        offset: u64,
        length: u32,
        may_punch: bool,
        fua: bool,
    },
    BlockStatus {
        offset: u64,
        length: u32,
        one: bool,
    },
}

/// A request that is answered with an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub cookie: u64,
    pub errno: NbdErrno,
    pub reason: &'static str,
    /// So many bytes of payload follow the request and are to be dropped.
    pub discard: u32,
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("a request begins with {0:#010x} in place of the magic number")]
    Magic(u32),
    #[error("a write announces {0} bytes, more than twice the limit")]
    Flood(u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Run(Request),
    Refuse(Refusal),
    /// The client takes its leave; no reply.
    Disconnect,
}

/// Judges a request against the terms of its connection and the export's size in bytes as of now.
///
/// # Errors
/// Where the byte stream has lost its meaning, or would cost too much to follow.
pub fn decode_request(header: &[u8; REQUEST_LENGTH], terms: &Terms, size: u64) -> Result<Verdict, ProtocolError> {
    let [m0, m1, m2, m3, f0, f1, t0, t1, rest @ ..] = *header;
    let [c0, c1, c2, c3, c4, c5, c6, c7, o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = rest;
    let magic = u32::from_be_bytes([m0, m1, m2, m3]);
    if magic != NBD_REQUEST_MAGIC {
        return Err(ProtocolError::Magic(magic));
    }
    let raw = Raw {
        flags: u16::from_be_bytes([f0, f1]),
        kind: u16::from_be_bytes([t0, t1]),
        offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
        length: u32::from_be_bytes([l0, l1, l2, l3]),
    };
    let cookie = u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]);
    if raw.kind == NBD_CMD_DISC {
        return Ok(Verdict::Disconnect);
    }
    Ok(match raw.check(terms, size) {
        Ok(command) => Verdict::Run(Request { cookie, command }),
        Err((errno, reason)) => {
            let discard = if raw.kind == NBD_CMD_WRITE { raw.length } else { 0 };
            if discard > MAX_DISCARDED {
                return Err(ProtocolError::Flood(discard));
            }
            Verdict::Refuse(Refusal { cookie, errno, reason, discard })
        }
    })
}

#[derive(Clone, Copy)]
struct Raw {
    flags: u16,
    kind: u16,
    offset: u64,
    length: u32,
}

type Fault = (NbdErrno, &'static str);

impl Raw {
    fn check(&self, terms: &Terms, size: u64) -> Result<Command, Fault> {
        let writes = matches!(self.kind, NBD_CMD_WRITE | NBD_CMD_TRIM | NBD_CMD_WRITE_ZEROES);
        self.check_flags(terms)?;
        if writes && terms.read_only {
            return Err((NbdErrno::Perm, "the export is read-only"));
        }
        if self.kind == NBD_CMD_FLUSH {
            if self.offset != 0 || self.length != 0 {
                return Err((NbdErrno::Inval, "a flush has neither offset nor length"));
            }
            return Ok(Command::Flush);
        }
        self.check_payload(terms)?;
        self.check_range(terms, size)?;
        Ok(self.command())
    }

    /// "Command flags": none that is not documented for the command. Every command may carry FUA.
    fn check_flags(&self, terms: &Terms) -> Result<(), Fault> {
        let known = match self.kind {
            NBD_CMD_READ if terms.structured_replies => NBD_CMD_FLAG_DF,
            NBD_CMD_READ | NBD_CMD_WRITE | NBD_CMD_FLUSH | NBD_CMD_TRIM => 0,
            NBD_CMD_WRITE_ZEROES => NBD_CMD_FLAG_NO_HOLE,
            NBD_CMD_BLOCK_STATUS if terms.block_status => NBD_CMD_FLAG_REQ_ONE,
            NBD_CMD_BLOCK_STATUS => return Err((NbdErrno::Inval, "no metadata context was negotiated")),
            _ => return Err((NbdErrno::Inval, "the server does not know this command")),
        };
        if self.flags & !(known | NBD_CMD_FLAG_FUA) != 0 {
            return Err((NbdErrno::Inval, "the command has flags that do not belong to it"));
        }
        Ok(())
    }

    fn check_payload(&self, terms: &Terms) -> Result<(), Fault> {
        match self.kind {
            NBD_CMD_READ if self.length > MAX_PAYLOAD && terms.structured_replies => {
                Err((NbdErrno::Overflow, "the read is larger than the advertised maximum"))
            }
            NBD_CMD_READ | NBD_CMD_WRITE if self.length > MAX_PAYLOAD => {
                Err((NbdErrno::Inval, "the request is larger than the advertised maximum"))
            }
            _ => Ok(()),
        }
    }

    fn check_range(&self, terms: &Terms, size: u64) -> Result<(), Fault> {
        if self.length == 0 {
            return Err((NbdErrno::Inval, "the length is zero"));
        }
        let block = u64::from(terms.minimum_block.max(1));
        if !self.offset.is_multiple_of(block) || !u64::from(self.length).is_multiple_of(block) {
            return Err((NbdErrno::Inval, "offset and length are not multiples of the minimum block size"));
        }
        let within = self.offset.checked_add(self.length.into()).is_some_and(|end| end <= size);
        let errno = match self.kind {
            NBD_CMD_WRITE | NBD_CMD_WRITE_ZEROES => NbdErrno::NoSpc,
            _ => NbdErrno::Inval,
        };
        if within { Ok(()) } else { Err((errno, "the range reaches beyond the end of the export")) }
    }

    fn command(&self) -> Command {
        let Self { flags, kind, offset, length } = *self;
        let fua = flags & NBD_CMD_FLAG_FUA != 0;
        match kind {
            NBD_CMD_WRITE => Command::Write { offset, length, fua },
            NBD_CMD_TRIM => Command::Trim { offset, length, fua },
            NBD_CMD_WRITE_ZEROES => {
                Command::WriteZeroes { offset, length, may_punch: flags & NBD_CMD_FLAG_NO_HOLE == 0, fua }
            }
            NBD_CMD_BLOCK_STATUS => Command::BlockStatus { offset, length, one: flags & NBD_CMD_FLAG_REQ_ONE != 0 },
            // A read is always answered with one chunk of content, so "don't fragment" asks for nothing more.
            _ => Command::Read { offset, length },
        }
    }
}

/// Writes a request as a client sends it; a write's payload follows.
pub(super) fn encode_request(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32, output: &mut Vec<u8>) {
    output.extend(NBD_REQUEST_MAGIC.to_be_bytes());
    output.extend(flags.to_be_bytes());
    output.extend(kind.to_be_bytes());
    output.extend(cookie.to_be_bytes());
    output.extend(offset.to_be_bytes());
    output.extend(length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 1 << 20;
    const ALL: Terms = Terms { read_only: false, structured_replies: true, block_status: true, minimum_block: 1 };

    fn judge(flags: u16, kind: u16, offset: u64, length: u32, terms: Terms) -> Result<Verdict, ProtocolError> {
        let mut bytes = Vec::new();
        encode_request(flags, kind, 7, offset, length, &mut bytes);
        decode_request(&bytes.try_into().expect("a request's length"), &terms, SIZE)
    }

    fn errno(flags: u16, kind: u16, offset: u64, length: u32, terms: Terms) -> Option<NbdErrno> {
        match judge(flags, kind, offset, length, terms) {
            Ok(Verdict::Refuse(refusal)) => Some(refusal.errno),
            Ok(Verdict::Run(_) | Verdict::Disconnect) => None,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn each_fault_has_the_error_that_the_specification_gives_it() {
        use NbdErrno::*;
        let end = SIZE - 511;
        let read_only = Terms { read_only: true, ..ALL };
        let plain = Terms { structured_replies: false, block_status: false, ..ALL };
        let sectors = Terms { minimum_block: 512, ..ALL };
        for (flags, kind, offset, length, terms, expected) in [
            (0, NBD_CMD_READ, 0, 512, ALL, None),
            (0, NBD_CMD_READ, end, 512, ALL, Some(Inval)),
            (0, NBD_CMD_READ, u64::MAX, 512, ALL, Some(Inval)),
            (0, NBD_CMD_READ, 0, 0, ALL, Some(Inval)),
            (0, NBD_CMD_READ, 0, MAX_PAYLOAD + 1, ALL, Some(Overflow)),
            (0, NBD_CMD_READ, 0, MAX_PAYLOAD + 1, plain, Some(Inval)),
            (NBD_CMD_FLAG_DF, NBD_CMD_READ, 0, 512, ALL, None),
            (NBD_CMD_FLAG_DF, NBD_CMD_READ, 0, 512, plain, Some(Inval)),
            (NBD_CMD_FLAG_FUA, NBD_CMD_READ, 0, 512, ALL, None),
            (0, NBD_CMD_READ, 1, 512, sectors, Some(Inval)),
            (0, NBD_CMD_READ, 512, 1, sectors, Some(Inval)),
            (0, NBD_CMD_WRITE, end, 512, ALL, Some(NoSpc)),
            (0, NBD_CMD_WRITE, u64::MAX - 1, 512, ALL, Some(NoSpc)),
            (0, NBD_CMD_WRITE, 0, 512, read_only, Some(Perm)),
            (0, NBD_CMD_WRITE, 0, MAX_PAYLOAD + 1, ALL, Some(Inval)),
            (NBD_CMD_FLAG_NO_HOLE, NBD_CMD_WRITE, 0, 512, ALL, Some(Inval)),
            (0, NBD_CMD_TRIM, end, 512, ALL, Some(Inval)),
            (0, NBD_CMD_TRIM, 0, 512, read_only, Some(Perm)),
            (0, NBD_CMD_WRITE_ZEROES, end, 512, ALL, Some(NoSpc)),
            (0, NBD_CMD_WRITE_ZEROES, 0, 512, read_only, Some(Perm)),
            (NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_WRITE_ZEROES, 0, 512, ALL, Some(Inval)),
            (0, NBD_CMD_FLUSH, 0, 0, read_only, None),
            (0, NBD_CMD_FLUSH, 0, 1, ALL, Some(Inval)),
            (0, NBD_CMD_FLUSH, 1, 0, ALL, Some(Inval)),
            (0, NBD_CMD_CACHE, 0, 512, ALL, Some(Inval)),
            (0, NBD_CMD_BLOCK_STATUS, 0, 512, plain, Some(Inval)),
            (0, NBD_CMD_BLOCK_STATUS, 0, 512, ALL, None),
            (0, NBD_CMD_BLOCK_STATUS, end, 512, ALL, Some(Inval)),
            (0, 99, 0, 512, ALL, Some(Inval)),
            (1 << 9, NBD_CMD_FLUSH, 0, 0, ALL, Some(Inval)),
        ] {
            let seen = errno(flags, kind, offset, length, terms);
            assert_eq!(seen, expected, "flags {flags}, command {kind}, {length} at {offset}");
        }
    }

    #[test]
    fn a_refused_write_has_its_payload_dropped_and_a_flood_ends_the_connection() {
        let refused = judge(0, NBD_CMD_WRITE, SIZE, 4096, ALL);
        assert!(matches!(refused, Ok(Verdict::Refuse(Refusal { discard: 4096, .. }))), "{refused:?}");
        assert_eq!(judge(0, NBD_CMD_WRITE, 0, u32::MAX, ALL), Err(ProtocolError::Flood(u32::MAX)));
        assert!(matches!(judge(0, NBD_CMD_TRIM, 0, u32::MAX, ALL), Ok(Verdict::Refuse(_))));
        assert_eq!(decode_request(&[0; REQUEST_LENGTH], &ALL, SIZE), Err(ProtocolError::Magic(0)));
    }

    proptest! {
        #[test]
        fn what_is_let_through_lies_within_the_export(
            flags in 0u16..64, kind in 0u16..10, offset in prop_oneof![0..2 * SIZE, any::<u64>()],
            length in prop_oneof![0..u32::MAX, 0..2 * SIZE as u32], read_only: bool, block in 0u32..4,
        ) {
            let terms = Terms { read_only, minimum_block: 1 << (block * 4), ..ALL };
            if let Ok(Verdict::Run(Request { cookie, command })) = judge(flags, kind, offset, length, terms) {
                prop_assert_eq!(cookie, 7);
                let writes = !matches!(command, Command::Read { .. } | Command::Flush | Command::BlockStatus { .. });
                prop_assert!(!(writes && read_only));
                if command != Command::Flush {
                    prop_assert!(length > 0 && u128::from(offset) + u128::from(length) <= u128::from(SIZE));
                    prop_assert!(offset % u64::from(terms.minimum_block) == 0);
                }
            }
        }
    }
}
