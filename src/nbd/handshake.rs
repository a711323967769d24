//! The server's side of the handshake: fixed newstyle option haggling, without I/O.
//!
//! ```text
//!   ClientFlags ──▶ Haggling ◀──▶ Skipping (data too long to keep)
//!                    │ ▲ ├──▶ Enter: transmission begins with the next byte
//!           StartTls ▼ │ └──▶ Close
//!                 Upgrading
//! ```
//! Oldstyle is not spoken. A client that does not claim fixed newstyle may only name its export.
//!
//! TLS itself is the caller's: it shakes hands after [`Progress::StartTls`] and says so with [`Handshake::secured`].
//! Nothing that was received or settled in plain outlives that moment. Section "TLS support".

use super::negotiate::{self, Answer};
use super::request::{Contexts, Headers};
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

    fn open(&self, name: &str) -> Result<(ExportDescription, Self::Opened), Closed>;
}

/// Why an export cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// There is none of that name now.
    Unknown,
    /// Answered with `NBD_REP_ERR_POLICY` and this text.
    Forbidden(String),
}

/// What a connection may do about TLS. It stays as it is for a connection's life, but for the upgrade itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// NOTLS: a wish for it is answered with `NBD_REP_ERR_POLICY` and this text.
    Refused(String),
    /// SELECTIVETLS with no export that is for TLS only: the client may have it.
    Offered,
    /// FORCEDTLS: without it every option is answered with `NBD_REP_ERR_TLS_REQD` and this text.
    Demanded(String),
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
    pub headers: Headers,
    /// What the client chose for this export.
    pub contexts: Contexts,
}

/// What to do next, after sending the output.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress<T> {
    /// The input holds no whole message; come back with more of it.
    More,
    /// A message was dealt with; there may be another in the input.
    Continue,
    /// The TLS handshake begins with the next byte in both directions; [`Handshake::secured`] when it has succeeded.
    StartTls,
    Enter(Negotiated<T>),
    Close,
}

/// One connection's handshake.
#[derive(Debug)]
pub struct Handshake {
    policy: Policy,
    encryption: Encryption,
    encrypted: bool,
    state: State,
    options: u32,
    facts: Facts,
}

#[derive(Debug)]
enum State {
    ClientFlags,
    Haggling,
    /// In wait for TLS: what comes in plain now was not meant for us.
    Upgrading,
    Skipping {
        option: u32,
        left: u32,
    },
}

/// What options have settled so far.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) fixed: bool,
    pub(super) no_zeroes: bool,
    pub(super) headers: Headers,
    /// The export that contexts were chosen for, and which.
    pub(super) contexts_of: Option<(String, Contexts)>,
}

impl Facts {
    /// What was chosen for the export that is asked for now.
    pub(super) fn contexts_for(&self, asked: &str) -> Contexts {
        let chosen = self.contexts_of.as_ref().filter(|(name, _)| name == asked);
        chosen.map(|(_, contexts)| *contexts).unwrap_or_default()
    }
}

/// "Transmission flags". All connections to an export share one medium, so a flush on one covers them all.
pub fn transmission_flags(read_only: bool, headers: Headers, contexts: Contexts) -> u16 {
    let mut flags =
        NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE;
    let writing = NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    flags |= if read_only { NBD_FLAG_READ_ONLY } else { writing };
    match headers {
        Headers::Compact => flags,
        Headers::Extended if contexts.any() => flags | NBD_FLAG_SEND_DF | NBD_FLAG_BLOCK_STATUS_PAYLOAD,
        Headers::Structured | Headers::Extended => flags | NBD_FLAG_SEND_DF,
    }
}

impl Handshake {
    /// A handshake and the greeting that the server sends first.
    pub fn new(policy: Policy, encryption: Encryption, output: &mut Vec<u8>) -> Self {
        output.extend(NBDMAGIC.to_be_bytes());
        output.extend(IHAVEOPT.to_be_bytes());
        output.extend((NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES).to_be_bytes());
        Self { policy, encryption, encrypted: false, state: State::ClientFlags, options: 0, facts: Facts::default() }
    }

