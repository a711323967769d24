//! What survives a power cut: a medium that loses what nobody flushed, and the checker of what clients were promised.
//!
//! ```text
//!   clients ──▶ Witness: what they asked for, and what they were told when
//!      │                                       │
//!      ▼ what is tested                        ▼
//!   CachingIo ──▶ WriteLog ──every prefix──▶ images ──▶ kept, or a Breach
//! ```
//! The promise: after a power cut every sector holds a value that was written to it and is not older than the last one
//! that a completed flush or durable write covered, whichever connection it came through. A write in flight may be
//! there, or be torn between sectors.
//!
//! Never here: servers and sockets. For tests; nothing of the program uses it.

mod cache;
mod log;
mod witness;

pub use cache::{CachingIo, Lie};
pub use log::WriteLog;
pub use witness::{Asked, Breach, Told, Witness, stamp};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What no medium tears, in bytes.
pub const SECTOR: usize = 512;

/// A count that all who witness a test share: of two moments the earlier one has the smaller number.
#[derive(Clone, Debug, Default)]
pub struct Moments(Arc<AtomicU64>);

impl Moments {
    /// The moment now; later than all before.
    pub fn now(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

/// Subsets of the unflushed writes that are tried at each flush, besides all of them and none.
const SUBSETS: usize = 8;

/// Cuts the power after every step of the log, and checks what the medium may hold then: all that was written so far,
/// only what had to be kept, and after each flush some subsets in between, torn at sectors, by the seed.
///
/// Returns how many images were checked.
///
/// # Errors
/// The first broken promise.
pub fn check(log: &WriteLog, witness: &Witness, seed: u64) -> Result<usize, Breach> {
    let mut random = fastrand::Rng::with_seed(seed);
    let history = witness.history();
    let mut images = 0;
    for steps in 0..=log.steps() {
        let until = log.moment(steps);
        let subsets = if log.is_flush(steps) { SUBSETS } else { 0 };
        for number in 0..2 + subsets {
            let image = log.image(steps, |_, _| match number {
                0 => true,
                1 => false,
                _ => random.bool(),
            });
            images += 1;
            history.check(&image, until).map_err(|breach| Breach { steps, seed, ..breach })?;
        }
    }
    Ok(images)
}

#[cfg(test)]
mod tests;
