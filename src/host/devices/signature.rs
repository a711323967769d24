//! What the bytes of a device say is on it. Pure: it asks for ranges of bytes and judges them.
//!
//! One table of magic words, and functions for what takes more than a word: ext, which wants a second look, RAID and
//! ZFS, whose places depend on the device's size, partition tables, and LVM. What is known to nobody here but is not
//! blank either is [`Content::Unrecognised`], so that a disk with a format of its own is not taken for an empty one.

use super::label::{self, PvLabel};
use std::fmt;
use std::io;

/// Reads up to so many bytes at an offset; fewer only at the end of the device.
pub type ReadAt<'r> = dyn FnMut(u64, usize) -> io::Result<Vec<u8>> + 'r;

/// A run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    pub offset: u64,
    pub length: u64,
}

/// One thing that a device carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub content: Content,
    /// What must be overwritten so that it is gone.
    pub places: Vec<Range>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// `MBR` or `GPT`.
    PartitionTable(&'static str),
    /// By the name that mount(8) takes.
    FileSystem(&'static str),
    Swap,
    /// An LVM physical volume.
    Pv(PvLabel),
    /// A member of something that spans devices, by its name: `md 1.2`, `LUKS`, `ZFS`.
    Member(&'static str),
    Unrecognised,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::PartitionTable(kind) => write!(f, "a partition table ({kind})"),
            Content::FileSystem(kind) => write!(f, "a file system ({kind})"),
            Content::Swap => f.write_str("swap space"),
            Content::Pv(PvLabel { group: Some(group), .. }) => write!(f, "an LVM physical volume of the group {group}"),
            Content::Pv(_) => f.write_str("an LVM physical volume of no known group"),
            Content::Member(kind) => write!(f, "data of {kind}"),
            Content::Unrecognised => f.write_str("data of an unknown kind"),
        }
    }
}

/// Bytes at either end that are zeros on a device that carries nothing.
pub(super) const EDGE: u64 = 1 << 20;
static ZEROS: [u8; EDGE as usize] = [0; EDGE as usize];

struct Magic {
    content: Content,
    at: u64,
    word: &'static [u8],
}

const fn magic(content: Content, at: u64, word: &'static [u8]) -> Magic {
    Magic { content, at, word }
}

const BCACHEFS: &[u8] =
    &[0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef];
const BCACHE: &[u8] = &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81];
const LUKS_COPY: &[u8] = b"SKUL\xba\xbe";
const STRATIS: &[u8] = b"!Stra0tis\x86\xff\x02^\x41rh";

