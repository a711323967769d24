//! Who is there, and what do they want: from the first byte of a connection to the export that it has entered.
//!
//! ```text
//!   local ──────────────────────────▶ options ──▶ Enter
//!     └─ may ask for TLS ─▶ ┌─────┐      ▲
//!                           │ TLS │ ─────┤ certificate of a client: that client
//!   anybody else ─ must ──▶ └─────┘      │ none: still local, if it was
//!                                        └ of a service: hears why not
//! ```
//! Whoever has not proved anything yet holds a seat among its like only, and gives it up to newcomers.

use super::ConnectionError;
use crate::export::grants::{AttachError, Guest};
use crate::export::listener::Origin;
use crate::export::server::{Seat, Seats, Shared};
use crate::export::table::{Attached, Cut};
use crate::nbd::{
    Closed, Encryption, ExportDescription, Exports, Handshake, Line, Listed, Negotiated, Policy, Progress, Secure,
    Stream, Wire,
};
use crate::pki::{Bearer, PeerError, peer_bearer};
use std::io::{self, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Received at once during the handshake, in bytes.
const BATCH: usize = 4096;

/// A connection that has entered an export.
pub(super) struct Entered {
    pub(super) line: Line,
    pub(super) negotiated: Negotiated<Attached>,
    /// Bytes that came behind the handshake.
    pub(super) leftover: Vec<u8>,
    /// Held to the end: the connection counts until then.
    pub(super) seat: Seat,
}

/// What is known of the peer so far.
#[derive(Debug)]
enum Known {
    Guest(Guest, Option<Bearer>),
    /// It has to prove itself.
    Nobody,
}

/// What to answer a fresh connection.
struct Welcome {
    known: Known,
    policy: Policy,
    encryption: Encryption,
    seat: Option<Seat>,
}

/// The agreement; `None` if there is nothing more to say to the client.
pub(super) fn receive(
    shared: &Arc<Shared>,
    number: u64,
    stream: &Arc<Stream>,
    origin: Origin,
) -> Result<Option<Entered>, ConnectionError> {
    let Welcome { mut known, policy, encryption, seat } = welcome(shared, number, stream, origin);
    let Some(mut seat) = seat else { return Ok(None) };
    let mut line = Line::Plain(Wire::new(Arc::clone(stream), Some(Instant::now() + shared.config.handshake_timeout)));
    let (mut input, mut output) = (Vec::new(), Vec::new());
    let mut handshake = Handshake::new(policy, encryption, &mut output);
    loop {
        if shared.closing.load(Ordering::SeqCst) {
            handshake.set_policy(Policy::ShuttingDown);
        }
        let door = Door { shared, stream, known: &known };
        let (used, progress) = handshake.receive(&input, &door, &mut output);
        input.drain(..used.min(input.len()));
        line.write_all(&output)?;
        line.flush()?;
        output.clear();
        match progress {
            Progress::Continue => {}
            Progress::More => {
                let mut batch = [0; BATCH];
                let count = super::receive(&mut line, &mut batch)?;
                if count == 0 {
                    return Ok(None);
                }
                input.extend(batch.get(..count).unwrap_or_default());
            }
            Progress::StartTls => {
                // The core closes when more was received than the wish for TLS: nothing plain is left over.
                line = secure(shared, line, &known)?;
                let policy = identify(shared, &line, &mut known, &mut seat);
                if let Policy::Refuse(reason) = &policy {
                    tracing::warn!(%origin, reason, "refusing an NBD client");
                }
                handshake.secured(policy);
            }
            Progress::Enter(negotiated) => {
                line.wire().set_deadline(None)?;
                return Ok(Some(Entered { line, negotiated, leftover: input, seat }));
            }
            Progress::Close => return Ok(None),
        }
    }
}

fn welcome(shared: &Arc<Shared>, number: u64, stream: &Stream, origin: Origin) -> Welcome {
    let verdict = match stream {
        Stream::Tcp(tcp) => (shared.config.local)(tcp),
        Stream::Unix(_) => Ok(()),
    };
    let keyring = shared.config.tls.as_ref().filter(|tls| tls.ready());
    let no_certificate = || "this server has no certificate yet: its service is no member of a cluster".to_owned();
    let (known, offer) = match (verdict, keyring) {
        (Ok(()), Some(_)) => (Known::Guest(Guest::Local, None), Ok(Encryption::Offered)),
        (Ok(()), None) => (Known::Guest(Guest::Local, None), Ok(Encryption::Refused(no_certificate()))),
        (Err(reason), Some(_)) => (Known::Nobody, Ok(Encryption::Demanded(reason))),
        (Err(reason), None) => (Known::Nobody, Err(format!("{reason}; and {}", no_certificate()))),
    };
    let kind = if matches!(known, Known::Nobody) { Seats::Unproven } else { Seats::Admitted };
    let seated = offer.and_then(|encryption| match shared.seat(kind, number) {
        Some(seat) => Ok((encryption, seat)),
        None => Err(shared.full()),
    });
    match seated {
        Ok((encryption, seat)) => {
            if let Encryption::Demanded(reason) = &encryption {
                tracing::info!(%origin, reason, "an NBD client has to prove itself over TLS");
            }
            Welcome { known, policy: Policy::Admit, encryption, seat: Some(seat) }
        }
        Err(reason) => {
            tracing::warn!(%origin, reason, "refusing an NBD client");
            let encryption = Encryption::Refused(reason.clone());
            Welcome { known, policy: Policy::Refuse(reason), encryption, seat: shared.seat(Seats::Refused, number) }
        }
    }
}

fn secure(shared: &Shared, line: Line, known: &Known) -> Result<Line, ConnectionError> {
    let (Line::Plain(wire), Some(tls)) = (line, &shared.config.tls) else {
        return Err(io::Error::from(io::ErrorKind::Unsupported).into());
    };
    let config = if matches!(known, Known::Nobody) { tls.strangers() } else { tls.locals() };
    Ok(Line::Tls(Box::new(Secure::accept(config, wire).map_err(ConnectionError::Tls)?)))
}

/// Takes the peer for whom its certificate names. A client's has a seat among those who may come in from here on.
fn identify(shared: &Arc<Shared>, line: &Line, known: &mut Known, seat: &mut Seat) -> Policy {
    let Line::Tls(secure) = line else { return Policy::Refuse("the connection is not encrypted".into()) };
    let bearer = match (peer_bearer(secure.peer_certificates()), &known) {
        (Err(PeerError::Absent), Known::Guest(..)) => return Policy::Admit,
        (Ok(bearer), _) => bearer,
        (Err(error), _) => return Policy::Refuse(error.to_string()),
    };
    if bearer.role.is_service() {
        return Policy::Refuse(format!(
            "the certificate is that of a {} service, and volumes are for clients: \
            `symphony ctl manager client create NAME` on a manager makes a client's certificate",
            bearer.role
        ));
    }
    *known = Known::Guest(Guest::Client(bearer.id), Some(bearer));
    if seat.kind() == Seats::Unproven {
        match shared.seat(Seats::Admitted, seat.number()) {
            Some(admitted) => *seat = admitted,
            None => return Policy::Refuse(shared.full()),
        }
    }
    Policy::Admit
}

/// What one connection sees of the table: every export it opens can cut it off.
struct Door<'a> {
    shared: &'a Shared,
    stream: &'a Arc<Stream>,
    known: &'a Known,
}

