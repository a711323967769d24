//! How a reactor carries a request out: at once, directly through the ring, or by the workers.

use super::client::{Client, Incoming, Waits, Way};
use super::memory::Buffer;
use super::reactor::{BULK, Reactor, Task};
use super::uring::Held;
use super::workers::{Finished, Job};
use super::{ClientId, Mail};
use crate::export::table::Attached;
use crate::export::transmission::desk::{self, Outcome};
use crate::export::transmission::tally::Request;
use crate::io::{BlockIo, Pass};
use crate::nbd::Command;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// A read up to this many bytes is laid out among the small replies, if it is done at once.
const SMALL: usize = 16 << 10;

/// After so many reads in a row that the page cache had, the next one is expected to be there.
const HITS: u32 = 32;

/// After so many reads in a row that the page cache did not have, it is asked only now and then.
const MISSES: u32 = 8;

/// Now and then: once in so many reads. A power of two.
const NOW_AND_THEN: u32 = 32;

impl Reactor {
    /// Begins a request; a write without its payload first waits for that.
    pub(super) fn begin(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: Request,
        payload: Option<Buffer>,
    ) -> io::Result<()> {
        let needs = match request.command {
            Command::Write { length, .. } => {
                client.bulky = length as usize >= BULK;
                length as usize
            }
            _ => {
                client.bulky = false;
                0
            }
        };
        if needs > 0 && payload.is_none() {
            let Some(buffer) = self.buffer(client, needs) else { return self.make_do(id, client, request, needs) };
            client.incoming = Some(Incoming { request, buffer: Some(buffer), length: needs, filled: 0 });
            return Ok(());
        }
        let pass = match self.pass(id, client, request.command) {
            Ok(pass) => pass,
            Err(waits) => {
                client.waiting = Some((request, payload, waits));
                return Ok(());
            }
        };
        match request.command {
            Command::Read { offset, length, .. } => self.read(id, client, request, offset, length as usize),
            Command::Write { offset, length, fua } => {
                let Some(buffer) = payload else { return Ok(()) };
                self.write(id, client, request, buffer, (offset, length as usize, fua), pass)
            }
            Command::Flush if self.may_flush_at_once(client) => {
                let export = Arc::clone(&client.session.export);
                let Some(io) = export.io() else { return Ok(()) };
                self.answer(client, request, io.flush().map(|()| Outcome::Done));
                Ok(())
            }
            _ => self.give(id, client, request, None, 0, pass),
        }
    }

    /// Begins what waited; says whether it no longer waits.
    pub(super) fn resume(&mut self, id: ClientId, client: &mut Client) -> io::Result<bool> {
        self.look_at_limits(id, client);
        let Some((request, payload, Waits::Room)) = client.waiting.take_if(|it| matches!(it.2, Waits::Room)) else {
            return Ok(false);
        };
        self.begin(id, client, request, payload)?;
        Ok(client.waiting.is_none())
    }

    /// Leave to change the export, where the command does.
    fn pass(&self, id: ClientId, client: &Client, command: Command) -> Result<Option<Pass>, Waits> {
        if !command.changes() {
            return Ok(None);
        }
        let writes = client.session.export.writes();
        let come_back = || {
            let mailbox = Arc::clone(&self.mailbox);
            writes.enter_or_call(move || mailbox.post(Mail::Retry(id)))
        };
        writes.enter().or_else(come_back).map(Some).ok_or(Waits::Gate)
    }

    /// A flush blocks, but a hand-over to another thread and back takes longer than the flush of a quiet medium.
    fn may_flush_at_once(&self, client: &Client) -> bool {
        match client.way {
            Way::AtOnce => true,
            Way::Direct(_) => client.in_flight == 0 && self.is_quiet(),
            Way::Workers => false,
        }
    }

