use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

pub const CHUNK: u64 = 64 << 10;

/// Metadata in memory, as a pool writes them.
#[derive(Clone, Debug, Default)]
pub struct Written {
    pub blocks: Vec<[u8; BLOCK]>,
}

impl Blocks for &Written {
    fn read(&mut self, block: u64, into: &mut [u8; BLOCK]) -> io::Result<()> {
        let found = usize::try_from(block).ok().and_then(|at| self.blocks.get(at));
        *into = *found.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(())
    }
}

impl Written {
    /// What the devices have mapped, below a superblock in block zero; so many entries go into a node.
    pub fn of(devices: &BTreeMap<u64, BTreeSet<u64>>, wide: usize) -> Self {
        let mut written = Self { blocks: vec![[0; BLOCK]] };
        let roots: Vec<(u64, u64)> = devices
            .iter()
            .map(|(device, chunks)| {
                let chunks: Vec<(u64, u64)> = chunks.iter().map(|chunk| (*chunk, chunk << 24 | 1)).collect();
                (*device, written.tree(&chunks, wide))
            })
            .collect();
        let root = written.tree(&roots, wide);
        written.put(0, 32, &MAGIC.to_le_bytes());
        written.put(0, 320, &root.to_le_bytes());
        written.put(0, 336, &((CHUNK / 512) as u32).to_le_bytes());
        written.seal(0, SUPERBLOCK_SALT);
        written
    }

    fn tree(&mut self, entries: &[(u64, u64)], wide: usize) -> u64 {
        if entries.is_empty() {
            return self.node(&[], true);
        }
        let mut level: Vec<(u64, u64)> = entries.chunks(wide).map(|part| (part[0].0, self.node(part, true))).collect();
        while level.len() > 1 {
            level = level.chunks(wide).map(|part| (part[0].0, self.node(part, false))).collect();
        }
        level[0].1
    }

    fn node(&mut self, entries: &[(u64, u64)], leaf: bool) -> u64 {
        let number = self.blocks.len();
        self.blocks.push([0; BLOCK]);
        let most = 252;
        for (at, value) in
            [(4, if leaf { LEAF } else { INTERNAL }), (16, entries.len() as u32), (20, most as u32), (24, 8)]
        {
            self.put(number, at, &value.to_le_bytes());
        }
        for (at, (key, value)) in entries.iter().enumerate() {
            self.put(number, HEADER + at * 8, &key.to_le_bytes());
            self.put(number, HEADER + (most + at) * 8, &value.to_le_bytes());
        }
        self.seal(number, NODE_SALT);
        number as u64
    }

