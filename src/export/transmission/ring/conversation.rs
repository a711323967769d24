//! What a connection says and is told: bytes come in, requests are begun one after the other, replies go out.

use super::ClientId;
use super::client::{Client, Input, Next, Receiving, Way};
use super::reactor::{BULK, Reactor, Task};
use super::uring::Held;
use crate::export::transmission::desk;
use crate::nbd::{Command, NbdErrno, Refusal, Request};
use std::io;
use std::sync::atomic::Ordering;

/// Requests of one connection that are begun before others have their turn.
const BATCH: usize = 64;

/// Messages that are kept for the next replies.
const SPARE_MESSAGES: usize = 16;

impl Reactor {
    pub(super) fn serve(&mut self, id: ClientId, client: &mut Client) -> io::Result<()> {
        let mut turns = BATCH;
        while !client.leaving && client.has_room() {
            if turns == 0 {
                self.ready.push_back(id);
                break;
            }
            turns -= 1;
            if client.waiting.is_some() {
                if !self.resume(id, client)? {
                    break;
                }
            } else if client.has_input() || client.is_pending() {
                self.step(id, client)?;
            } else {
                break;
            }
        }
        self.settle_input(client, turns == 0);
        self.send(id, client);
        self.receive(id, client);
        Ok(())
    }

    /// Deals with the next thing in the input.
    fn step(&mut self, id: ClientId, client: &mut Client) -> io::Result<()> {
        let Some(io) = client.session.export.io().cloned() else { return Ok(()) };
        let leftover = std::mem::take(&mut client.session.leftover);
        let input = match client.input {
            Input::Provided { number, start, end } => self.ring.provided(number).get(start..end),
            Input::Leftover { start } => leftover.get(start..),
            Input::Nothing => None,
        };
        let input = input.unwrap_or_default();
        let (used, next) = client.next(input, io.size()).map_err(io::Error::other)?;
        client.advance(used);
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
                let Request { reply, command } = request;
                let discard = if let Command::Write { length, .. } = command { length } else { 0 };
                client.refuse(Refusal {
                    reply,
                    errno: NbdErrno::Shutdown,
                    reason: "the server is shutting down",
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
                refusal.reply.error(refusal.errno, refusal.reason, &mut message.bytes);
                Ok(())
            }
            Next::Request(request) => self.begin(id, client, request, None),
            Next::Write(request, buffer) => self.begin(id, client, request, Some(buffer)),
        }
    }

    fn receive(&mut self, id: ClientId, client: &mut Client) {
        let wanted = !client.leaving && client.receiving == Receiving::Nothing && !client.has_input();
        if !wanted || client.waiting.is_some() || !client.has_room() {
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
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(_) | Ok(0) => {
                client.leaving = true;
                // Requests in flight are still answered: the client may have closed one direction only.
                client.incoming = None;
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
            client.session.leftover = rest.to_vec();
            self.ring.recycle(number);
            client.input = Input::Leftover { start: 0 };
            return;
        }
        if let Input::Leftover { .. } = client.input {
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
        let Some(message) = client.outgoing.take_if(|message| !message.is_empty()) else { return };
        client.sending = true;
        self.ring.send(Task::Send(id), client.socket, message);
    }

    pub(super) fn sent(&mut self, client: &mut Client, result: io::Result<usize>, held: Held) {
        client.sending = false;
        let Held::Message(mut message) = held else { return };
        client.broken |= !matches!(result, Ok(count) if count == message.len());
        message.clear();
        if self.spare.len() < SPARE_MESSAGES {
            self.spare.push(message);
        }
    }
}
