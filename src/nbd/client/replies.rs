//! What a server sends in the transmission phase, checked against the requests it answers.

use super::super::errno::NbdErrno;
use super::super::wire::*;
use super::connect::{Facts, exact, fill};
use super::{ClientError, Completion, Status};
use std::collections::{BTreeMap, HashMap};
use std::io::Read;

/// Descriptors in one reply; the specification's own limit.
const MAX_DESCRIPTORS: u32 = 1 << 20;

/// An error chunk with the longest text and whatever a future kind of error has to add, in bytes.
const MAX_ERROR: u32 = 2 * MAX_STRING as u32;

/// A request that has been sent, and what has come back for it so far.
#[derive(Debug)]
pub(super) struct InFlight {
    action: &'static str,
    offset: u64,
    length: u32,
    wanted: Wanted,
    error: Option<(NbdErrno, String)>,
}

#[derive(Debug)]
enum Wanted {
    Nothing,
    Data { bytes: Vec<u8>, seen: Seen },
    Status { runs: Vec<Status> },
}

/// Which parts of a read have been answered, as start → end; neighbours are joined.
#[derive(Debug, Default)]
struct Seen(BTreeMap<u64, u64>);

impl Seen {
    /// False if part of the range had been seen before.
    fn add(&mut self, mut start: u64, mut end: u64) -> bool {
        if let Some((before, until)) = self.0.range(..end).next_back().map(|(start, end)| (*start, *end)) {
            if until > start {
                return false;
            }
            if until == start {
                start = before;
            }
        }
        if let Some(after) = self.0.remove(&end) {
            end = after;
        }
        self.0.insert(start, end);
        true
    }

    fn covers(&self, start: u64, end: u64) -> bool {
        self.0.len() == 1 && self.0.get(&start) == Some(&end)
    }
}

impl InFlight {
    pub(super) fn new(action: &'static str, kind: u16, offset: u64, length: u32) -> Self {
        let wanted = match kind {
            NBD_CMD_READ => Wanted::Data { bytes: vec![0; length as usize], seen: Seen::default() },
            NBD_CMD_BLOCK_STATUS => Wanted::Status { runs: Vec::new() },
            _ => Wanted::Nothing,
        };
        Self { action, offset, length, wanted, error: None }
    }

    /// Whether the reply may be large.
    pub(super) fn brings_data(&self) -> bool {
        !matches!(self.wanted, Wanted::Nothing)
    }

    fn end(&self) -> u64 {
        self.offset.saturating_add(self.length.into())
    }

    fn fail(&mut self, error: u32, reason: &str) -> Result<(), ClientError> {
        let errno = NbdErrno::from_number(error).ok_or(ClientError::Protocol("an error without a number"))?;
        self.error.get_or_insert((errno, reason.to_owned()));
        Ok(())
    }

    /// The final word. Success that leaves something out is a violation.
    fn finish(self) -> Result<Result<Completion, ClientError>, ClientError> {
        let (start, end) = (self.offset, self.end());
        if let Some((errno, reason)) = self.error {
            return Ok(Err(ClientError::Remote { action: self.action, errno, reason }));
        }
        match self.wanted {
            Wanted::Nothing => Ok(Ok(Completion::Done)),
            Wanted::Data { bytes, seen } if start == end || seen.covers(start, end) => Ok(Ok(Completion::Data(bytes))),
            Wanted::Data { .. } => Err(ClientError::Protocol("a read was answered only in part")),
            Wanted::Status { runs } if runs.is_empty() => Err(ClientError::Protocol("a block status is missing")),
            Wanted::Status { runs } => Ok(Ok(Completion::Status(runs))),
        }
    }

    /// Where the bytes of a content chunk go.
    fn content(&mut self, offset: u64, length: u64) -> Result<&mut [u8], ClientError> {
        let (start, end) = (self.offset, self.end());
        let stop = offset.checked_add(length).filter(|stop| length > 0 && offset >= start && *stop <= end);
        let stop = stop.ok_or(ClientError::Protocol("data outside what was asked for"))?;
        let Wanted::Data { bytes, seen } = &mut self.wanted else {
            return Err(ClientError::Protocol("data that nobody asked for"));
        };
        if !seen.add(offset, stop) {
            return Err(ClientError::Protocol("the same data twice"));
        }
        let range = (offset - start) as usize..(stop - start) as usize;
        bytes.get_mut(range).ok_or(ClientError::Protocol("data outside what was asked for"))
    }
}

type Finished = (u64, Result<Completion, ClientError>);

