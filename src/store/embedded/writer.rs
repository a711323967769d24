//! The one thread that writes: it takes everything queued, applies it in order in one write transaction of the file,
//! makes that durable once, and only then publishes and answers.
//!
//! A failed write leaves open what reached the medium. The file is then opened anew, which tells: where more is found
//! than was published, watchers have missed it and list again.

use super::{Clock, Medium, Shared, file, tables};
use crate::store::{Batch, Commit, LeaseId, Revision, StoreError, Txn};
use redb::{Database, ReadableDatabase};
use std::sync::{
    Arc, PoisonError,
    mpsc::{Receiver, RecvTimeoutError},
};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

/// How many requests may wait, and so how many one write transaction takes at most.
pub(super) const QUEUE: usize = 256;

/// Opens the file, the first time and after every failure.
pub(super) type Open = Box<dyn Fn() -> Result<Database, StoreError> + Send>;

pub(super) struct Queued {
    pub work: Work,
    /// The place in the queue, free again once the answer is sent.
    pub place: OwnedSemaphorePermit,
}

pub(super) enum Work {
    Commit(Ask<Txn, Commit>),
    /// A lease of so many seconds.
    Grant(Ask<u32, LeaseId>),
    Revoke(Ask<LeaseId, ()>),
    /// Nothing of its own: leases that ran out are ended and a failed file is opened anew, as with every request.
    Tend(Ask<(), ()>),
}

/// A question, its answer once there is one, and where the answer goes.
pub(super) struct Ask<T, R> {
    input: T,
    answer: Option<R>,
    reply: oneshot::Sender<Result<R, StoreError>>,
    refusal: Option<StoreError>,
}

impl<T, R> Ask<T, R> {
    pub fn new(input: T) -> (Self, oneshot::Receiver<Result<R, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        (Self { input, answer: None, reply, refusal: None }, answer)
    }

    fn reply(self, failure: Option<&StoreError>) {
        let outcome = match (failure.cloned().or(self.refusal), self.answer) {
            (None, Some(answer)) => Ok(answer),
            (error, _) => Err(error.unwrap_or_else(|| StoreError::Unavailable("it did not answer".into()))),
        };
        // Whoever asked may have gone; what was done stays done.
        drop(self.reply.send(outcome));
    }
}

impl Work {
    fn apply(&mut self, draft: &mut tables::Draft) -> Result<(), redb::Error> {
        match self {
            Work::Commit(ask) => match draft.commit(std::mem::take(&mut ask.input))? {
                Ok(commit) => ask.answer = Some(commit),
                Err(refusal) => ask.refusal = Some(refusal),
            },
            Work::Grant(ask) => ask.answer = Some(draft.grant(ask.input)?),
            Work::Revoke(ask) => ask.answer = Some(draft.end_lease(ask.input)?),
            Work::Tend(ask) => ask.answer = Some(()),
        }
        Ok(())
    }

    fn reply(self, failure: Option<&StoreError>) {
        match self {
            Work::Commit(ask) => ask.reply(failure),
            Work::Grant(ask) => ask.reply(failure),
            Work::Revoke(ask) => ask.reply(failure),
            Work::Tend(ask) => ask.reply(failure),
        }
    }
}

/// Why a group was not written.
enum Failed {
    /// The file could not be used; the group is as it was.
    BeforeWork(StoreError),
    /// Some of it may have reached the medium.
    InDoubt(StoreError),
}

fn in_doubt(error: StoreError) -> StoreError {
    match error {
        StoreError::Unavailable(text) => {
            StoreError::Unavailable(format!("whether the request took effect is not known: {text}"))
        }
        other => other,
    }
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    queue: Receiver<Queued>,
    open: Open,
    clock: Clock,
    /// Closes with the writer, which ends every watch.
    published: watch::Sender<Revision>,
}

impl Writer {
    pub fn new(
        shared: Arc<Shared>,
        queue: Receiver<Queued>,
        open: Open,
        clock: Clock,
        published: watch::Sender<Revision>,
    ) -> Self {
        Self { shared, queue, open, clock, published }
    }

    /// Serves until nobody can ask any more and everything asked is answered.
    pub fn run(self) {
        while let Some(first) = self.wait() {
            let (mut group, mut places) = (Vec::new(), Vec::new());
            let rest = std::iter::from_fn(|| self.queue.try_recv().ok());
            for Queued { work, place } in first.into_iter().chain(rest).take(QUEUE) {
                group.push(work);
                places.push(place);
            }
            self.settle(group);
        }
    }

