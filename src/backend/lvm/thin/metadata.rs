//! What a thin pool keeps on disk: which chunks of a volume are mapped. The layout is that of Linux's
//! `drivers/md/dm-thin-metadata.c` and `drivers/md/persistent-data/dm-btree-internal.h`.
//!
//! ```text
//!   superblock, or the copy of it that a metadata snapshot begins with
//!     └─ tree of devices ──(device id)──▶ tree of its chunks ──(chunk)──▶ where it lies
//! ```
//! Everything is read from blocks that a metadata snapshot holds, so that nobody changes them meanwhile. Each block is
//! checked: its sum, its place, its numbers. What does not hold together is an error: a volume of which it is not certain
//! what it holds has no holes.
//!
//! Never here: who holds the snapshot, and where chunks lie.

use std::io;

/// Of metadata, in bytes.
pub const BLOCK: usize = 4096;
const MAGIC: u64 = 27_022_010;
const SUPERBLOCK_SALT: u32 = 160_774;
const NODE_SALT: u32 = 121_107;
/// Before the keys of a node, in bytes.
const HEADER: usize = 32;
/// Of a key and its value, in bytes.
const ENTRY: usize = 16;
const INTERNAL: u32 = 1;
const LEAF: u32 = 2;
/// Two hundred and more children each: no tree is as deep.
const DEEPEST: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    #[error("cannot read block {block} of the thin pool's metadata")]
    Read { block: u64, source: io::Error },
    #[error("block {block} of the thin pool's metadata is not what it should be: {reason}")]
    Odd { block: u64, reason: &'static str },
    #[error("the thin pool has no device {0}")]
    NoDevice(u64),
}

/// Gives out blocks by their number.
pub trait Blocks {
    fn read(&mut self, block: u64, into: &mut [u8; BLOCK]) -> io::Result<()>;
}

impl<F: FnMut(u64, &mut [u8; BLOCK]) -> io::Result<()>> Blocks for F {
    fn read(&mut self, block: u64, into: &mut [u8; BLOCK]) -> io::Result<()> {
        self(block, into)
    }
}

/// Calls `each` for all chunks of a device that are mapped, in their order. `root` is the block that the metadata snapshot
/// begins with, of metadata of so many `blocks`, in a pool with chunks of so many bytes.
pub fn mapped(
    source: &mut dyn Blocks,
    (root, blocks): (u64, u64),
    (device, chunk): (u64, u64),
    each: &mut dyn FnMut(u64),
) -> Result<(), MetadataError> {
    let mut block = [0; BLOCK];
    fetch(source, root, SUPERBLOCK_SALT, &mut block)?;
    let odd = |reason| MetadataError::Odd { block: root, reason };
    if long(&block, 32) != Some(MAGIC) {
        return Err(odd("it is no superblock"));
    }
    let sectors = half(&block, 336).map(|sectors| u64::from(sectors) * 512);
    if sectors != Some(chunk) {
        return Err(odd("its chunks are of another size"));
    }
    let devices = long(&block, 320).ok_or_else(|| odd("it is too short"))?;
    let mut walk = Walk { source, left: blocks };
    let mut own = None;
    walk.entries(devices, Some(device), &mut |key, value| {
        if key == device {
            own = Some(value);
        }
    })?;
    let own = own.ok_or(MetadataError::NoDevice(device))?;
    walk.entries(own, None, &mut |key, _| each(key))
}

struct Walk<'s> {
    source: &'s mut dyn Blocks,
    /// There are no more blocks than that, so whoever reads more goes in a circle.
    left: u64,
}

/// A part of a tree: its keys are from `from` on, and before `to`.
struct Branch {
    block: u64,
    from: u64,
    to: Option<u64>,
    depth: usize,
}

