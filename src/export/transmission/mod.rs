//! What follows the handshake: requests are carried out by one of two engines, chosen once at start.
//!
//! [`ring`] runs a reactor per core on io_uring and is what serves where the kernel allows it. [`threads`] runs a thread
//! per connection on any byte stream, TLS included, and serves the rest. Both carry the same promises and pass the same tests.
//!
//! Never here: handshakes, who may connect, which exports there are.

mod desk;
mod outbound;
mod ring;
mod tally;
mod threads;

use super::table::Attached;
use crate::nbd::{Refusal, Stream, Terms};
use std::io;
use std::net::Shutdown;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub(super) use threads::{TransmissionError, serve as serve_here};

/// Which engine is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// The ring where the kernel allows it.
    #[default]
    Auto,
    Uring,
    Threads,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no engine '{0}': choose auto, uring or threads")]
pub struct ParseEngineError(String);

impl FromStr for EngineChoice {
    type Err = ParseEngineError;

    fn from_str(text: &str) -> Result<Self, ParseEngineError> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "threads" => Ok(Self::Threads),
            other => Err(ParseEngineError(other.to_owned())),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("io_uring cannot be used here; it may be forbidden by kernel.io_uring_disabled or by a seccomp filter")]
    Uring(#[source] io::Error),
    #[error("starting the threads that serve NBD")]
    Thread(#[source] io::Error),
}

/// A connection that has shaken hands, as the engine takes it over.
pub(super) struct Session {
    /// Shared with every operation that is carried out elsewhere: the hold outlasts them all.
    pub(super) export: Arc<Attached>,
    /// The export's, for the log.
    pub(super) name: String,
    pub(super) terms: Terms,
    /// Bytes that came behind the handshake, or before a restart.
    pub(super) leftover: Vec<u8>,
    pub(super) owed: Owed,
    /// Last: the connection counts until everything else is gone.
    pub(super) presence: Presence,
}

/// What a connection that goes on after a restart still has to be given. Nothing, for a fresh one.
#[derive(Default)]
pub(super) struct Owed {
    /// Goes out before all else.
    pub(super) unsent: Vec<u8>,
    /// A request to be refused when the rest of its payload has gone by.
    pub(super) refusal: Option<Refusal>,
    /// Nothing more is taken from it.
    pub(super) leaving: bool,
}

/// Takes the connections that an engine hands over.
pub(super) type Parting = Arc<dyn Fn(Session) + Send + Sync>;

/// A connection's socket and its place among the others; dropping it ends the connection.
pub(super) struct Presence {
    stream: Arc<Stream>,
    /// Another process goes on with the socket.
    left: bool,
    /// Given back when the connection has ended.
    _place: Box<dyn Send>,
}

impl Presence {
    pub(super) fn new(stream: Arc<Stream>, place: Box<dyn Send>) -> Self {
        Self { stream, left: false, _place: place }
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Lets go of the socket and leaves the connection up.
    pub(super) fn leave(mut self) {
        self.left = true;
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        if !self.left
            && let Err(error) = self.stream.shutdown(Shutdown::Both)
        {
            tracing::debug!(%error, "closing an NBD connection");
        }
    }
}

/// The engine that runs.
pub(super) enum Engine {
    Ring(ring::Rings),
    Threads(Arc<AtomicBool>),
}

impl Engine {
    /// Once `closing` is set, requests that come are declined; on threads, once `dismissing` is.
    pub(super) fn start(
        choice: EngineChoice,
        closing: &Arc<AtomicBool>,
        dismissing: &Arc<AtomicBool>,
    ) -> Result<Self, EngineError> {
        let threads = || Self::Threads(Arc::clone(dismissing));
        match choice {
            EngineChoice::Threads => Ok(threads()),
            EngineChoice::Uring => ring::Rings::start(closing).map(Self::Ring),
            EngineChoice::Auto => match ring::Rings::start(closing) {
                Ok(rings) => Ok(Self::Ring(rings)),
                Err(EngineError::Uring(error)) => {
                    tracing::warn!(%error, "no io_uring here: NBD is served by a thread per connection");
                    Ok(threads())
                }
                Err(error) => Err(error),
            },
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Ring(_) => "uring",
            Self::Threads(_) => "threads",
        }
    }

    /// Serves the session, on this thread or on another one.
    pub(super) fn serve(&self, session: Session) {
        match self {
            Self::Ring(rings) => rings.take(session),
            Self::Threads(dismissing) => {
                let mut stream = session.presence.stream();
                if let Err(error) = threads::serve(&session, &mut stream, dismissing) {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(export = session.name, error, "an NBD connection ended");
                }
            }
        }
    }

    /// Lets requests in flight end and declines others; says whether the engine ends its connections by itself then.
    pub(super) fn drain(&self) -> bool {
        match self {
            Self::Ring(rings) => {
                rings.drain();
                true
            }
            Self::Threads(_) => false,
        }
    }

    /// Hands over each connection as soon as nothing of it is under way, until [`Self::stay`]. A thread cannot be
    /// interrupted between two bytes, so that the connections of threads end instead.
    pub(super) fn part(&self, parting: &Parting) {
        if let Self::Ring(rings) = self {
            rings.part(parting);
        }
    }

    /// Keeps what has not been handed over yet.
    pub(super) fn stay(&self) {
        if let Self::Ring(rings) = self {
            rings.stay();
        }
    }

    /// Whether connections can be handed over.
    pub(super) fn parts(&self) -> bool {
        matches!(self, Self::Ring(_))
    }

    /// Returns when no thread of the engine is left; every connection must have been cut.
    pub(super) fn end(&self) {
        if let Self::Ring(rings) = self {
            rings.end();
        }
    }
}
