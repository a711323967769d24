//! The loop of one reactor: what has completed is taken in, connections go on as far as they can, and all that has
//! begun is handed to the kernel in one call.

use super::client::{Client, Waits, Way};
use super::memory::{Buffer, Heap};
use super::message::{Message, Parcel};
use super::parting::is_cancelled;
use super::quota::Alarms;
use super::requests::remember_failure;
use super::uring::{Done, Handle, Held, Ring};
use super::workers::Workers;
use super::{ClientId, Mail, Mailbox};
use crate::export::quota::Waker;
use crate::export::table::Attached;
use crate::export::transmission::tally::{Request, Tally};
use crate::export::transmission::{Parting, Session};
use crate::io::Pass;
use crate::nbd::PIECE;
use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Memory for data that does not fit into the ring's own region, in bytes: all connections of a reactor together. One
/// modest request of each connection, or one piece of a larger one, may go beyond it.
const HEAP: usize = 64 << 20;

/// A modest request, in bytes. Larger ones are carried out in pieces as long as others hold all the memory there is.
pub(super) const MODEST: usize = PIECE as usize;

/// Replies on their way out, in bytes, from which on a connection must have sent what it owes before it goes on.
const UNSENT: usize = 32 << 20;

/// A connection that does large writes: payloads from this length on, in bytes.
pub(super) const BULK: usize = 32 << 10;

/// What an operation of the ring is for. One that works on the medium holds the export until the kernel is done with it,
/// whatever becomes of its connection: nobody who waits for the export to be let go is told so before.
pub(super) enum Task {
    Bell,
    Receive(ClientId),
    Watch(ClientId),
    Send(ClientId),
    /// A read of so many bytes of which the answer begins at `skip`.
    Read {
        client: ClientId,
        request: Request,
        skip: usize,
        export: Arc<Attached>,
    },
    Write {
        client: ClientId,
        request: Request,
        pass: Option<Pass>,
        gate: Option<Pass>,
        export: Arc<Attached>,
    },
}

pub(super) struct Reactor {
    pub(super) ring: Ring<Task>,
    pub(super) mailbox: Arc<Mailbox>,
    /// Empty: memory for the next ones.
    mails: Vec<Mail>,
    pub(super) workers: Arc<Workers>,
    pub(super) closing: Arc<AtomicBool>,
    pub(super) clients: Vec<Option<Box<Client>>>,
    vacant: Vec<usize>,
    rounds: u64,
    /// Connections that can go on.
    pub(super) ready: VecDeque<ClientId>,
    /// Connections that wait for memory.
    pub(super) starved: Vec<ClientId>,
    pub(super) spare: Vec<Parcel>,
    /// What they take.
    pub(super) spare_bytes: usize,
    heap: Arc<Heap>,
    /// Bytes of the messages that are being sent.
    pub(super) unsent: usize,
    draining: bool,
    ending: bool,
    /// While connections are being handed over: who takes them, and until when those are waited for that cannot be yet.
    pub(super) parting: Option<(Parting, Instant)>,
    /// Of the last turn of the ring.
    pub(super) now: Instant,
    pub(super) alarms: Alarms,
}

impl Reactor {
    pub(super) fn new(mailbox: Arc<Mailbox>, workers: Arc<Workers>, closing: Arc<AtomicBool>) -> io::Result<Self> {
        let mut ring = Ring::new()?;
        ring.watch(Task::Bell, bell(&mailbox), libc::POLLIN);
        Ok(Self {
            ring,
            mailbox,
            mails: Vec::new(),
            workers,
            closing,
            clients: Vec::new(),
            vacant: Vec::new(),
            rounds: 0,
            ready: VecDeque::new(),
            starved: Vec::new(),
            spare: Vec::new(),
            spare_bytes: 0,
            heap: Arc::default(),
            unsent: 0,
            draining: false,
            ending: false,
            parting: None,
            now: Instant::now(),
            alarms: Alarms::default(),
        })
    }

    /// Until told to end, and until every connection is gone.
    pub(super) fn run(&mut self) {
        let mut done = Vec::new();
        while !(self.ending && self.clients.iter().all(Option::is_none)) {
            if let Err(error) = self.turn(&mut done) {
                tracing::error!(%error, "a reactor's ring has failed: its connections end");
                return;
            }
        }
    }

