//! What an export's clients asked for and how it went, counted while it happens.
//!
//! ```text
//!   thread ──┐ its connections' counts ──▶ its shard ─┐
//!   thread ──┘                          ▶  its shard ─┴─ added up when somebody looks
//! ```
//! Counting takes no lock and makes nothing: a shard comes to be when its thread first counts something of the export,
//! and threads share shards only where there are many of them. Never here: clocks.

use super::histogram::Histogram;
use crate::model::{Figures, Latency, Operation, OperationFigures};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Threads that count without touching each other's memory. Each costs 20 KiB for each export that it has counted for.
const SHARDS: usize = 8;

thread_local! {
    /// The shard of this thread, in every meter.
    static SHARD: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS
    };
}

#[derive(Default)]
pub(super) struct Meter {
    shards: [OnceLock<Box<Shard>>; SHARDS],
    /// Of connections that are there.
    gauges: Mutex<Vec<Arc<Gauge>>>,
}

/// On cache lines that no other one is on.
#[repr(align(128))]
struct Shard {
    counts: [Counts; Operation::ALL.len()],
    refused: AtomicU64,
    throttled: AtomicU64,
}

struct Counts {
    latency: Histogram,
    /// All together, in nanoseconds.
    time: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

/// How many requests of one connection are in flight. Written by its own thread only.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Gauge(AtomicU32);

impl Gauge {
    pub(super) fn set(&self, in_flight: u32) {
        self.0.store(in_flight, Ordering::Relaxed);
    }
}

/// Operations of one kind that took the same time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Alike {
    pub(super) count: u64,
    /// Of those that ended well.
    pub(super) bytes: u64,
    pub(super) errors: u64,
}

impl Meter {
    /// The calling thread's place, for [`Self::count`] and its like.
    pub(super) fn shard_of_this_thread() -> usize {
        SHARD.with(|shard| *shard)
    }

    /// Counts operations that have ended.
    pub(super) fn count(&self, shard: usize, operation: Operation, each: Duration, ended: Alike) {
        let nanos = u64::try_from(each.as_nanos()).unwrap_or(u64::MAX);
        let Some(counts) = self.shard(shard).counts.get(operation as usize) else { return };
        counts.latency.count(nanos, ended.count);
        counts.time.fetch_add(nanos.saturating_mul(ended.count), Ordering::Relaxed);
        for (counter, more) in [(&counts.bytes, ended.bytes), (&counts.errors, ended.errors)] {
            if more > 0 {
                counter.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    /// Counts a request that nothing was done for.
    pub(super) fn count_refused(&self, shard: usize) {
        self.shard(shard).refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that has to wait for the limits.
    pub(super) fn count_throttled(&self, shard: usize) {
        self.shard(shard).throttled.fetch_add(1, Ordering::Relaxed);
    }

    fn shard(&self, number: usize) -> &Shard {
        // In bounds by the remainder; the first stands for what the compiler cannot see.
        let [first, ..] = &self.shards;
        self.shards.get(number % SHARDS).unwrap_or(first).get_or_init(Box::default)
    }

    /// A connection comes.
    pub(super) fn enter(&self) -> Arc<Gauge> {
        let gauge = Arc::<Gauge>::default();
        self.gauges.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&gauge));
        gauge
    }

    /// A connection has gone, and what it had in flight with it.
    pub(super) fn leave(&self, gauge: &Arc<Gauge>) {
        self.gauges.lock().unwrap_or_else(PoisonError::into_inner).retain(|present| !Arc::ptr_eq(present, gauge));
    }

    /// All that was counted, but for the time since when.
    pub(super) fn figures(&self) -> Figures {
        let shards: Vec<&Shard> = self.shards.iter().filter_map(|shard| Some(&**shard.get()?)).collect();
        let sum = |counter: fn(&Shard) -> &AtomicU64| -> u64 {
            shards.iter().map(|shard| counter(shard).load(Ordering::Relaxed)).sum()
        };
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        Figures {
            elapsed: Duration::ZERO,
            operations: Operation::ALL.map(|operation| figures_of(&shards, operation)),
            refused: sum(|shard| &shard.refused),
            throttled: sum(|shard| &shard.throttled),
            in_flight: gauges.iter().map(|gauge| u64::from(gauge.0.load(Ordering::Relaxed))).sum(),
            connections: gauges.len() as u64,
        }
    }
}

fn figures_of(shards: &[&Shard], operation: Operation) -> OperationFigures {
    let counts: Vec<&Counts> = shards.iter().filter_map(|shard| shard.counts.get(operation as usize)).collect();
    let sum = |counter: fn(&Counts) -> &AtomicU64| -> u64 {
        counts.iter().map(|counts| counter(counts).load(Ordering::Relaxed)).sum()
    };
    OperationFigures {
        latency: Latency::new(counts.iter().flat_map(|counts| counts.latency.counts())),
        time: Duration::from_nanos(sum(|counts| &counts.time)),
        bytes: sum(|counts| &counts.bytes),
        errors: sum(|counts| &counts.errors),
    }
}

impl Default for Shard {
    fn default() -> Self {
        let counts = || Counts {
            latency: Histogram::new(),
            time: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        };
        Self { counts: Operation::ALL.map(|_| counts()), refused: AtomicU64::new(0), throttled: AtomicU64::new(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_count_at_the_same_time_is_all_there() {
        let meter = Meter::default();
        const EACH: u64 = 10_000;
        std::thread::scope(|scope| {
            for thread in 0..2 * SHARDS as u64 {
                let meter = &meter;
                scope.spawn(move || {
                    let shard = Meter::shard_of_this_thread();
                    let gauge = meter.enter();
                    for number in 0..EACH {
                        let errors = u64::from(number % 10 == 0);
                        let took = Duration::from_nanos(thread * 1_000_000);
                        meter.count(shard, Operation::Write, took, Alike { count: 2, bytes: 512, errors });
                        meter.count_refused(shard);
                    }
                    gauge.set(7);
                    if thread % 2 == 0 {
                        meter.leave(&gauge);
                    }
                });
            }
        });
        let (seen, threads) = (meter.figures(), 2 * SHARDS as u64);
        let writes = seen.of(Operation::Write);
        assert_eq!(writes.operations(), 2 * EACH * threads);
        assert_eq!((writes.bytes, writes.errors), (512 * EACH * threads, EACH / 10 * threads));
        let millis: u64 = (0..threads).map(|thread| 2 * EACH * thread).sum();
        assert_eq!(writes.time, Duration::from_millis(millis));
        assert_eq!((seen.refused, seen.connections, seen.in_flight), (EACH * threads, threads / 2, 7 * threads / 2));
        assert_eq!(seen.of(Operation::Read), &OperationFigures::default());
    }

    #[test]
    fn an_export_that_nobody_uses_takes_next_to_no_memory() {
        let meter = Meter::default();
        assert_eq!(meter.figures(), Figures::default());
        assert!(meter.shards.iter().all(|shard| shard.get().is_none()) && size_of::<Meter>() < 256);
    }
}
