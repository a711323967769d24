//! One connection, from its greeting to its end, on its own thread: is received, then has its requests carried out in
//! order.

mod outbound;
mod reception;

use super::listener::Origin;
use super::server::Shared;
use super::table::Attached;
use crate::io::BlockIo;
use crate::nbd::reply::{self, Run};
use crate::nbd::{Command, Event, Inbound, Line, NbdErrno, Negotiated, ProtocolError, Request, Stream, Terms};
use outbound::Outbound;
use reception::Entered;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Descriptors in one answer about block status; clients ask again where it ends.
const MAX_EXTENTS: usize = 4096;

/// Why a connection ended other than by its client's leave.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("the connection broke")]
    Stream(#[from] io::Error),
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    #[error("the client broke the protocol")]
    Protocol(#[from] ProtocolError),
}

/// Serves until the client leaves, the server closes, the export is retired or its guest is fenced.
pub(super) fn run(shared: &Shared, number: u64, stream: &Arc<Stream>, origin: Origin) {
    match serve(shared, number, stream, origin) {
        Ok(()) => {}
        Err(error @ ConnectionError::Tls(_)) => {
            tracing::warn!(%origin, error = &error as &dyn std::error::Error, "refusing an NBD client");
        }
        Err(error) => {
            tracing::debug!(%origin, error = &error as &dyn std::error::Error, "an NBD connection ended");
        }
    }
    if let Err(error) = stream.shutdown(Shutdown::Both) {
        tracing::debug!(%origin, %error, "closing an NBD connection");
    }
}

fn serve(shared: &Shared, number: u64, stream: &Arc<Stream>, origin: Origin) -> Result<(), ConnectionError> {
    let Some(Entered { mut line, negotiated, leftover, seat }) = reception::receive(shared, number, stream, origin)?
    else {
        return Ok(());
    };
    let outcome = match &mut line {
        Line::Plain(_) => transmit(shared, &mut &**stream, negotiated, &leftover),
        Line::Tls(secure) => transmit(shared, secure.as_mut(), negotiated, &leftover),
    };
    // "The server MUST close down the TLS session": as far as the client listens, and never while an export is held.
    if let (Ok(()), Line::Tls(secure)) = (&outcome, &mut line)
        && let Err(error) = secure.farewell()
    {
        tracing::debug!(%origin, %error, "taking leave of an NBD client");
    }
    drop(seat);
    outcome
}

fn receive<R: Read>(stream: &mut R, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

fn transmit<S: Read + Write>(
    shared: &Shared,
    stream: &mut S,
    negotiated: Negotiated<Attached>,
    leftover: &[u8],
) -> Result<(), ConnectionError> {
    let Negotiated { export, description, structured_replies, block_status } = negotiated;
    let Some(io) = export.io() else { return Ok(()) };
    let read_only = description.read_only;
    let terms = Terms { read_only, structured_replies, block_status, minimum_block: description.minimum_block };
    let mut inbound = Inbound::new(leftover);
    let mut desk = Desk {
        io: io.as_ref(),
        name: &description.name,
        structured: structured_replies,
        out: Outbound::new(stream),
        told: false,
    };
    loop {
        while let Some(event) = inbound.next(&terms, io.size())? {
            // A retired export, or a fenced guest, takes no further step, even for requests that are already here.
            if export.io().is_none() {
                return Ok(());
            }
            match event {
                Event::Disconnect => return Ok(desk.out.send()?),
                Event::Refuse(refusal) => desk.refuse(refusal.cookie, refusal.errno, refusal.reason),
                Event::Run(request, payload) => {
                    if shared.closing.load(Ordering::SeqCst) {
                        desk.refuse(request.cookie, NbdErrno::Shutdown, "the server is shutting down");
                    } else {
                        desk.carry_out(request, payload.bytes())?;
                    }
                    inbound.recycle(payload);
                }
            }
            desk.out.send_if_large()?;
        }
        // Nobody sends while replies are owed that it may be waiting for.
        desk.out.send()?;
        match receive(desk.out.stream(), inbound.vacancy())? {
            0 => return Ok(()),
            count => inbound.received(count),
        }
    }
}

/// Where requests are carried out and replies are laid out.
struct Desk<'a, S> {
    io: &'a dyn BlockIo,
    name: &'a str,
    structured: bool,
    out: Outbound<'a, S>,
    /// A failing medium is reported once per connection; its clients hear of each failure.
    told: bool,
}

impl<S: Write> Desk<'_, S> {
    fn refuse(&mut self, cookie: u64, errno: NbdErrno, reason: &str) {
        reply::error(self.structured, cookie, errno, reason, self.out.headers());
    }

    fn carry_out(&mut self, request: Request, payload: &[u8]) -> io::Result<()> {
        let Request { cookie, command } = request;
        let outcome = match command {
            Command::Read { offset, length } => self.out.read(self.io, self.structured, cookie, offset, length)?,
            Command::BlockStatus { offset, length, one } => self.allocation(offset, length, one).map(|runs| {
                reply::block_status(cookie, &runs, self.out.headers());
            }),
            Command::Write { offset, length: _, fua } => {
                self.io.write(payload, offset, fua).map(|()| self.done(cookie))
            }
            Command::Flush => self.io.flush().map(|()| self.done(cookie)),
            Command::Trim { offset, length, fua } => {
                let trimmed = self.io.trim(offset, length.into());
                trimmed.and_then(|()| self.durably(fua)).map(|()| self.done(cookie))
            }
            Command::WriteZeroes { offset, length, may_punch, fua } => {
                let zeroed = self.io.zero(offset, length.into(), may_punch);
                zeroed.and_then(|()| self.durably(fua)).map(|()| self.done(cookie))
            }
        };
        outcome.unwrap_or_else(|error| self.failed(request, &error));
        Ok(())
    }

    fn done(&mut self, cookie: u64) {
        reply::success(cookie, self.out.headers());
    }

    fn durably(&self, fua: bool) -> io::Result<()> {
        if fua { self.io.flush() } else { Ok(()) }
    }

    fn allocation(&self, offset: u64, length: u32, one: bool) -> io::Result<Vec<Run>> {
        let extents = self.io.extents(offset, length.into(), if one { 1 } else { MAX_EXTENTS })?;
        let run = |length: u64, hole| Some(Run { length: u32::try_from(length).ok().filter(|l| *l > 0)?, hole });
        let runs: Vec<Run> = extents.iter().map_while(|extent| run(extent.length, extent.hole)).collect();
        // The protocol wants one run at least, and "data" is never wrong.
        Ok(if runs.is_empty() { vec![Run { length, hole: false }] } else { runs })
    }

    fn failed(&mut self, request: Request, error: &io::Error) {
        if !self.told {
            self.told = true;
            tracing::warn!(export = self.name, command = ?request.command, %error, "the medium of an export fails");
        }
        self.refuse(request.cookie, NbdErrno::from_io(error), &error.to_string());
    }
}