    /// `done` is empty memory, and is left so.
    pub(super) fn turn(&mut self, done: &mut Vec<Done<Task>>) -> io::Result<()> {
        let patience = self.alarms.patience(self.now);
        let wait = usize::from(self.ready.is_empty() && patience != Some(Duration::ZERO));
        self.ring.turn(wait, patience, done)?;
        self.now = Instant::now();
        for done in done.drain(..) {
            self.take_in(done);
        }
        self.ring_alarms();
        self.ready.extend(self.starved.drain(..));
        for _ in 0..self.ready.len() {
            if let Some(id) = self.ready.pop_front() {
                self.advance(id);
            }
        }
        Ok(())
    }

    fn take_in(&mut self, done: Done<Task>) {
        let Done { task, result, held, provided } = done;
        match task {
            Task::Bell => self.answer_the_bell(),
            // Both directions have ended: nobody is there to answer.
            Task::Watch(id) => self.with(id, |_, client| {
                client.watched = false;
                client.broken |= !result.is_err_and(|error| is_cancelled(&error));
            }),
            Task::Receive(id) => self.with(id, |this, client| this.received(client, result, held, provided)),
            Task::Send(id) => {
                self.unsent -= if let Held::Message(message) = &held { message.len() } else { 0 };
                self.with(id, |this, client| this.sent(client, result, held));
            }
            Task::Read { client, request, skip, export } => {
                drop(export);
                self.with(client, |this, it| {
                    this.try_on(it, |this, it| this.was_read(client, it, request, skip, result, held))
                });
            }
            Task::Write { client, request, pass, gate, export } => {
                remember_failure(&export, request.command, &result);
                drop((gate, export));
                self.with(client, |this, it| {
                    this.try_on(it, |this, it| this.was_written(client, it, request, pass, result, held));
                });
            }
        }
    }

    fn answer_the_bell(&mut self) {
        if let Err(error) = self.mailbox.bell.read()
            && error != nix::errno::Errno::EAGAIN
        {
            tracing::error!(%error, "a reactor's bell is broken");
        }
        let mut mails = std::mem::take(&mut self.mails);
        self.mailbox.take(&mut mails);
        for mail in mails.drain(..) {
            match mail {
                Mail::Session(session) => self.admit(*session),
                Mail::Finished(id, finished) => self.with(id, |this, client| this.finished(client, finished)),
                Mail::Retry(id) => self.with(id, |_, client| {
                    if let Some((_, _, waits @ Waits::Gate)) = &mut client.waiting {
                        *waits = Waits::Room;
                    }
                }),
                Mail::Drain => {
                    self.draining = true;
                    self.call_all();
                }
                Mail::Part(parting) => self.part(parting),
                Mail::Stay => {
                    self.parting = None;
                    self.call_all();
                }
                Mail::End => {
                    self.ending = true;
                    self.call_all();
                }
            }
        }
        self.mails = mails;
        self.ring.watch(Task::Bell, bell(&self.mailbox), libc::POLLIN);
    }

    pub(super) fn call_all(&mut self) {
        let ids: Vec<ClientId> = self
            .clients
            .iter()
            .enumerate()
            .filter_map(|(place, client)| Some(ClientId { place, round: client.as_ref()?.round }))
            .collect();
        self.ready.extend(ids);
    }

    pub(super) fn admit(&mut self, session: Session) {
        let place = self.vacant.pop().unwrap_or(self.clients.len());
        if place == self.clients.len() {
            self.clients.push(None);
        }
        self.rounds += 1;
        let socket = self.ring.register(2 * place, session.presence.stream().as_fd());
        let way = match session.export.io().and_then(|io| io.raw()) {
            Some(raw) if raw.is_in_memory() => Way::AtOnce,
            Some(raw) => raw
                .direct()
                .map_or(Way::Workers, |direct| Way::Direct(self.ring.register(2 * place + 1, direct.file().as_fd()))),
            None => Way::Workers,
        };
        let (mailbox, id) = (Arc::clone(&self.mailbox), ClientId { place, round: self.rounds });
        let waker: Waker = Arc::new(move || mailbox.post(Mail::Retry(id)));
        let tally = Tally::new(session.export.account(), Some(waker));
        let client = Client::new(session, tally, self.rounds, socket, way);
        if let Some(seat) = self.clients.get_mut(place) {
            *seat = Some(Box::new(client));
        }
        self.ready.push_back(ClientId { place, round: self.rounds });
    }

    /// Lets something happen to a connection, if it is still there, and has it go on afterwards.
    fn with(&mut self, id: ClientId, happens: impl FnOnce(&mut Self, &mut Client)) {
        let Some(mut client) = self.clients.get_mut(id.place).and_then(Option::take) else { return };
        if client.round == id.round {
            client.tally.tick(self.now);
            happens(self, &mut client);
            if !std::mem::replace(&mut client.queued, true) {
                self.ready.push_back(id);
            }
        }
        if let Some(seat) = self.clients.get_mut(id.place) {
            *seat = Some(client);
        }
    }

