//! Which chunks of a medium hold nothing, where only somebody else can tell: a thin pool knows it of its volumes.
//!
//! A map is begun empty, and from then on every write marks what it goes to, before it goes there. Then whoever can see
//! below the medium marks all that is occupied. What is marked by neither has held nothing since the beginning: it is a
//! hole. So a map only ever errs by calling data what is none, and what was given back stays data until another map is
//! made. While one is in the making the last one goes on answering; without any, all is data.
//!
//! Never here: where maps come from, and when writes may go on while one is begun.

use super::{Extent, push_extent};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// The most chunks that a map tells apart: 4 MiB of memory. Larger media have larger chunks.
const MOST: u64 = 1 << 25;
/// Between two maps, at least: a client that trims and asks all the time does not keep the pool busy.
const PAUSE: Duration = Duration::from_secs(10);
/// After one that could not be made.
const LONG_PAUSE: Duration = Duration::from_secs(60);

/// One bit for each chunk: whether it may hold something.
#[derive(Debug)]
pub struct ChunkMap {
    /// In bytes; a multiple of the medium's own.
    chunk: u64,
    /// In bytes. What lies behind is not told apart, and counts as data.
    length: u64,
    bits: Vec<AtomicU64>,
}

impl ChunkMap {
    /// For a medium of so many bytes whose own chunks are of that size; nothing is marked.
    pub fn new(own: u64, length: u64) -> Self {
        let mut chunk = own.max(1);
        while length.div_ceil(chunk) > MOST {
            chunk = chunk.saturating_mul(2);
        }
        let words = length.div_ceil(chunk).div_ceil(64);
        Self { chunk, length, bits: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Something may be in this range; what lies behind the map is no matter of it.
    pub fn mark(&self, offset: u64, length: u64) {
        let end = offset.saturating_add(length).min(self.length);
        if offset >= end {
            return;
        }
        for chunk in offset / self.chunk..=(end - 1) / self.chunk {
            let Some(word) = usize::try_from(chunk / 64).ok().and_then(|at| self.bits.get(at)) else { return };
            let bit = 1 << (chunk % 64);
            // Most writes go where something is already, and need not take the line from other cores.
            if word.load(Ordering::SeqCst) & bit == 0 {
                word.fetch_or(bit, Ordering::SeqCst);
            }
        }
    }

    /// Where the chunks end that are like the one at `offset`, and whether they are holes.
    fn run(&self, offset: u64, end: u64) -> (u64, bool) {
        let is_hole = |at: u64| {
            let chunk = at / self.chunk;
            let word = usize::try_from(chunk / 64).ok().and_then(|at| self.bits.get(at));
            at < self.length && word.is_some_and(|word| word.load(Ordering::SeqCst) & 1 << (chunk % 64) == 0)
        };
        let hole = is_hole(offset);
        if offset >= self.length {
            return (end, hole);
        }
        let mut at = offset;
        while at < end && is_hole(at) == hole {
            let next = (at / self.chunk).saturating_add(1).saturating_mul(self.chunk);
            // A chunk that the map ends in may hold anything behind it.
            at = if at < self.length && next > self.length { self.length } else { next };
        }
        (at.min(end), hole)
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> Vec<Extent> {
        let end = offset.saturating_add(length);
        let (mut extents, mut at): (Vec<Extent>, u64) = (Vec::new(), offset);
        while at < end && extents.len() <= limit {
            let (next, hole) = self.run(at, end);
            push_extent(&mut extents, Extent { offset: at, length: next - at, hole });
            at = next;
        }
        extents.truncate(limit);
        extents
    }
}

/// What is known of one medium.
pub struct Allocation {
    /// The medium's own, in bytes.
    chunk: u64,
    /// There is a map to mark: what most writes look at and no further.
    marking: AtomicBool,
    known: RwLock<Known>,
    /// Tells whoever makes maps that one is wanted; never waits.
    ask: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Known {
    answering: Option<Arc<ChunkMap>>,
    coming: Option<Arc<ChunkMap>>,
    /// One was asked for and has not been begun.
    asked: bool,
    /// Something was given back since the map that answers was begun: another one may know more holes.
    outdated: bool,
    /// None is asked for before.
    rests: Option<Instant>,
}

impl Allocation {
    pub fn new(chunk: u64, ask: impl Fn() + Send + Sync + 'static) -> Self {
        Self { chunk, marking: AtomicBool::new(false), known: RwLock::default(), ask: Box::new(ask) }
    }

    /// A range is about to be written.
    pub fn mark(&self, offset: u64, length: u64) {
        if self.marking.load(Ordering::SeqCst) {
            let known = self.read();
            known.answering.iter().chain(&known.coming).for_each(|map| map.mark(offset, length));
        }
    }

    /// Something was given back.
    pub fn outdate(&self) {
        if self.marking.load(Ordering::SeqCst) {
            self.write().outdated = true;
        }
    }

    /// Asks for a map, if that may help and none is under way.
    pub fn prepare(&self) {
        let due = |known: &Known| {
            let helps = known.answering.is_none() || known.outdated;
            let idle = !known.asked && known.coming.is_none();
            helps && idle && known.rests.is_none_or(|until| Instant::now() >= until)
        };
        if !due(&self.read()) {
            return;
        }
        let mut known = self.write();
        if due(&known) {
            known.asked = true;
            drop(known);
            (self.ask)();
        }
    }

    /// Data and holes of a range, as [`BlockIo::extents`](super::BlockIo::extents) tells them.
    pub fn extents(&self, offset: u64, length: u64, limit: usize) -> Vec<Extent> {
        // As it is known now: another map is for those who ask later.
        let map = self.read().answering.clone();
        self.prepare();
        match map {
            Some(map) => map.extents(offset, length, limit.max(1)),
            None if length == 0 => Vec::new(),
            None => vec![Extent { offset, length, hole: false }],
        }
    }

    /// Begins a map of so many bytes. No write may be under way: every later one marks it.
    pub fn begin(&self, length: u64) -> Arc<ChunkMap> {
        let map = Arc::new(ChunkMap::new(self.chunk, length));
        let mut known = self.write();
        known.coming = Some(Arc::clone(&map));
        (known.asked, known.outdated) = (false, false);
        self.marking.store(true, Ordering::SeqCst);
        map
    }

    /// All that was occupied when the map was begun, or has been since, is marked in it: it answers from now on, unless it
    /// was forgotten meanwhile.
    pub fn finish(&self, map: &Arc<ChunkMap>) {
        let mut known = self.write();
        if known.coming.as_ref().is_some_and(|coming| Arc::ptr_eq(coming, map)) {
            known.answering = known.coming.take();
            known.rests = Some(Instant::now() + PAUSE);
        }
    }

    /// A map that was asked for or begun does not come to be.
    pub fn decline(&self) {
        let mut known = self.write();
        // What was given back before the one that failed was begun is no hole of the one that answers.
        let (answering, rests) = (known.answering.take(), Some(Instant::now() + LONG_PAUSE));
        *known = Known { answering, outdated: true, rests, ..Known::default() };
    }

    /// What is known is true no longer: the medium has become another.
    pub fn forget(&self) {
        let mut known = self.write();
        let asked = known.asked;
        *known = Known { asked, ..Known::default() };
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Allocation").field("chunk", &self.chunk).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicUsize;

    const CHUNK: u64 = 64 << 10;

    fn counted() -> (Allocation, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        let ask = move || {
            counter.fetch_add(1, Ordering::SeqCst);
        };
        (Allocation::new(CHUNK, ask), count)
    }

    fn holes(of: &Allocation, length: u64) -> Vec<(u64, u64)> {
        let extents = of.extents(0, length, usize::MAX);
        extents.iter().filter(|extent| extent.hole).map(|extent| (extent.offset, extent.length)).collect()
    }

    #[test]
    fn all_is_data_until_there_is_a_map_and_one_is_asked_for_once() {
        let (known, asked) = counted();
        known.mark(0, CHUNK);
        assert_eq!(known.extents(7, 100 * CHUNK, 9), [Extent { offset: 7, length: 100 * CHUNK, hole: false }]);
        assert!(known.extents(0, 0, 9).is_empty());
        let map = known.begin(4 * CHUNK);
        assert!(holes(&known, 4 * CHUNK).is_empty(), "it is not finished");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        map.mark(0, 1);
        known.mark(2 * CHUNK + 5, 1);
        known.finish(&map);
        assert_eq!(holes(&known, 4 * CHUNK), [(CHUNK, CHUNK), (3 * CHUNK, CHUNK)]);
        known.mark(CHUNK, CHUNK + 1);
        assert_eq!(holes(&known, 4 * CHUNK), [(3 * CHUNK, CHUNK)]);
        assert_eq!(asked.load(Ordering::SeqCst), 1, "it is as good as a new one");
    }

    #[test]
    fn what_is_written_while_the_next_map_is_made_is_data_in_both() {
        let (known, _) = counted();
        let first = known.begin(4 * CHUNK);
        known.finish(&first);
        known.outdate();
        let second = known.begin(4 * CHUNK);
        known.mark(0, 1);
        assert_eq!(holes(&known, 4 * CHUNK), [(CHUNK, 3 * CHUNK)]);
        known.finish(&second);
        assert_eq!(holes(&known, 4 * CHUNK), [(CHUNK, 3 * CHUNK)]);
    }

    #[test]
    fn a_map_that_does_not_come_to_be_leaves_the_last_one_and_a_medium_that_changed_none() {
        let (known, asked) = counted();
        let first = known.begin(CHUNK);
        known.finish(&first);
        known.begin(CHUNK);
        known.decline();
        assert_eq!(holes(&known, CHUNK), [(0, CHUNK)]);
        let late = known.begin(CHUNK);
        known.forget();
        known.finish(&late);
        assert!(holes(&known, CHUNK).is_empty());
        assert_eq!(asked.load(Ordering::SeqCst), 1, "now there is none");
        known.decline();
        assert!(holes(&known, CHUNK).is_empty());
        assert_eq!(asked.load(Ordering::SeqCst), 1, "not again so soon");
    }

    #[test]
    fn a_map_stays_small_however_large_the_medium_is_and_what_lies_behind_it_is_data() {
        let map = ChunkMap::new(CHUNK, 1 << 50);
        assert!(map.bits.len() as u64 * 64 <= MOST && map.chunk.is_multiple_of(CHUNK));
        let short = ChunkMap::new(CHUNK, CHUNK + 512);
        let seen = short.extents(0, 4 * CHUNK, 9);
        assert_eq!(
            seen.iter().map(|it| (it.length, it.hole)).collect::<Vec<_>>(),
            [(CHUNK + 512, true), (3 * CHUNK - 512, false)]
        );
        short.mark(u64::MAX, u64::MAX);
        short.mark(0, u64::MAX);
        assert_eq!(short.extents(0, 4 * CHUNK, 9).len(), 1);
    }

    proptest! {
        #[test]
        fn a_map_says_what_a_plain_list_of_chunks_would(
            length in 1u64..1 << 24, own in 1u64..64,
            marks in proptest::collection::vec((0u64..1 << 24, 0u64..1 << 20), 0..20),
            from in 0u64..1 << 24, count in 0u64..1 << 24, limit in 1usize..40,
        ) {
            let own = own << 12;
            let map = ChunkMap::new(own, length);
            let mut naive = vec![false; length.div_ceil(own) as usize];
            for (offset, size) in marks {
                map.mark(offset, size);
                for (number, used) in naive.iter_mut().enumerate() {
                    let (start, end) = (number as u64 * own, ((number as u64 + 1) * own).min(length));
                    *used |= size > 0 && offset < end && start < offset + size;
                }
            }
            let extents = map.extents(from, count, limit);
            prop_assert!(extents.len() <= limit && (count > 0) != extents.is_empty());
            let mut at = from;
            for extent in &extents {
                prop_assert!(extent.offset == at && extent.length > 0);
                for position in [at, at + extent.length - 1, at + extent.length / 2] {
                    let used = naive.get((position / own) as usize).copied().unwrap_or(true) || position >= length;
                    prop_assert_eq!(extent.hole, !used, "at {}", position);
                }
                at += extent.length;
            }
            prop_assert!(extents.len() == limit || at == from + count);
            prop_assert!(extents.windows(2).all(|pair| pair[0].hole != pair[1].hole));
        }
    }
}
