//! One connection, from its greeting on, on its own thread: is received, then handed over to the engine. A connection
//! with TLS stays on its thread, with the same promises.

mod reception;

pub(super) use reception::cut;

use super::listener::Origin;
use super::server::{Registered, Shared, Stage};
use super::transmission::{Owed, Presence, Session, TransmissionError, serve_here};
use crate::nbd::{ExportDescription, Line, Negotiated, Secure, Stream, Terms};
use reception::Entered;
use std::io::{self, Read};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Why a connection ended other than by its client's leave.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("the connection broke")]
    Stream(#[from] io::Error),
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    #[error(transparent)]
    Transmission(#[from] TransmissionError),
}

/// Serves until the client leaves, the server closes, the export is retired or its guest is fenced, unless the engine
/// does that on threads of its own.
pub(super) fn run(shared: &Arc<Shared>, stream: &Arc<Stream>, origin: Origin, registered: Registered) {
    let outcome = match reception::receive(shared, registered.number(), stream, origin) {
        Ok(Some(entered)) => serve(shared, stream, origin, entered, registered),
        nothing => {
            if let Err(error) = stream.shutdown(Shutdown::Both) {
                tracing::debug!(%origin, %error, "closing an NBD connection");
            }
            nothing.map(drop)
        }
    };
    match outcome {
        Ok(()) => {}
        Err(error @ ConnectionError::Tls(_)) => {
            tracing::warn!(%origin, error = &error as &dyn std::error::Error, "refusing an NBD client");
        }
        Err(error) => {
            tracing::debug!(%origin, error = &error as &dyn std::error::Error, "an NBD connection ended");
        }
    }
}

fn serve(
    shared: &Shared,
    stream: &Arc<Stream>,
    origin: Origin,
    entered: Entered,
    registered: Registered,
) -> Result<(), ConnectionError> {
    let Entered { line, negotiated, leftover, seat } = entered;
    let Negotiated { export, description, headers, contexts } = negotiated;
    let ExportDescription { name, read_only, minimum_block, .. } = description;
    let terms = Terms { read_only, headers, contexts, minimum_block };
    if contexts.any()
        && let Some(io) = export.io()
    {
        io.expect_questions();
    }
    let stage = if matches!(line, Line::Plain(_)) && shared.engine.parts() { Stage::Engine } else { Stage::Alone };
    registered.enter(stage, &name);
    // Who was told to end was not yet among those who have to hear it.
    if stage == Stage::Alone && shared.dismissing.load(Ordering::SeqCst) {
        stream.shutdown(Shutdown::Read)?;
    }
    let presence = Presence::new(Arc::clone(stream), Box::new((seat, registered)));
    let session = Session { export: Arc::new(export), name, terms, leftover, owed: Owed::default(), presence };
    match line {
        Line::Plain(_) => shared.engine.serve(session),
        Line::Tls(secure) => serve_secure(shared, origin, session, *secure)?,
    }
    Ok(())
}

/// On this thread: what is received and sent passes through TLS, which no engine knows of.
fn serve_secure(
    shared: &Shared,
    origin: Origin,
    session: Session,
    mut secure: Secure,
) -> Result<(), TransmissionError> {
    let outcome = serve_here(&session, &mut secure, &shared.dismissing);
    let Session { export, presence, .. } = session;
    drop(export);
    // "The server MUST close down the TLS session": as far as the client listens, and never while an export is held.
    if outcome.is_ok()
        && let Err(error) = secure.farewell()
    {
        tracing::debug!(%origin, %error, "taking leave of an NBD client");
    }
    drop(presence);
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