    /// What fails here has failed in the ring: the connection cannot go on.
    fn try_on(&mut self, client: &mut Client, what: impl FnOnce(&mut Self, &mut Client) -> io::Result<()>) {
        if let Err(error) = what(self, client) {
            tracing::warn!(export = client.session.name, %error, "an NBD connection cannot go on");
            client.broken = true;
        }
    }

    fn advance(&mut self, id: ClientId) {
        let Some(mut client) = self.clients.get_mut(id.place).and_then(Option::take) else { return };
        let goes_on = client.round != id.round || {
            client.queued = false;
            self.go_on(id, &mut client)
        };
        if goes_on {
            if let Some(seat) = self.clients.get_mut(id.place) {
                *seat = Some(client);
            }
            return;
        }
        self.ring.unregister(client.socket);
        if let Way::Direct(file) = client.way {
            self.ring.unregister(file);
        }
        self.vacant.push(id.place);
        self.mailbox.load.fetch_sub(1, Ordering::SeqCst);
        self.part_with(*client);
    }

    /// Says whether the connection stays.
    fn go_on(&mut self, id: ClientId, client: &mut Client) -> bool {
        // A retired export, or a fenced guest, takes no further step, even for requests that are already here.
        client.broken |= client.session.export.io().is_none();
        if !client.broken && self.is_out_of_patience(client) {
            tracing::warn!(
                export = client.session.name,
                "an NBD client has to connect again: its request takes too long"
            );
            client.broken = true;
        }
        if self.stops(client) && !client.broken {
            return !client.is_still();
        }
        if !client.broken
            && let Err(error) = self.serve(id, client)
        {
            tracing::debug!(export = client.session.name, %error, "an NBD connection ended");
            client.broken = true;
        }
        if client.broken {
            client.outgoing = None;
            client.incoming = None;
            client.waiting = None;
        } else if self.stops(client) {
            self.halt(client);
            return !client.is_still();
        }
        let over = client.broken || (client.leaving || self.ending) && client.is_settled();
        if !over {
            if self.draining && !client.hushed && client.is_settled() {
                // What has arrived is still received and answered; then the end is.
                client.hushed = true;
                hang_up(client, Shutdown::Read);
            }
            return true;
        }
        self.let_go_of_input(client);
        if !client.is_still() {
            hang_up(client, Shutdown::Both);
        }
        client.broken = true;
        !client.is_still()
    }

    /// Whether so much is on its way out that a connection should not add to what it owes.
    pub(super) fn is_crowded(&self) -> bool {
        self.unsent >= UNSENT
    }

    /// Where replies are laid out.
    pub(super) fn outgoing<'a>(&mut self, client: &'a mut Client) -> &'a mut Message {
        client.outgoing.get_or_insert_with(|| {
            let spare = self.spare.pop();
            self.spare_bytes -= spare.as_ref().map_or(0, |message| message.footprint());
            spare.unwrap_or_else(Message::new)
        })
    }

    /// Memory for data; `None` if others have to let go of some first.
    pub(super) fn buffer(&self, client: &Client, length: usize) -> Option<Buffer> {
        if let Some(buffer) = self.ring.fixed_buffer(length) {
            return Some(buffer);
        }
        // Those who take no replies may hold all there is: a connection that holds nothing goes on even so.
        let modest = length <= MODEST && !client.holds_data();
        let fits = self.heap.used().saturating_add(length) <= HEAP;
        (modest || fits).then(|| self.heap.take(length))
    }

    /// Drops every connection, whatever is in flight for it.
    #[cfg(test)]
    pub(super) fn lose_clients(&mut self) {
        self.clients.iter_mut().for_each(|seat| *seat = None);
    }

    /// Whether an operation on a medium is in flight.
    #[cfg(test)]
    pub(super) fn works_on_media(&self) -> bool {
        self.clients.iter().flatten().any(|client| client.in_flight > 0)
    }

    /// Whether no connection but the one at hand has anything in flight or to go on with.
    pub(super) fn is_quiet(&self) -> bool {
        self.ready.is_empty() && self.clients.iter().flatten().all(|other| other.in_flight == 0)
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

fn hang_up(client: &Client, how: Shutdown) {
    if let Err(error) = client.session.presence.stream().shutdown(how) {
        tracing::debug!(%error, "hanging up on an NBD client");
    }
}

fn bell(mailbox: &Mailbox) -> Handle {
    Handle::Plain(std::os::fd::AsRawFd::as_raw_fd(&mailbox.bell.as_fd()))
}