impl Walk<'_> {
    /// Goes through a tree in the order of its keys; if only one is `wanted`, only where it can be.
    fn entries(&mut self, root: u64, wanted: Option<u64>, each: &mut dyn FnMut(u64, u64)) -> Result<(), MetadataError> {
        let mut open = vec![Branch { block: root, from: 0, to: None, depth: 0 }];
        let mut block = [0; BLOCK];
        while let Some(Branch { block: number, from, to, depth }) = open.pop() {
            let odd = |reason| MetadataError::Odd { block: number, reason };
            self.left = self.left.checked_sub(1).ok_or_else(|| odd("the tree goes in a circle"))?;
            fetch(self.source, number, NODE_SALT, &mut block)?;
            let node = Node::of(&block).ok_or_else(|| odd("its numbers do not fit"))?;
            if !node.is_ordered(from, to) {
                return Err(odd("its keys are out of order"));
            }
            if node.leaf {
                node.entries().for_each(|(key, value)| each(key, value));
                continue;
            }
            if depth >= DEEPEST {
                return Err(odd("the tree is too deep"));
            }
            let children: Vec<(u64, u64)> = node.entries().collect();
            // The last one goes in first, and comes out last.
            for (at, (key, child)) in children.iter().copied().enumerate().rev() {
                let end = children.get(at + 1).map(|(next, _)| *next).or(to);
                let holds = |wanted: u64| key <= wanted && end.is_none_or(|end| wanted < end);
                if wanted.is_none_or(holds) {
                    open.push(Branch { block: child, from: key, to: end, depth: depth + 1 });
                }
            }
        }
        Ok(())
    }
}

/// A node of a tree whose numbers fit into its block.
struct Node<'b> {
    leaf: bool,
    keys: &'b [u8],
    values: &'b [u8],
}

impl<'b> Node<'b> {
    fn of(block: &'b [u8; BLOCK]) -> Option<Self> {
        let leaf = match half(block, 4)? {
            INTERNAL => false,
            LEAF => true,
            _ => return None,
        };
        let (count, most, value) = (half(block, 16)? as usize, half(block, 20)? as usize, half(block, 24)?);
        if count > most || most > (BLOCK - HEADER) / ENTRY || value != 8 {
            return None;
        }
        let keys = block.get(HEADER..)?.get(..count * 8)?;
        let values = block.get(HEADER + most * 8..)?.get(..count * 8)?;
        Some(Self { leaf, keys, values })
    }

    fn entries(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let numbers = |bytes: &'b [u8]| bytes.as_chunks::<8>().0.iter().map(|eight| u64::from_le_bytes(*eight));
        numbers(self.keys).zip(numbers(self.values))
    }

    fn is_ordered(&self, from: u64, to: Option<u64>) -> bool {
        let mut least = Some(from);
        self.entries().all(|(key, _)| {
            let fits = least.is_some_and(|least| key >= least) && to.is_none_or(|to| key < to);
            least = key.checked_add(1);
            fits
        })
    }
}

/// Reads a block and checks its sum and that it is where it says.
fn fetch(source: &mut dyn Blocks, number: u64, salt: u32, block: &mut [u8; BLOCK]) -> Result<(), MetadataError> {
    source.read(number, block).map_err(|source| MetadataError::Read { block: number, source })?;
    let odd = |reason| MetadataError::Odd { block: number, reason };
    if half(block, 0) != Some(sum(block, salt)) {
        return Err(odd("its sum is wrong"));
    }
    if long(block, 8) != Some(number) {
        return Err(odd("it says that it is another one"));
    }
    Ok(())
}

/// Of everything behind the sum itself: CRC-32C without its last inversion, and salted.
fn sum(block: &[u8; BLOCK], salt: u32) -> u32 {
    let bytes = block.get(4..).unwrap_or_default();
    let step = |crc: u32, byte: &u8| TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8);
    bytes.iter().fold(u32::MAX, step) ^ salt
}

/// Of CRC-32C, Castagnoli's polynomial, reflected.
static TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn half(block: &[u8; BLOCK], at: usize) -> Option<u32> {
    block.get(at..)?.first_chunk().map(|four| u32::from_le_bytes(*four))
}

fn long(block: &[u8; BLOCK], at: usize) -> Option<u64> {
    block.get(at..)?.first_chunk().map(|eight| u64::from_le_bytes(*eight))
}

#[cfg(test)]
pub mod tests;
