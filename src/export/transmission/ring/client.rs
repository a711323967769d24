//! One connection of a reactor: what it has sent, what it is owed, and the requests in between. No system calls here.
//!
//! ```text
//!   bytes ──▶ header ──▶ request ──────────────────▶ carried out ──▶ outgoing message
//!               └──▶ write ──▶ payload, in its slot ──┘
//! ```

use super::super::{Owed, Session};
use super::memory::Buffer;
use super::message::{Message, Parcel};
use super::pieces::Course;
use super::uring::Handle;
use crate::export::transmission::tally::{Request, Tally};
use crate::nbd::{Command, Inquiry, ProtocolError, Refusal, Verdict, decode_request};
use std::time::Instant;

/// Operations of one connection that are carried out at a time.
const MOST_IN_FLIGHT: usize = 128;

/// Bytes that they read and write, unless a single one is larger.
const MOST_BYTES: usize = 2 << 20;

/// Those of them that threads are needed for.
const MOST_JOBS: usize = 8;

/// How requests for the export's medium are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// At once: the medium is memory.
    AtOnce,
    /// From the page cache what is there, all else directly through the ring.
    Direct(Handle),
    /// By threads that may wait.
    Workers,
}

/// What a receive in flight will bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiving {
    Nothing,
    Anything,
    /// Exactly one header.
    Header,
    /// The rest of the payload that comes in.
    Payload,
}

/// Bytes that have been received and not yet used.
#[derive(Clone, Copy, Debug)]
pub(super) enum Input {
    Nothing,
    /// Of what came behind the handshake.
    Leftover {
        start: usize,
    },
    /// In a buffer of the ring.
    Provided {
        number: u16,
        start: usize,
        end: usize,
    },
}

/// A write whose payload is coming.
pub(super) struct Incoming {
    pub(super) request: Request,
    /// Absent while it is being received into.
    pub(super) buffer: Option<Buffer>,
    pub(super) length: usize,
    pub(super) filled: usize,
}

/// Why a request that has come is not begun.
pub(super) enum Waits {
    /// Changes are held; somebody will call.
    Gate,
    /// Until something that is in flight has ended.
    Room,
    /// The export's limits do not allow it yet; there is an alarm.
    Quota,
}

/// What the next bytes amount to.
pub(super) enum Next {
    /// There must come more first.
    More,
    /// A write's payload has to be taken with [`Client::advance`] or put into [`Client::incoming`].
    Request(Request),
    /// All of the payload is in the buffer.
    Write(Request, Buffer),
    Refuse(Refusal),
    Disconnect,
}

pub(super) struct Client {
    /// First to go: an export that nobody holds any more has no connections.
    pub(super) tally: Tally,
    pub(super) session: Session,
    /// That was last set for it.
    pub(super) alarm: Option<Instant>,
    pub(super) round: u64,
    pub(super) socket: Handle,
    pub(super) way: Way,
    pub(super) receiving: Receiving,
    pub(super) watched: bool,
    pub(super) input: Input,
    pub(super) carry: [u8; 32],
    pub(super) carried: usize,
    pub(super) incoming: Option<Incoming>,
    pub(super) discard: Option<Refusal>,
    pub(super) inquiry: Option<Inquiry>,
    /// A request that waits to be begun, with a write's payload if that has come.
    pub(super) waiting: Option<(Request, Option<Buffer>, Waits)>,
    /// A large request that is being carried out in pieces; nothing else is begun meanwhile.
    pub(super) course: Option<Course>,
    pub(super) in_flight: usize,
    /// Bytes of data that those in flight read and write.
    bytes: usize,
    /// It is among those that go on next.
    pub(super) queued: bool,
    pub(super) jobs: usize,
    /// Replies that have not been sent.
    pub(super) outgoing: Option<Parcel>,
    pub(super) sending: bool,
    /// The client has taken its leave or broken the protocol: nothing more is taken from it.
    pub(super) leaving: bool,
    /// Nothing reaches it any more.
    pub(super) broken: bool,
    /// It sends large writes, so headers are received alone and payloads where they stay.
    pub(super) bulky: bool,
    /// Reads in a row that the page cache had, and that it did not have.
    pub(super) hits: u32,
    pub(super) misses: u32,
    pub(super) told: bool,
    /// The receiving side has been ended, because the server closes.
    pub(super) hushed: bool,
}