/// Words at places that do not depend on the device's size.
const MAGICS: &[Magic] = &[
    magic(Content::FileSystem("xfs"), 0, b"XFSB"),
    magic(Content::FileSystem("btrfs"), 0x1_0040, b"_BHRfS_M"),
    magic(Content::FileSystem("btrfs"), 0x400_0040, b"_BHRfS_M"),
    magic(Content::FileSystem("btrfs"), 0x40_0000_0040, b"_BHRfS_M"),
    magic(Content::FileSystem("bcachefs"), 0x1018, BCACHEFS),
    magic(Content::FileSystem("vfat"), 0x36, b"FAT12   "),
    magic(Content::FileSystem("vfat"), 0x36, b"FAT16   "),
    magic(Content::FileSystem("vfat"), 0x52, b"FAT32   "),
    magic(Content::FileSystem("exfat"), 3, b"EXFAT   "),
    magic(Content::FileSystem("ntfs"), 3, b"NTFS    "),
    magic(Content::FileSystem("iso9660"), 0x8001, b"CD001"),
    magic(Content::FileSystem("udf"), 0x8001, b"BEA01"),
    magic(Content::FileSystem("squashfs"), 0, b"hsqs"),
    magic(Content::FileSystem("erofs"), 0x400, &[0xe2, 0xe1, 0xf5, 0xe0]),
    magic(Content::FileSystem("f2fs"), 0x400, &[0x10, 0x20, 0xf5, 0xf2]),
    magic(Content::FileSystem("gfs2"), 0x1_0000, &[0x01, 0x16, 0x19, 0x70]),
    magic(Content::FileSystem("reiserfs"), 0x1_0034, b"ReIsEr"),
    magic(Content::FileSystem("nilfs2"), 0x406, &[0x34, 0x34]),
    magic(Content::Member("LUKS"), 0, b"LUKS\xba\xbe"),
    magic(Content::Member("LUKS"), 0x4000, LUKS_COPY),
    magic(Content::Member("LUKS"), 0x8000, LUKS_COPY),
    magic(Content::Member("LUKS"), 0x1_0000, LUKS_COPY),
    magic(Content::Member("LUKS"), 0x2_0000, LUKS_COPY),
    magic(Content::Member("LUKS"), 0x4_0000, LUKS_COPY),
    magic(Content::Member("LUKS"), 0x8_0000, LUKS_COPY),
    magic(Content::Member("LUKS"), 0x10_0000, LUKS_COPY),
    magic(Content::Member("LUKS"), 0x20_0000, LUKS_COPY),
    magic(Content::Member("LUKS"), 0x40_0000, LUKS_COPY),
    magic(Content::Member("bcache"), 0x1018, BCACHE),
    magic(Content::Member("Stratis"), 0x204, STRATIS),
    magic(Content::Member("Ceph BlueStore"), 0, b"bluestore block device"),
    magic(Content::Swap, 0xff6, b"SWAPSPACE2"),
    magic(Content::Swap, 0xff6, b"SWAP-SPACE"),
    magic(Content::Swap, 0xff6, b"S1SUSPEND"),
    magic(Content::Swap, 0x1ff6, b"SWAPSPACE2"),
    magic(Content::Swap, 0x3ff6, b"SWAPSPACE2"),
    magic(Content::Swap, 0x7ff6, b"SWAPSPACE2"),
    magic(Content::Swap, 0xfff6, b"SWAPSPACE2"),
    magic(Content::PartitionTable("GPT"), 512, b"EFI PART"),
    magic(Content::PartitionTable("GPT"), 4096, b"EFI PART"),
];

