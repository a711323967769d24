//! Which parts of a file are in the page cache. Asking starts no read; a read that is not to wait does, for what it does
//! not find.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// The call's number, which is the same on all architectures that were not there before all others were given one.
const SYS_CACHESTAT: libc::c_long = 451;

/// The system's `struct cachestat_range`, in bytes.
#[repr(C)]
struct Range {
    offset: u64,
    length: u64,
}

/// The system's `struct cachestat`, in pages.
#[repr(C)]
#[derive(Default)]
struct Pages {
    cached: u64,
    dirty: u64,
    in_writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Looks into the page cache, as far as the kernel lets it (Linux 6.5 and later).
#[derive(Debug)]
pub(super) struct CacheView {
    works: AtomicBool,
    /// In bytes.
    page: u64,
}

impl CacheView {
    pub(super) fn new() -> Self {
        let page = rustix::param::page_size() as u64;
        Self { works: AtomicBool::new(true), page }
    }

    /// Whether every page of a range is there now; `None` where the kernel does not say.
    pub(super) fn holds(&self, file: &File, offset: u64, length: u64) -> Option<bool> {
        if !self.works.load(Ordering::Relaxed) {
            return None;
        }
        let (range, mut pages) = (Range { offset, length }, Pages::default());
        let flags: libc::c_uint = 0;
        // SAFETY: both structures are laid out as the system's, and live until the call has returned.
        let code = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut pages, flags) };
        if code != 0 {
            self.works.store(false, Ordering::Relaxed);
            return None;
        }
        let first = offset / self.page;
        let wanted = offset.saturating_add(length).div_ceil(self.page).saturating_sub(first);
        Some(pages.cached >= wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_was_written_is_seen_in_the_cache_and_nothing_beyond_it() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&[7; 8192], 0).expect("a write through the cache");
        let view = CacheView::new();
        let Some(there) = view.holds(&file, 100, 8000) else {
            eprintln!("skipped: this kernel does not tell what is in its page cache");
            return;
        };
        assert!(there);
        assert_eq!(view.holds(&file, 8191, 2), Some(false), "its second byte is not in the file");
    }
}