    /// From the next option on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// TLS is up: whatever the client settled before is forgotten, but for its flags, which it sends only once.
    pub fn secured(&mut self, policy: Policy) {
        let Facts { fixed, no_zeroes, .. } = self.facts;
        self.facts = Facts { fixed, no_zeroes, ..Facts::default() };
        self.encrypted = true;
        self.policy = policy;
        self.state = State::Haggling;
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
            State::Upgrading => (0, Progress::Close),
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
        let used = OPTION_HEADER + data.len();
        if option == NBD_OPT_STARTTLS && self.policy == Policy::Admit {
            return (used, self.start_tls(data, input.len() > used, output));
        }
        let progress = match self.answer(option, data, exports, output) {
            Answer::Replied => Progress::Continue,
            Answer::Enter(negotiated) => Progress::Enter(negotiated),
            Answer::Close => Progress::Close,
        };
        (used, progress)
    }

    fn answer<E: Exports>(&mut self, option: u32, data: &[u8], exports: &E, output: &mut Vec<u8>) -> Answer<E::Opened> {
        if option == NBD_OPT_ABORT {
            negotiate::reply(option, NBD_REP_ACK, &[], output);
            return Answer::Close;
        }
        let Some((kind, text)) = self.obstacle() else {
            return negotiate::answer(option, data, &mut self.facts, exports, output);
        };
        if option == NBD_OPT_EXPORT_NAME {
            return Answer::Close;
        }
        negotiate::refuse(option, kind, text, output);
        Answer::Replied
    }

    /// Why no option at all succeeds now; leave may be taken, and TLS begun where it is what is missing.
    fn obstacle(&self) -> Option<(u32, &str)> {
        match (&self.policy, &self.encryption) {
            (Policy::Refuse(reason), _) => Some((NBD_REP_ERR_POLICY, reason)),
            (Policy::ShuttingDown, _) => Some((NBD_REP_ERR_SHUTDOWN, "the server is shutting down")),
            (Policy::Admit, Encryption::Demanded(text)) if !self.encrypted => Some((NBD_REP_ERR_TLS_REQD, text)),
            (Policy::Admit, _) => None,
        }
    }

    /// `more` says whether bytes came behind the option. A client waits for the answer, so they are somebody else's:
    /// taken for part of the encrypted talk they would be obeyed in the client's name.
    fn start_tls<T>(&mut self, data: &[u8], more: bool, output: &mut Vec<u8>) -> Progress<T> {
        let option = NBD_OPT_STARTTLS;
        match &self.encryption {
            _ if !data.is_empty() => {
                negotiate::refuse(option, NBD_REP_ERR_INVALID, "the option takes no data", output);
            }
            _ if self.encrypted => {
                negotiate::refuse(option, NBD_REP_ERR_INVALID, "the connection is encrypted already", output);
            }
            Encryption::Refused(reason) => negotiate::refuse(option, NBD_REP_ERR_POLICY, reason, output),
            Encryption::Offered | Encryption::Demanded(_) if more => return Progress::Close,
            Encryption::Offered | Encryption::Demanded(_) => {
                negotiate::reply(option, NBD_REP_ACK, &[], output);
                self.state = State::Upgrading;
                return Progress::StartTls;
            }
        }
        Progress::Continue
    }

    fn skip<T>(&mut self, option: u32, left: u32, input: &[u8], output: &mut Vec<u8>) -> (usize, Progress<T>) {
        let count = u32::try_from(input.len()).unwrap_or(u32::MAX).min(left);
        if count < left {
            self.state = State::Skipping { option, left: left - count };
            return (count as usize, Progress::More);
        }
        self.state = State::Haggling;
        if option == NBD_OPT_ABORT {
            negotiate::reply(option, NBD_REP_ACK, &[], output);
            return (count as usize, Progress::Close);
        }
        if option == NBD_OPT_SET_META_CONTEXT {
            self.facts.contexts_of = None;
        }
        match self.obstacle() {
            Some((kind, text)) => negotiate::refuse(option, kind, text, output),
            None => {
                let text = format!("the option's data must not be longer than {MAX_OPTION} bytes");
                negotiate::refuse(option, NBD_REP_ERR_TOO_BIG, &text, output);
            }
        }
        (count as usize, Progress::Continue)
    }
}

#[cfg(test)]
mod tests;
