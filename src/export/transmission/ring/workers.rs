//! Threads for what blocks: media without a file of their own, flushes, trims, and all else that a ring cannot do.
//!
//! Threads come as they are needed, up to a limit, and go when they have had nothing to do for a while. How much one
//! connection may ask for at a time is limited by its reactor, so that a slow medium does not take all of them.

use super::super::desk::{self, Outcome};
use super::memory::Buffer;
use super::{ClientId, Mail, Mailbox};
use crate::export::table::Attached;
use crate::export::transmission::tally::Request;
use crate::io::Pass;
use crate::nbd::Command;
use nix::errno::Errno;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Threads at most: as many media may be slow at a time before others wait.
const MOST: usize = 64;

/// How long a thread waits for work.
const PATIENCE: Duration = Duration::from_secs(5);

/// One request to be carried out.
pub(super) struct Job {
    pub(super) request: Request,
    /// A read's target or a write's payload, and how many bytes of it.
    pub(super) buffer: Option<Buffer>,
    pub(super) length: usize,
    /// Held until the job is done, whatever becomes of its connection.
    pub(super) export: Arc<Attached>,
    pub(super) pass: Option<Pass>,
    /// Whose connection the answer goes to.
    pub(super) answer: (Arc<Mailbox>, ClientId),
}

/// A request that has been carried out, or not.
pub(super) struct Finished {
    pub(super) request: Request,
    pub(super) buffer: Option<Buffer>,
    pub(super) outcome: io::Result<Outcome>,
}

#[derive(Default)]
pub(super) struct Workers {
    shop: Mutex<Shop>,
    work: Condvar,
}

#[derive(Default)]
struct Shop {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

impl Workers {
    /// Has a job done by and by.
    pub(super) fn submit(self: &Arc<Self>, job: Job) {
        let mut shop = self.lock();
        shop.jobs.push_back(job);
        if shop.idle < shop.jobs.len() {
            shop.threads.retain(|thread| !thread.is_finished());
        }
        if shop.idle >= shop.jobs.len() || shop.threads.len() >= MOST {
            drop(shop);
            return self.work.notify_one();
        }
        let this = Arc::clone(self);
        match std::thread::Builder::new().name("nbd-worker".into()).spawn(move || this.work()) {
            Ok(thread) => shop.threads.push(thread),
            Err(error) if !shop.threads.is_empty() => tracing::warn!(%error, "no further thread for slow requests"),
            Err(error) => {
                let jobs = std::mem::take(&mut shop.jobs);
                drop(shop);
                for Job { request, answer: (mailbox, client), .. } in jobs {
                    let outcome = Err(io::Error::new(error.kind(), error.to_string()));
                    mailbox.post(Mail::Finished(client, Finished { request, buffer: None, outcome }));
                }
            }
        }
    }

    fn work(&self) {
        let mut shop = self.lock();
        loop {
            if let Some(job) = shop.jobs.pop_front() {
                drop(shop);
                job.perform();
                shop = self.lock();
                continue;
            }
            if shop.closed {
                return;
            }
            shop.idle += 1;
            let (back, waited) = self.work.wait_timeout(shop, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            shop = back;
            shop.idle -= 1;
            if waited.timed_out() && shop.jobs.is_empty() {
                return;
            }
        }
    }

    /// Returns when every job has been done and every thread has ended.
    pub(super) fn close(&self) {
        let mut shop = self.lock();
        shop.closed = true;
        let threads = std::mem::take(&mut shop.threads);
        drop(shop);
        self.work.notify_all();
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread for slow requests has panicked");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shop> {
        self.shop.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job {
    fn perform(self) {
        let Self { request, mut buffer, length, export, pass, answer: (mailbox, client) } = self;
        let bytes = buffer.as_deref_mut().and_then(|buffer| buffer.get_mut(..length)).unwrap_or_default();
        let outcome = match (export.io(), request.command) {
            // Retired or fenced while the job waited.
            (None, _) => Err(Errno::ESHUTDOWN.into()),
            (Some(io), Command::Read { offset, .. }) if !bytes.is_empty() => {
                io.read(bytes, offset).map(|()| Outcome::Done)
            }
            (Some(_), Command::Read { .. }) => Err(Errno::ENOMEM.into()),
            (Some(io), command) => desk::carry_out(io.as_ref(), command, bytes),
        };
        // Whoever waits for the medium to be let go, or for changes to end, waits for the answer too.
        drop((export, pass));
        mailbox.post(Mail::Finished(client, Finished { request, buffer, outcome }));
    }
}
