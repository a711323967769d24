//! One connection's dealings with its export's account: what has come, how it ended, and what has to wait. Its thread's
//! own; counts reach the account when a batch is over.

use crate::export::account::Account;
use crate::export::meter::{Alike, Gauge, Meter};
use crate::export::quota::{Ration, Waker};
use crate::model::Operation;
use crate::nbd::Command;
use crate::nbd::reply::Reply;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A request that may be carried out, from its header to its answer: to be given to [`Tally::end`], whatever comes of
/// it, unless its connection ends first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) reply: Reply,
    pub(super) command: Command,
    /// When its header was read.
    begun: Instant,
}

impl Request {
    /// A part of it.
    pub(super) fn with(self, command: Command) -> Self {
        Self { command, ..self }
    }

    /// As it was read.
    pub(super) fn on_the_wire(&self) -> crate::nbd::Request {
        crate::nbd::Request { reply: self.reply, command: self.command }
    }
}

/// See the module. Dropping it ends the connection for the account.
pub(super) struct Tally {
    account: Arc<Account>,
    shard: usize,
    gauge: Arc<Gauge>,
    ration: Ration,
    in_flight: u32,
    now: Instant,
    /// By kinds, those that have ended in the batch in which they came.
    ended: [Alike; Operation::ALL.len()],
    /// There are some.
    pending: bool,
}

impl Tally {
    /// For a connection that is served by this thread; `waker` calls it when it may have to wait no longer.
    pub(super) fn new(account: &Arc<Account>, waker: Option<Waker>) -> Self {
        Self {
            account: Arc::clone(account),
            shard: Meter::shard_of_this_thread(),
            gauge: account.meter.enter(),
            ration: account.quota.join(waker),
            in_flight: 0,
            now: Instant::now(),
            ended: Default::default(),
            pending: false,
        }
    }

    /// A batch begins, at this time.
    pub(super) fn tick(&mut self, now: Instant) {
        self.now = now;
    }

    /// A request's header has been read.
    pub(super) fn begin(&mut self, request: crate::nbd::Request) -> Request {
        self.begin_at(request, self.now)
    }

    /// A request's header was read earlier.
    pub(super) fn begin_at(&mut self, request: crate::nbd::Request, begun: Instant) -> Request {
        self.set_in_flight(self.in_flight.saturating_add(1));
        Request { reply: request.reply, command: request.command, begun }
    }

    /// A request has been answered.
    pub(super) fn end(&mut self, request: Request, failed: bool) {
        self.set_in_flight(self.in_flight.saturating_sub(1));
        let (operation, bytes) = weigh(request.command);
        let (bytes, errors) = if failed { (0, 1) } else { (bytes, 0) };
        if request.begun == self.now
            && let Some(alike) = self.ended.get_mut(operation as usize)
        {
            *alike = Alike {
                count: alike.count + 1,
                bytes: alike.bytes.saturating_add(bytes),
                errors: alike.errors + errors,
            };
            self.pending = true;
            return;
        }
        let took = self.now.saturating_duration_since(request.begun);
        self.account.meter.count(self.shard, operation, took, Alike { count: 1, bytes, errors });
    }

    /// A request is answered with an error, and nothing was done for it.
    pub(super) fn refuse(&self) {
        self.account.meter.count_refused(self.shard);
    }

    /// A request that had begun is to be refused.
    pub(super) fn take_back(&mut self) {
        self.set_in_flight(self.in_flight.saturating_sub(1));
    }

    /// A batch is over: those that have ended in it took until now. Reads the clock if there are any.
    pub(super) fn settle(&mut self) {
        if std::mem::take(&mut self.pending) {
            let took = self.now.elapsed();
            for (operation, ended) in Operation::ALL.into_iter().zip(std::mem::take(&mut self.ended)) {
                if ended.count > 0 {
                    self.account.meter.count(self.shard, operation, took, ended);
                }
            }
        }
    }

    /// Whether a command may be carried out as far as the export's limits go; if not, when it makes sense to
    /// [`Self::ask_again`]. To be asked once for each, and for no other one while one waits.
    pub(super) fn ask(&mut self, command: Command) -> Option<Duration> {
        // What was promised to be durable is never held up by a limit of its own.
        if command == Command::Flush {
            return None;
        }
        let bytes = match command {
            Command::Read { length, .. } | Command::Write { length, .. } => u64::from(length),
            _ => 0,
        };
        let left = self.account.quota.ask(&mut self.ration, bytes);
        if left.is_some() {
            self.account.meter.count_throttled(self.shard);
        }
        left
    }

    /// As [`Self::ask`], for the one that waits.
    pub(super) fn ask_again(&mut self) -> Option<Duration> {
        self.account.quota.ask_again(&mut self.ration)
    }

    /// The one that waits waits no longer: there is something more urgent than the limits.
    pub(super) fn waive(&mut self) {
        self.account.quota.waive(&mut self.ration);
    }

    /// Blocks until the one that waits may be carried out, or `over`.
    pub(super) fn wait(&mut self, over: impl Fn() -> bool) {
        self.account.quota.wait(&mut self.ration, over);
    }

    fn set_in_flight(&mut self, count: u32) {
        self.in_flight = count;
        self.gauge.set(count);
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.settle();
        self.account.meter.leave(&self.gauge);
        self.account.quota.leave(&mut self.ration);
    }
}

/// What a command counts as, and how many bytes it is about.
fn weigh(command: Command) -> (Operation, u64) {
    match command {
        Command::Read { length, .. } => (Operation::Read, u64::from(length)),
        Command::Write { length, .. } => (Operation::Write, u64::from(length)),
        Command::Flush => (Operation::Flush, 0),
        Command::Trim { length, .. } => (Operation::Trim, length),
        Command::WriteZeroes { length, .. } => (Operation::Zero, length),
        Command::Cache { .. } | Command::BlockStatus { .. } => (Operation::Other, 0),
    }
}
