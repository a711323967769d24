//! What the LVM drivers promise beyond the conformance suite, on a kernel with device-mapper.

use crate::backend::{layout, read, resized};
use crate::lvm_stage::OnDisks;
use std::fs::File;
use symphony::backend::lvm::Kind;
use symphony::backend::{Backend, BackendError, Ensured, Removed, VolumeLayout};
use symphony::model::ByteSize;

const KINDS: [Kind; 2] = [Kind::Thick, Kind::Thin];

#[test]
fn space_that_was_somebody_else_s_reads_as_zeros_in_a_new_volume_and_in_a_longer_one() {
    for kind in KINDS {
        let Some(on) = OnDisks::new(kind) else { return };
        let pool = on.stage.open(false);
        let old = layout(96);
        pool.ensure_volume(&old).unwrap();
        let io = pool.open_volume(old.id).unwrap();
        (0..96).for_each(|mib| io.write(&vec![0xee; 1 << 20], mib << 20, false).unwrap());
        io.flush().unwrap();
        drop(io);
        assert_eq!(pool.remove_volume(old.id).unwrap(), Removed::Gone);
        let new = layout(30);
        pool.ensure_volume(&new).unwrap();
        let io = pool.open_volume(new.id).unwrap();
        assert!(read(&*io, 0, 30 << 20).iter().all(|byte| *byte == 0), "{kind}");
        pool.ensure_volume(&resized(&new, 90)).unwrap();
        assert!(read(&*io, 0, 90 << 20).iter().all(|byte| *byte == 0), "{kind}");
    }
}

#[test]
fn a_half_made_volume_from_a_crash_is_finished_and_reads_as_zeros() {
    for kind in KINDS {
        let Some(on) = OnDisks::new(kind) else { return };
        let (stage, volume) = (&on.stage, layout(10));
        let pool = stage.open(false);
        let (id, group) = (volume.id.to_string(), stage.group());
        let size = if kind == Kind::Thin {
            ["--thinpool", "thin-pool", "--virtualsize", "4M"]
        } else {
            ["--wipesignatures", "n", "--size", "4M"]
        };
        let tags: Vec<String> =
            [("volume", id.as_str()), ("name", "db-01"), ("generation", "1"), ("size", "4194304"), ("state", "making")]
                .map(|(key, value)| format!("symphony.{key}={value}"))
                .to_vec();
        let mut arguments = vec!["lvcreate", "--yes", "--name", &id];
        arguments.extend(size);
        arguments.extend(tags.iter().flat_map(|tag| ["--addtag", tag.as_str()]));
        arguments.push(&group);
        stage.lvm(&stage.settings.devices, &arguments);
        if kind == Kind::Thick {
            // Its zeroing had not begun.
            let node = File::options().write(true).open(format!("/dev/{group}/{id}")).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&node, &[0xee; 4 << 20], 0).unwrap();
        }
        assert!(pool.observe_volumes().unwrap().is_empty());
        assert!(matches!(pool.open_volume(volume.id), Err(BackendError::Refused(_))));
        assert_eq!(pool.ensure_volume(&volume).unwrap(), Ensured::Created);
        let io = pool.open_volume(volume.id).unwrap();
        assert!(io.size() == 10 << 20 && read(&*io, 0, 10 << 20).iter().all(|byte| *byte == 0), "{kind}");
    }
}

#[test]
fn after_a_reboot_volumes_are_inactive_until_they_are_opened() {
    for kind in KINDS {
        let Some(on) = OnDisks::new(kind) else { return };
        let (stage, volume) = (&on.stage, layout(4));
        let pool = stage.open(false);
        pool.ensure_volume(&volume).unwrap();
        pool.open_volume(volume.id).unwrap().write(b"kept", 0, true).unwrap();
        drop(pool);
        stage.lvm(&stage.settings.devices, &["vgchange", "--activate", "n", &stage.group()]);
        let pool = stage.open(true);
        assert_eq!(read(&*pool.open_volume(volume.id).unwrap(), 0, 4), b"kept");
    }
}

#[test]
fn trimmed_and_punched_space_comes_back_from_a_thin_volume_and_reads_as_zeros() {
    let Some(on) = OnDisks::new(Kind::Thin) else { return };
    let pool = on.stage.open(false);
    let volume = layout(64);
    pool.ensure_volume(&volume).unwrap();
    let io = pool.open_volume(volume.id).unwrap();
    (0..64).for_each(|mib| io.write(&vec![1; 1 << 20], mib << 20, false).unwrap());
    io.flush().unwrap();
    let full = pool.observe_use().unwrap();
    assert!(
        full.data.used >= ByteSize::mib(64) && full.data.metadata.unwrap().used > ByteSize::ZERO,
        "{:?}",
        full.data
    );
    // Neither begins nor ends with a chunk.
    io.trim(4096, (16 << 20) - 4096).unwrap();
    io.zero((16 << 20) + 512, (16 << 20) - 1024, true).unwrap();
    io.zero_fast(48 << 20, 16 << 20, true).unwrap();
    io.flush().unwrap();
    let seen = read(&*io, 0, 64 << 20);
    assert!(seen[64 << 10..16 << 20].iter().all(|byte| *byte == 0), "whole chunks that were trimmed");
    assert!(seen[..4096].iter().all(|byte| *byte == 1));
    let mut expected = vec![1; 48 << 20];
    expected[512..(16 << 20) - 512].fill(0);
    expected[32 << 20..].fill(0);
    assert!(seen[16 << 20..] == expected, "what was zeroed is zero, and nothing beside it");
    let left = pool.observe_use().unwrap().data.used;
    assert!(left < ByteSize::mib(20), "{left}");
}

#[test]
fn a_physical_volume_inside_a_guest_s_volume_is_never_seen() {
    for kind in KINDS {
        let Some(on) = OnDisks::new(kind) else { return };
        let (stage, volume) = (&on.stage, layout(64));
        let pool = stage.open(false);
        pool.ensure_volume(&volume).unwrap();
        // The guest has a copy of the very device that its volume is on.
        let mut copy = vec![0; 20 << 20];
        let disk = File::open(&stage.settings.devices[0]).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&disk, &mut copy, 0).unwrap();
        assert!(copy.windows(8).any(|word| word == b"LABELONE"));
        pool.open_volume(volume.id).unwrap().write(&copy, 0, true).unwrap();
        let found = pool.observe_volumes().unwrap();
        assert!(found.len() == 1 && found[0].damage.is_none(), "{found:?}");
        drop(pool);
        let pool = stage.open(true);
        assert_eq!(pool.ensure_volume(&VolumeLayout { made: true, ..volume.clone() }).unwrap(), Ensured::Unchanged);
        assert_eq!(pool.remove_volume(volume.id).unwrap(), Removed::Gone);
        assert_eq!(pool.release().unwrap(), Removed::Gone);
    }
}

#[test]
fn a_volume_that_is_open_is_not_removed() {
    for kind in KINDS {
        let Some(on) = OnDisks::new(kind) else { return };
        let (pool, volume) = (on.stage.open(false), layout(4));
        pool.ensure_volume(&volume).unwrap();
        let io = pool.open_volume(volume.id).unwrap();
        assert!(matches!(pool.remove_volume(volume.id), Err(BackendError::Io { .. })));
        drop(io);
        assert_eq!(pool.remove_volume(volume.id).unwrap(), Removed::Gone);
    }
}