    pub fn put(&mut self, block: usize, at: usize, bytes: &[u8]) {
        self.blocks[block][at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Gives a block its place and its sum.
    pub fn seal(&mut self, block: usize, salt: u32) {
        self.put(block, 8, &(block as u64).to_le_bytes());
        let sum = sum(&self.blocks[block], salt);
        self.put(block, 0, &sum.to_le_bytes());
    }

    fn mapped(&self, device: u64) -> Result<Vec<u64>, MetadataError> {
        let mut chunks = Vec::new();
        let mut source = self;
        let all = self.blocks.len() as u64;
        mapped(&mut source, (0, all), (device, CHUNK), &mut |chunk| chunks.push(chunk)).map(|()| chunks)
    }
}

fn two_devices() -> Written {
    let devices = [(1, (0..900).step_by(3).collect()), (7, BTreeSet::from([2, 5, 1 << 40]))];
    Written::of(&devices.into(), 5)
}

#[test]
fn the_sum_is_that_of_the_kernel() {
    // A superblock that thin_restore of thin-provisioning-tools 0.9 wrote, as far as it is not zero.
    let mut block = [0; BLOCK];
    let words: [(usize, u32); 15] = [
        (32, 0x019c_52ba),
        (40, 1),
        (44, 1),
        (48, 3),
        (64, 0x0001_86a0),
        (72, 0x3eb),
        (80, 4),
        (88, 5),
        (192, 0x400),
        (200, 0x19),
        (208, 1),
        (216, 2),
        (320, 7),
        (328, 6),
        (336, 0x80),
    ];
    for (at, word) in words.into_iter().chain([(340, 8), (344, 0x400)]) {
        block[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    assert_eq!(sum(&block, SUPERBLOCK_SALT), 0xd36a_5a14);
}

#[test]
fn what_thin_restore_writes_is_read_as_it_was_meant() {
    let scratch = tempfile::tempdir().unwrap();
    let (words, target) = (scratch.path().join("words.xml"), scratch.path().join("metadata"));
    let ranges: String = (0..2000u64)
        .map(|at| format!("<single_mapping origin_block=\"{}\" data_block=\"{at}\" time=\"0\"/>", at * at))
        .collect();
    let device = |id: u64, count: u64, inside: &str| {
        format!(
            "<device dev_id=\"{id}\" mapped_blocks=\"{count}\" transaction=\"0\" creation_time=\"0\" snap_time=\"0\">\
             {inside}</device>"
        )
    };
    let last = "<range_mapping origin_begin=\"3\" data_begin=\"5000\" length=\"1000\" time=\"0\"/>";
    let all = [device(1, 2000, &ranges), device(2, 0, ""), device(9, 1000, last)].concat();
    let text = format!(
        "<superblock uuid=\"\" time=\"1\" transaction=\"3\" data_block_size=\"128\" nr_data_blocks=\"100000\">{all}</superblock>"
    );
    std::fs::write(&words, text).unwrap();
    std::fs::File::create(&target).unwrap().set_len(4 << 20).unwrap();
    let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let done = Command::new("thin_restore").env("PATH", search).arg("-i").arg(&words).arg("-o").arg(&target).output();
    let done = done.expect("thin_restore of thin-provisioning-tools, which `make test` installs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let bytes = std::fs::read(&target).unwrap();
    let written = Written { blocks: bytes.as_chunks::<BLOCK>().0.to_vec() };
    assert_eq!(written.mapped(1).unwrap(), (0..2000).map(|at| at * at).collect::<Vec<_>>());
    assert!(written.mapped(2).unwrap().is_empty());
    assert_eq!(written.mapped(9).unwrap(), (3..1003).collect::<Vec<_>>());
    assert!(matches!(written.mapped(3), Err(MetadataError::NoDevice(3))));
}

#[test]
fn a_block_that_is_torn_or_another_s_is_named() {
    for block in 0..two_devices().blocks.len() {
        let mut torn = two_devices();
        torn.blocks[block][2000] ^= 1;
        let read = [1, 7].map(|device| torn.mapped(device).map_err(|error| error.to_string()));
        let named = format!("block {block} of");
        assert!(read.iter().flat_map(Result::as_ref).count() < 2, "block {block} belongs to a device at least");
        assert!(read.iter().flat_map(|it| it.as_ref().err()).all(|it| it.contains(&named) && it.contains("sum")));
    }
    let mut swapped = two_devices();
    let last = swapped.blocks.len() - 1;
    swapped.blocks.swap(last, last - 1);
    assert!(swapped.mapped(1).unwrap_err().to_string().contains("another one"));
}

/// Changes one block so that its sum is right all the same, and reads.
fn forged(block: usize, at: usize, bytes: &[u8]) -> String {
    let mut written = two_devices();
    let block = if block == usize::MAX { written.blocks.len() - 1 } else { block };
    written.put(block, at, bytes);
    written.seal(block, if block == 0 { SUPERBLOCK_SALT } else { NODE_SALT });
    written.mapped(1).unwrap_err().to_string()
}

#[test]
fn numbers_that_cannot_be_are_refused_whatever_the_sums_say() {
    let root = two_devices().blocks.len() as u64 - 1;
    for (block, at, bytes, word) in [
        (0, 32, 1u64.to_le_bytes().to_vec(), "no superblock"),
        (0, 336, 256u32.to_le_bytes().to_vec(), "another size"),
        (0, 320, u64::MAX.to_le_bytes().to_vec(), "cannot read"),
        (1, 4, 3u32.to_le_bytes().to_vec(), "do not fit"),
        (1, 16, 253u32.to_le_bytes().to_vec(), "do not fit"),
        (1, 20, u32::MAX.to_le_bytes().to_vec(), "do not fit"),
        (1, 24, 4u32.to_le_bytes().to_vec(), "do not fit"),
        (1, HEADER, 99u64.to_le_bytes().to_vec(), "out of order"),
        // What are the chunks of a device would have to be devices.
        (usize::MAX, 4, INTERNAL.to_le_bytes().to_vec(), "out of order"),
    ] {
        let said = forged(block, at, &bytes);
        assert!(said.contains(word), "{block} {at}: {said}");
    }
    let mut circle = two_devices();
    circle.put(root as usize, 4, &INTERNAL.to_le_bytes());
    circle.put(root as usize, 16, &1u32.to_le_bytes());
    circle.put(root as usize, HEADER + 252 * 8, &root.to_le_bytes());
    circle.seal(root as usize, NODE_SALT);
    let said = circle.mapped(1).unwrap_err().to_string();
    assert!(said.contains("circle") || said.contains("deep"), "{said}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_chunk_that_is_mapped_is_found_in_order_and_no_other(
        devices in proptest::collection::btree_map(0u64..50, proptest::collection::btree_set(0u64..1 << 40, 0..300), 1..5),
        wide in 2usize..253,
    ) {
        let written = Written::of(&devices, wide);
        for (device, chunks) in &devices {
            let seen = written.mapped(*device).unwrap();
            prop_assert_eq!(seen, chunks.iter().copied().collect::<Vec<_>>());
        }
        let absent = matches!(written.mapped(50), Err(MetadataError::NoDevice(50)));
        prop_assert!(absent);
    }

    #[test]
    fn nothing_that_could_be_in_the_blocks_is_followed_for_ever(
        noise in proptest::collection::vec((0usize..40, 4usize..BLOCK, any::<u8>()), 0..60),
    ) {
        let mut written = two_devices();
        for (block, at, byte) in noise {
            let block = block % written.blocks.len();
            written.put(block, at, &[byte]);
            written.seal(block, if block == 0 { SUPERBLOCK_SALT } else { NODE_SALT });
        }
        let _either_is_fine = (written.mapped(1).is_ok(), written.mapped(7).is_ok());
    }
}
