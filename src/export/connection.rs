//! One connection, from its greeting to its end, on its own thread: shakes hands, then carries out requests in order.

mod outbound;

use super::listener::Origin;
use super::server::{Seats, Shared};
use super::table::{Attached, Cut, ExportTable};
use crate::io::BlockIo;
use crate::nbd::reply::{self, Run};
use crate::nbd::{
    Command, Event, ExportDescription, Exports, Handshake, Inbound, Listed, NbdErrno, Negotiated, Policy, Progress,
    ProtocolError, Request, Stream, Terms,
};
use outbound::Outbound;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Descriptors in one answer about block status; clients ask again where it ends.
const MAX_EXTENTS: usize = 4096;

/// Received at once during the handshake, in bytes.
const HANDSHAKE_BATCH: usize = 4096;

/// Why a connection ended other than by its client's leave.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("the connection broke")]
    Stream(#[from] io::Error),
    #[error("the client broke the protocol")]
    Protocol(#[from] ProtocolError),
}

/// Serves until the client leaves, the server closes or the export is retired.
pub(super) fn run(shared: &Shared, stream: &Arc<Stream>, origin: Origin) {
    let verdict = match &origin {
        Origin::Tcp { peer, local } => (shared.config.admit)(peer, local),
        Origin::Unix => Ok(()),
    };
    let admitted = verdict.and_then(|()| {
        shared.seat(Seats::Admitted).ok_or_else(|| {
            format!("there are {} connections already, which is the limit", shared.config.max_connections)
        })
    });
    let (seat, policy) = match admitted {
        Ok(seat) => (Some(seat), Policy::Admit),
        Err(reason) => {
            tracing::warn!(?origin, reason, "refusing an NBD client");
            (shared.seat(Seats::Refused), Policy::Refuse(reason))
        }
    };
    // Held to the end: this connection counts until then.
    let Some(_seat) = seat else { return };
    let outcome = serve(shared, stream, policy);
    if let Err(error) = outcome {
        tracing::debug!(?origin, error = &error as &dyn std::error::Error, "an NBD connection ended");
    }
    if let Err(error) = stream.shutdown(Shutdown::Both) {
        tracing::debug!(?origin, %error, "closing an NBD connection");
    }
}

fn serve(shared: &Shared, stream: &Arc<Stream>, policy: Policy) -> Result<(), ConnectionError> {
    let Some((negotiated, leftover)) = shake_hands(shared, stream, policy)? else { return Ok(()) };
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    transmit(shared, stream, negotiated, &leftover)
}

/// What one connection sees of the table: every export it opens can cut it off.
struct Door<'a> {
    table: &'a ExportTable,
    stream: &'a Arc<Stream>,
}

impl Exports for Door<'_> {
    type Opened = Attached;

    fn list(&self) -> Vec<Listed> {
        self.table.list().into_iter().map(|(name, description)| Listed { name, description }).collect()
    }

    fn open(&self, name: &str) -> Option<(ExportDescription, Attached)> {
        let stream = Arc::clone(self.stream);
        let cut: Cut = Box::new(move || {
            if let Err(error) = stream.shutdown(Shutdown::Both) {
                tracing::warn!(%error, "cutting an NBD client off");
            }
        });
        let export = self.table.attach(name, Some(cut))?;
        let description = ExportDescription {
            name: name.to_owned(),
            description: export.description().to_owned(),
            size: export.io()?.size(),
            read_only: export.is_read_only(),
            minimum_block: 1,
        };
        Some((description, export))
    }
}

/// The stream of a handshake: everything on it together must be done by the deadline.
struct Timed<'a> {
    stream: &'a Stream,
    deadline: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<std::time::Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Entered = (Negotiated<Attached>, Vec<u8>);

/// The agreement, and bytes that came behind it; `None` if there is nothing more to say to the client.
fn shake_hands(shared: &Shared, stream: &Arc<Stream>, policy: Policy) -> Result<Option<Entered>, ConnectionError> {
    let mut timed = Timed { stream, deadline: Instant::now() + shared.config.handshake_timeout };
    let door = Door { table: &shared.table, stream };
    let (mut input, mut output) = (Vec::new(), Vec::new());
    let mut handshake = Handshake::new(policy, &mut output);
    loop {
        if shared.closing.load(Ordering::SeqCst) {
            handshake.set_policy(Policy::ShuttingDown);
        }
        let (used, progress) = handshake.receive(&input, &door, &mut output);
        input.drain(..used.min(input.len()));
        timed.write_all(&output)?;
        output.clear();
        match progress {
            Progress::Continue => {}
            Progress::More => {
                let mut batch = [0; HANDSHAKE_BATCH];
                let count = receive(&mut timed, &mut batch)?;
                if count == 0 {
                    return Ok(None);
                }
                input.extend(batch.get(..count).unwrap_or_default());
            }
            Progress::Enter(negotiated) => return Ok(Some((negotiated, input))),
            Progress::Close => return Ok(None),
        }
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

fn transmit(
    shared: &Shared,
    mut stream: &Stream,
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
            // A retired export takes no further step, even for requests that are already here.
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
        match receive(&mut stream, inbound.vacancy())? {
            0 => return Ok(()),
            count => inbound.received(count),
        }
    }
}

/// Where requests are carried out and replies are laid out.
struct Desk<'a> {
    io: &'a dyn BlockIo,
    name: &'a str,
    structured: bool,
    out: Outbound<'a>,
    /// A failing medium is reported once per connection; its clients hear of each failure.
    told: bool,
}

impl Desk<'_> {
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
