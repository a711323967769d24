//! One volume group's queue: changes one after the other in the order they came, looks beside them.
//!
//! A look never waits for a change. What hangs in the kernel is remembered until it has ended after all: a change then
//! fails at once, because nobody knows what the one that hangs may still do, and a look fails while another look hangs,
//! so that hanging processes do not pile up.

use super::lock;
use super::runner::LvmError;
use crate::host::patience::Stuck;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    moved: Condvar,
    looks: Mutex<Vec<Stuck>>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Who is at work, and behind him who waits.
    tickets: VecDeque<u64>,
    stuck: Vec<Stuck>,
}

/// A place at the head of the queue; given up when dropped, whatever became of the work.
#[derive(Debug)]
pub struct Place<'q> {
    queue: &'q Queue,
    ticket: u64,
}

impl Queue {
    /// Looks, whatever changes are under way.
    ///
    /// # Errors
    /// What `work` says; [`LvmError::Stuck`] without beginning if an earlier look hangs.
    pub fn look<T>(&self, work: impl FnOnce() -> Result<T, LvmError>) -> Result<T, LvmError> {
        let hanging = {
            let mut looks = lock(&self.looks);
            looks.retain(|stuck| !stuck.is_over());
            looks.first().cloned()
        };
        if let Some(stuck) = hanging {
            return Err(LvmError::Stuck(stuck));
        }
        let outcome = work();
        if let Err(LvmError::Stuck(stuck)) = &outcome {
            lock(&self.looks).push(stuck.clone());
        }
        outcome
    }

    /// Remembers that a change hangs.
    pub fn note(&self, stuck: &Stuck) {
        lock(&self.state).stuck.push(stuck.clone());
        self.moved.notify_all();
    }

    /// Waits until all changes that came before are done. Who holds the place changes things, and nobody else.
    ///
    /// # Errors
    /// An earlier change that hangs.
    pub fn enter(&self) -> Result<Place<'_>, Stuck> {
        let mut state = lock(&self.state);
        let ticket = state.next;
        state.next += 1;
        state.tickets.push_back(ticket);
        let place = Place { queue: self, ticket };
        loop {
            state.stuck.retain(|stuck| !stuck.is_over());
            if let Some(stuck) = state.stuck.first().cloned() {
                // The place gives itself up, and takes the lock for it.
                drop(state);
                drop(place);
                return Err(stuck);
            }
            if state.tickets.front() == Some(&ticket) {
                return Ok(place);
            }
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(&self.queue.state).tickets.retain(|ticket| *ticket != self.ticket);
        self.queue.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::patience::within;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    type Outcome = Result<(), LvmError>;

    /// Something that hangs until the sender is dropped.
    fn hanging() -> (mpsc::Sender<()>, Stuck) {
        let (hold, held) = mpsc::channel::<()>();
        let stuck = within("a test", Duration::from_millis(1), move |_| held.recv().is_ok()).unwrap_err();
        (hold, stuck)
    }

    fn release(hold: mpsc::Sender<()>, stuck: &Stuck) {
        drop(hold);
        while !stuck.is_over() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn changes_come_one_after_the_other_and_all_come() {
        let (queue, inside, done) = (Queue::default(), AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _place = queue.enter().unwrap();
                        assert!(!inside.swap(true, Ordering::SeqCst));
                        inside.store(false, Ordering::SeqCst);
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), 400);
    }

    #[test]
    fn a_look_does_not_wait_for_a_change() {
        let queue = Queue::default();
        let _place = queue.enter().unwrap();
        queue.look(|| Ok(())).unwrap();
    }

    #[test]
    fn nobody_changes_anything_behind_a_change_that_hangs_until_it_has_ended() {
        let queue = Queue::default();
        let (hold, stuck) = hanging();
        queue.note(&stuck);
        assert!(queue.enter().is_err());
        queue.look(|| Ok(())).unwrap();
        release(hold, &stuck);
        drop(queue.enter().unwrap());
    }

    #[test]
    fn those_who_wait_are_told_when_the_change_before_them_begins_to_hang() {
        let queue = Queue::default();
        let (hold, stuck) = hanging();
        let first = queue.enter().unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| queue.enter().map(drop));
            while lock(&queue.state).tickets.len() < 2 {
                std::thread::yield_now();
            }
            queue.note(&stuck);
            assert!(second.join().unwrap().is_err());
        });
        drop(first);
        release(hold, &stuck);
        drop(queue.enter().unwrap());
    }

    #[test]
    fn a_look_that_hangs_is_not_repeated_until_it_has_ended() {
        let queue = Queue::default();
        let (hold, stuck) = hanging();
        assert!(queue.look(|| -> Outcome { Err(LvmError::Stuck(stuck.clone())) }).is_err());
        assert!(queue.look(|| -> Outcome { panic!("must not begin") }).is_err());
        drop(queue.enter().unwrap());
        release(hold, &stuck);
        queue.look(|| Ok(())).unwrap();
    }
}
