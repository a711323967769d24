//! The naive oracle: bytes in memory, as plainly as can be. For tests, and for exports that may be forgotten.

use super::{BlockIo, Extent, check_range, push_extent};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes are kept in pages of this size; a page that was never written is a hole.
const PAGE: u64 = 4096;

type Pages = BTreeMap<u64, Box<[u8]>>;

/// A sparse block store that lives and dies with the process.
#[derive(Debug)]
pub struct MemoryIo {
    size: u64,
    pages: Mutex<Pages>,
}

impl MemoryIo {
    /// A store of `size` bytes, all of it a hole.
    pub fn new(size: u64) -> Self {
        Self { size, pages: Mutex::default() }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_pages(&self, offset: u64, length: u64, byte: impl Fn(usize) -> u8) {
        let mut pages = self.pages();
        let mut done = 0;
        while done < length {
            let (number, start, count) = piece(offset + done, length - done);
            let page = pages.entry(number).or_insert_with(|| vec![0; PAGE as usize].into());
            for (at, target) in page.iter_mut().skip(start).take(count as usize).enumerate() {
                *target = byte(done as usize + at);
            }
            done += count;
        }
    }
}

/// The first piece of a range that lies in one page: the page's number, where it starts in it, its length.
fn piece(offset: u64, length: u64) -> (u64, usize, u64) {
    let start = offset % PAGE;
    (offset / PAGE, start as usize, length.min(PAGE - start))
}

impl BlockIo for MemoryIo {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(self.size, offset, buffer.len() as u64)?;
        let pages = self.pages();
        let mut rest = buffer;
        let mut position = offset;
        while !rest.is_empty() {
            let (number, start, count) = piece(position, rest.len() as u64);
            let (target, tail) = rest.split_at_mut(count as usize);
            match pages.get(&number).and_then(|page| page.get(start..start + target.len())) {
                Some(bytes) => target.copy_from_slice(bytes),
                None => target.fill(0),
            }
            rest = tail;
            position += count;
        }
        Ok(())
    }

    fn write(&self, buffer: &[u8], offset: u64, _fua: bool) -> io::Result<()> {
        check_range(self.size, offset, buffer.len() as u64)?;
        self.write_pages(offset, buffer.len() as u64, |at| buffer.get(at).copied().unwrap_or_default());
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        self.zero(offset, length, true)
    }

    fn zero(&self, offset: u64, length: u64, may_punch: bool) -> io::Result<()> {
        check_range(self.size, offset, length)?;
        let mut done = 0;
        while done < length {
            let (number, _, count) = piece(offset + done, length - done);
            if may_punch && count == PAGE {
                self.pages().remove(&number);
            } else if !may_punch || self.pages().contains_key(&number) {
                self.write_pages(offset + done, count, |_| 0);
            }
            done += count;
        }
        Ok(())
    }

    /// Forgetting pages is faster than filling them.
    fn zero_fast(&self, offset: u64, length: u64, may_punch: bool) -> io::Result<()> {
        if may_punch { self.zero(offset, length, true) } else { Err(nix::errno::Errno::EOPNOTSUPP.into()) }
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> io::Result<Vec<Extent>> {
        check_range(self.size, offset, length)?;
        let pages = self.pages();
        let mut extents = Vec::new();
        let mut done = 0;
        while done < length && extents.len() <= limit {
            let (number, _, count) = piece(offset + done, length - done);
            let hole = !pages.contains_key(&number);
            push_extent(&mut extents, Extent { offset: offset + done, length: count, hole });
            done += count;
        }
        extents.truncate(limit.max(1));
        Ok(extents)
    }
}
