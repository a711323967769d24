//! The engine of plain threads: one per connection, on any stream of bytes, carrying out requests in order, large ones
//! in pieces. So a connection takes about a megabyte of memory here at most, whatever its client asks for and does not
//! take, and all of them together as much times the greatest number of connections.

use super::Session;
use super::desk::{self, Outcome};
use super::outbound::Outbound;
use super::tally::{Request, Tally};
use crate::io::BlockIo;
use crate::nbd::{Command, Event, Inbound, NbdErrno, PIECE, Pieces, ProtocolError, Refusal, Setback};
use nix::errno::Errno;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Why a connection ended other than by its client's leave.
#[derive(Debug, thiserror::Error)]
pub(in crate::export) enum TransmissionError {
    #[error("the connection broke")]
    Stream(#[from] io::Error),
    #[error("the client broke the protocol")]
    Protocol(#[from] ProtocolError),
}

/// Serves on this thread until the client leaves, the server closes, the export is retired or its guest is fenced.
pub(in crate::export) fn serve<S: Read + Write>(
    session: &Session,
    stream: &mut S,
    closing: &AtomicBool,
) -> Result<(), TransmissionError> {
    let Some(io) = session.export.io() else { return Ok(()) };
    stream.write_all(&session.owed.unsent)?;
    if session.owed.leaving {
        return Ok(());
    }
    let mut inbound = Inbound::new(&session.leftover);
    if let Some(refusal) = &session.owed.refusal {
        inbound.refuse(refusal.clone());
    }
    let tally = Tally::new(session.export.account(), None);
    let out = Outbound::default();
    let mut counter = Counter { session, closing, io: io.as_ref(), tally, out, told: false, large: None };
    // Of what was received last, and of the header of a write whose payload is coming.
    let (mut received, mut announced) = (Instant::now(), None);
    loop {
        while let Some(event) = inbound.next(&session.terms, io.size())? {
            // A retired export, or a fenced guest, takes no further step, even for requests that are already
            // here.
            if session.export.io().is_none() {
                return Ok(());
            }
            match event {
                Event::Disconnect => return Ok(counter.out.send(stream)?),
                Event::Refuse(refused) => {
                    // What was begun has been counted.
                    if counter.large.take().is_none() {
                        counter.tally.refuse();
                    }
                    refused.reply.error(refused.errno, &refused.reason, counter.out.headers());
                }
                Event::Part(pieces, payload) => {
                    let begun = announced.take().unwrap_or(received);
                    if let Some(refusal) = counter.carry_out_part(stream, pieces, begun, payload.bytes())? {
                        inbound.refuse(refusal);
                    }
                    inbound.recycle(payload);
                }
                Event::Run(request, payload) => {
                    let begun = announced.take().unwrap_or(received);
                    if closing.load(Ordering::SeqCst) {
                        counter.tally.refuse();
                        let reason = "the server is shutting down";
                        request.reply.error(NbdErrno::Shutdown, reason, counter.out.headers());
                    } else {
                        let request = counter.tally.begin_at(request, begun);
                        counter.carry_out(stream, request, payload.bytes())?;
                    }
                    inbound.recycle(payload);
                }
            }
            counter.out.send_if_large(stream)?;
        }
        if inbound.awaits_payload() {
            announced.get_or_insert(received);
        }
        // Nobody sends while replies are owed that it may be waiting for.
        counter.out.send(stream)?;
        match receive(stream, inbound.vacancy())? {
            0 => return Ok(()),
            count => inbound.received(count),
        }
        received = Instant::now();
    }
}

fn receive<R: Read>(stream: &mut R, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Where requests are carried out and replies are laid out.
struct Counter<'a> {
    session: &'a Session,
    closing: &'a AtomicBool,
    io: &'a dyn BlockIo,
    tally: Tally,
    out: Outbound,
    told: bool,
    /// A large write of which some pieces have come.
    large: Option<Request>,
}

impl Counter<'_> {
    fn carry_out<W: Write>(&mut self, stream: &mut W, request: Request, payload: &[u8]) -> io::Result<()> {
        let Request { reply, command, .. } = request;
        self.wait_for_limits(stream, command)?;
        let outcome = match command {
            // Cut off while it waited.
            _ if self.session.export.io().is_none() => Err(Errno::ESHUTDOWN.into()),
            Command::Read { .. } => match self.read(stream, request)? {
                Ok(()) => {
                    self.end(request, false);
                    return Ok(());
                }
                Err(error) => Err(error),
            },
            _ => self.change(command, payload),
        };
        if let Err(error) = &outcome {
            desk::report(&mut self.told, &self.session.name, command, error);
        }
        self.end(request, outcome.is_err());
        desk::answer(reply, self.session.terms.contexts, command, outcome, self.out.headers());
        Ok(())
    }

    /// The outer error ends the connection, the inner one is for its client.
    fn read<W: Write>(&mut self, stream: &mut W, request: Request) -> io::Result<io::Result<()>> {
        let mut pieces = Pieces::of(request.on_the_wire());
        if let Command::Read { offset, length: length @ ..=PIECE, .. } = request.command {
            let announce = |output: &mut Vec<u8>| request.reply.data(length, output);
            return self.out.read(stream, self.io, (offset, length), announce);
        }
        while let Some(Command::Read { offset, length, .. }) = pieces.next() {
            // Cut off while the client took the piece before.
            if self.session.export.io().is_none() {
                return Err(Errno::ESHUTDOWN.into());
            }
            match self.out.read(stream, self.io, (offset, length), |output| pieces.header(output))? {
                Ok(()) => pieces.advance(),
                Err(error) if pieces.setback() == Setback::HangUp => {
                    desk::report(&mut self.told, &self.session.name, request.command, &error);
                    self.end(request, true);
                    return Err(error);
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }

    /// Carries out a piece of a large write, and answers that with the last one. If it cannot be carried out, the whole is
    /// refused as is returned.
    fn carry_out_part<W: Write>(
        &mut self,
        stream: &mut W,
        mut pieces: Pieces,
        begun: Instant,
        payload: &[u8],
    ) -> io::Result<Option<Refusal>> {
        let Setback::Tell { after } = pieces.setback() else { return Ok(None) };
        let whole = pieces.request();
        let request = match self.large {
            Some(request) => request,
            None if self.closing.load(Ordering::SeqCst) => {
                let reason = "the server is shutting down".into();
                return Ok(Some(Refusal { reply: whole.reply, errno: NbdErrno::Shutdown, reason, discard: after }));
            }
            None => {
                let request = self.tally.begin_at(whole, begun);
                self.wait_for_limits(stream, whole.command)?;
                *self.large.insert(request)
            }
        };
        while let Some(command) = pieces.next() {
            if let Err(error) = self.change(command, payload) {
                desk::report(&mut self.told, &self.session.name, command, &error);
                self.end(request, true);
                return Ok(Some(desk::refusal(whole.reply, command, &error, after)));
            }
            pieces.advance();
            if matches!(pieces.next(), Some(Command::Write { .. })) {
                return Ok(None);
            }
        }
        self.large = None;
        self.end(request, false);
        whole.reply.success(self.out.headers());
        Ok(None)
    }

    fn end(&mut self, request: Request, failed: bool) {
        self.tally.tick(Instant::now());
        self.tally.end(request, failed);
        self.tally.settle();
    }

    fn wait_for_limits<W: Write>(&mut self, stream: &mut W, command: Command) -> io::Result<()> {
        if self.tally.ask(command).is_some() {
            // What is owed already must not wait with it.
            self.out.send(stream)?;
            let (closing, export) = (self.closing, &self.session.export);
            self.tally.wait(|| closing.load(Ordering::SeqCst) || export.io().is_none());
        }
        Ok(())
    }

    fn change(&self, command: Command, payload: &[u8]) -> io::Result<Outcome> {
        let _pass = command.changes().then(|| self.session.export.writes().wait_in());
        // The hold may have ended while changes were held.
        if self.session.export.io().is_none() {
            return Err(Errno::ESHUTDOWN.into());
        }
        desk::carry_out(self.io, command, payload)
    }
}
