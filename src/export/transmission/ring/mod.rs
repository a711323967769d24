//! The engine on io_uring: a reactor per core, each with a ring, a thread and its share of the connections.
//!
//! ```text
//!   handshake ──session──▶ mailbox ──▶ reactor ◀──completions──▶ ring: sockets and files
//!                             ▲           │
//!                             └─finished──┴──jobs──▶ workers: what blocks
//! ```
//! A reactor never waits but in its ring. What the kernel would hand to threads of its own anyway is done at once where
//! it cannot block, and by the workers where it can. Buffers belong to operations until they complete; a connection that
//! is cut is let go when its last operation has ended.

mod client;
mod conversation;
mod memory;
mod message;
mod parting;
mod pieces;
mod quota;
mod reactor;
mod requests;
#[cfg(test)]
mod tests;
mod uring;
mod workers;

use super::{EngineError, Parting, Session};
use nix::sys::eventfd::{EfdFlags, EventFd};
use reactor::Reactor;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use workers::{Finished, Workers};

/// More reactors than this have not paid for themselves.
const MOST_REACTORS: usize = 8;

/// A connection of a reactor: its place, and which of those that have been at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ClientId {
    place: usize,
    round: u64,
}

/// What other threads have to say to a reactor.
enum Mail {
    Session(Box<Session>),
    Finished(ClientId, Finished),
    /// What the connection waited for may be there.
    Retry(ClientId),
    Drain,
    /// Hand every connection over, as soon as nothing of it is under way.
    Part(Parting),
    /// Keep those that are left.
    Stay,
    End,
}

/// A reactor's ear.
struct Mailbox {
    /// Absent when the reactor has ended: what comes then is dropped, and a session with its connection.
    mail: Mutex<Option<Vec<Mail>>>,
    bell: EventFd,
    /// Connections that have been given to the reactor.
    load: AtomicUsize,
}

impl Mailbox {
    fn new() -> io::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { mail: Mutex::new(Some(Vec::new())), bell, load: AtomicUsize::new(0) })
    }

    fn post(&self, mail: Mail) {
        let mut waiting = self.lock();
        let Some(queue) = waiting.as_mut() else {
            drop(waiting);
            return drop(mail);
        };
        queue.push(mail);
        let first = queue.len() == 1;
        drop(waiting);
        if first && let Err(error) = self.bell.write(1) {
            tracing::error!(%error, "a reactor cannot be called");
        }
    }

    /// Takes all there is, and leaves the empty room that it is given.
    fn take(&self, room: &mut Vec<Mail>) {
        if let Some(queue) = self.lock().as_mut() {
            std::mem::swap(queue, room);
        }
    }

    fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    fn close(&self) {
        let rest = self.lock().take();
        drop(rest);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Mail>>> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reactors, as other threads see them.
pub(in crate::export) struct Rings {
    mailboxes: Vec<Arc<Mailbox>>,
    workers: Arc<Workers>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Rings {
    /// # Errors
    /// `Uring` if the kernel has none for us, with nothing left running.
    pub(super) fn start(closing: &Arc<AtomicBool>) -> Result<Self, EngineError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut this = Self { mailboxes: Vec::new(), workers: Arc::default(), threads: Mutex::default() };
        for number in 0..cores.min(MOST_REACTORS) {
            if let Err(error) = this.add(number, closing) {
                this.end();
                return Err(error);
            }
        }
        Ok(this)
    }

    /// A ring belongs to the thread that makes it, so the thread reports how that went.
    fn add(&mut self, number: usize, closing: &Arc<AtomicBool>) -> Result<(), EngineError> {
        let mailbox = Arc::new(Mailbox::new().map_err(EngineError::Thread)?);
        let (report, started) = mpsc::channel();
        let (theirs, workers, closing) = (Arc::clone(&mailbox), Arc::clone(&self.workers), Arc::clone(closing));
        let thread = std::thread::Builder::new().name(format!("nbd-ring-{number}")).spawn(move || {
            let mut reactor = match Reactor::new(theirs, workers, closing) {
                Ok(reactor) => reactor,
                Err(error) => return drop(report.send(Err(error))),
            };
            if report.send(Ok(())).is_ok() {
                reactor.run();
            }
        });
        let thread = thread.map_err(EngineError::Thread)?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        let outcome = started.recv().unwrap_or_else(|_| Err(io::Error::other("the reactor has panicked")));
        outcome.map_err(EngineError::Uring)?;
        self.mailboxes.push(mailbox);
        Ok(())
    }

    /// Gives a session to the reactor that has fewest.
    pub(super) fn take(&self, session: Session) {
        let open = self.mailboxes.iter().filter(|mailbox| mailbox.is_open());
        let Some(mailbox) = open.min_by_key(|it| it.load.load(Ordering::SeqCst)) else { return };
        mailbox.load.fetch_add(1, Ordering::SeqCst);
        mailbox.post(Mail::Session(Box::new(session)));
    }

    pub(super) fn drain(&self) {
        self.mailboxes.iter().for_each(|mailbox| mailbox.post(Mail::Drain));
    }

    pub(super) fn part(&self, parting: &Parting) {
        self.mailboxes.iter().for_each(|mailbox| mailbox.post(Mail::Part(Arc::clone(parting))));
    }

    pub(super) fn stay(&self) {
        self.mailboxes.iter().for_each(|mailbox| mailbox.post(Mail::Stay));
    }

    pub(super) fn end(&self) {
        self.mailboxes.iter().for_each(|mailbox| mailbox.post(Mail::End));
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a reactor has panicked");
            }
        }
        self.workers.close();
    }
}