    fn read(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: Request,
        offset: u64,
        length: usize,
    ) -> io::Result<()> {
        let export = Arc::clone(&client.session.export);
        let Some(io) = export.io() else { return Ok(()) };
        let cached = match client.way {
            Way::AtOnce => true,
            Way::Direct(_) => client.misses < MISSES || client.misses.is_multiple_of(NOW_AND_THEN),
            Way::Workers => false,
        };
        if !cached {
            client.misses = client.misses.wrapping_add(1);
        } else if length <= SMALL {
            let found = self.read_small(client, io.as_ref(), request, offset, length);
            client.looked(found);
            if found {
                return Ok(());
            }
        }
        let direct = match (client.way, io.raw().and_then(|raw| raw.direct())) {
            (Way::Direct(handle), Some(direct)) => Some((handle, u64::from(direct.block()))),
            _ => None,
        };
        // Whole blocks around what is asked for.
        let block = direct.map_or(1, |(_, block)| block);
        let start = offset - offset % block;
        let whole = (offset + length as u64).next_multiple_of(block) - start;
        let Some(mut buffer) = self.buffer(client, whole as usize) else {
            return self.make_do(id, client, request, whole as usize);
        };
        if cached && length > SMALL {
            let target = buffer.get_mut(..length).unwrap_or_default();
            let outcome = read_now(client, io.as_ref(), target, offset);
            client.looked(outcome.is_some());
            if let Some(outcome) = outcome {
                self.answer_read(client, request, buffer, 0..length, outcome);
                return Ok(());
            }
        }
        let Some((handle, _)) = direct else { return self.give(id, client, request, Some(buffer), length, None) };
        client.take_off(request.command);
        let task = Task::Read { client: id, request, skip: (offset - start) as usize, export: Arc::clone(&export) };
        self.ring.read(task, handle, buffer, whole as usize, start);
        Ok(())
    }

    /// Reads at once into the small replies; says whether that could be done.
    fn read_small(
        &mut self,
        client: &mut Client,
        io: &dyn BlockIo,
        request: Request,
        offset: u64,
        length: usize,
    ) -> bool {
        let mut bytes = std::mem::take(&mut self.outgoing(client).bytes);
        let before = bytes.len();
        client.announce(request, length, &mut bytes);
        let start = bytes.len();
        bytes.resize(start + length, 0);
        let outcome = read_now(client, io, bytes.get_mut(start..).unwrap_or_default(), offset);
        if !matches!(outcome, Some(Ok(()))) {
            bytes.truncate(before);
        }
        self.outgoing(client).bytes = bytes;
        match outcome {
            Some(Err(error)) => {
                self.answer(client, request, Err(error));
                true
            }
            Some(Ok(())) => {
                client.has_read(request);
                true
            }
            None => false,
        }
    }

    pub(super) fn was_read(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: Request,
        skip: usize,
        result: io::Result<usize>,
        held: Held,
    ) -> io::Result<()> {
        client.land(request.command);
        let (Held::Buffer(buffer), Command::Read { length, .. }) = (held, request.command) else { return Ok(()) };
        let length = length as usize;
        match result {
            Ok(count) if count >= skip + length => {
                self.answer_read(client, request, buffer, skip..skip + length, Ok(()));
                Ok(())
            }
            // Cut short, or not possible this way: the long way says what is the matter.
            Ok(_) => self.give(id, client, request, Some(buffer), length, None),
            Err(error) if is_misfit(&error) => self.give(id, client, request, Some(buffer), length, None),
            Err(error) => {
                self.answer(client, request, Err(error));
                Ok(())
            }
        }
    }

    fn write(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: Request,
        buffer: Buffer,
        (offset, length, fua): (u64, usize, bool),
        pass: Option<Pass>,
    ) -> io::Result<()> {
        let export = Arc::clone(&client.session.export);
        let Some(io) = export.io() else { return Ok(()) };
        if client.way == Way::AtOnce {
            let payload = buffer.get(..length).unwrap_or_default();
            let outcome = desk::carry_out(io.as_ref(), request.command, payload);
            self.answer(client, request, outcome);
            return Ok(());
        }
        if let (Way::Direct(handle), Some(raw)) = (client.way, io.raw())
            && raw.direct().is_some_and(|direct| direct.is_aligned(offset, length as u64))
            && let Some(gate) = raw.begin_write(offset, length as u64)
        {
            client.take_off(request.command);
            let task = Task::Write { client: id, request, pass, gate: Some(gate), export: Arc::clone(&export) };
            self.ring.write(task, handle, buffer, length, offset, fua);
            return Ok(());
        }
        self.give(id, client, request, Some(buffer), length, pass)
    }

