//! Requests of the transmission phase: the one place where what a client sends is checked.
//!
//! Behind [`decode_request`] every request lies within the export, is aligned, asks for something that was negotiated
//! and fits into memory. Sections "Request message", "Command flags" and "Request types".

use super::errno::NbdErrno;
use super::inquiry::Inquiry;
use super::reply::Reply;
use super::wire::*;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The payload of a refused write is read and dropped if it has up to this many bytes; a client that sends more has
/// not listened to the limits and is disconnected.
const MAX_DISCARDED: u32 = 2 * MAX_PAYLOAD;

/// Which headers requests and replies have. Sections "Simple reply message" and following.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Headers {
    /// Simple replies only: an error is a number.
    #[default]
    Compact,
    Structured,
    /// Lengths of 64 bits. Extension `EXTENDED_HEADERS`.
    Extended,
}

impl Headers {
    /// Length of a request without its payload, in bytes.
    pub fn request_length(self) -> usize {
        match self {
            Self::Compact | Self::Structured => REQUEST_LENGTH,
            Self::Extended => EXTENDED_REQUEST_LENGTH,
        }
    }
}

/// The metadata contexts that a client chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contexts {
    /// [`BASE_ALLOCATION`]
    pub allocation: bool,
    /// [`ALLOCATION_DEPTH`]
    pub depth: bool,
}

impl Contexts {
    pub fn any(self) -> bool {
        self.allocation || self.depth
    }
}

/// What was agreed on for this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    pub read_only: bool,
    pub headers: Headers,
    pub contexts: Contexts,
    /// In bytes, a power of two.
    pub minimum_block: u32,
}

/// A request that may be carried out as it stands. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub reply: Reply,
    pub command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Read {
        offset: u64,
        length: u32,
        /// The client takes no more than one chunk of content.
        whole: bool,
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
        length: u64,
        fua: bool,
    },
    Cache {
        offset: u64,
        length: u64,
    },
    WriteZeroes {
        offset: u64,
        length: u64,
        may_punch: bool,
        /// Rather fail than take as long as a write of zeros.
        fast: bool,
        fua: bool,
    },
    BlockStatus {
        offset: u64,
        length: u64,
        one: bool,
        /// Absent: in all contexts that were chosen.
        only: Option<Contexts>,
    },
}

impl Command {
    /// Whether it changes what the medium holds.
    pub fn changes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Trim { .. } | Self::WriteZeroes { .. })
    }
}

/// A request that is answered with an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reply: Reply,
    pub errno: NbdErrno,
    pub reason: Cow<'static, str>,
    /// So many bytes of payload follow the request and are to be dropped.
    pub discard: u32,
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("a request begins with {0:#010x} in place of the magic number")]
    Magic(u32),
    #[error("a request announces {0} bytes of payload, more than twice the limit")]
    Flood(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Run(Request),
    Refuse(Refusal),
    /// A request for block status of which the rest is in its payload.
    Inquire(Inquiry),
    /// The client takes its leave; no reply.
    Disconnect,
}

/// Judges a request against the terms of its connection and the export's size in bytes as of now. `None` if the header
/// has fewer bytes than [`Headers::request_length`].
///
/// # Errors
/// Where the byte stream has lost its meaning, or would cost too much to follow.
pub fn decode_request(header: &[u8], terms: &Terms, size: u64) -> Result<Option<Verdict>, ProtocolError> {
    let Some((magic, cookie, raw)) = Raw::parse(header, terms.headers) else { return Ok(None) };
    let expected = match terms.headers {
        Headers::Extended => NBD_EXTENDED_REQUEST_MAGIC,
        Headers::Compact | Headers::Structured => NBD_REQUEST_MAGIC,
    };
    if magic != expected {
        return Err(ProtocolError::Magic(magic));
    }
    if raw.kind == NBD_CMD_DISC {
        return Ok(Some(Verdict::Disconnect));
    }
    let reply = Reply { headers: terms.headers, cookie, offset: raw.offset };
    if let Some(inquiry) = raw.inquiry(terms, reply) {
        return Ok(Some(Verdict::Inquire(inquiry)));
    }
    Ok(Some(match raw.check(terms, size) {
        Ok(command) => Verdict::Run(Request { reply, command }),
        Err((errno, reason)) => {
            let payload = if raw.has_payload(terms) { raw.length } else { 0 };
            let discard = u32::try_from(payload).ok().filter(|length| *length <= MAX_DISCARDED);
            let discard = discard.ok_or(ProtocolError::Flood(payload))?;
            Verdict::Refuse(Refusal { reply, errno, reason: reason.into(), discard })
        }
    }))
}

