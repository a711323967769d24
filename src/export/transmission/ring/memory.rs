//! Memory for operations in flight: pieces of one region that the kernel knows, or of the heap where that is used up.
//!
//! A [`Buffer`] is the only way to its bytes. Whoever gives one to the kernel gives it away until the kernel is done.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Buffers begin and end at multiples of this, in bytes: what direct access to any device needs.
pub(super) const PAGE: usize = 4096;

/// Memory of the heap that is kept when nobody uses it, in bytes.
const KEPT: usize = 4 << 20;

/// Pages that one word of the map stands for.
const WORD: usize = u64::BITS as usize;

/// Zeroed memory from the heap, aligned to pages.
struct Region {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a region is plain memory that belongs to nobody else; what guards its bytes are the borrows of its owner.
unsafe impl Send for Region {}
// SAFETY: as above; shared references to a region only tell where it is.
unsafe impl Sync for Region {}

impl Region {
    /// At least one page.
    fn new(pages: usize) -> Self {
        let size = pages.max(1).saturating_mul(PAGE);
        let Ok(layout) = Layout::from_size_align(size, PAGE) else { handle_alloc_error(Layout::new::<u8>()) };
        // SAFETY: the layout's size is at least one page, so not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and dropped once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// A region cut into pages, with a map of those that are free.
pub(super) struct Arena {
    region: Region,
    /// A set bit is a free page.
    free: Mutex<Vec<u64>>,
}

impl Arena {
    /// A number of pages that is a multiple of 64.
    pub(super) fn new(words: usize) -> Arc<Self> {
        Arc::new(Self { region: Region::new(words * WORD), free: Mutex::new(vec![u64::MAX; words]) })
    }

    /// Where the region is, for its registration.
    pub(super) fn extent(&self) -> (*mut u8, usize) {
        (self.region.start.as_ptr(), self.region.layout.size())
    }

    /// A piece of at least `length` bytes; `None` if no run of free pages is long enough.
    pub(super) fn take(self: &Arc<Self>, length: usize) -> Option<Buffer> {
        let pages = length.div_ceil(PAGE).max(1);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let first = find(&free, pages)?;
        mark(&mut free, first, pages, false);
        drop(free);
        // SAFETY: `find` returns a run that lies within the map, and the map is as long as the region.
        let start = unsafe { self.region.start.add(first * PAGE) };
        Some(Buffer { start, length: pages * PAGE, home: Home::Arena { arena: Arc::clone(self), first, pages } })
    }

    fn give_back(&self, first: usize, pages: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        mark(&mut free, first, pages, true);
    }
}

/// The first run of so many free pages. Runs longer than a word begin at a word.
fn find(free: &[u64], pages: usize) -> Option<usize> {
    if pages == 1 {
        let (word, bits) = free.iter().enumerate().find(|(_, bits)| **bits != 0)?;
        return Some(word * WORD + bits.trailing_zeros() as usize);
    }
    if pages <= WORD {
        return free.iter().enumerate().find_map(|(word, bits)| {
            // Folded so that a bit is left where a run of that length begins.
            let (mut runs, mut have) = (*bits, 1);
            while have < pages && runs != 0 {
                let step = have.min(pages - have);
                runs &= runs >> step;
                have += step;
            }
            (runs != 0).then(|| word * WORD + runs.trailing_zeros() as usize)
        });
    }
    let words = pages.div_ceil(WORD);
    let whole = free.windows(words).position(|window| window.iter().all(|bits| *bits == u64::MAX))?;
    Some(whole * WORD)
}

fn mark(free: &mut [u64], first: usize, pages: usize, as_free: bool) {
    let (mut page, end) = (first, first + pages);
    while page < end {
        let (word, bit) = (page / WORD, page % WORD);
        let count = (WORD - bit).min(end - page);
        let bits = (u64::MAX >> (WORD - count)) << bit;
        if let Some(word) = free.get_mut(word) {
            *word = if as_free { *word | bits } else { *word & !bits };
        }
        page += count;
    }
}

/// Memory for what does not fit into an arena: regions of their own, some of which are kept for those who come next.
#[derive(Default)]
pub(super) struct Heap {
    used: AtomicUsize,
    kept: Mutex<Vec<Region>>,
}

impl Heap {
    /// Bytes of all buffers that are in use.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// A piece of at least `length` bytes, holding anything.
    pub(super) fn take(self: &Arc<Self>, length: usize) -> Buffer {
        let wanted = length.div_ceil(PAGE).max(1).saturating_mul(PAGE);
        let fits = |region: &Region| (wanted..=wanted.saturating_mul(2)).contains(&region.layout.size());
        let mut kept = self.kept();
        let found = kept.iter().position(fits).map(|index| kept.swap_remove(index));
        drop(kept);
        let region = found.unwrap_or_else(|| Region::new(wanted / PAGE));
        let (start, length) = (region.start, region.layout.size());
        self.used.fetch_add(length, Ordering::Relaxed);
        Buffer { start, length, home: Home::Heap { region: Some(region), heap: Arc::clone(self) } }
    }

    fn give_back(&self, region: Region) {
        self.used.fetch_sub(region.layout.size(), Ordering::Relaxed);
        let mut kept = self.kept();
        let bytes: usize = kept.iter().map(|region| region.layout.size()).sum();
        if bytes + region.layout.size() <= KEPT {
            kept.push(region);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Region>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Home {
    Arena {
        arena: Arc<Arena>,
        first: usize,
        pages: usize,
    },
    Heap {
        /// Present until dropped.
        region: Option<Region>,
        heap: Arc<Heap>,
    },
}

/// Whole pages of memory that nobody else reaches; given back when dropped.
pub(super) struct Buffer {
    start: NonNull<u8>,
    length: usize,
    home: Home,
}

// SAFETY: a buffer is the only way to its bytes, like a boxed slice.
unsafe impl Send for Buffer {}

impl Buffer {
    /// Whether it lies in the region that the kernel knows.
    pub(super) fn is_fixed(&self) -> bool {
        matches!(self.home, Home::Arena { .. })
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: these pages are initialised, live as long as `home`, and no other buffer has them.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the buffer is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match &mut self.home {
            Home::Arena { arena, first, pages } => arena.give_back(*first, *pages),
            Home::Heap { region, heap } => region.take().into_iter().for_each(|region| heap.give_back(region)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn buffers_do_not_overlap_and_all_pages_come_back(lengths in proptest::collection::vec(1usize..600_000, 1..40)) {
            let arena = Arena::new(4);
            let mut held = Vec::new();
            for (number, length) in lengths.into_iter().enumerate() {
                if let Some(mut buffer) = arena.take(length) {
                    prop_assert!(buffer.len() >= length && buffer.as_ptr().align_offset(PAGE) == 0);
                    buffer.fill(number as u8);
                    held.push((number, buffer));
                }
                if number % 3 == 2 && !held.is_empty() {
                    held.swap_remove(number % held.len());
                }
            }
            for (number, buffer) in &held {
                prop_assert!(buffer.iter().all(|byte| *byte == *number as u8));
            }
            drop(held);
            prop_assert!(arena.take(4 * WORD * PAGE).is_some(), "everything is free again");
        }
    }

    #[test]
    fn an_arena_that_is_used_up_says_so_and_the_heap_goes_on() {
        let arena = Arena::new(1);
        let all = arena.take(WORD * PAGE);
        assert!(all.is_some() && arena.take(1).is_none());
        let heap = Arc::new(Heap::default());
        let buffer = heap.take(PAGE + 1);
        assert!(!buffer.is_fixed() && buffer.len() == 2 * PAGE && buffer.iter().all(|byte| *byte == 0));
        assert_eq!(heap.used(), 2 * PAGE);
        drop(buffer);
        assert_eq!(heap.used(), 0);
    }

    #[test]
    fn the_heap_keeps_some_memory_for_the_next_and_no_more() {
        let heap = Arc::new(Heap::default());
        let first = heap.take(KEPT / 2).as_ptr();
        assert_eq!(heap.take(KEPT / 2 - 1).as_ptr(), first, "it is used again");
        assert_ne!(heap.take(PAGE).len(), KEPT / 2, "not for little things");
        drop([(); 4].map(|()| heap.take(KEPT / 2)));
        let kept: usize = heap.kept().iter().map(|region| region.layout.size()).sum();
        assert!(kept <= KEPT, "{kept} bytes are kept");
        drop(heap.take(2 * KEPT));
        assert!(heap.used() == 0 && heap.kept().iter().all(|region| region.layout.size() <= KEPT));
    }
}