impl Client {
    pub(super) fn new(mut session: Session, tally: Tally, round: u64, socket: Handle, way: Way) -> Self {
        let Owed { unsent, refusal, leaving } = std::mem::take(&mut session.owed);
        Self {
            session,
            tally,
            alarm: None,
            round,
            socket,
            way,
            receiving: Receiving::Nothing,
            watched: false,
            input: Input::Leftover { start: 0 },
            carry: [0; 32],
            carried: 0,
            incoming: None,
            discard: refusal,
            inquiry: None,
            waiting: None,
            course: None,
            in_flight: 0,
            bytes: 0,
            queued: false,
            jobs: 0,
            outgoing: Message::of(unsent),
            sending: false,
            leaving,
            broken: false,
            bulky: false,
            hits: 0,
            misses: 0,
            told: false,
            hushed: false,
        }
    }

    /// Whether another request may be begun; if the reactor is `crowded`, only by a connection that owes nothing yet
    /// beside what it sends.
    pub(super) fn has_room(&self, crowded: bool) -> bool {
        let owes_enough = |message: &Parcel| message.is_full() || crowded && !message.is_empty();
        self.in_flight < MOST_IN_FLIGHT
            && self.bytes < MOST_BYTES
            && self.jobs < MOST_JOBS
            && !self.outgoing.as_ref().is_some_and(owes_enough)
    }

    /// Whether memory for data is being used for it.
    pub(super) fn holds_data(&self) -> bool {
        self.bytes > 0 || self.sending || self.outgoing.as_ref().is_some_and(|message| !message.is_empty())
    }

    /// Counts a request as in flight.
    pub(super) fn take_off(&mut self, command: Command) {
        self.in_flight += 1;
        self.bytes += weight(command);
    }

    /// Counts it no more.
    pub(super) fn land(&mut self, command: Command) {
        self.in_flight -= 1;
        self.bytes -= weight(command);
    }

    /// Notes whether the page cache had what was looked for.
    pub(super) fn looked(&mut self, found: bool) {
        (self.hits, self.misses) = match found {
            true => (self.hits.saturating_add(1), 0),
            false => (0, self.misses.wrapping_add(1)),
        };
    }

    pub(super) fn has_input(&self) -> bool {
        match self.input {
            Input::Nothing => false,
            Input::Leftover { start } => start < self.session.leftover.len(),
            Input::Provided { start, end, .. } => start < end,
        }
    }

    /// Says that so many bytes have been used.
    pub(super) fn advance(&mut self, count: usize) {
        match &mut self.input {
            Input::Nothing => {}
            Input::Leftover { start } | Input::Provided { start, .. } => *start += count,
        }
    }

    /// A whole header that was received alone.
    pub(super) fn take_header(&mut self, header: &[u8]) {
        if let Some(target) = self.carry.get_mut(..header.len()) {
            target.copy_from_slice(header);
            self.carried = header.len();
        }
    }

    /// Whether there is something to go on with that is not in the input any more.
    pub(super) fn is_pending(&self) -> bool {
        let payload = self.incoming.as_ref().is_some_and(|it| it.buffer.is_some() && it.filled == it.length);
        payload || self.carried == self.session.terms.headers.request_length()
    }

    /// Whether the next bytes begin a request.
    pub(super) fn at_header(&self) -> bool {
        self.carried == 0 && self.incoming.is_none() && self.discard.is_none() && self.inquiry.is_none()
    }

