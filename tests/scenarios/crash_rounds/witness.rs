//! A client that remembers what was acknowledged, so that it can tell whether all of it is there.

use crate::stage::{client, until};
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that are written at once; a power of two that every medium writes as one.
const BLOCK: usize = 4096;
const BLOCKS: usize = 256;

/// Each block holds one number, over and over: that of the write it comes from, zero before the first.
pub struct Witness {
    random: fastrand::Rng,
    last: u64,
    blocks: Vec<Block>,
    acknowledged: u64,
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
        Self { random, last: 0, blocks: vec![Block::default(); BLOCKS], acknowledged: 0 }
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
                for block in &mut self.blocks {
                    block.doubtful.append(&mut block.floating);
                }
            }
            std::thread::yield_now();
        }
    }

    /// Writes until it has been enough or the connection fails.
    fn write_through(&mut self, mut connection: symphony::nbd::Dialled, enough: &AtomicBool) {
        while !enough.load(Ordering::Relaxed) {
            for _ in 0..self.random.usize(1..8) {
                let place = self.random.usize(..BLOCKS);
                self.last += 1;
                self.blocks[place].floating.push(self.last);
                let bytes = self.last.to_be_bytes().repeat(BLOCK / 8);
                if connection.write((place * BLOCK) as u64, &bytes, false).is_err() {
                    return;
                }
            }
            if connection.flush().is_err() {
                return;
            }
            self.acknowledged += 1;
            for block in &mut self.blocks {
                if let Some(last) = block.floating.pop() {
                    block.kept = last;
                    block.floating.clear();
                    block.doubtful.clear();
                }
            }
        }
    }

    /// Reads everything back: what was acknowledged is there, unless a later write has taken its place.
    pub fn verify(&mut self, uri: &str) {
        let mut bytes = vec![0; BLOCK * BLOCKS];
        until("the volume to be read", || client(uri).and_then(|mut it| it.read(0, &mut bytes)).ok());
        for (place, (content, block)) in bytes.chunks(BLOCK).zip(&mut self.blocks).enumerate() {
            let numbers: Vec<u64> =
                content.chunks(8).map(|word| u64::from_be_bytes(word.try_into().expect("eight bytes"))).collect();
            let found = numbers[0];
            assert!(numbers.iter().all(|number| *number == found), "block {place} is torn: {numbers:?}");
            let allowed = found == block.kept || block.doubtful.contains(&found);
            assert!(allowed, "block {place} holds write {found}, not {} or {:?}", block.kept, block.doubtful);
            *block = Block { kept: found, ..Block::default() };
        }
    }
}
