//! What clients asked for and what they were told, and what that makes a power cut owe them.

use super::{Moments, SECTOR};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Sectors filled with their [`stamp`].
    Write {
        fua: bool,
    },
    Zero,
    /// May leave what was there, and promises nothing.
    Trim,
    Flush,
}

/// What it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Done,
    /// An error: nothing is owed, but what was begun may have had its effect.
    Failed,
}

#[derive(Clone, Debug)]
struct Act {
    asked: Asked,
    sectors: Range<u64>,
    begun: u64,
    /// The moment of the answer; without one it may have its effect at any time.
    ended: Option<(u64, Told)>,
}

/// Writes down what all clients of one medium do. The number of an act, which begins with 1, is also its stamp.
#[derive(Debug)]
pub struct Witness {
    moments: Moments,
    acts: Mutex<Vec<Act>>,
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("power cut after step {steps}, seed {seed}: sector {sector} holds {found}, and {owed}")]
pub struct Breach {
    pub steps: usize,
    pub seed: u64,
    pub sector: u64,
    pub found: String,
    pub owed: String,
}

/// The content of one sector that the act of this number writes.
pub fn stamp(number: u64, sector: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    let words = [number, sector].into_iter().chain((2..).map(|at: u64| number.rotate_left(17) ^ (sector << 32) ^ at));
    for (target, word) in bytes.chunks_exact_mut(8).zip(words) {
        target.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

impl Witness {
    pub fn new(moments: &Moments) -> Self {
        Self { moments: moments.clone(), acts: Mutex::default() }
    }

    /// To be called before a request leaves; answers the number of the act.
    pub fn begins(&self, asked: Asked, sectors: Range<u64>) -> u64 {
        let mut acts = self.lock();
        let begun = self.moments.now();
        acts.push(Act { asked, sectors, begun, ended: None });
        acts.len() as u64
    }

    /// To be called when its answer has come.
    pub fn ends(&self, number: u64, told: Told) {
        let mut acts = self.lock();
        let moment = self.moments.now();
        if let Some(act) = (number as usize).checked_sub(1).and_then(|at| acts.get_mut(at)) {
            act.ended = Some((moment, told));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Act>> {
        self.acts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn history(&self) -> History {
        let acts = self.lock().clone();
        let flushes: Vec<(u64, u64)> = acts
            .iter()
            .filter(|act| act.asked == Asked::Flush)
            .filter_map(|act| Some((act.begun, act.done()?)))
            .collect();
        let owed_since = |act: &Act| {
            let done = act.done()?;
            let flushed = flushes.iter().filter(|(begun, _)| *begun > done).map(|(_, ended)| *ended).min();
            match act.asked {
                Asked::Write { fua: true } => Some(done),
                Asked::Write { fua: false } | Asked::Zero => flushed,
                Asked::Trim | Asked::Flush => None,
            }
        };
        let mut sectors: Vec<Vec<Entry>> = Vec::new();
        for (at, act) in acts.iter().enumerate() {
            let ended = act.ended.map_or(u64::MAX, |(moment, _)| moment);
            let writes = matches!(act.asked, Asked::Write { .. });
            let entry = Entry { number: at as u64 + 1, writes, begun: act.begun, ended, owed_since: owed_since(act) };
            for sector in act.sectors.clone() {
                let place = sector as usize;
                if sectors.len() <= place {
                    sectors.resize_with(place + 1, Vec::new);
                }
                if let Some(entries) = sectors.get_mut(place) {
                    entries.push(entry);
                }
            }
        }
        History { sectors }
    }
}

impl Act {
    /// When it was told that it was done.
    fn done(&self) -> Option<u64> {
        self.ended.and_then(|(moment, told)| (told == Told::Done).then_some(moment))
    }
}

/// One act, as one sector sees it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    number: u64,
    /// Its stamp, else zeros.
    writes: bool,
    begun: u64,
    ended: u64,
    /// From this moment on the sector must not be older than this act.
    owed_since: Option<u64>,
}

/// What was done to each sector.
pub(super) struct History {
    sectors: Vec<Vec<Entry>>,
}

impl History {
    /// Whether an image is one that a power cut just before the moment `until` may leave.
    pub(super) fn check(&self, image: &[u8], until: u64) -> Result<(), Breach> {
        for (sector, content) in image.chunks(SECTOR).enumerate() {
            let entries = self.sectors.get(sector).map(Vec::as_slice).unwrap_or_default();
            let breach =
                |found: String, owed: String| Err(Breach { steps: 0, seed: 0, sector: sector as u64, found, owed });
            // Who wrote what is there, by when they had ended. What was there at the beginning is older than all.
            let number = content.first_chunk().copied().map_or(0, u64::from_be_bytes);
            let zeros = number == 0 && content.iter().all(|byte| *byte == 0);
            let stamped = !zeros && content == stamp(number, sector as u64);
            let begun = || entries.iter().filter(|entry| entry.begun < until);
            let wrote = |entry: &&Entry| if entry.writes { stamped && entry.number == number } else { zeros };
            let newest = begun().filter(wrote).map(|entry| entry.ended).max().or(zeros.then_some(0));
            let Some(newest) = newest else {
                return breach(format!("what looks like act {number}"), "nobody had asked to write that here".into());
            };
            let stale =
                begun().find(|entry| entry.owed_since.is_some_and(|since| since < until) && newest < entry.begun);
            if let Some(owed) = stale {
                let found = if zeros { "zeros".to_owned() } else { format!("an act that ended at {newest}") };
                return breach(found, format!("act {}, begun at {}, had been made durable", owed.number, owed.begun));
            }
        }
        Ok(())
    }
}