    /// The next request; none inside if a lease ran out first; none at all if there will be no more.
    fn wait(&self) -> Option<Option<Queued>> {
        let deadline = self.shared.leases().next_deadline();
        let Some(deadline) = deadline else { return self.queue.recv().ok().map(Some) };
        match self.queue.recv_timeout(deadline.saturating_sub((self.clock)())) {
            Ok(queued) => Some(Some(queued)),
            Err(RecvTimeoutError::Timeout) => Some(None),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    fn settle(&self, mut group: Vec<Work>) {
        let due = self.shared.leases().take_due((self.clock)());
        if group.is_empty() && due.is_empty() {
            return;
        }
        let mut outcome = self.write(&mut group, &due);
        if let Err(Failed::BeforeWork(_)) = outcome {
            self.mend();
            outcome = self.write(&mut group, &due);
        }
        let failure = match outcome {
            Ok(batches) => {
                self.publish(batches);
                self.time_leases(&group, &due);
                None
            }
            Err(Failed::BeforeWork(error)) => Some(error),
            Err(Failed::InDoubt(error)) => {
                tracing::error!(%error, "the store could not write");
                self.mend();
                Some(in_doubt(error))
            }
        };
        group.into_iter().for_each(|work| work.reply(failure.as_ref()));
    }

    /// Does everything asked and makes it durable.
    fn write(&self, group: &mut [Work], due: &[LeaseId]) -> Result<Vec<Batch>, Failed> {
        let medium = self.shared.medium.read().unwrap_or_else(PoisonError::into_inner);
        let database = medium.database().map_err(Failed::BeforeWork)?;
        let mut begun = false;
        let written = file::guarded(&self.shared.path, || {
            let write = database.begin_write()?;
            let mut draft = tables::Draft::open(&write, self.shared.history.latest())?;
            begun = true;
            due.iter().try_for_each(|lease| draft.end_lease(*lease))?;
            group.iter_mut().try_for_each(|work| work.apply(&mut draft))?;
            match draft.finish()? {
                Some(batches) => write.commit().map(|()| batches).map_err(Into::into),
                None => write.abort().map(|()| Vec::new()).map_err(Into::into),
            }
        });
        written.map_err(if begun { Failed::InDoubt } else { Failed::BeforeWork })
    }

    fn publish(&self, batches: Vec<Batch>) {
        if !batches.is_empty() {
            self.shared.history.push(batches);
            self.published.send_replace(self.shared.history.latest());
        }
    }

    /// A lease's time starts when it is durable, not before.
    fn time_leases(&self, group: &[Work], ended: &[LeaseId]) {
        let (mut leases, now) = (self.shared.leases(), (self.clock)());
        // Taken out already, unless the file was opened anew in between.
        ended.iter().for_each(|lease| leases.end(*lease));
        for work in group {
            match work {
                Work::Grant(ask) => {
                    if let Some(id) = ask.answer {
                        leases.begin(id, std::time::Duration::from_secs(ask.input.into()), now);
                    }
                }
                Work::Revoke(ask) => leases.end(ask.input),
                Work::Commit(_) | Work::Tend(_) => {}
            }
        }
    }

    /// Opens the file anew after a failure. What is damaged stays closed; anything else is tried again next time.
    fn mend(&self) {
        let mut medium = self.shared.medium.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*medium, Medium::Broken(StoreError::Damaged(_))) {
            return;
        }
        // The old handle holds the file's lock.
        *medium = Medium::Broken(StoreError::Unavailable("its file is being opened anew".into()));
        *medium = match self.reload() {
            Ok(database) => Medium::Open(database),
            Err(error) => {
                tracing::error!(%error, "the store's file could not be opened anew");
                Medium::Broken(error)
            }
        };
    }

    fn reload(&self) -> Result<Database, StoreError> {
        let database = (self.open)()?;
        let (revision, leases) = file::guarded(&self.shared.path, || {
            let read = database.begin_read()?;
            Ok((tables::revision(&read)?, tables::leases(&read)?))
        })?;
        let latest = self.shared.history.latest();
        if revision < latest {
            let path = self.shared.path.display();
            let text = format!("{path} went back from revision {} to {}", latest.0, revision.0);
            return Err(StoreError::Damaged(text));
        }
        if revision > latest {
            self.shared.history.restart(revision);
            self.published.send_replace(revision);
        }
        self.shared.leases().restart(leases, (self.clock)());
        Ok(database)
    }
}