    /// Goes on with the unused bytes, given as `input`, up to the next thing to be done; also says how many of them are
    /// used up.
    ///
    /// # Errors
    /// The stream has lost its meaning.
    pub(super) fn next(&mut self, input: &[u8], size: u64) -> Result<(usize, Next), ProtocolError> {
        if let Some(mut refusal) = self.discard.take() {
            let dropped = input.len().min(refusal.discard as usize);
            refusal.discard -= dropped as u32;
            if refusal.discard == 0 {
                return Ok((dropped, Next::Refuse(refusal)));
            }
            self.discard = Some(refusal);
            return Ok((dropped, Next::More));
        }
        if let Some(incoming) = &mut self.incoming {
            let taken = incoming.take(input);
            if incoming.filled < incoming.length {
                return Ok((taken, Next::More));
            }
            let whole = self.incoming.take().and_then(|it| Some(Next::Write(it.request, it.buffer?)));
            return Ok((taken, whole.unwrap_or(Next::More)));
        }
        if let Some(mut inquiry) = self.inquiry.take() {
            let taken = inquiry.take(input);
            let verdict = inquiry.verdict(&self.session.terms, size).unwrap_or(Verdict::Inquire(inquiry));
            return Ok((taken, self.judged(verdict)));
        }
        self.next_request(input, size)
    }

    fn next_request(&mut self, input: &[u8], size: u64) -> Result<(usize, Next), ProtocolError> {
        let needed = self.session.terms.headers.request_length();
        let (header, used) = match self.carried {
            0 => (input.get(..needed), needed),
            carried => {
                let count = input.len().min(needed.saturating_sub(carried));
                self.put_aside(input.get(..count).unwrap_or_default());
                (self.carry.get(..needed).filter(|_| self.carried == needed), count)
            }
        };
        let Some(header) = header else {
            if self.carried == 0 {
                self.put_aside(input);
            }
            return Ok((input.len(), Next::More));
        };
        let Some(verdict) = decode_request(header, &self.session.terms, size)? else { return Ok((used, Next::More)) };
        self.carried = 0;
        Ok((used, self.judged(verdict)))
    }

    fn judged(&mut self, verdict: Verdict) -> Next {
        match verdict {
            Verdict::Run(request) => Next::Request(self.tally.begin(request)),
            Verdict::Disconnect => Next::Disconnect,
            Verdict::Refuse(refusal) => self.refuse(refusal),
            Verdict::Inquire(inquiry) => {
                self.inquiry = Some(inquiry);
                Next::More
            }
        }
    }

    /// Answers now, or when the payload has gone by.
    pub(super) fn refuse(&mut self, refusal: Refusal) -> Next {
        self.tally.refuse();
        if refusal.discard == 0 {
            return Next::Refuse(refusal);
        }
        self.discard = Some(refusal);
        Next::More
    }

    fn put_aside(&mut self, bytes: &[u8]) {
        if let Some(target) = self.carry.get_mut(self.carried..self.carried + bytes.len()) {
            target.copy_from_slice(bytes);
            self.carried += bytes.len();
        }
    }

    /// Whether nothing of it is in the hands of the kernel or of other threads.
    pub(super) fn is_still(&self) -> bool {
        self.in_flight == 0 && !self.sending && self.receiving == Receiving::Nothing && !self.watched
    }

    /// Whether every request that has come has been answered, and the answers have been sent.
    pub(super) fn is_settled(&self) -> bool {
        let owed = self.outgoing.as_ref().is_some_and(|message| !message.is_empty());
        let midway = self.course.is_some() && self.incoming.is_none();
        self.in_flight == 0 && !self.sending && !owed && self.waiting.is_none() && !midway
    }
}

/// Bytes of data that a command moves.
fn weight(command: Command) -> usize {
    match command {
        Command::Read { length, .. } | Command::Write { length, .. } => length as usize,
        _ => 0,
    }
}

impl Incoming {
    fn take(&mut self, input: &[u8]) -> usize {
        let count = input.len().min(self.length.saturating_sub(self.filled));
        let target = self.buffer.as_mut().and_then(|buffer| buffer.get_mut(self.filled..self.filled + count));
        if let (Some(target), Some(source)) = (target, input.get(..count)) {
            target.copy_from_slice(source);
            self.filled += count;
        }
        count
    }
}