#[derive(Clone, Copy)]
struct Raw {
    flags: u16,
    kind: u16,
    offset: u64,
    length: u64,
}

/// The error to answer with, and why.
pub(super) type Fault = (NbdErrno, &'static str);

impl Raw {
    /// Magic number, cookie and the rest.
    fn parse(header: &[u8], headers: Headers) -> Option<(u32, u64, Self)> {
        let mut fields = Fields(header);
        let magic = fields.u32()?;
        let (flags, kind, cookie, offset) = (fields.u16()?, fields.u16()?, fields.u64()?, fields.u64()?);
        let length = match headers {
            Headers::Extended => fields.u64()?,
            Headers::Compact | Headers::Structured => fields.u32()?.into(),
        };
        Some((magic, cookie, Self { flags, kind, offset, length }))
    }

    /// With extended headers a flag announces it. The document asks for it on writes too, and qemu (10.0) leaves it out there:
    /// a write without its payload means nothing, so none is taken for one.
    fn has_payload(&self, terms: &Terms) -> bool {
        let announced = terms.headers == Headers::Extended && self.flags & NBD_CMD_FLAG_PAYLOAD_LEN != 0;
        announced || self.kind == NBD_CMD_WRITE
    }

    /// The payload form of a request for block status, if it is one that can be right. Section "Request types".
    fn inquiry(&self, terms: &Terms, reply: Reply) -> Option<Inquiry> {
        let known = NBD_CMD_FLAG_REQ_ONE | NBD_CMD_FLAG_PAYLOAD_LEN | NBD_CMD_FLAG_FUA;
        let asked = self.kind == NBD_CMD_BLOCK_STATUS && self.has_payload(terms) && terms.contexts.any();
        let well_formed = asked && self.flags & !known == 0;
        well_formed.then(|| Inquiry::new(reply, self.flags & NBD_CMD_FLAG_REQ_ONE != 0, self.length)).flatten()
    }

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
        check_range(self.kind, (self.offset, self.length), terms, size)?;
        Ok(self.command())
    }

    /// "Command flags": none that is not documented for the command. Every command may carry FUA.
    fn check_flags(&self, terms: &Terms) -> Result<(), Fault> {
        let extended = terms.headers == Headers::Extended;
        let known = match self.kind {
            NBD_CMD_READ if terms.headers != Headers::Compact => NBD_CMD_FLAG_DF,
            NBD_CMD_WRITE if extended => NBD_CMD_FLAG_PAYLOAD_LEN,
            NBD_CMD_READ | NBD_CMD_WRITE | NBD_CMD_FLUSH | NBD_CMD_TRIM | NBD_CMD_CACHE => 0,
            NBD_CMD_WRITE_ZEROES => NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
            NBD_CMD_BLOCK_STATUS if terms.contexts.any() && self.has_payload(terms) => {
                return Err((NbdErrno::Inval, "the payload names no contexts, or more than there are"));
            }
            NBD_CMD_BLOCK_STATUS if terms.contexts.any() => NBD_CMD_FLAG_REQ_ONE,
            NBD_CMD_BLOCK_STATUS => return Err((NbdErrno::Inval, "no metadata context was negotiated")),
            _ => return Err((NbdErrno::Inval, "the server does not know this command")),
        };
        if self.flags & !(known | NBD_CMD_FLAG_FUA) != 0 {
            return Err((NbdErrno::Inval, "the command has flags that do not belong to it"));
        }
        Ok(())
    }

    fn check_payload(&self, terms: &Terms) -> Result<(), Fault> {
        let large = self.length > u64::from(MAX_PAYLOAD);
        match self.kind {
            NBD_CMD_READ if large && terms.headers != Headers::Compact => {
                Err((NbdErrno::Overflow, "the read is larger than the advertised maximum"))
            }
            NBD_CMD_READ | NBD_CMD_WRITE if large => {
                Err((NbdErrno::Inval, "the request is larger than the advertised maximum"))
            }
            _ => Ok(()),
        }
    }

    /// Payloads have been found short enough before.
    fn command(&self) -> Command {
        let Self { flags, kind, offset, length } = *self;
        let has = |flag| flags & flag != 0;
        let fua = has(NBD_CMD_FLAG_FUA);
        let payload = u32::try_from(length).unwrap_or(MAX_PAYLOAD);
        match kind {
            NBD_CMD_WRITE => Command::Write { offset, length: payload, fua },
            NBD_CMD_TRIM => Command::Trim { offset, length, fua },
            NBD_CMD_CACHE => Command::Cache { offset, length },
            NBD_CMD_WRITE_ZEROES => {
                let (may_punch, fast) = (!has(NBD_CMD_FLAG_NO_HOLE), has(NBD_CMD_FLAG_FAST_ZERO));
                Command::WriteZeroes { offset, length, may_punch, fast, fua }
            }
            NBD_CMD_BLOCK_STATUS => Command::BlockStatus { offset, length, one: has(NBD_CMD_FLAG_REQ_ONE), only: None },
            _ => Command::Read { offset, length: payload, whole: has(NBD_CMD_FLAG_DF) },
        }
    }
}

