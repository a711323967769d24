//! A client that remembers what was acknowledged, so that it can tell whether all of it is there.

use crate::stage::{client, until};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use symphony::nbd::Dialled;

/// Bytes that are written at once; a power of two that every medium writes as one.
const BLOCK: usize = 4096;
pub const BLOCKS: usize = 256;

/// Each block holds one number, over and over: that of the write it comes from, zero before the first.
#[derive(Clone)]
pub struct Witness {
    random: fastrand::Rng,
    last: u64,
    blocks: Vec<Block>,
    acknowledged: u64,
    began: Instant,
    /// What befell it, and after how many milliseconds, for whoever has to find out what went wrong.
    journal: Vec<(u128, u64, &'static str)>,
}

#[derive(Clone, Default)]
struct Block {
    /// What a flush has covered.
    kept: u64,
    /// Writes on the present connection since then, the last at the end; the next flush covers it.
    floating: Vec<u64>,
    /// Writes on connections that failed: each may be there or not, and no flush says which.
    doubtful: Vec<u64>,
}

impl Witness {
    pub fn new(random: fastrand::Rng) -> Self {
        Self {
            random,
            last: 0,
            blocks: vec![Block::default(); BLOCKS],
            acknowledged: 0,
            began: Instant::now(),
            journal: Vec::new(),
        }
    }

    /// One that finds blocks of these numbers to begin with.
    pub fn of(random: fastrand::Rng, numbers: impl IntoIterator<Item = u64>) -> Self {
        let blocks = numbers.into_iter().map(|kept| Block { kept, ..Block::default() }).collect();
        Self { blocks, ..Self::new(random) }
    }

    /// What a volume that holds blocks of these numbers looks like.
    pub fn bytes_of(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
        numbers.into_iter().flat_map(|number: u64| number.to_be_bytes().repeat(BLOCK / 8)).collect()
    }

    /// The same knowledge of another volume, whose fate is its own.
    pub fn fork(&mut self) -> Self {
        Self { random: self.random.fork(), ..self.clone() }
    }

    fn note(&mut self, what: &'static str) {
        self.journal.push((self.began.elapsed().as_millis(), self.last, what));
    }

    /// What befell it around a write.
    fn around(&self, number: u64) -> String {
        let after = self.journal.partition_point(|(_, last, _)| *last < number);
        let lines = &self.journal[after.saturating_sub(6)..self.journal.len().min(after + 12)];
        let line = |(at, last, what): &(u128, u64, &str)| format!("{at} ms: {what} up to {last}");
        lines.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// How many flushes were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Writes at random places until it has been enough, over as many connections as it takes.
    pub fn write_until(&mut self, enough: &AtomicBool, uri: &str) {
        while !enough.load(Ordering::Relaxed) {
            // While nobody serves there is nothing to do but to try again.
            if let Ok(connection) = client(uri) {
                self.write_through(connection, enough);
                self.doubt();
            }
            std::thread::yield_now();
        }
    }

    /// Writes up to so many times over one connection, each time to a flush; answers with it if it is still good.
    pub fn write_some(&mut self, times: usize, dial: impl FnOnce() -> Option<Dialled>) -> Option<Dialled> {
        let mut connection = dial()?;
        self.note("connected");
        let is_good = self.write_until_flushed(&mut connection, times);
        self.doubt();
        is_good.then_some(connection)
    }

    /// What no flush has covered by now is there or not.
    fn doubt(&mut self) {
        for block in &mut self.blocks {
            block.doubtful.append(&mut block.floating);
        }
    }

    /// Writes until it has been enough or the connection fails.
    fn write_through(&mut self, mut connection: Dialled, enough: &AtomicBool) {
        while !enough.load(Ordering::Relaxed) && self.write_until_flushed(&mut connection, 1) {}
    }

    /// Says whether every flush was acknowledged.
    fn write_until_flushed(&mut self, connection: &mut Dialled, times: usize) -> bool {
        for _ in 0..times {
            for _ in 0..self.random.usize(1..8) {
                let place = self.random.usize(..BLOCKS);
                self.last += 1;
                self.blocks[place].floating.push(self.last);
                let bytes = self.last.to_be_bytes().repeat(BLOCK / 8);
                if connection.write((place * BLOCK) as u64, &bytes, false).is_err() {
                    self.note("a write failed");
                    return false;
                }
            }
            if connection.flush().is_err() {
                self.note("a flush failed");
                return false;
            }
            self.note("flushed");
            self.acknowledged += 1;
            for block in &mut self.blocks {
                if let Some(last) = block.floating.pop() {
                    block.kept = last;
                    block.floating.clear();
                    block.doubtful.clear();
                }
            }
        }
        true
    }

    /// Reads everything back: what was acknowledged is there, unless a later write has taken its place.
    pub fn verify(&mut self, uri: &str) {
        if let Err(wrong) = self.look(uri) {
            panic!("{wrong}");
        }
    }

    /// As [`Self::verify`]; what is wrong, if something is.
    pub fn look(&mut self, uri: &str) -> Result<(), String> {
        let mut bytes = vec![0; BLOCK * BLOCKS];
        until("the volume to be read", || client(uri).and_then(|mut it| it.read(0, &mut bytes)).ok());
        let mut wrong = Vec::new();
        for (place, (content, block)) in bytes.chunks(BLOCK).zip(&mut self.blocks).enumerate() {
            let numbers: Vec<u64> =
                content.chunks(8).map(|word| u64::from_be_bytes(word.try_into().expect("eight bytes"))).collect();
            let found = numbers[0];
            assert!(numbers.iter().all(|number| *number == found), "block {place} is torn: {numbers:?}");
            let allowed = found == block.kept || block.doubtful.contains(&found);
            if !allowed {
                wrong.push((place, found, block.kept, block.doubtful.clone()));
            }
            *block = Block { kept: found, ..Block::default() };
        }
        match wrong.first() {
            Some((_, _, kept, _)) => {
                Err(format!("blocks, what they hold, what was kept, what may be: {wrong:?}\n{}", self.around(*kept)))
            }
            None => Ok(()),
        }
    }
}
