//! What a connection says and is told: bytes come in, requests are begun one after the other, replies go out.

use super::ClientId;
use super::client::{Client, Input, Next, Receiving, Way};
use super::message::Parcel;
use super::parting::is_cancelled;
use super::reactor::{BULK, Reactor, Task};
use super::uring::Held;
use crate::export::transmission::desk;
use crate::export::transmission::tally::Request;
use crate::nbd::{Command, NbdErrno, Refusal};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Requests of one connection that are begun before others have their turn.
const BATCH: usize = 64;

/// Memory that a connection keeps for what is put aside, in bytes: it is there for as long as the connection.
const MOST_ASIDE: usize = 4096;

/// Memory of messages that a reactor keeps for the next replies, in bytes.
const SPARE: usize = 4 << 20;

impl Reactor {
    pub(super) fn serve(&mut self, id: ClientId, client: &mut Client) -> io::Result<()> {
        let mut turns = BATCH;
        client.tally.tick(self.now);
        while !client.leaving && !client.broken && !self.stops(client) && client.has_room(self.is_crowded()) {
            if turns == 0 {
                self.ready.push_back(id);
                break;
            }
            turns -= 1;
            if client.waiting.is_some() {
                if !self.resume(id, client)? {
                    break;
                }
            } else if client.course.is_some() && client.incoming.is_none() {
                if client.is_occupied() {
                    break;
                }
                self.next_piece(id, client)?;
            } else if client.has_input() || client.is_pending() {
                self.step(id, client)?;
            } else {
                break;
            }
        }
        client.tally.settle();
        self.settle_input(client, turns == 0);
        if !self.stops(client) {
            self.send(id, client);
            self.receive(id, client);
        }
        Ok(())
    }

    /// Deals with the next thing in the input.
    fn step(&mut self, id: ClientId, client: &mut Client) -> io::Result<()> {
        let export = Arc::clone(&client.session.export);
        let Some(io) = export.io() else { return Ok(()) };
        let leftover = std::mem::take(&mut client.session.leftover);
        let input = match client.input {
            Input::Provided { number, start, end } => self.ring.provided(number).get(start..end),
            Input::Leftover { start } => leftover.get(start..),
            Input::Nothing => None,
        };
        let input = input.unwrap_or_default();
        let (used, next) = client.next(input, io.size()).map_err(io::Error::other)?;
        client.advance(used);
        if let Next::Request(request) = next
            && !self.closing.load(Ordering::SeqCst)
            && let Some(left) = client.tally.ask(request.command)
        {
            client.session.leftover = leftover;
            self.hold_back(id, client, request, left);
            return Ok(());
        }
        // A payload that is here already goes to a medium that is memory from where it lies.
        if let Next::Request(request @ Request { command: Command::Write { length, .. }, .. }) = next
            && client.way == Way::AtOnce
            && let Some(payload) = input.get(used..).and_then(|rest| rest.get(..length as usize))
            && !self.closing.load(Ordering::SeqCst)
            && let Some(_pass) = client.session.export.writes().enter()
        {
            let outcome = desk::carry_out(io.as_ref(), request.command, payload);
            client.advance(length as usize);
            client.session.leftover = leftover;
            self.answer(client, request, outcome);
            return Ok(());
        }
        client.session.leftover = leftover;
        let next = match next {
            Next::Request(request) if self.closing.load(Ordering::SeqCst) => {
                client.tally.take_back();
                let Request { reply, command, .. } = request;
                let discard = if let Command::Write { length, .. } = command { length } else { 0 };
                client.refuse(Refusal {
                    reply,
                    errno: NbdErrno::Shutdown,
                    reason: "the server is shutting down".into(),
                    discard,
                })
            }
            other => other,
        };
        match next {
            Next::More => Ok(()),
            Next::Disconnect => {
                client.leaving = true;
                Ok(())
            }
            Next::Refuse(refusal) => {
                let message = self.outgoing(client);
                refusal.reply.error(refusal.errno, &refusal.reason, &mut message.bytes);
                Ok(())
            }
            Next::Request(request) => self.begin(id, client, request, None),
            Next::Write(request, buffer) => self.begin(id, client, request, Some(buffer)),
        }
    }

