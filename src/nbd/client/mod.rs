//! A blocking client over any stream, with as many requests in flight as its user likes.
//!
//! One thread owns a client, so nobody reads replies while it sends. It cannot deadlock with a server that does not
//! read while it sends either: payloads are sent only when no reply can be larger than the sockets' buffers.
//!
//! Limitation: after an error of the stream or the protocol the client is of no more use; dial again.

mod connect;
mod replies;
#[cfg(test)]
mod tests;

use super::errno::NbdErrno;
use super::request::encode_request;
use super::secure::{Line, Secure, Wire};
use super::stream::{Stream, write_both};
use super::tls::{self, TlsFilesError};
use super::uri::Uri;
use super::wire::*;
use connect::Facts;
use replies::InFlight;
use rustls::ClientConfig;
use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Requests in flight beyond which the client first waits for one. Their replies without data fit into any socket's
/// buffer, even if all of them are errors with the longest text.
const MAX_IN_FLIGHT: usize = 16;

/// Largest range of one request that has no payload, in bytes; a multiple of any block size.
const MAX_RANGE: u64 = 1 << 30;

/// A server has this long for the whole handshake, TLS included.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// Received at once, in bytes.
const BUFFER: usize = 64 << 10;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("connecting to {uri}")]
    Dial { uri: String, source: io::Error },
    #[error("{action}")]
    Stream { action: &'static str, source: io::Error },
    #[error("the server breaks the NBD protocol: {0}")]
    Protocol(&'static str),
    #[error("the server has no export '{export}'")]
    UnknownExport { export: String },
    #[error("the server refuses export '{export}': {reason}")]
    Refused { export: String, reason: String },
    #[error(
        "the server demands TLS for export '{export}' ({reason}): use nbds:// with a client's certificate, which \
        `symphony ctl manager client create` makes on a manager"
    )]
    TlsRequired { export: String, reason: String },
    #[error("the server does not offer TLS: {reason}")]
    NoTls { reason: String },
    #[error(transparent)]
    Credentials(#[from] TlsFilesError),
    #[error("the server failed to {action}{}: {errno}", explained(.reason))]
    Remote { action: &'static str, errno: NbdErrno, reason: String },
    #[error("the server cannot {0}")]
    Unsupported(&'static str),
    #[error("{length} bytes at offset {offset} reach beyond the export's {size} bytes")]
    Range { offset: u64, length: u64, size: u64 },
    #[error("the connection has failed before")]
    Broken,
    #[error("the request is not in flight")]
    NoSuchTicket,
}

fn explained(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}

/// A request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// What a request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completion {
    Done,
    Data(Vec<u8>),
    Status(Vec<Status>),
}

/// The allocation status of a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub offset: u64,
    /// In bytes.
    pub length: u64,
    pub hole: bool,
    /// Known to read as zeros.
    pub zero: bool,
}

/// A connection to one export.
#[derive(Debug)]
pub struct Client<S> {
    stream: BufReader<S>,
    facts: Facts,
    next_cookie: u64,
    in_flight: HashMap<u64, InFlight>,
    finished: HashMap<u64, Result<Completion, ClientError>>,
    broken: bool,
}

/// A client of a server that was dialled.
pub type Dialled = Client<Line>;

impl Dialled {
    /// Connects to what an URI names, with the credentials that it names if it wants TLS.
    pub fn dial(uri: &Uri) -> Result<Self, ClientError> {
        let config = uri.tls.as_ref().map(tls::client_config).transpose()?;
        Self::dial_with(uri, config)
    }

    /// Connects to what an URI names; encrypted with these credentials, if there are any. Who wants TLS never gets less.
    pub fn dial_with(uri: &Uri, config: Option<Arc<ClientConfig>>) -> Result<Self, ClientError> {
        if uri.tls.is_some() && config.is_none() {
            return Err(TlsFilesError::Unnamed.into());
        }
        let failed = |source| ClientError::Dial { uri: uri.to_string(), source };
        let stream = Stream::dial(uri).map_err(failed)?;
        let wire = Wire::new(Arc::new(stream), Some(Instant::now() + HANDSHAKE_TIMEOUT));
        let mut client = match config {
            None => Self::connect(Line::Plain(wire), &uri.export)?,
            Some(config) => {
                let mut plain = BufReader::with_capacity(BUFFER, wire);
                let greeted = connect::start_tls(&mut plain)?;
                let action = "shaking hands with the server over TLS";
                let secure = Secure::connect(config, plain.into_inner());
                let secure = secure.map_err(|source| ClientError::Stream { action, source })?;
                Self::negotiated(Line::Tls(Box::new(secure)), &uri.export, Some(greeted))?
            }
        };
        // From here on an answer takes as long as the server's medium does.
        client.stream.get_mut().wire().set_deadline(None).map_err(failed)?;
        Ok(client)
    }
}