impl Exports for Door<'_> {
    type Opened = Attached;

    fn list(&self) -> Vec<Listed> {
        let Known::Guest(guest, _) = self.known else { return Vec::new() };
        let listed = self.shared.table.list(*guest).into_iter();
        listed.map(|(name, description)| Listed { name, description }).collect()
    }

    fn open(&self, name: &str) -> Result<(ExportDescription, Attached), Closed> {
        let Known::Guest(guest, bearer) = self.known else {
            return Err(Closed::Forbidden("the peer has not said who it is".into()));
        };
        // Revoked since its handshake, perhaps.
        let refused = bearer.as_ref().and_then(|bearer| self.shared.config.tls.as_ref()?.refuses(bearer));
        if let Some(reason) = refused {
            return Err(Closed::Forbidden(reason.to_string()));
        }
        let export = self.shared.table.attach(name, *guest, Some(cut(self.stream))).map_err(closed)?;
        let size = export.io().ok_or(Closed::Unknown)?.size();
        let description = ExportDescription {
            name: name.to_owned(),
            description: export.description().to_owned(),
            size,
            read_only: export.is_read_only(),
            minimum_block: 1,
        };
        Ok((description, export))
    }
}

/// What ends the connection from elsewhere.
pub(in crate::export) fn cut(stream: &Arc<Stream>) -> Cut {
    let stream = Arc::clone(stream);
    Box::new(move || {
        if let Err(error) = stream.shutdown(Shutdown::Both) {
            tracing::warn!(%error, "cutting an NBD client off");
        }
    })
}

fn closed(error: AttachError) -> Closed {
    match error {
        AttachError::Unknown(_) => Closed::Unknown,
        AttachError::NotGranted { .. } | AttachError::Taken { .. } | AttachError::Withheld { .. } => {
            Closed::Forbidden(error.to_string())
        }
    }
}
