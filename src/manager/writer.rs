//! The one task through which a manager writes: it plans on the view, commits, and waits until the view shows it.
//!
//! Whatever is waiting is planned into one transaction, so that many small requests cost one commit, and requests of
//! one manager never conflict with each other. A conflict with another manager plans everything anew.

use super::draft::Draft;
use super::refusal::Refusal;
use super::view::ViewHandle;
use crate::model::EventId;
use crate::runtime::{Backoff, Clock, Shutdown};
use crate::store::{Commit, MAX_TXN_OPS, SharedStore, StoreError, Txn};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How many requests wait before callers do.
const QUEUE: usize = 1024;
/// How often a batch is planned anew because others were faster.
const ATTEMPTS: u32 = 30;
/// A plan larger than the rest of a transaction starts the next one.
const MAX_WEIGHT: usize = MAX_TXN_OPS;

/// Hands plans to the writer's task. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::Sender<Box<dyn Job>>,
}

/// A request: it can be planned any number of times and is answered once.
trait Job: Send {
    /// Plans onto the draft; false if the plan was refused and must be undone.
    fn plan(&mut self, draft: &mut Draft<'_>) -> bool;
    /// Answers with the last plan's outcome, or with what befell the whole batch.
    fn answer(self: Box<Self>, batch: Result<(), Refusal>);
}

struct Request<T, P> {
    plan: P,
    planned: Option<Result<T, Refusal>>,
    /// It was judged on what others of its batch had planned before it.
    leans: bool,
    reply: oneshot::Sender<Result<T, Refusal>>,
}

impl<T, P> Job for Request<T, P>
where
    T: Send,
    P: FnMut(&mut Draft<'_>) -> Result<T, Refusal> + Send,
{
    fn plan(&mut self, draft: &mut Draft<'_>) -> bool {
        self.leans = !draft.is_empty();
        let planned = (self.plan)(draft);
        let kept = planned.is_ok();
        self.planned = Some(planned);
        kept
    }

    fn answer(self: Box<Self>, batch: Result<(), Refusal>) {
        let outcome = match (batch, self.planned) {
            // A refusal stands even if the batch failed, where it was judged on what the view showed and on nothing else.
            (Ok(()), Some(Err(refusal))) => Err(refusal),
            (Err(_), Some(Err(refusal))) if !self.leans => Err(refusal),
            (Err(refusal), _) => Err(refusal),
            (Ok(()), Some(planned)) => planned,
            (Ok(()), None) => Err(Refusal::Stopping),
        };
        if self.reply.send(outcome).is_err() {
            tracing::debug!("nobody waits for the outcome of a write any more");
        }
    }
}

impl Writer {
    pub fn start(store: SharedStore, view: Arc<ViewHandle>, clock: Arc<dyn Clock>, shutdown: &Shutdown) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let task = Task { store, view, clock, jobs, waiting: VecDeque::new() };
        let group = shutdown.clone();
        shutdown.spawn(async move { task.run(&group).await });
        Self { queue }
    }

    /// Plans on the newest view, as often as it takes, until the plan is committed and visible or refused.
    ///
    /// # Errors
    /// The plan's own refusal, or that the store could not be written.
    pub async fn write<T: Send + 'static>(
        &self,
        plan: impl FnMut(&mut Draft<'_>) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (reply, outcome) = oneshot::channel();
        let job = Box::new(Request { plan, planned: None, leans: false, reply });
        self.queue.send(job).await.map_err(|_| Refusal::Stopping)?;
        outcome.await.map_err(|_| Refusal::Stopping)?
    }
}

struct Task {
    store: SharedStore,
    view: Arc<ViewHandle>,
    clock: Arc<dyn Clock>,
    jobs: mpsc::Receiver<Box<dyn Job>>,
    waiting: VecDeque<Box<dyn Job>>,
}

impl Task {
    async fn run(mut self, group: &Shutdown) {
        loop {
            if self.waiting.is_empty() {
                let job = tokio::select! {
                    job = self.jobs.recv() => job,
                    () = group.requested() => return,
                };
                let Some(job) = job else { return };
                self.waiting.push_back(job);
            }
            while self.waiting.len() < QUEUE
                && let Ok(job) = self.jobs.try_recv()
            {
                self.waiting.push_back(job);
            }
            let (batch, outcome) = self.write_some(group).await;
            for job in batch {
                job.answer(outcome.clone());
            }
        }
    }