impl<S: Read + Write> Client<S> {
    /// Negotiates an export on a fresh connection.
    pub fn connect(stream: S, export: &str) -> Result<Self, ClientError> {
        Self::negotiated(stream, export, None)
    }

    fn negotiated(stream: S, export: &str, greeted: Option<connect::Greeted>) -> Result<Self, ClientError> {
        let mut stream = BufReader::with_capacity(BUFFER, stream);
        let facts = connect::negotiate(&mut stream, export, greeted)?;
        let (in_flight, finished) = (HashMap::new(), HashMap::new());
        Ok(Self { stream, facts, next_cookie: 1, in_flight, finished, broken: false })
    }

    /// The export's size in bytes when the connection was made.
    pub fn size(&self) -> u64 {
        self.facts.size
    }

    pub fn is_read_only(&self) -> bool {
        self.facts.has(NBD_FLAG_READ_ONLY)
    }

    /// Whether [`Self::block_status`] can tell holes from data.
    pub fn sees_holes(&self) -> bool {
        self.facts.allocation_context.is_some()
    }

    /// Fills `buffer` from `offset`.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ClientError> {
        self.check(offset, buffer.len() as u64)?;
        let mut position = offset;
        for part in buffer.chunks_mut(self.facts.maximum_payload as usize) {
            let ticket = self.submit_read(position, part.len() as u32)?;
            match self.wait(ticket)? {
                Completion::Data(data) if data.len() == part.len() => part.copy_from_slice(&data),
                _ => return Err(ClientError::Protocol("a read was answered with something else")),
            }
            position += part.len() as u64;
        }
        Ok(())
    }

    /// Writes `data` at `offset`; with `fua` it is durable when this returns.
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<(), ClientError> {
        self.check(offset, data.len() as u64)?;
        let mut position = offset;
        for part in data.chunks(self.facts.maximum_payload as usize) {
            let ticket = self.submit_write(position, part, fua)?;
            self.wait(ticket)?;
            position += part.len() as u64;
        }
        Ok(())
    }

    /// Makes all writes that have been answered durable.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        if !self.facts.has(NBD_FLAG_SEND_FLUSH) {
            return Err(ClientError::Unsupported("flush"));
        }
        let ticket = self.submit("flush", NBD_CMD_FLUSH, 0, (0, 0), &[])?;
        self.wait(ticket).map(drop)
    }

    /// Tells the server that a range is no longer needed.
    pub fn trim(&mut self, offset: u64, length: u64) -> Result<(), ClientError> {
        self.check(offset, length)?;
        if !self.facts.has(NBD_FLAG_SEND_TRIM) {
            return Err(ClientError::Unsupported("trim"));
        }
        for (offset, length) in pieces(offset, length, MAX_RANGE) {
            let ticket = self.submit("trim", NBD_CMD_TRIM, 0, (offset, length), &[])?;
            self.wait(ticket)?;
        }
        Ok(())
    }

    /// Zeroes a range; with `may_punch` the server may give its space back.
    pub fn zero(&mut self, offset: u64, length: u64, may_punch: bool) -> Result<(), ClientError> {
        self.check(offset, length)?;
        for (offset, length) in pieces(offset, length, self.largest_zero().into()) {
            let ticket = self.submit_zero(offset, length, may_punch)?;
            self.wait(ticket)?;
        }
        Ok(())
    }

    /// Which parts of a range are holes: in order, without gaps, from `offset`; the answer may end early, but is never
    /// empty. A server that cannot tell has one run of data. The range must not be empty.
    pub fn block_status(&mut self, offset: u64, length: u64) -> Result<Vec<Status>, ClientError> {
        self.check(offset, length)?;
        if !self.sees_holes() {
            return Ok(vec![Status { offset, length, hole: false, zero: false }]);
        }
        let length = u32::try_from(length.min(MAX_RANGE)).unwrap_or(u32::MAX);
        let ticket = self.submit("query", NBD_CMD_BLOCK_STATUS, 0, (offset, length), &[])?;
        match self.wait(ticket)? {
            Completion::Status(runs) => Ok(runs),
            _ => Err(ClientError::Protocol("a block status request was answered with something else")),
        }
    }

    /// Starts a read of at most the server's largest payload; [`Self::wait`] has its data.
    pub fn submit_read(&mut self, offset: u64, length: u32) -> Result<Ticket, ClientError> {
        self.check(offset, length.into())?;
        self.submit("read", NBD_CMD_READ, 0, (offset, length), &[])
    }

    /// Starts a write of at most the server's largest payload; the data has been sent when this returns.
    pub fn submit_write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<Ticket, ClientError> {
        let length = self.check(offset, data.len() as u64)?;
        if fua && !self.facts.has(NBD_FLAG_SEND_FUA) {
            return Err(ClientError::Unsupported("write durably"));
        }
        // A server that is sending data may not be listening: take its data first.
        while self.in_flight.values().any(InFlight::brings_data) {
            self.receive()?;
        }
        let flags = if fua { NBD_CMD_FLAG_FUA } else { 0 };
        self.submit("write", NBD_CMD_WRITE, flags, (offset, length), data)
    }

    /// Starts to zero at most [`Self::largest_zero`] bytes. A server that cannot zero is sent zeros.
    pub fn submit_zero(&mut self, offset: u64, length: u32, may_punch: bool) -> Result<Ticket, ClientError> {
        self.check(offset, length.into())?;
        if self.facts.has(NBD_FLAG_SEND_WRITE_ZEROES) {
            let flags = if may_punch { 0 } else { NBD_CMD_FLAG_NO_HOLE };
            return self.submit("zero", NBD_CMD_WRITE_ZEROES, flags, (offset, length), &[]);
        }
        if length > self.facts.maximum_payload {
            return Err(ClientError::Unsupported("take a request of this size"));
        }
        self.submit_write(offset, &vec![0; length as usize], false)
    }

    /// Waits for a request. Its failure is the request's own; others in flight are not touched by it.
    pub fn wait(&mut self, ticket: Ticket) -> Result<Completion, ClientError> {
        loop {
            if let Some(outcome) = self.finished.remove(&ticket.0) {
                return outcome;
            }
            if !self.in_flight.contains_key(&ticket.0) {
                return Err(if self.broken { ClientError::Broken } else { ClientError::NoSuchTicket });
            }
            self.receive()?;
        }
    }

    /// Largest range of one [`Self::submit_zero`], in bytes.
    pub fn largest_zero(&self) -> u32 {
        if self.facts.has(NBD_FLAG_SEND_WRITE_ZEROES) { MAX_RANGE as u32 } else { self.facts.maximum_payload }
    }

    /// Largest payload of one request, in bytes.
    pub fn maximum_payload(&self) -> u32 {
        self.facts.maximum_payload
    }

    /// Waits for what is in flight and takes leave of the server.
    pub fn disconnect(mut self) -> Result<(), ClientError> {
        while !self.in_flight.is_empty() {
            self.receive()?;
        }
        let mut bytes = Vec::with_capacity(REQUEST_LENGTH);
        encode_request(0, NBD_CMD_DISC, 0, 0, 0, &mut bytes);
        let action = "taking leave of the server";
        let stream = self.stream.get_mut();
        let sent = stream.write_all(&bytes).and_then(|()| stream.flush());
        sent.map_err(|source| ClientError::Stream { action, source })
    }

    fn check(&self, offset: u64, length: u64) -> Result<u32, ClientError> {
        let size = self.facts.size;
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(u32::try_from(length).unwrap_or(u32::MAX)),
            _ => Err(ClientError::Range { offset, length, size }),
        }
    }

    fn submit(
        &mut self,
        action: &'static str,
        kind: u16,
        flags: u16,
        (offset, length): (u64, u32),
        payload: &[u8],
    ) -> Result<Ticket, ClientError> {
        if self.broken {
            return Err(ClientError::Broken);
        }
        let carries = matches!(kind, NBD_CMD_READ | NBD_CMD_WRITE);
        if carries && length > self.facts.maximum_payload {
            return Err(ClientError::Unsupported("take a request of this size"));
        }
        while self.in_flight.len() >= MAX_IN_FLIGHT {
            self.receive()?;
        }
        let cookie = self.next_cookie;
        self.next_cookie = cookie.wrapping_add(1);
        let mut header = Vec::with_capacity(REQUEST_LENGTH);
        encode_request(flags, kind, cookie, offset, length, &mut header);
        if let Err(source) = write_both(self.stream.get_mut(), &header, payload) {
            self.broken = true;
            return Err(ClientError::Stream { action: "sending a request to the server", source });
        }
        self.in_flight.insert(cookie, InFlight::new(action, kind, offset, length));
        Ok(Ticket(cookie))
    }

    /// Takes one message from the server.
    fn receive(&mut self) -> Result<(), ClientError> {
        if self.broken {
            return Err(ClientError::Broken);
        }
        match replies::receive(&mut self.stream, &self.facts, &mut self.in_flight) {
            Ok(None) => Ok(()),
            Ok(Some((cookie, outcome))) => {
                self.finished.insert(cookie, outcome);
                Ok(())
            }
            Err(error) => {
                self.broken = true;
                self.in_flight.clear();
                Err(error)
            }
        }
    }
}

/// Cuts a range into pieces of at most `largest` bytes, which fits into 32 bits and is not zero.
fn pieces(offset: u64, length: u64, largest: u64) -> impl Iterator<Item = (u64, u32)> {
    let count = length.div_ceil(largest);
    (0..count).map(move |number| {
        let done = number * largest;
        (offset + done, (length - done).min(largest) as u32)
    })
}
