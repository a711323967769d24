//! A disk with a volatile cache: reads see every write, power cuts lose those that nobody flushed.
//!
//! By its seed it holds some operations back until others have overtaken them, so that they end in another order than
//! they came in. It can be told to lie, which the checker must notice.

use super::log::{Change, Content, Step};
use super::{Moments, WriteLog};
use crate::io::{BlockIo, Extent, check_range};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Of a thousand operations so many are held back.
const HELD_BACK: u16 = 300;

/// Until so many steps have happened in the meantime, at most.
const OVERTAKERS: usize = 6;

/// What is wrong with a medium.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lie {
    #[default]
    None,
    /// A flush does nothing and says that it is done.
    Flush,
    /// A durable write is cached like any other.
    Durable,
    /// A flush covers only what came through the same handle.
    OthersFlush,
}

/// See the module. Handles of the same medium are made with [`Self::another`].
pub struct CachingIo {
    medium: Arc<Medium>,
    writer: usize,
}

struct Medium {
    lie: Lie,
    moments: Moments,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    random: fastrand::Rng,
    log: WriteLog,
    /// What reads see.
    cached: Vec<u8>,
    /// Changes that are cached and not kept.
    volatile: Vec<usize>,
    /// Operations that have come and not ended, and those of them that are held back.
    inside: usize,
    held: usize,
    handles: usize,
}

impl CachingIo {
    /// A blank medium of `size` bytes.
    pub fn new(size: u64, seed: u64, lie: Lie, moments: &Moments) -> Self {
        let log = WriteLog { size, ..WriteLog::default() };
        let cached = vec![0; size as usize];
        let random = fastrand::Rng::with_seed(seed);
        let state = State { random, log, cached, volatile: Vec::new(), inside: 0, held: 0, handles: 1 };
        let medium = Medium { lie, moments: moments.clone(), state: Mutex::new(state), changed: Condvar::new() };
        Self { medium: Arc::new(medium), writer: 0 }
    }

    /// Another handle of the same medium.
    pub fn another(&self) -> Self {
        let mut state = self.medium.lock();
        state.handles += 1;
        Self { medium: Arc::clone(&self.medium), writer: state.handles }
    }

    /// All that has happened so far.
    pub fn log(&self) -> WriteLog {
        self.medium.lock().log.clone()
    }

    fn change(&self, offset: u64, content: Content, fua: bool) {
        let mut state = self.medium.enter();
        let number = state.log.changes.len();
        state.log.changes.push(Change { offset, content, writer: self.writer });
        self.medium.step(&mut state, Step::Begun(number));
        state = self.medium.hold_back(state);
        let State { log, cached, .. } = &mut *state;
        if let Some(change) = log.changes.get(number) {
            change.apply(cached);
        }
        self.medium.step(&mut state, Step::Cached(number));
        if fua && self.medium.lie != Lie::Durable {
            self.medium.step(&mut state, Step::Kept(vec![number]));
        } else {
            state.volatile.push(number);
        }
        self.medium.leave(state);
    }
}

impl Medium {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.inside += 1;
        state
    }

    fn leave(&self, mut state: MutexGuard<'_, State>) {
        state.inside -= 1;
        drop(state);
        self.changed.notify_all();
    }

    fn step(&self, state: &mut State, step: Step) {
        let moment = self.moments.now();
        state.log.steps.push((moment, step));
        self.changed.notify_all();
    }

    /// Perhaps lets others go first: until some steps have happened, or there is nobody who could take them.
    fn hold_back<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if state.random.u16(0..1000) >= HELD_BACK {
            return state;
        }
        let until = state.log.steps.len() + state.random.usize(1..=OVERTAKERS);
        state.held += 1;
        self.changed.notify_all();
        while state.log.steps.len() < until && state.held < state.inside {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.held -= 1;
        state
    }
}

impl BlockIo for CachingIo {
    fn size(&self) -> u64 {
        self.medium.lock().log.size
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.medium.lock();
        check_range(state.log.size, offset, buffer.len() as u64)?;
        if let Some(source) = state.cached.get(offset as usize..offset as usize + buffer.len()) {
            buffer.copy_from_slice(source);
        }
        Ok(())
    }

    fn write(&self, buffer: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        check_range(self.size(), offset, buffer.len() as u64)?;
        self.change(offset, Content::Bytes(buffer.into()), fua);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.medium.enter();
        let lie = self.medium.lie;
        // What is cached from here on is not covered.
        let covered: Vec<usize> = match lie {
            Lie::Flush => Vec::new(),
            Lie::OthersFlush => {
                let ours = |number: &usize| state.log.changes.get(*number).is_some_and(|it| it.writer == self.writer);
                state.volatile.iter().copied().filter(ours).collect()
            }
            Lie::None | Lie::Durable => state.volatile.clone(),
        };
        state = self.medium.hold_back(state);
        state.volatile.retain(|number| !covered.contains(number));
        self.medium.step(&mut state, Step::Kept(covered));
        self.medium.leave(state);
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        self.zero(offset, length, true)
    }

    fn zero(&self, offset: u64, length: u64, _may_punch: bool) -> io::Result<()> {
        check_range(self.size(), offset, length)?;
        self.change(offset, Content::Zeros(length), false);
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64, _limit: usize) -> io::Result<Vec<Extent>> {
        check_range(self.size(), offset, length)?;
        Ok((length > 0).then_some(Extent { offset, length, hole: false }).into_iter().collect())
    }
}
