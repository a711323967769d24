//! The two levels of tables: where each part of the disk is kept.

use super::Qcow2Error;
use super::header::{Header, Place};
use std::collections::BTreeSet;

/// A part of the disk that is kept in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// In bytes of the disk.
    pub length: u64,
    pub kept: Kept,
}

/// Where bytes of the disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Zeros,
    /// At this offset of the file, as they are.
    Plain {
        offset: u64,
    },
    /// One cluster, in at most so many bytes of the file.
    Compressed {
        offset: u64,
        length: u64,
    },
}

const COMPRESSED: u64 = 1 << 62;
const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const ZERO: u64 = 1;

fn damaged<T>(reason: String) -> Result<T, Qcow2Error> {
    Err(Qcow2Error::Damaged(reason))
}

fn numbers(table: &[u8]) -> impl Iterator<Item = u64> {
    let (entries, _) = table.as_chunks::<8>();
    entries.iter().map(|entry| u64::from_be_bytes(*entry))
}

impl Header {
    /// Where each L2 table is, by the L1 table.
    pub fn tables(&self, l1: &[u8], file: u64) -> Result<Vec<Option<Place>>, Qcow2Error> {
        let mut seen = BTreeSet::new();
        let length = self.cluster_size();
        let mut tables = Vec::with_capacity(l1.len() / 8);
        for entry in numbers(l1) {
            if entry & !(COPIED | OFFSET) != 0 {
                return damaged(format!("an entry of its first table ({entry:#x}) has bits that mean nothing"));
            }
            let offset = entry & OFFSET;
            if offset == 0 {
                tables.push(None);
                continue;
            }
            self.judge_cluster(offset, length, file)?;
            if !seen.insert(offset) {
                return damaged(format!("its second table at {offset} is used twice"));
            }
            tables.push(Some(Place { offset, length }));
        }
        Ok(tables)
    }

    /// What an L2 table, the `number`th, says of its part of the disk. `plain` counts clusters over all tables.
    pub fn runs(&self, number: usize, l2: &[u8], file: u64, plain: &mut u64) -> Result<Vec<Run>, Qcow2Error> {
        let mut left = self.span_of(number);
        let mut runs: Vec<Run> = Vec::new();
        for entry in numbers(l2) {
            if left == 0 {
                break;
            }
            let length = left.min(self.cluster_size());
            left -= length;
            let kept = self.cluster(entry, length, file)?;
            if let Kept::Plain { .. } = kept {
                *plain = plain.saturating_add(1);
                if *plain > file >> self.cluster_bits() {
                    return damaged("it says that more clusters are in it than fit into it".into());
                }
            }
            push(&mut runs, Run { length, kept });
        }
        match left {
            0 => Ok(runs),
            _ => damaged("it ends within a table".into()),
        }
    }

    /// What an entry says of a cluster, of which `length` bytes are the disk's.
    fn cluster(&self, entry: u64, length: u64, file: u64) -> Result<Kept, Qcow2Error> {
        if entry & COMPRESSED != 0 {
            return self.compressed(entry, file);
        }
        let known = if self.version >= 3 { COPIED | OFFSET | ZERO } else { COPIED | OFFSET };
        if entry & !known != 0 {
            return damaged(format!("an entry of a second table ({entry:#x}) has bits that mean nothing"));
        }
        let offset = entry & OFFSET;
        if entry & ZERO != 0 || offset == 0 {
            return Ok(Kept::Zeros);
        }
        self.judge_cluster(offset, length, file)?;
        Ok(Kept::Plain { offset })
    }

    fn compressed(&self, entry: u64, file: u64) -> Result<Kept, Qcow2Error> {
        let offset_bits = 62 - (self.cluster_bits() - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
        if offset < self.cluster_size() || offset >= file {
            return damaged(format!("a compressed cluster at {offset}: that is its header, or behind its end"));
        }
        // The last one need not fill its last sector.
        let length = ((sectors + 1) * 512 - (offset & 511)).min(file - offset);
        Ok(Kept::Compressed { offset, length })
    }

    /// Whether a table or a cluster of which `length` bytes are needed can be there.
    fn judge_cluster(&self, offset: u64, length: u64, file: u64) -> Result<(), Qcow2Error> {
        let within = offset.checked_add(length).is_some_and(|end| end <= file);
        if !within || !offset.is_multiple_of(self.cluster_size()) {
            return damaged(format!("a cluster at {offset} is not within its {file} bytes"));
        }
        let l1 = self.first_table();
        if offset < l1.offset.saturating_add(l1.length) && l1.offset < offset.saturating_add(length) {
            return damaged(format!("a cluster at {offset} is where its first table is"));
        }
        Ok(())
    }
}

/// Adds a run, joined with the last one where it goes on.
fn push(runs: &mut Vec<Run>, run: Run) {
    if let Some(last) = runs.last_mut() {
        let goes_on = match (last.kept, run.kept) {
            (Kept::Zeros, Kept::Zeros) => true,
            (Kept::Plain { offset: before }, Kept::Plain { offset }) => before.saturating_add(last.length) == offset,
            _ => false,
        };
        if goes_on {
            last.length += run.length;
            return;
        }
    }
    runs.push(run);
}