/// Receives one message; says which request it finished, if it did.
pub(super) fn receive<R: Read>(
    stream: &mut R,
    facts: &Facts,
    in_flight: &mut HashMap<u64, InFlight>,
) -> Result<Option<Finished>, ClientError> {
    match u32::from_be_bytes(exact(stream)?) {
        NBD_SIMPLE_REPLY_MAGIC => simple(stream, facts, in_flight).map(Some),
        NBD_STRUCTURED_REPLY_MAGIC if facts.structured => chunk(stream, facts, in_flight),
        _ => Err(ClientError::Protocol("a reply does not begin with the magic number")),
    }
}

fn simple<R: Read>(
    stream: &mut R,
    facts: &Facts,
    in_flight: &mut HashMap<u64, InFlight>,
) -> Result<Finished, ClientError> {
    let error = u32::from_be_bytes(exact(stream)?);
    let cookie = u64::from_be_bytes(exact(stream)?);
    let mut request = in_flight.remove(&cookie).ok_or(ClientError::Protocol("a reply to no request"))?;
    if facts.structured && request.brings_data() {
        return Err(ClientError::Protocol("a simple reply where structured ones were agreed on"));
    }
    if error != 0 {
        request.fail(error, "")?;
    } else if request.brings_data() && request.length > 0 {
        fill(stream, request.content(request.offset, request.length.into())?)?;
    }
    Ok((cookie, request.finish()?))
}

fn chunk<R: Read>(
    stream: &mut R,
    facts: &Facts,
    in_flight: &mut HashMap<u64, InFlight>,
) -> Result<Option<Finished>, ClientError> {
    let flags = u16::from_be_bytes(exact(stream)?);
    let kind = u16::from_be_bytes(exact(stream)?);
    let cookie = u64::from_be_bytes(exact(stream)?);
    let length = u32::from_be_bytes(exact(stream)?);
    let request = in_flight.get_mut(&cookie).ok_or(ClientError::Protocol("a reply to no request"))?;
    let done = flags & NBD_REPLY_FLAG_DONE != 0;
    match kind {
        NBD_REPLY_TYPE_NONE if length == 0 && done => {}
        NBD_REPLY_TYPE_OFFSET_DATA if length > 8 => {
            let offset = u64::from_be_bytes(exact(stream)?);
            fill(stream, request.content(offset, u64::from(length) - 8)?)?;
        }
        NBD_REPLY_TYPE_OFFSET_HOLE if length == 12 => {
            let offset = u64::from_be_bytes(exact(stream)?);
            let hole = u32::from_be_bytes(exact(stream)?);
            request.content(offset, hole.into())?.fill(0);
        }
        NBD_REPLY_TYPE_BLOCK_STATUS => status(stream, length, facts, request)?,
        _ if kind & NBD_REPLY_TYPE_FLAG_ERROR != 0 => error(stream, length, request)?,
        _ => return Err(ClientError::Protocol("a chunk of unknown or malformed kind")),
    }
    match done.then(|| in_flight.remove(&cookie)).flatten() {
        Some(request) => Ok(Some((cookie, request.finish()?))),
        None => Ok(None),
    }
}

fn error<R: Read>(stream: &mut R, length: u32, request: &mut InFlight) -> Result<(), ClientError> {
    if length > MAX_ERROR {
        return Err(ClientError::Protocol("an error message is too long"));
    }
    let mut payload = vec![0; length as usize];
    fill(stream, &mut payload)?;
    let mut fields = Fields(&payload);
    let malformed = ClientError::Protocol("an error chunk is malformed");
    let (Some(number), Some(text)) = (fields.u32(), fields.u16()) else { return Err(malformed) };
    let Some(text) = fields.bytes(text.into()) else { return Err(malformed) };
    request.fail(number, string(text).unwrap_or_default())
}

fn status<R: Read>(stream: &mut R, length: u32, facts: &Facts, request: &mut InFlight) -> Result<(), ClientError> {
    let malformed = ClientError::Protocol("a block status is malformed");
    let (offset, end) = (request.offset, request.end());
    let Wanted::Status { runs } = &mut request.wanted else { return Err(malformed) };
    let count = length.saturating_sub(4) / 8;
    if length < 12 || !(length - 4).is_multiple_of(8) || count > MAX_DESCRIPTORS || !runs.is_empty() {
        return Err(malformed);
    }
    if facts.allocation_context != Some(u32::from_be_bytes(exact(stream)?)) {
        return Err(ClientError::Protocol("a block status of a context that was not chosen"));
    }
    let mut position = offset;
    for _ in 0..count {
        let [length, flags] = [exact(stream)?, exact(stream)?].map(u32::from_be_bytes);
        if length == 0 || position >= end {
            return Err(malformed);
        }
        // The last run may tell of more than was asked for.
        let length = u64::from(length).min(end - position);
        let (hole, zero) = (flags & NBD_STATE_HOLE != 0, flags & NBD_STATE_ZERO != 0);
        runs.push(Status { offset: position, length, hole, zero });
        position += length;
    }
    Ok(())
}