    pub(super) fn was_written(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: Request,
        pass: Option<Pass>,
        result: io::Result<usize>,
        held: Held,
    ) -> io::Result<()> {
        client.land(request.command);
        let (Held::Buffer(buffer), Command::Write { length, .. }) = (held, request.command) else { return Ok(()) };
        let length = length as usize;
        let again = match &result {
            Ok(count) => *count < length,
            Err(error) => is_misfit(error),
        };
        if again {
            return self.give(id, client, request, Some(buffer), length, pass);
        }
        self.answer(client, request, result.map(|_| Outcome::Done));
        Ok(())
    }

    /// Gives a request to the workers.
    fn give(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: Request,
        buffer: Option<Buffer>,
        length: usize,
        pass: Option<Pass>,
    ) -> io::Result<()> {
        client.take_off(request.command);
        client.jobs += 1;
        let export = Arc::clone(&client.session.export);
        let answer = (Arc::clone(&self.mailbox), id);
        self.workers.submit(Job { request, buffer, length, export, pass, answer });
        Ok(())
    }

    pub(super) fn finished(&mut self, client: &mut Client, finished: Finished) {
        let Finished { request, buffer, outcome } = finished;
        client.land(request.command);
        client.jobs -= 1;
        match (request.command, buffer) {
            (Command::Read { length, .. }, Some(buffer)) => {
                self.answer_read(client, request, buffer, 0..length as usize, outcome.map(drop));
            }
            _ => self.answer(client, request, outcome),
        }
    }

    fn answer_read(
        &mut self,
        client: &mut Client,
        request: Request,
        buffer: Buffer,
        range: Range<usize>,
        outcome: io::Result<()>,
    ) {
        if let Err(error) = outcome {
            return self.answer(client, request, Err(error));
        }
        let mut bytes = std::mem::take(&mut self.outgoing(client).bytes);
        client.announce(request, range.len(), &mut bytes);
        let message = self.outgoing(client);
        message.bytes = bytes;
        message.attach(buffer, range);
        client.has_read(request);
    }

    pub(super) fn answer(&mut self, client: &mut Client, request: Request, outcome: io::Result<Outcome>) {
        if client.course.is_some() {
            return self.piece_ended(client, request.command, outcome);
        }
        if let Err(error) = &outcome {
            desk::report(&mut client.told, &client.session.name, request.command, error);
        }
        client.tally.end(request, outcome.is_err());
        let contexts = client.session.terms.contexts;
        let bytes = &mut self.outgoing(client).bytes;
        desk::answer(request.reply, contexts, request.command, outcome, bytes);
    }
}

/// Whether the kernel would not do it this way, or not now: that is nothing that the medium has said.
fn is_misfit(error: &io::Error) -> bool {
    let misfits = [libc::EINVAL, libc::EINTR, libc::EAGAIN, libc::EBUSY, libc::ENOMEM];
    error.raw_os_error().is_some_and(|number| misfits.contains(&number))
}

/// Remembers a direct write that was to be durable and failed: others flush this medium too, whether or not the one who
/// wrote is still there.
pub(super) fn remember_failure(export: &Attached, command: Command, result: &io::Result<usize>) {
    if let (Command::Write { fua: true, .. }, Err(error)) = (command, result)
        && !is_misfit(error)
        && let Some(raw) = export.begun_on().and_then(|io| io.raw())
    {
        raw.durable_write_failed(error);
    }
}

/// Reads if that does not block; `None` if it would.
fn read_now(client: &Client, io: &dyn BlockIo, target: &mut [u8], offset: u64) -> Option<io::Result<()>> {
    match client.way {
        Way::AtOnce => Some(io.read(target, offset)),
        Way::Direct(_) => io.raw()?.read_cached(target, offset, client.hits >= HITS).then_some(Ok(())),
        Way::Workers => None,
    }
}
