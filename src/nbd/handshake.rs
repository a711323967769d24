//! The server's side of the handshake: fixed newstyle option haggling, without I/O.
//!
//! ```text
//!   ClientFlags ──▶ Haggling ◀──▶ Skipping (data too long to keep)
//!                      ├──▶ Enter: transmission begins with the next byte
//!                      └──▶ Close
//! ```
//! Oldstyle is not spoken. A client that does not claim fixed newstyle may only name its export.

use super::negotiate::{self, Answer};
use super::wire::*;

/// Data of an option up to this many bytes is looked at; the longest sensible one names an export and some contexts.
const MAX_OPTION: u32 = 64 << 10;

/// Longer data is skipped and answered with `NBD_REP_ERR_TOO_BIG`; beyond this it is an attack.
const MAX_SKIPPED: u32 = MAX_PAYLOAD;

/// Nobody needs more options to choose an export; listings ask about each export on a connection of its own.
const MAX_OPTIONS: u32 = 4096;

const OPTION_HEADER: usize = 16;

/// What a handshake tells its client about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportDescription {
    /// The canonical name.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// In bytes.
    pub size: u64,
    pub read_only: bool,
    /// Smallest length and alignment of a request, in bytes: a power of two up to 65536.
    pub minimum_block: u32,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    /// For people; may be empty.
    pub description: String,
}

/// Where a handshake finds exports.
pub trait Exports {
    /// A hold on an export, taken before the client is told that it may begin.
    type Opened;

    fn list(&self) -> Vec<Listed>;

    /// `None` if there is no such export now.
    fn open(&self, name: &str) -> Option<(ExportDescription, Self::Opened)>;
}

/// How to treat the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Policy {
    Admit,
    /// Every option is answered with `NBD_REP_ERR_POLICY` and this text.
    Refuse(String),
    /// Every option is answered with `NBD_REP_ERR_SHUTDOWN`.
    ShuttingDown,
}

/// What client and server agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated<T> {
    pub export: T,
    pub description: ExportDescription,
    pub structured_replies: bool,
    /// The client chose `base:allocation` for this export.
    pub block_status: bool,
}

/// What to do next, after sending the output.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress<T> {
    /// The input holds no whole message; come back with more of it.
    More,
    /// A message was dealt with; there may be another in the input.
    Continue,
    Enter(Negotiated<T>),
    Close,
}

/// One connection's handshake.
#[derive(Debug)]
pub struct Handshake {
    policy: Policy,
    state: State,
    options: u32,
    facts: Facts,
}

#[derive(Debug)]
enum State {
    ClientFlags,
    Haggling,
    Skipping { option: u32, left: u32 },
}

/// What options have settled so far.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) fixed: bool,
    pub(super) no_zeroes: bool,
    pub(super) structured_replies: bool,
    /// The export that `base:allocation` was chosen for.
    pub(super) allocation_of: Option<String>,
}

/// "Transmission flags". All connections to an export share one medium, so a flush on one covers them all.
pub fn transmission_flags(read_only: bool, structured_replies: bool) -> u16 {
    let mut flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_CAN_MULTI_CONN;
    flags |= if read_only { NBD_FLAG_READ_ONLY } else { NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES };
    if structured_replies { flags | NBD_FLAG_SEND_DF } else { flags }
}

impl Handshake {
    /// A handshake and the greeting that the server sends first.
    pub fn new(policy: Policy, output: &mut Vec<u8>) -> Self {
        output.extend(NBDMAGIC.to_be_bytes());
        output.extend(IHAVEOPT.to_be_bytes());
        output.extend((NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES).to_be_bytes());
        Self { policy, state: State::ClientFlags, options: 0, facts: Facts::default() }
    }

    /// From the next option on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Deals with at most one message: says how many bytes of the input it used up, appends what is to be sent to
    /// the output, and says how to go on. Bytes behind those used belong to the next call, or to the transmission.
    pub fn receive<E: Exports>(
        &mut self,
        input: &[u8],
        exports: &E,
        output: &mut Vec<u8>,
    ) -> (usize, Progress<E::Opened>) {
        match self.state {
            State::ClientFlags => self.client_flags(input),
            State::Haggling => self.option(input, exports, output),
            State::Skipping { option, left } => self.skip(option, left, input, output),
        }
    }

    fn client_flags<T>(&mut self, input: &[u8]) -> (usize, Progress<T>) {
        let Some(flags) = Fields(input).u32() else { return (0, Progress::More) };
        if flags & !(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES) != 0 {
            return (4, Progress::Close);
        }
        self.facts.fixed = flags & NBD_FLAG_C_FIXED_NEWSTYLE != 0;
        self.facts.no_zeroes = flags & NBD_FLAG_C_NO_ZEROES != 0;
        self.state = State::Haggling;
        (4, Progress::Continue)
    }

    fn option<E: Exports>(&mut self, input: &[u8], exports: &E, output: &mut Vec<u8>) -> (usize, Progress<E::Opened>) {
        let mut fields = Fields(input);
        let (Some(magic), Some(option), Some(length)) = (fields.u64(), fields.u32(), fields.u32()) else {
            return (0, Progress::More);
        };
        let unwelcome = magic != IHAVEOPT
            || self.options >= MAX_OPTIONS
            || length > MAX_SKIPPED
            || (!self.facts.fixed && option != NBD_OPT_EXPORT_NAME)
            || (option == NBD_OPT_EXPORT_NAME && length > MAX_OPTION);
        if unwelcome {
            return (OPTION_HEADER, Progress::Close);
        }
        if length > MAX_OPTION {
            self.options += 1;
            self.state = State::Skipping { option, left: length };
            return (OPTION_HEADER, Progress::Continue);
        }
        let Some(data) = fields.bytes(length as usize) else { return (0, Progress::More) };
        self.options += 1;
        let progress = match self.answer(option, data, exports, output) {
            Answer::Replied => Progress::Continue,
            Answer::Enter(negotiated) => Progress::Enter(negotiated),
            Answer::Close => Progress::Close,
        };
        (OPTION_HEADER + data.len(), progress)
    }

    fn answer<E: Exports>(&mut self, option: u32, data: &[u8], exports: &E, output: &mut Vec<u8>) -> Answer<E::Opened> {
        if option == NBD_OPT_ABORT {
            negotiate::reply(option, NBD_REP_ACK, &[], output);
            return Answer::Close;
        }
        let (kind, text) = match &self.policy {
            Policy::Admit => return negotiate::answer(option, data, &mut self.facts, exports, output),
            Policy::Refuse(reason) => (NBD_REP_ERR_POLICY, reason.as_str()),
            Policy::ShuttingDown => (NBD_REP_ERR_SHUTDOWN, "the server is shutting down"),
        };
        if option == NBD_OPT_EXPORT_NAME {
            return Answer::Close;
        }
        negotiate::refuse(option, kind, text, output);
        Answer::Replied
    }

    fn skip<T>(&mut self, option: u32, left: u32, input: &[u8], output: &mut Vec<u8>) -> (usize, Progress<T>) {
        let count = u32::try_from(input.len()).unwrap_or(u32::MAX).min(left);
        if count < left {
            self.state = State::Skipping { option, left: left - count };
            return (count as usize, Progress::More);
        }
        self.state = State::Haggling;
        let text = format!("the option's data must not be longer than {MAX_OPTION} bytes");
        negotiate::refuse(option, NBD_REP_ERR_TOO_BIG, &text, output);
        (count as usize, Progress::Continue)
    }
}

#[cfg(test)]
mod tests;
