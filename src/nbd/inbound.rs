//! A connection's incoming bytes, sorted into requests and payloads, without I/O.
//!
//! One receive takes whatever has arrived; small requests are then read out of one batch buffer. A write's payload is
//! received straight into a buffer of its own: [`Inbound::vacancy`] says where the next bytes are to be put. Large ones
//! come in pieces, so that no connection holds more than [`PIECE`] of payload.

use super::inquiry::Inquiry;
use super::pieces::{PIECE, Pieces};
use super::request::{Command, ProtocolError, Refusal, Request, Terms, Verdict, decode_request};

/// Room for requests that arrive together, in bytes.
const BATCH: usize = 64 << 10;

/// What the bytes so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The payload is empty for all commands but a write.
    Run(Request, Payload),
    /// The payload of the next piece of a large write; the others follow before anything else comes.
    Part(Pieces, Payload),
    /// Answer with this error; its payload, if any, has already been dropped.
    Refuse(Refusal),
    Disconnect,
}

/// The payload of one write, in memory of its own.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Payload {
    memory: Vec<u8>,
    length: usize,
}

impl Payload {
    pub fn bytes(&self) -> &[u8] {
        self.memory.get(..self.length).unwrap_or_default()
    }
}

#[derive(Debug, Default)]
enum Pending {
    #[default]
    Header,
    Payload {
        request: Request,
        payload: Payload,
        filled: usize,
    },
    Part {
        pieces: Pieces,
        /// Without memory before the first byte is asked for.
        payload: Payload,
        filled: usize,
    },
    Inquiry(Inquiry),
    Discard {
        refusal: Refusal,
        left: usize,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Inbound {
    batch: Vec<u8>,
    /// What has been received and not yet used is `batch[start .. end]`.
    start: usize,
    end: usize,
    pending: Pending,
    spare: Vec<u8>,
}

impl Inbound {
    /// Begins with bytes that arrived behind the handshake.
    pub fn new(leftover: &[u8]) -> Self {
        // Fresh memory comes zeroed.
        let mut batch = vec![0; BATCH.max(leftover.len())];
        if let Some(front) = batch.get_mut(..leftover.len()) {
            front.copy_from_slice(leftover);
        }
        Self { batch, start: 0, end: leftover.len(), pending: Pending::Header, spare: Vec::new() }
    }

    /// Refuses a request when the rest of its payload has gone by: one of a former process, or a write of which a piece
    /// could not be carried out.
    pub fn refuse(&mut self, refusal: Refusal) {
        let left = refusal.discard as usize;
        self.pending = Pending::Discard { refusal, left };
    }

    /// Where the next received bytes go; never empty after [`Self::next`] has returned `None`.
    pub fn vacancy(&mut self) -> &mut [u8] {
        match &mut self.pending {
            Pending::Payload { payload, filled, .. } | Pending::Part { payload, filled, .. } => {
                payload.memory.get_mut(*filled..payload.length).unwrap_or_default()
            }
            Pending::Header | Pending::Inquiry(_) | Pending::Discard { .. } => {
                self.batch.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
                // What a former process had received may have been much longer.
                if self.batch.len() > BATCH && self.end < BATCH {
                    self.batch.truncate(BATCH);
                    self.batch.shrink_to_fit();
                }
                self.batch.get_mut(self.end..).unwrap_or_default()
            }
        }
    }

    /// Whether a request's header has come, and not all of its payload.
    pub fn awaits_payload(&self) -> bool {
        matches!(self.pending, Pending::Payload { .. } | Pending::Part { .. })
    }

    /// Says that so many bytes of [`Self::vacancy`] have been filled.
    pub fn received(&mut self, count: usize) {
        match &mut self.pending {
            Pending::Payload { payload, filled, .. } | Pending::Part { payload, filled, .. } => {
                *filled = payload.length.min(*filled + count);
            }
            Pending::Header | Pending::Inquiry(_) | Pending::Discard { .. } => {
                self.end = self.batch.len().min(self.end + count)
            }
        }
    }

    /// The next event, judged by the terms of the connection and the export's size in bytes now; `None` asks for
    /// more bytes.
    ///
    /// # Errors
    /// The stream has lost its meaning: close the connection.
    pub fn next(&mut self, terms: &Terms, size: u64) -> Result<Option<Event>, ProtocolError> {
        loop {
            match std::mem::take(&mut self.pending) {
                Pending::Header => {
                    let batch = self.batch.get(self.start..self.end).unwrap_or_default();
                    let Some(verdict) = decode_request(batch, terms, size)? else { return Ok(None) };
                    self.start += terms.headers.request_length();
                    if let Some(event) = self.begin(verdict) {
                        return Ok(Some(event));
                    }
                }
                Pending::Payload { request, mut payload, mut filled } => {
                    filled += self.take_into(payload.memory.get_mut(filled..payload.length).unwrap_or_default());
                    if filled == payload.length {
                        return Ok(Some(Event::Run(request, payload)));
                    }
                    self.pending = Pending::Payload { request, payload, filled };
                    return Ok(None);
                }
                Pending::Part { mut pieces, mut payload, mut filled } => {
                    let Some(Command::Write { length, .. }) = pieces.next() else { continue };
                    if payload.length == 0 {
                        payload = self.memory_for(length as usize);
                    }
                    filled += self.take_into(payload.memory.get_mut(filled..payload.length).unwrap_or_default());
                    if filled < payload.length {
                        self.pending = Pending::Part { pieces, payload, filled };
                        return Ok(None);
                    }
                    let part = Event::Part(pieces, payload);
                    pieces.advance();
                    if matches!(pieces.next(), Some(Command::Write { .. })) {
                        self.pending = Pending::Part { pieces, payload: Payload::default(), filled: 0 };
                    }
                    return Ok(Some(part));
                }
                Pending::Inquiry(mut inquiry) => {
                    self.start += inquiry.take(self.batch.get(self.start..self.end).unwrap_or_default());
                    let Some(verdict) = inquiry.verdict(terms, size) else {
                        self.pending = Pending::Inquiry(inquiry);
                        return Ok(None);
                    };
                    if let Some(event) = self.begin(verdict) {
                        return Ok(Some(event));
                    }
                }
                Pending::Discard { refusal, left } => {
                    let dropped = left.min(self.end - self.start);
                    self.start += dropped;
                    if dropped == left {
                        return Ok(Some(Event::Refuse(refusal)));
                    }
                    self.pending = Pending::Discard { refusal, left: left - dropped };
                    return Ok(None);
                }
            }
        }
    }

    /// Takes a payload's memory back for the next one.
    pub fn recycle(&mut self, payload: Payload) {
        if payload.memory.len() > self.spare.len() {
            self.spare = payload.memory;
        }
    }

    fn begin(&mut self, verdict: Verdict) -> Option<Event> {
        match verdict {
            Verdict::Run(request) => match request.command {
                Command::Write { length, .. } if length > PIECE => {
                    self.pending =
                        Pending::Part { pieces: Pieces::of(request), payload: Payload::default(), filled: 0 };
                    None
                }
                Command::Write { length, .. } => {
                    let payload = self.memory_for(length as usize);
                    self.pending = Pending::Payload { request, payload, filled: 0 };
                    None
                }
                _ => Some(Event::Run(request, Payload::default())),
            },
            Verdict::Refuse(refusal) => {
                let left = refusal.discard as usize;
                self.pending = Pending::Discard { refusal, left };
                None
            }
            Verdict::Inquire(inquiry) => {
                self.pending = Pending::Inquiry(inquiry);
                None
            }
            Verdict::Disconnect => Some(Event::Disconnect),
        }
    }

    /// Fresh memory comes zeroed from the system and costs nothing until bytes arrive in it.
    fn memory_for(&mut self, length: usize) -> Payload {
        let spare = std::mem::take(&mut self.spare);
        if spare.len() >= length {
            return Payload { memory: spare, length };
        }
        Payload { memory: vec![0; length], length }
    }

    fn take_into(&mut self, target: &mut [u8]) -> usize {
        let available = self.batch.get(self.start..self.end).unwrap_or_default();
        let count = available.len().min(target.len());
        if let (Some(to), Some(from)) = (target.get_mut(..count), available.get(..count)) {
            to.copy_from_slice(from);
        }
        self.start += count;
        count
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::{Contexts, Headers, encode_request};
    use super::super::wire::*;
    use super::*;
    use proptest::prelude::*;

    const TERMS: Terms = Terms {
        read_only: false,
        headers: Headers::Structured,
        contexts: Contexts { allocation: true, depth: false },
        minimum_block: 1,
    };
    const SIZE: u64 = 1 << 20;

    /// Feeds the bytes in pieces of the given lengths, over and over, and collects all events.
    fn events(bytes: &[u8], pieces: &[usize]) -> Vec<Result<Event, ProtocolError>> {
        let mut inbound = Inbound::new(&[]);
        let mut rest = bytes;
        let mut seen = Vec::new();
        for piece in pieces.iter().cycle() {
            loop {
                match inbound.next(&TERMS, SIZE) {
                    Ok(None) => break,
                    Ok(Some(Event::Run(request, payload))) => {
                        let copy = Payload { memory: payload.bytes().to_vec(), length: payload.length };
                        seen.push(Ok(Event::Run(request, copy)));
                        inbound.recycle(payload);
                    }
                    Ok(Some(event)) => seen.push(Ok(event)),
                    Err(error) => {
                        seen.push(Err(error));
                        return seen;
                    }
                }
            }
            if rest.is_empty() {
                return seen;
            }
            let vacancy = inbound.vacancy();
            let count = (*piece).clamp(1, vacancy.len()).min(rest.len());
            let (now, later) = rest.split_at(count);
            vacancy[..count].copy_from_slice(now);
            inbound.received(count);
            rest = later;
        }
        seen
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let request = (0u16..2, 0u16..9, 0..SIZE + 4096, 0u32..3000, any::<u64>());
        proptest::collection::vec(request, 1..20).prop_map(|requests| {
            let mut bytes = Vec::new();
            for (flags, kind, offset, length, cookie) in requests {
                encode_request(flags, kind, cookie, offset, length, &mut bytes);
                if kind == NBD_CMD_WRITE {
                    bytes.extend((0..length).map(|at| (at as u8) ^ (cookie as u8)));
                }
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_mean_the_same(bytes in stream(), pieces in proptest::collection::vec(1usize..200, 1..9)) {
            let whole = events(&bytes, &[usize::MAX]);
            prop_assert!(!whole.is_empty());
            prop_assert_eq!(&whole, &events(&bytes, &pieces));
            prop_assert_eq!(&whole, &events(&bytes, &[1]));
        }

        #[test]
        fn no_bytes_can_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), step in 1usize..40) {
            let mut magic = NBD_REQUEST_MAGIC.to_be_bytes().to_vec();
            magic.extend(&bytes);
            events(&magic, &[step]);
            events(&bytes, &[step]);
        }
    }

    #[test]
    fn a_payload_is_received_where_it_stays_and_a_large_one_in_pieces() {
        let mut inbound = Inbound::new(&[]);
        let mut header = Vec::new();
        encode_request(NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 1, 4096, SIZE as u32 - 4096, &mut header);
        inbound.vacancy()[..REQUEST_LENGTH].copy_from_slice(&header);
        inbound.received(REQUEST_LENGTH);
        let mut parts = Vec::new();
        for length in [PIECE - 4096, PIECE, PIECE, PIECE] {
            assert_eq!(inbound.next(&TERMS, SIZE), Ok(None));
            assert_eq!(inbound.vacancy().len(), length as usize);
            inbound.received(length as usize);
            let Ok(Some(Event::Part(pieces, payload))) = inbound.next(&TERMS, SIZE) else { panic!("a part") };
            parts.push(pieces.next());
            inbound.recycle(payload);
        }
        let starts = [4096, 1 << 18, 2 << 18, 3 << 18];
        let expected = [PIECE - 4096, PIECE, PIECE, PIECE].iter().zip(starts);
        let expected = expected.map(|(length, offset)| Some(Command::Write { offset, length: *length, fua: false }));
        assert_eq!(parts, expected.collect::<Vec<_>>());
        assert_eq!(inbound.next(&TERMS, SIZE), Ok(None));
        assert_eq!(inbound.vacancy().len(), BATCH, "the next request");
    }
}
