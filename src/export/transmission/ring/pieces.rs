//! Large requests when memory is short: a connection that holds nothing goes on in pieces, however many clients hold all
//! there is and take no replies. What the pieces are, and what is told of them, is up to [`Pieces`].
//!
//! ```text
//!   no room ──▶ read a piece ──▶ send it ──┐      no room ──▶ receive a piece ──▶ write it ──┐
//!                   ▲──────────────────────┘                       ▲─────────────────────────┘
//! ```
//! A piece is a request of its own: it passes the gates, holds the export, and goes whichever way suits it. Nothing else
//! of its connection is begun meanwhile. A freeze may come between two pieces of a write, since nobody has been told yet
//! that it is done. A write that has failed becomes a refusal, whose payload goes by without memory.

use super::ClientId;
use super::client::{Client, Waits};
use super::reactor::{MODEST, Reactor};
use crate::export::transmission::desk::{self, Outcome};
use crate::export::transmission::tally::Request;
use crate::nbd::{Command, Pieces, Setback};
use std::io;

/// A large request of a connection, on its way in pieces.
pub(super) struct Course {
    whole: Request,
    pieces: Pieces,
}

impl Reactor {
    /// There is no memory for a request, which needs so many bytes: it waits, or is begun in pieces.
    pub(super) fn make_do(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: Request,
        needs: usize,
    ) -> io::Result<()> {
        if needs <= MODEST || client.is_occupied() {
            client.waiting = Some((request, None, Waits::Room));
            self.starved.push(id);
            return Ok(());
        }
        client.course = Some(Course { whole: request, pieces: Pieces::of(request.on_the_wire()) });
        self.next_piece(id, client)
    }

    /// Begins the next piece of a connection's large request, or ends that.
    pub(super) fn next_piece(&mut self, id: ClientId, client: &mut Client) -> io::Result<()> {
        let Some(Course { whole, pieces }) = &client.course else { return Ok(()) };
        let whole = *whole;
        if let Some(command) = pieces.next() {
            return self.begin(id, client, whole.with(command), None);
        }
        client.course = None;
        match whole.command {
            // Its last piece has been sent.
            Command::Read { .. } => client.tally.end(whole, false),
            _ => self.answer(client, whole, Ok(Outcome::Done)),
        }
        Ok(())
    }

    /// A piece without data to send has ended.
    pub(super) fn piece_ended(&mut self, client: &mut Client, command: Command, outcome: io::Result<Outcome>) {
        let Some(mut course) = client.course.take() else { return };
        let Err(error) = outcome else {
            course.pieces.advance();
            client.course = Some(course);
            return;
        };
        desk::report(&mut client.told, &client.session.name, command, &error);
        client.tally.end(course.whole, true);
        match course.pieces.setback() {
            Setback::HangUp => client.broken = true,
            Setback::Tell { after } => {
                let refusal = desk::refusal(course.whole.reply, command, &error, after);
                if after > 0 {
                    client.discard = Some(refusal);
                } else {
                    refusal.reply.error(refusal.errno, &refusal.reason, &mut self.outgoing(client).bytes);
                }
            }
        }
    }
}

impl Client {
    /// Whether anything of it is being carried out, or has to be taken by the client first.
    pub(super) fn is_occupied(&self) -> bool {
        self.in_flight > 0 || self.holds_data()
    }

    /// Lays out what goes in front of the data of a read, or of a piece of one.
    pub(super) fn announce(&self, request: Request, length: usize, output: &mut Vec<u8>) {
        match &self.course {
            Some(course) => course.pieces.header(output),
            None => request.reply.data(length as u32, output),
        }
    }

    /// The data of a read, or of a piece of one, is laid out.
    pub(super) fn has_read(&mut self, request: Request) {
        match &mut self.course {
            Some(course) => course.pieces.advance(),
            None => self.tally.end(request, false),
        }
    }
}

#[cfg(test)]
mod tests;
