//! What happened to a medium, step by step, and what it may hold if power is cut in between.

use super::SECTOR;
use std::ops::Range;
use std::sync::Arc;

/// One change of what the medium holds.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// In bytes.
    pub(super) offset: u64,
    pub(super) content: Content,
    /// Through which handle it came.
    pub(super) writer: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    Bytes(Arc<[u8]>),
    /// So many bytes of zeros.
    Zeros(u64),
}

impl Change {
    fn length(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Zeros(length) => *length,
        }
    }

    /// The sectors that it touches.
    fn sectors(&self) -> Range<u64> {
        let sector = SECTOR as u64;
        self.offset / sector..(self.offset + self.length()).div_ceil(sector)
    }

    /// Puts what it has to say about one sector into an image of the whole medium.
    fn apply_sector(&self, sector: u64, image: &mut [u8]) {
        let start = self.offset.max(sector * SECTOR as u64);
        let end = (self.offset + self.length()).min((sector + 1) * SECTOR as u64);
        let Some(target) = image.get_mut(start as usize..end as usize) else { return };
        match &self.content {
            Content::Zeros(_) => target.fill(0),
            Content::Bytes(bytes) => {
                let from = (start - self.offset) as usize;
                if let Some(source) = bytes.get(from..from + target.len()) {
                    target.copy_from_slice(source);
                }
            }
        }
    }

    pub(super) fn apply(&self, image: &mut [u8]) {
        self.sectors().for_each(|sector| self.apply_sector(sector, image));
    }
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// The change of this number has come; parts of it may be on the medium from now on.
    Begun(usize),
    /// Whoever reads sees it.
    Cached(usize),
    /// These are on the medium for good, and whoever asked for that is told so next.
    Kept(Vec<usize>),
}

/// See the module. Blank, that is all zeros, at its beginning.
#[derive(Clone, Debug, Default)]
pub struct WriteLog {
    /// Of the medium, in bytes.
    pub(super) size: u64,
    pub(super) changes: Vec<Change>,
    /// Each with its moment.
    pub(super) steps: Vec<(u64, Step)>,
}

impl WriteLog {
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// The last moment at which no more than so many steps have happened.
    pub fn moment(&self, steps: usize) -> u64 {
        self.steps.get(steps).map_or(u64::MAX, |(moment, _)| *moment)
    }

    /// Whether the last of so many steps ended a flush or a durable write.
    pub fn is_flush(&self, steps: usize) -> bool {
        steps
            .checked_sub(1)
            .and_then(|last| self.steps.get(last))
            .is_some_and(|(_, step)| matches!(step, Step::Kept(_)))
    }

    /// What the medium holds if power is cut after so many steps. `survives` says, for a change by its number and one of
    /// its sectors, whether it got there although nobody had asked for it to be kept.
    pub fn image(&self, steps: usize, mut survives: impl FnMut(usize, u64) -> bool) -> Vec<u8> {
        let mut kept = vec![false; self.changes.len()];
        let mut order = Vec::new();
        let mut in_flight = Vec::new();
        for (_, step) in self.steps.iter().take(steps) {
            match step {
                Step::Begun(number) => in_flight.push(*number),
                Step::Cached(number) => {
                    in_flight.retain(|other| other != number);
                    order.push(*number);
                }
                Step::Kept(numbers) => numbers.iter().for_each(|number| {
                    if let Some(kept) = kept.get_mut(*number) {
                        *kept = true;
                    }
                }),
            }
        }
        let mut image = vec![0; self.size as usize];
        for number in order.into_iter().chain(in_flight) {
            let Some(change) = self.changes.get(number) else { continue };
            let safe = kept.get(number).copied().unwrap_or_default();
            for sector in change.sectors() {
                if safe || survives(number, sector) {
                    change.apply_sector(sector, &mut image);
                }
            }
        }
        image
    }
}