    /// Takes as many waiting jobs as fit into a transaction and brings them to an end.
    async fn write_some(&mut self, group: &Shutdown) -> (Vec<Box<dyn Job>>, Result<(), Refusal>) {
        let mut backoff = Backoff::new(Duration::from_millis(2), Duration::from_millis(100));
        let mut batch = Vec::new();
        let mut most = usize::MAX;
        for _ in 0..ATTEMPTS {
            let listing = self.view.listing();
            let txn = self.plan(&mut batch, most);
            let shows = txn.as_ref().is_ok_and(|txn| txn.as_ref().is_some_and(|txn| !txn.ops.is_empty()));
            let outcome = match txn {
                Ok(None) => return (batch, Ok(())),
                Ok(Some(txn)) => self.store.commit(txn).await,
                Err(error) => return (batch, Err(Refusal::Invalid(error.to_string()))),
            };
            match outcome {
                // What was only compared is as the view shows it.
                Ok(Commit::Done(_)) if !shows => return (batch, Ok(())),
                Ok(Commit::Done(revision)) => {
                    tokio::select! {
                        () = self.view.catch_up(revision, listing, self.clock.as_ref()) => {}
                        () = group.requested() => self.view.owe(revision, listing, self.clock.wall()),
                    }
                    return (batch, Ok(()));
                }
                // The view is behind: give it a moment to show what got in between.
                Ok(Commit::Conflict) => {
                    let mut changes = self.view.changes();
                    changes.mark_unchanged();
                    let wait = backoff.next(fastrand::f64());
                    if let Ok(Err(_gone)) = tokio::time::timeout(wait, changes.changed()).await {
                        return (batch, Err(Refusal::Stopping));
                    }
                    self.put_back(&mut batch);
                }
                Err(StoreError::Unavailable(reason)) => return (batch, Err(Refusal::InDoubt(reason))),
                // Nothing was written, because of one of them: each is tried alone, so that the others go on.
                Err(_) if batch.len() > 1 => {
                    self.put_back(&mut batch);
                    most = 1;
                }
                Err(error) => return (batch, Err(error.into())),
            }
        }
        batch.extend(self.waiting.pop_front());
        (batch, Err(Refusal::Busy))
    }

    fn put_back(&mut self, batch: &mut Vec<Box<dyn Job>>) {
        for job in batch.drain(..).rev() {
            self.waiting.push_front(job);
        }
    }

    /// Plans as many jobs as fit, `most` at the most, into one transaction.
    fn plan(&mut self, batch: &mut Vec<Box<dyn Job>>, most: usize) -> Result<Option<Txn>, serde_json::Error> {
        let view = self.view.read();
        let mut draft = Draft::new(&view, self.clock.wall(), EventId::generate());
        while batch.len() < most
            && let Some(mut job) = self.waiting.pop_front()
        {
            let savepoint = draft.savepoint();
            let kept = job.plan(&mut draft);
            if kept && draft.weight() > MAX_WEIGHT && !batch.is_empty() {
                draft.undo_to(savepoint);
                self.waiting.push_front(job);
                break;
            }
            if !kept {
                draft.undo_to(savepoint);
            }
            batch.push(job);
        }
        draft.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::view::View;
    use crate::model::{Kind, Name, Timestamp};

    /// What somebody is told who wants the name `v`, where somebody else of the batch wants it first, or nobody does, and
    /// nobody knows whether the batch was committed.
    fn told_in_doubt(first: bool) -> Refusal {
        let (view, name) = (View::default(), "v".parse::<Name>().unwrap());
        let mut draft = Draft::new(&view, Timestamp::EPOCH, EventId::from_bytes([1; 16]));
        if first {
            draft.claim(Kind::Volume, &name, "first").unwrap();
        }
        let plan = move |draft: &mut Draft<'_>| {
            draft.claim(Kind::Volume, &name, "second")?;
            Err::<(), _>(Refusal::NameTaken { kind: Kind::Volume, name: name.clone() })
        };
        let (reply, mut outcome) = oneshot::channel();
        let mut job = Box::new(Request { plan, planned: None, leans: false, reply });
        assert!(!job.plan(&mut draft));
        job.answer(Err(Refusal::InDoubt("no answer".into())));
        outcome.try_recv().unwrap().unwrap_err()
    }

    #[test]
    fn a_refusal_for_what_another_of_the_batch_wants_falls_with_the_batch() {
        assert!(matches!(told_in_doubt(true), Refusal::InDoubt(_)), "nobody may have the name");
        assert!(matches!(told_in_doubt(false), Refusal::NameTaken { .. }), "this is what the view shows");
    }
}
