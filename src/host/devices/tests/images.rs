//! What is on devices, as real tools make it and as hostile hands write it.

use super::super::wipe::read_up_to;
use super::super::{Content, Finding, blank, identify, wipe};
use proptest::prelude::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use tempfile::NamedTempFile;

const MIB: u64 = 1 << 20;

fn image(size: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

fn look(path: &Path) -> Vec<Finding> {
    let file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    identify(size, &mut |offset, length| read_up_to(&file, offset, length)).unwrap()
}

fn contents(path: &Path) -> Vec<Content> {
    look(path).into_iter().map(|finding| finding.content).collect()
}

/// Runs a tool on an image; false, with a word, if it is not installed.
fn made(command: &[&str], path: &Path) -> bool {
    let Some((program, arguments)) = command.split_first() else { return false };
    let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    match Command::new(program).args(arguments).arg(path).env("PATH", search).output() {
        Ok(done) if done.status.success() => true,
        Ok(done) => panic!("{command:?}: {}", String::from_utf8_lossy(&done.stderr)),
        Err(error) => {
            eprintln!("skipped: {program} cannot be run: {error}");
            false
        }
    }
}

#[test]
fn what_real_tools_make_is_recognised_and_wiped_away() {
    let cases: &[(&[&str], Content)] = &[
        (&["mke2fs", "-q", "-t", "ext2"], Content::FileSystem("ext2")),
        (&["mke2fs", "-q", "-t", "ext3"], Content::FileSystem("ext3")),
        (&["mke2fs", "-q", "-t", "ext4"], Content::FileSystem("ext4")),
        (&["mke2fs", "-q", "-O", "journal_dev"], Content::Member("an ext journal")),
        (&["mkfs.xfs", "-q"], Content::FileSystem("xfs")),
        (&["mkfs.btrfs", "-q"], Content::FileSystem("btrfs")),
        (&["mkfs.vfat"], Content::FileSystem("vfat")),
        (&["mkswap", "-q"], Content::Swap),
    ];
    for (command, content) in cases {
        let file = image(320 * MIB);
        if !made(command, file.path()) {
            continue;
        }
        assert_eq!(contents(file.path()), std::slice::from_ref(content), "{command:?}");
        wipe(file.path()).unwrap();
        assert_eq!(contents(file.path()), [], "{command:?}");
        // A second opinion.
        if let Ok(done) = Command::new("/usr/sbin/blkid").arg("-p").arg(file.path()).output() {
            assert_eq!(String::from_utf8_lossy(&done.stdout), "", "{command:?}");
        }
    }
}

/// Words at their places, as the formats' documents have them.
fn written(size: u64, words: Words) -> NamedTempFile {
    let file = image(size);
    for (at, word) in words {
        file.as_file().write_all_at(word, *at).unwrap();
    }
    file
}

type Words<'w> = &'w [(u64, &'w [u8])];

const MD: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];
const ONE: &[u8] = &[1, 0, 0, 0];

#[test]
fn what_no_tool_here_makes_is_recognised_by_its_format_and_wiped_away() {
    let size = 100 * MIB + 512 * 3;
    let end_09 = 100 * MIB - (64 << 10);
    let end_10 = ((size / 512 - 16) & !7) * 512;
    let zfs = 0x00ba_b10c_u64;
    let uuid = [0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef];
    let cases: &[(Words, Content)] = &[
        (&[(510, &[0x55, 0xaa])], Content::PartitionTable("MBR")),
        (&[(512, b"EFI PART"), (510, &[0x55, 0xaa]), (size - 512, b"EFI PART")], Content::PartitionTable("GPT")),
        (&[(size - 512, b"EFI PART")], Content::PartitionTable("GPT")),
        (&[(4096, b"EFI PART")], Content::PartitionTable("GPT")),
        (&[(end_09, MD), (end_09 + 4, &[0; 4])], Content::Member("md 0.9")),
        (&[(end_09, &[0xa9, 0x2b, 0x4e, 0xfc]), (end_09 + 4, &[0; 4])], Content::Member("md 0.9")),
        (&[(end_10, MD), (end_10 + 4, ONE)], Content::Member("md 1.0")),
        (&[(0, MD), (4, ONE)], Content::Member("md 1.1")),
        (&[(4096, MD), (4100, ONE)], Content::Member("md 1.2")),
        (&[(0, b"LUKS\xba\xbe\0\x01")], Content::Member("LUKS")),
        (&[(0x4000, b"SKUL\xba\xbe")], Content::Member("LUKS")),
        (&[(0x1018, &uuid)], Content::FileSystem("bcachefs")),
        (&[((128 << 10) + 4096, &zfs.to_le_bytes())], Content::Member("ZFS")),
        (&[(100 * MIB - (128 << 10), &zfs.to_be_bytes())], Content::Member("ZFS")),
        (&[(0x8001, b"CD001")], Content::FileSystem("iso9660")),
        (&[(0x52, b"FAT32   "), (510, &[0x55, 0xaa])], Content::FileSystem("vfat")),
        (&[(7, b"x")], Content::Unrecognised),
        (&[(size - 1, b"x")], Content::Unrecognised),
    ];
    for (words, content) in cases {
        let file = written(size, words);
        assert_eq!(contents(file.path()), std::slice::from_ref(content), "{words:?}");
        wipe(file.path()).unwrap();
        assert_eq!(contents(file.path()), [], "{content:?}");
    }
}

#[test]
fn a_device_of_zeros_carries_nothing_and_several_things_are_all_named() {
    assert_eq!(contents(image(10 * MIB).path()), []);
    assert_eq!(contents(image(0).path()), []);
    let file = written(10 * MIB, &[(0x1_0040, b"_BHRfS_M"), (510, &[0x55, 0xaa]), (0xff6, b"SWAPSPACE2")]);
    let expected = [Content::FileSystem("btrfs"), Content::Swap, Content::PartitionTable("MBR")];
    assert_eq!(contents(file.path()), expected);
}

#[test]
fn a_wipe_does_not_touch_what_lies_far_from_any_signature() {
    let file = written(64 * MIB, &[(0, b"XFSB"), (32 * MIB, b"kept")]);
    wipe(file.path()).unwrap();
    let mut kept = [0; 4];
    file.as_file().read_exact_at(&mut kept, 32 * MIB).unwrap();
    assert_eq!(&kept, b"kept");
    blank(file.path(), 32 * MIB + 2).unwrap();
    file.as_file().read_exact_at(&mut kept, 32 * MIB).unwrap();
    assert_eq!(&kept, b"\0\0pt");
}

/// A label in sector 1, one metadata area behind it, and the text at `text` in the area.
fn labelled(text: u64, length: u64, name: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut header = Vec::new();
    header.extend_from_slice(b"LABELONE");
    header.extend_from_slice(&1u64.to_le_bytes());
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&32u32.to_le_bytes());
    header.extend_from_slice(b"LVM2 001");
    header.extend_from_slice(b"abcdef123456789ABCDEFGHijklmnopq");
    for number in [64 * MIB, 17 * MIB, 0, 0, 0, 4096, 16 * MIB, 0, 0] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    let mut area = vec![0; 4];
    area.extend_from_slice(b" LVM2 x[5A%r0N*>");
    area.extend_from_slice(&[0; 20]);
    area.extend_from_slice(&text.to_le_bytes());
    area.extend_from_slice(&length.to_le_bytes());
    vec![(512, header), (4096, area), (4096u64.saturating_add(text) % MIB, name.to_vec())]
}

fn pv(parts: &[(u64, Vec<u8>)]) -> super::super::PvLabel {
    let words: Vec<(u64, &[u8])> = parts.iter().map(|(at, bytes)| (*at, bytes.as_slice())).collect();
    let found = contents(written(64 * MIB, &words).path());
    let [Content::Pv(label)] = found.as_slice() else { panic!("{found:?}") };
    label.clone()
}

#[test]
fn a_physical_volume_says_its_id_and_its_group() {
    let label = pv(&labelled(512, 100, b"my-group.1 {\nid = \"x\""));
    assert_eq!(label.uuid, "abcdef-1234-5678-9ABC-DEFG-Hijk-lmnopq");
    assert_eq!((label.size, label.group.as_deref()), (64 * MIB, Some("my-group.1")));
    assert_eq!(pv(&labelled(512, 0, b"left {\n")).group, None, "one that was taken out of its group");
}

#[test]
fn a_label_that_lies_is_still_a_physical_volume_and_names_no_group() {
    assert_eq!(pv(&labelled(u64::MAX, 100, b"x {")).group, None);
    assert_eq!(pv(&labelled(u64::MAX - 4096, u64::MAX, b"x {")).group, None);
    assert_eq!(pv(&labelled(512, 100, b"")).group, None);
    assert_eq!(pv(&labelled(512, 100, &[b'x'; 4000])).group, None);
    assert_eq!(pv(&labelled(512, 100, b"../../etc {")).group, None);
    let mut parts = labelled(512, 100, b"x {");
    parts[0].1[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(pv(&parts).uuid, "");
}

proptest! {
    // Each looks at two mebibytes.
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_judged_without_a_panic_and_never_taken_for_nothing(
        bytes in proptest::collection::vec(any::<u8>(), 1..9000), at in 0..3usize, size in 9000..10_000_000u64,
    ) {
        let start = [0, 512, 4096][at];
        let mut read = |offset: u64, length: usize| {
            let byte = |position: u64| {
                let inside = position.checked_sub(start).and_then(|at| bytes.get(at as usize));
                inside.copied().unwrap_or_default()
            };
            let end = size.min(offset.saturating_add(length as u64));
            Ok((offset..end.max(offset)).map(byte).collect())
        };
        let found = identify(size, &mut read).unwrap();
        prop_assert_eq!(found.is_empty(), bytes.iter().take((size - start) as usize).all(|byte| *byte == 0));
    }

    #[test]
    fn any_label_is_read_without_a_panic(header in proptest::collection::vec(any::<u8>(), 480), area in any::<[u8; 64]>()) {
        let sector = [&b"LABELONE"[..], &[0; 12], &32u32.to_le_bytes(), b"LVM2 001", &header[..]].concat();
        let mut read = |offset: u64, length: usize| match offset {
            0 => Ok(sector.iter().copied().take(length).collect()),
            _ => Ok([&area[..4], b" LVM2 x[5A%r0N*>", &area[4..]].concat().into_iter().take(length).collect()),
        };
        let found = identify(1 << 30, &mut read).unwrap();
        prop_assert!(found.iter().any(|finding| matches!(finding.content, Content::Pv(_))));
    }
}
