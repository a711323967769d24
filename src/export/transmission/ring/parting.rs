//! Connections on their way to another process: they stop between two bytes, and everything that is known goes along.
//!
//! ```text
//!   serving ──Part──▶ nothing begins, sockets let go ──last operation done──▶ handed over
//!      ▲                             │
//!      └────────────Stay─────────────┘
//! ```
//! Requests in flight end here and are answered; what has come and was not begun goes along as the bytes that it was. A
//! large request of which pieces have been carried out can do neither at once: it goes on for a while, and its connection
//! ends if that was not enough.

use super::super::{Owed, Parting};
use super::ClientId;
use super::client::{Client, Input};
use super::message::{Message, Parcel};
use super::reactor::{Reactor, Task};
use super::uring::Ring;
use crate::nbd::Command;
use nix::sys::socket::{MsgFlags, send};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// How long requests on their way in pieces may take to end.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether an operation was ended by [`super::uring::Ring::cancel`].
pub(super) fn is_cancelled(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECANCELED)
}

impl Reactor {
    pub(super) fn part(&mut self, parting: Parting) {
        let until = self.now + PATIENCE;
        self.parting = Some((parting, until));
        for (place, seat) in self.clients.iter().enumerate() {
            let Some(client) = seat else { continue };
            match client.course {
                Some(_) => self.alarms.set(until, ClientId { place, round: client.round }),
                None => halt(&mut self.ring, client),
            }
        }
        self.call_all();
    }

    /// Whether a connection begins nothing more, because it is about to be handed over.
    pub(super) fn stops(&self, client: &Client) -> bool {
        self.parting.is_some() && client.course.is_none()
    }

    /// Whether a connection is to be handed over and has not got there in time.
    pub(super) fn is_out_of_patience(&self, client: &Client) -> bool {
        client.course.is_some() && self.parting.as_ref().is_some_and(|(_, until)| self.now >= *until)
    }

    /// What a connection was doing when it could not be stopped yet ends early.
    pub(super) fn halt(&mut self, client: &Client) {
        halt(&mut self.ring, client);
    }

    /// Gives a connection away if that is why it goes.
    pub(super) fn part_with(&mut self, mut client: Client) {
        let Some((parting, _)) = self.parting.clone().filter(|_| !client.broken) else { return };
        let unread = match client.input {
            Input::Provided { number, start, end } => client.unread(self.ring.provided(number).get(start..end)),
            Input::Leftover { start } => {
                let leftover = std::mem::take(&mut client.session.leftover);
                client.unread(leftover.get(start..))
            }
            Input::Nothing => client.unread(None),
        };
        self.let_go_of_input(&mut client);
        let mut unsent = client.outgoing.take().map(|message| message.rest(0)).unwrap_or_default();
        let sent = send_now(client.session.presence.stream(), &unsent);
        unsent.drain(..sent);
        let Client { mut session, discard, leaving, tally, .. } = client;
        // Whoever goes on with it counts it.
        drop(tally);
        session.leftover = unread;
        session.owed = Owed { unsent, refusal: discard, leaving };
        parting(session);
    }
}

impl Client {
    /// Puts what a send has not sent in front of what follows: it was ended early, by a parting that may be over already.
    /// Says whether that is how it was.
    pub(super) fn keep_unsent(&mut self, message: &Parcel, result: &io::Result<usize>) -> bool {
        let sent = match result {
            Ok(count) if *count < message.len() => *count,
            Err(error) if is_cancelled(error) => 0,
            _ => return false,
        };
        let mut bytes = message.rest(sent);
        bytes.extend(self.outgoing.take().map(|later| later.rest(0)).unwrap_or_default());
        self.outgoing = Message::of(bytes);
        true
    }

    /// What has come and was not begun, as the client sent it.
    fn unread(&mut self, input: Option<&[u8]>) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some((request, payload, _)) = self.waiting.take() {
            request.on_the_wire().encode(&mut bytes);
            if let (Command::Write { length, .. }, Some(payload)) = (request.command, payload) {
                bytes.extend_from_slice(payload.get(..length as usize).unwrap_or_default());
            }
        }
        if let Some(incoming) = self.incoming.take() {
            incoming.request.on_the_wire().encode(&mut bytes);
            let payload = incoming.buffer.as_ref().and_then(|buffer| buffer.get(..incoming.filled));
            bytes.extend_from_slice(payload.unwrap_or_default());
        }
        if let Some(inquiry) = self.inquiry.take() {
            inquiry.encode(&mut bytes);
        }
        bytes.extend_from_slice(self.carry.get(..self.carried).unwrap_or_default());
        bytes.extend_from_slice(input.unwrap_or_default());
        bytes
    }
}

/// Has a socket let go of a connection.
fn halt(ring: &mut Ring<Task>, client: &Client) {
    if !client.is_still()
        && let Err(error) = ring.cancel(client.socket)
    {
        // Then it does not get still, and whoever waits for it gives up.
        tracing::error!(%error, "an NBD connection cannot be held");
    }
}

/// Sends as much as the socket takes at once, so that replies do not wait for the other process. How much that was; an
/// error shows there again.
fn send_now(stream: impl AsFd, bytes: &[u8]) -> usize {
    let mut sent = 0;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        match send(stream.as_fd().as_raw_fd(), rest, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Ok(count) => sent += count,
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => break,
        }
    }
    sent
}