/// Everything that is on a device of `size` bytes; nothing if it is blank at both ends.
pub fn identify(size: u64, read: &mut ReadAt<'_>) -> io::Result<Vec<Finding>> {
    let mut found = Findings::default();
    for magic in MAGICS {
        if read(magic.at, magic.word.len())? == magic.word {
            found.add(magic.content.clone(), magic.at, magic.word.len() as u64);
        }
    }
    extended(read, &mut found)?;
    tables(size, read, &mut found)?;
    raid(size, read, &mut found)?;
    zfs(size, read, &mut found)?;
    if let Some((at, label)) = label::find(read)? {
        found.add(Content::Pv(label), at, 512);
    }
    if found.0.is_empty() {
        for at in [0, size.saturating_sub(EDGE)] {
            let edge = read(at, EDGE as usize)?;
            if ZEROS.get(..edge.len()) != Some(&edge) {
                found.add(Content::Unrecognised, at, EDGE.min(size));
            }
        }
    }
    Ok(found.0)
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, content: Content, offset: u64, length: u64) {
        let place = Range { offset, length };
        match self.0.iter_mut().find(|finding| finding.content == content) {
            Some(finding) => finding.places.push(place),
            None => self.0.push(Finding { content, places: vec![place] }),
        }
    }

    fn has(&self, wanted: impl Fn(&Content) -> bool) -> bool {
        self.0.iter().any(|finding| wanted(&finding.content))
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// ext2, ext3, ext4 and their external journals: the word has two bytes only, so the block size must make sense too.
fn extended(read: &mut ReadAt<'_>, found: &mut Findings) -> io::Result<()> {
    const SUPERBLOCK: u64 = 0x400;
    let block = read(SUPERBLOCK, 256)?;
    let word = |at| number::<4>(&block, at).map_or(0, u32::from_le_bytes);
    let blocks = word(4) > 0 && word(24) <= 6;
    if number::<2>(&block, 0x38) != Some([0x53, 0xef]) || !blocks {
        return Ok(());
    }
    let (compatible, incompatible, read_only) = (word(0x5c), word(0x60), word(0x64));
    let kind = if incompatible & 0x8 != 0 {
        Content::Member("an ext journal")
    } else if incompatible & !0x17 != 0 || read_only & !0x7 != 0 {
        Content::FileSystem("ext4")
    } else if compatible & 0x4 != 0 {
        Content::FileSystem("ext3")
    } else {
        Content::FileSystem("ext2")
    };
    found.add(kind, SUPERBLOCK + 0x38, 2);
    Ok(())
}

/// The copy of a GPT at the end, and an MBR; a boot sector of a file system ends like an MBR and is none.
fn tables(size: u64, read: &mut ReadAt<'_>, found: &mut Findings) -> io::Result<()> {
    for block in [512, 4096] {
        let at = size.saturating_sub(block);
        if size > block && read(at, 8)? == b"EFI PART" {
            found.add(Content::PartitionTable("GPT"), at, 8);
        }
    }
    let sector = read(0, 512)?;
    let is_boot_sector = found.has(|content| {
        matches!(content, Content::FileSystem("vfat" | "exfat" | "ntfs") | Content::PartitionTable("GPT"))
    });
    if sector.get(510..512) == Some(&[0x55, 0xaa]) && !is_boot_sector {
        found.add(Content::PartitionTable("MBR"), 510, 2);
    }
    Ok(())
}

/// Linux RAID: version 0.9 and 1.0 near the end, 1.1 at the beginning, 1.2 4 KiB behind it; DDF and Intel at the end.
fn raid(size: u64, read: &mut ReadAt<'_>, found: &mut Findings) -> io::Result<()> {
    const RESERVED: u64 = 64 << 10;
    let sectors = size / 512;
    let places = [
        ("md 0.9", 0, (size - size % RESERVED).checked_sub(RESERVED)),
        ("md 1.0", 1, sectors.checked_sub(16).map(|sector| (sector - sector % 8) * 512)),
        ("md 1.1", 1, Some(0)),
        ("md 1.2", 1, Some(4096)),
    ];
    for (kind, version, at) in places {
        let Some(at) = at else { continue };
        let block = read(at, 8)?;
        let major = number::<4>(&block, 4).map(u32::from_le_bytes);
        let little = number::<4>(&block, 0) == Some([0xfc, 0x4e, 0x2b, 0xa9]) && major == Some(version);
        // Version 0.9 is written in the byte order of the machine.
        let big = number::<4>(&block, 0) == Some([0xa9, 0x2b, 0x4e, 0xfc]) && version == 0;
        if little || big {
            found.add(Content::Member(kind), at, 8);
        }
    }
    for (kind, distance, word) in
        [("DDF RAID", 512, &[0xde, 0x11, 0xde, 0x11][..]), ("Intel RAID", 1024, &b"Intel Raid ISM Cfg Sig. "[..])]
    {
        let at = size.saturating_sub(distance);
        if size > distance && read(at, word.len())? == word {
            found.add(Content::Member(kind), at, word.len() as u64);
        }
    }
    Ok(())
}

/// ZFS: four labels of 256 KiB, two at each end; the second half of each is a ring of uberblocks.
fn zfs(size: u64, read: &mut ReadAt<'_>, found: &mut Findings) -> io::Result<()> {
    const LABEL: u64 = 256 << 10;
    const RING: u64 = 128 << 10;
    const WORD: u64 = 0x00ba_b10c;
    let end = size - size % LABEL;
    if end < 4 * LABEL {
        return Ok(());
    }
    for at in [0, LABEL, end - 2 * LABEL, end - LABEL] {
        let ring = read(at + RING, RING as usize)?;
        let is_one = |block: &[u8]| {
            number::<8>(block, 0)
                .is_some_and(|word| [u64::from_le_bytes(word), u64::from_be_bytes(word)].contains(&WORD))
        };
        if ring.chunks(1 << 10).any(is_one) {
            found.add(Content::Member("ZFS"), at, LABEL);
        }
    }
    Ok(())
}
