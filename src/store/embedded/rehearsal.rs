//! A file that can be written to without being changed: what is written stays in memory and goes with it.
//!
//! Opening a database may repair it, which writes. A damaged file must be left as it was found, so it is opened like
//! this first.

use redb::{BackendError, StorageBackend, backends::FileBackend};
use std::{
    collections::BTreeMap,
    io,
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

const PAGE: u64 = 4096;

#[derive(Debug)]
pub(super) struct Rehearsal {
    file: FileBackend,
    overlay: Mutex<Overlay>,
}

#[derive(Debug)]
struct Overlay {
    pages: BTreeMap<u64, Vec<u8>>,
    len: u64,
    /// The file's own bytes are looked at up to here; zeros follow.
    visible: u64,
}

impl Rehearsal {
    pub fn new(file: FileBackend) -> io::Result<Self> {
        let len = file.len()?;
        Ok(Self { file, overlay: Mutex::new(Overlay { pages: BTreeMap::new(), len, visible: len }) })
    }

    fn overlay(&self) -> MutexGuard<'_, Overlay> {
        self.overlay.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Overlay {
    /// Fills `out` from the file, and with zeros beyond what is visible of it.
    fn read_file(&self, file: &FileBackend, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let visible = usize::try_from(self.visible.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        let (there, beyond) = out.split_at_mut(visible);
        beyond.fill(0);
        if there.is_empty() { Ok(()) } else { file.read(offset, there) }
    }

    fn check(&self, offset: u64, length: usize) -> io::Result<()> {
        let end = u64::try_from(length).ok().and_then(|length| offset.checked_add(length));
        match end {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The parts of `length` bytes at `offset`, page by page: page number, where in the page, how many bytes.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut at = offset;
    let mut left = length;
    std::iter::from_fn(move || {
        let within = at % PAGE;
        let page = at / PAGE;
        let take = left.min(usize::try_from(PAGE - within).ok()?);
        left -= take;
        at = at.checked_add(u64::try_from(take).ok()?)?;
        (take > 0).then_some((page, usize::try_from(within).ok()?, take))
    })
}

impl StorageBackend for Rehearsal {
    fn len(&self) -> io::Result<u64> {
        Ok(self.overlay().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let overlay = self.overlay();
        overlay.check(offset, out.len())?;
        overlay.read_file(&self.file, offset, out)?;
        let mut rest = out;
        for (page, within, take) in parts(offset, rest.len()) {
            let (part, behind) = rest.split_at_mut(take);
            if let Some(bytes) = overlay.pages.get(&page).and_then(|page| page.get(within..within + take)) {
                part.copy_from_slice(bytes);
            }
            rest = behind;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut overlay = self.overlay();
        if len < overlay.len {
            overlay.visible = overlay.visible.min(len);
            overlay.pages.retain(|page, _| page.saturating_mul(PAGE) < len);
            let cut = usize::try_from(len % PAGE).map_err(io::Error::other)?;
            if let Some(last) = overlay.pages.get_mut(&(len / PAGE)) {
                last.iter_mut().skip(cut).for_each(|byte| *byte = 0);
            }
        }
        overlay.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut overlay = self.overlay();
        overlay.check(offset, data.len())?;
        let mut rest = data;
        for (page, within, take) in parts(offset, data.len()) {
            let (part, behind) = rest.split_at(take);
            if !overlay.pages.contains_key(&page) {
                let mut bytes = vec![0; usize::try_from(PAGE).map_err(io::Error::other)?];
                overlay.read_file(&self.file, page.saturating_mul(PAGE), &mut bytes)?;
                overlay.pages.insert(page, bytes);
            }
            if let Some(bytes) = overlay.pages.get_mut(&page).and_then(|page| page.get_mut(within..within + take)) {
                bytes.copy_from_slice(part);
            }
            rest = behind;
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        SetLen(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..20_000u64, prop::collection::vec(1..=255u8, 0..9000)).prop_map(|(at, data)| Step::Write(at, data)),
            (0..30_000u64).prop_map(Step::SetLen),
        ]
    }

    proptest! {
        #[test]
        fn it_reads_like_a_file_and_leaves_the_file_alone(
            original in prop::collection::vec(any::<u8>(), 0..20_000),
            steps in prop::collection::vec(step(), 0..12),
        ) {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&original).unwrap();
            let rehearsal = Rehearsal::new(FileBackend::new(file.reopen().unwrap()).unwrap()).unwrap();
            let mut oracle = original.clone();
            for step in steps {
                match step {
                    Step::SetLen(len) => {
                        rehearsal.set_len(len).unwrap();
                        oracle.resize(len as usize, 0);
                    }
                    Step::Write(at, data) => {
                        let end = at as usize + data.len();
                        prop_assert_eq!(rehearsal.write(at, &data).is_ok(), end <= oracle.len());
                        if end <= oracle.len() {
                            oracle[at as usize..end].copy_from_slice(&data);
                        }
                    }
                }
            }
            let mut read = vec![0; oracle.len()];
            rehearsal.read(0, &mut read).unwrap();
            prop_assert!(read == oracle);
            prop_assert!(rehearsal.read(1, &mut read).is_err() || oracle.is_empty());
            prop_assert!(std::fs::read(file.path()).unwrap() == original);
        }
    }
}