    fn receive(&mut self, id: ClientId, client: &mut Client) {
        let wanted = !client.leaving && client.receiving == Receiving::Nothing && !client.has_input();
        let takes_pieces = client.course.is_some() && client.incoming.is_none();
        if !wanted || takes_pieces || client.waiting.is_some() || !client.has_room(self.is_crowded()) {
            return self.watch(id, client);
        }
        if let Some(incoming) = &mut client.incoming
            && incoming.length - incoming.filled >= BULK / 2
            && let Some(buffer) = incoming.buffer.take()
        {
            client.receiving = Receiving::Payload;
            let (filled, left) = (incoming.filled, incoming.length - incoming.filled);
            return self.ring.receive_into(Task::Receive(id), client.socket, buffer, filled, left);
        }
        if client.bulky
            && client.at_header()
            && let Some(buffer) = self.ring.fixed_buffer(1)
        {
            client.receiving = Receiving::Header;
            let length = client.session.terms.headers.request_length();
            return self.ring.receive_into(Task::Receive(id), client.socket, buffer, 0, length);
        }
        client.receiving = Receiving::Anything;
        self.ring.receive(Task::Receive(id), client.socket);
    }

    /// While nothing else of a connection is with the kernel, its end must still be heard of.
    fn watch(&mut self, id: ClientId, client: &mut Client) {
        if !client.is_still() || client.is_settled() && client.leaving {
            return;
        }
        client.watched = true;
        self.ring.watch(Task::Watch(id), client.socket, 0);
    }

    pub(super) fn received(
        &mut self,
        client: &mut Client,
        result: io::Result<usize>,
        held: Held,
        provided: Option<u16>,
    ) {
        let receiving = std::mem::replace(&mut client.receiving, Receiving::Nothing);
        let count = match result {
            // All provided buffers are in use: others go on first.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted || is_cancelled(&error) => 0,
            Err(_) | Ok(0) => {
                client.leaving = true;
                // Requests in flight are still answered: the client may have closed one direction only.
                if client.incoming.take().is_some() {
                    client.course = None;
                }
                provided.into_iter().for_each(|number| self.ring.recycle(number));
                return;
            }
            Ok(count) => count,
        };
        match (receiving, held) {
            (Receiving::Payload, Held::Buffer(buffer)) => {
                if let Some(incoming) = &mut client.incoming {
                    incoming.buffer = Some(buffer);
                    incoming.filled += count;
                }
            }
            (Receiving::Header, Held::Buffer(buffer)) => client.take_header(buffer.get(..count).unwrap_or_default()),
            _ => {
                if let Some(number) = provided {
                    client.input = Input::Provided { number, start: 0, end: count };
                }
            }
        }
    }

    /// Gives the ring's buffer back; what a connection that cannot go on has not used of it is put aside.
    fn settle_input(&mut self, client: &mut Client, goes_on: bool) {
        if client.has_input() {
            let Input::Provided { number, start, end } = client.input else { return };
            if goes_on {
                return;
            }
            let rest = self.ring.provided(number).get(start..end).unwrap_or_default();
            client.session.leftover.clear();
            client.session.leftover.extend_from_slice(rest);
            self.ring.recycle(number);
            client.input = Input::Leftover { start: 0 };
            return;
        }
        if client.session.leftover.capacity() > MOST_ASIDE {
            client.session.leftover = Vec::new();
        }
        self.let_go_of_input(client);
    }

    pub(super) fn let_go_of_input(&mut self, client: &mut Client) {
        if let Input::Provided { number, .. } = std::mem::replace(&mut client.input, Input::Nothing) {
            self.ring.recycle(number);
        }
    }

    fn send(&mut self, id: ClientId, client: &mut Client) {
        if client.sending {
            return;
        }
        let Some(message) = client.outgoing.take() else { return };
        if message.is_empty() {
            return self.keep(message);
        }
        client.sending = true;
        self.unsent += message.len();
        self.ring.send(Task::Send(id), client.socket, message);
    }

    pub(super) fn sent(&mut self, client: &mut Client, result: io::Result<usize>, held: Held) {
        client.sending = false;
        let Held::Message(mut message) = held else { return };
        let kept = client.keep_unsent(&message, &result);
        client.broken |= !kept && !matches!(result, Ok(count) if count == message.len());
        message.clear();
        self.keep(message);
    }

    fn keep(&mut self, message: Parcel) {
        if self.spare_bytes + message.footprint() <= SPARE {
            self.spare_bytes += message.footprint();
            self.spare.push(message);
        }
    }
}