/// Whether a range, as offset and length in bytes, is one that the command may touch.
pub(super) fn check_range(kind: u16, range: (u64, u64), terms: &Terms, size: u64) -> Result<(), Fault> {
    let (offset, length) = range;
    if length == 0 {
        return Err((NbdErrno::Inval, "the length is zero"));
    }
    let block = u64::from(terms.minimum_block.max(1));
    if !offset.is_multiple_of(block) || !length.is_multiple_of(block) {
        return Err((NbdErrno::Inval, "offset and length are not multiples of the minimum block size"));
    }
    let within = offset.checked_add(length).is_some_and(|end| end <= size);
    let errno = match kind {
        NBD_CMD_WRITE | NBD_CMD_WRITE_ZEROES => NbdErrno::NoSpc,
        _ => NbdErrno::Inval,
    };
    if within { Ok(()) } else { Err((errno, "the range reaches beyond the end of the export")) }
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
    const CONTEXTS: Contexts = Contexts { allocation: true, depth: false };
    const ALL: Terms = Terms { read_only: false, headers: Headers::Structured, contexts: CONTEXTS, minimum_block: 1 };

    fn judge(flags: u16, kind: u16, offset: u64, length: u32, terms: Terms) -> Result<Verdict, ProtocolError> {
        let mut bytes = Vec::new();
        encode_request(flags, kind, 7, offset, length, &mut bytes);
        decode_request(&bytes, &terms, SIZE).map(|verdict| verdict.expect("a whole header"))
    }

    fn errno(flags: u16, kind: u16, offset: u64, length: u32, terms: Terms) -> Option<NbdErrno> {
        match judge(flags, kind, offset, length, terms) {
            Ok(Verdict::Refuse(refusal)) => Some(refusal.errno),
            Ok(Verdict::Run(_) | Verdict::Inquire(_) | Verdict::Disconnect) => None,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn each_fault_has_the_error_that_the_specification_gives_it() {
        use NbdErrno::*;
        let end = SIZE - 511;
        let read_only = Terms { read_only: true, ..ALL };
        let plain = Terms { headers: Headers::Compact, contexts: Contexts::default(), ..ALL };
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
            (NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_WRITE_ZEROES, 0, 512, ALL, None),
            (NBD_CMD_FLAG_PAYLOAD_LEN, NBD_CMD_WRITE, 0, 512, ALL, Some(Inval)),
            (0, NBD_CMD_FLUSH, 0, 0, read_only, None),
            (0, NBD_CMD_FLUSH, 0, 1, ALL, Some(Inval)),
            (0, NBD_CMD_FLUSH, 1, 0, ALL, Some(Inval)),
            (0, NBD_CMD_CACHE, 0, 512, ALL, None),
            (0, NBD_CMD_CACHE, end, 512, ALL, Some(Inval)),
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
        assert_eq!(judge(0, NBD_CMD_WRITE, 0, u32::MAX, ALL), Err(ProtocolError::Flood(u32::MAX.into())));
        assert!(matches!(judge(0, NBD_CMD_TRIM, 0, u32::MAX, ALL), Ok(Verdict::Refuse(_))));
        assert_eq!(decode_request(&[0; REQUEST_LENGTH], &ALL, SIZE), Err(ProtocolError::Magic(0)));
        assert_eq!(decode_request(&[0; REQUEST_LENGTH - 1], &ALL, SIZE), Ok(None));
    }

    fn extended(flags: u16, kind: u16, length: u64) -> Result<Verdict, ProtocolError> {
        let mut bytes = Vec::new();
        encode_request(flags, kind, 7, 0, 0, &mut bytes);
        bytes.truncate(24);
        bytes.splice(..4, NBD_EXTENDED_REQUEST_MAGIC.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        let terms = Terms { headers: Headers::Extended, ..ALL };
        decode_request(&bytes, &terms, 1 << 40).map(|verdict| verdict.expect("a whole header"))
    }

    #[test]
    fn with_extended_headers_a_flag_tells_payload_from_effect_and_effects_have_64_bits() {
        let trim = Command::Trim { offset: 0, length: 1 << 39, fua: false };
        assert!(matches!(extended(0, NBD_CMD_TRIM, 1 << 39), Ok(Verdict::Run(run)) if run.command == trim));
        let past = extended(0, NBD_CMD_TRIM, u64::MAX);
        assert!(matches!(past, Ok(Verdict::Refuse(Refusal { discard: 0, .. }))), "{past:?}");
        for announced in [0, NBD_CMD_FLAG_PAYLOAD_LEN] {
            let write = extended(announced, NBD_CMD_WRITE, 512);
            let wanted = Command::Write { offset: 0, length: 512, fua: false };
            assert!(matches!(&write, Ok(Verdict::Run(run)) if run.command == wanted), "{write:?}");
        }
        let stray = extended(NBD_CMD_FLAG_PAYLOAD_LEN, NBD_CMD_TRIM, 512);
        assert!(matches!(stray, Ok(Verdict::Refuse(Refusal { discard: 512, .. }))), "{stray:?}");
        let flood = extended(NBD_CMD_FLAG_PAYLOAD_LEN, NBD_CMD_WRITE, u64::MAX);
        assert_eq!(flood, Err(ProtocolError::Flood(u64::MAX)));
    }

    proptest! {
        #[test]
        fn a_request_that_is_written_anew_means_the_same(
            flags in 0u16..128, kind in 0u16..9, offset in 0..SIZE, length in 0u32..100_000, long: bool,
        ) {
            let headers = if long { Headers::Extended } else { Headers::Structured };
            let (terms, mut bytes) = (Terms { headers, ..ALL }, Vec::new());
            encode_request(flags, kind, 7, offset, length, &mut bytes);
            if long {
                bytes.splice(..4, NBD_EXTENDED_REQUEST_MAGIC.to_be_bytes());
                bytes.splice(24.., u64::from(length).to_be_bytes());
            }
            if let Ok(Some(Verdict::Run(request))) = decode_request(&bytes, &terms, SIZE) {
                let mut anew = Vec::new();
                request.encode(&mut anew);
                prop_assert_eq!(anew.len(), headers.request_length());
                prop_assert_eq!(decode_request(&anew, &terms, SIZE), Ok(Some(Verdict::Run(request))));
            }
        }

        #[test]
        fn what_is_let_through_lies_within_the_export(
            flags in 0u16..64, kind in 0u16..10, offset in prop_oneof![0..2 * SIZE, any::<u64>()],
            length in prop_oneof![0..u32::MAX, 0..2 * SIZE as u32], read_only: bool, block in 0u32..4,
        ) {
            let terms = Terms { read_only, minimum_block: 1 << (block * 4), ..ALL };
            if let Ok(Verdict::Run(Request { reply, command })) = judge(flags, kind, offset, length, terms) {
                prop_assert_eq!(reply.cookie, 7);
                prop_assert!(!(command.changes() && read_only));
                if command != Command::Flush {
                    prop_assert!(length > 0 && u128::from(offset) + u128::from(length) <= u128::from(SIZE));
                    prop_assert!(offset % u64::from(terms.minimum_block) == 0);
                }
            }
        }
    }
}
