//! What every backend that makes snapshots must do. The `file` driver does where its file system shares blocks, those of
//! LVM where there is device-mapper.

use crate::backend::{Driver, file_at, identity, layout, lvm, read, resized, shrunk};
use crate::lvm_stage::disks_are_given;
use crate::support::mounted::Mounted;
use std::sync::Arc;
use symphony::backend::file::FilePool;
use symphony::backend::lvm::Kind;
use symphony::backend::{Backend, BackendError, Ensured, Removed, SnapshotLayout, VolumeLayout};
use symphony::model::{ByteSize, Revert, SnapshotId, Source, Timestamp, VolumeId};

/// Every driver that can; where the machine lacks something, says so.
fn on_every_driver(test: impl Fn(&Driver)) {
    // Where there are disks, the machine is slow and this driver was tried elsewhere.
    match (!disks_are_given()).then(Mounted::xfs) {
        Some(Ok(mounted)) => test(&file_at(tempfile::tempdir_in(mounted.path()).expect("a directory"))),
        Some(Err(why)) => eprintln!("skipped: no XFS here: {why}"),
        None => {}
    }
    for driver in [Kind::Thick, Kind::Thin].into_iter().filter_map(lvm) {
        eprintln!("driver {}", driver.name);
        test(&driver);
    }
}

pub fn snapshot_of(volume: VolumeId) -> SnapshotLayout {
    SnapshotLayout { id: SnapshotId::generate(), name: "monday".parse().unwrap(), volume, room: None }
}

pub fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn pool_with_a_volume(driver: &Driver) -> (Arc<dyn Backend>, VolumeLayout) {
    let pool = (driver.open)(false);
    let volume = layout(4);
    pool.ensure_volume(&volume).unwrap();
    pool.open_volume(volume.id).unwrap().write(b"then", 4096, true).unwrap();
    (pool, VolumeLayout { made: true, ..volume })
}

fn take(pool: &dyn Backend, snapshot: &SnapshotLayout) {
    pool.stage_snapshot(snapshot, at(7)).unwrap();
    let taken = pool.settle_snapshot(snapshot.id).unwrap();
    assert_eq!((taken.size, taken.at), (ByteSize::mib(4), at(7)));
}

#[test]
fn a_copy_of_a_snapshot_holds_what_the_volume_held_then_and_neither_sees_the_other_change() {
    on_every_driver(|driver| {
        let (pool, volume) = pool_with_a_volume(driver);
        let snapshot = snapshot_of(volume.id);
        take(&*pool, &snapshot);
        let io = pool.open_volume(volume.id).unwrap();
        io.write(b"now!", 4096, true).unwrap();
        let copy = VolumeLayout { source: Some(Source::Snapshot(snapshot.id)), ..layout(8) };
        assert_eq!(pool.ensure_volume(&copy).unwrap(), Ensured::Created);
        assert_eq!(pool.ensure_volume(&copy).unwrap(), Ensured::Unchanged);
        let copied = pool.open_volume(copy.id).unwrap();
        assert_eq!((copied.size(), read(&*copied, 4096, 4)), (8 << 20, b"then".to_vec()));
        assert_eq!(read(&*copied, 4 << 20, 4 << 20), vec![0; 4 << 20], "a larger copy goes on with zeros");
        copied.write(b"mine", 4096, true).unwrap();
        assert_eq!(read(&*io, 4096, 4), b"now!");
        assert_eq!(pool.remove_snapshot(snapshot.id).unwrap(), Removed::Gone);
        assert_eq!(read(&*copied, 4096, 4), b"mine", "a copy does not need its snapshot any more");
    });
}

#[test]
fn a_copy_of_a_volume_holds_what_it_holds_and_goes_its_own_way() {
    on_every_driver(|driver| {
        let (pool, volume) = pool_with_a_volume(driver);
        let copy = VolumeLayout { source: Some(Source::Volume(volume.id)), ..layout(4) };
        pool.ensure_volume(&copy).unwrap();
        pool.remove_volume(volume.id).unwrap();
        assert_eq!(read(&*pool.open_volume(copy.id).unwrap(), 4096, 4), b"then");
        // Its source is gone; that matters to nobody any more.
        assert_eq!(pool.ensure_volume(&VolumeLayout { made: true, ..copy }).unwrap(), Ensured::Unchanged);
    });
}

#[test]
fn a_copy_that_was_begun_holds_what_its_source_held_at_that_moment() {
    on_every_driver(|driver| {
        let (pool, volume) = pool_with_a_volume(driver);
        let copy = VolumeLayout { source: Some(Source::Volume(volume.id)), ..layout(8) };
        pool.begin_copy(&copy).unwrap();
        let io = pool.open_volume(volume.id).unwrap();
        io.write(b"now!", 4096, true).unwrap();
        pool.begin_copy(&copy).unwrap();
        pool.ensure_volume(&copy).unwrap();
        assert_eq!(read(&*pool.open_volume(copy.id).unwrap(), 4096, 4), b"then");
        assert_eq!(read(&*io, 4096, 4), b"now!");
        drop(io);
        pool.remove_volume(volume.id).unwrap();
        assert_eq!(pool.observe_volumes().unwrap().len(), 1);
        // One that was begun and is not wanted any more leaves nothing.
        let other = VolumeLayout { source: Some(Source::Volume(copy.id)), ..layout(8) };
        pool.begin_copy(&other).unwrap();
        pool.remove_volume(other.id).unwrap();
        pool.remove_volume(copy.id).unwrap();
        assert_eq!(pool.release().unwrap(), Removed::Gone);
    });
}

#[test]
fn a_volume_put_back_holds_what_it_held_then_once() {
    on_every_driver(|driver| {
        let (pool, volume) = pool_with_a_volume(driver);
        let snapshot = snapshot_of(volume.id);
        take(&*pool, &snapshot);
        pool.open_volume(volume.id).unwrap().write(b"now!", 4096, true).unwrap();
        let next = resized(&volume, 4);
        let back = VolumeLayout { revert: Some(Revert { to: snapshot.id, since: next.generation }), ..next };
        assert_eq!(pool.ensure_volume(&back).unwrap(), Ensured::Reverted);
        let io = pool.open_volume(volume.id).unwrap();
        assert_eq!(read(&*io, 4096, 4), b"then");
        io.write(b"more", 4096, true).unwrap();
        assert_eq!(pool.ensure_volume(&back).unwrap(), Ensured::Unchanged);
        let grown = resized(&back, 8);
        if !driver.independent {
            let refused = pool.ensure_volume(&grown).unwrap_err().to_string();
            assert!(refused.contains(&snapshot.id.to_string()), "{refused}");
            pool.remove_snapshot(snapshot.id).unwrap();
        }
        assert_eq!(pool.ensure_volume(&grown).unwrap(), Ensured::Grown);
        assert_eq!(read(&*pool.open_volume(volume.id).unwrap(), 4096, 4), b"more", "it is not put back again");
    });
}

#[test]
fn a_volume_that_is_to_shrink_and_then_to_be_put_back_does_both_at_once() {
    on_every_driver(|driver| {
        // With a classic snapshot a volume keeps its size.
        if !driver.independent {
            return;
        }
        let (pool, volume) = pool_with_a_volume(driver);
        let snapshot = snapshot_of(volume.id);
        take(&*pool, &snapshot);
        let grown = resized(&volume, 8);
        assert_eq!(pool.ensure_volume(&grown).unwrap(), Ensured::Grown);
        pool.open_volume(volume.id).unwrap().write(&[0x5a; 4096], 6 << 20, true).unwrap();
        let smaller = shrunk(&grown, 4);
        let next = smaller.generation.next();
        let back = VolumeLayout { generation: next, revert: Some(Revert { to: snapshot.id, since: next }), ..smaller };
        assert_eq!(pool.ensure_volume(&back).unwrap(), Ensured::Reverted);
        assert_eq!(pool.ensure_volume(&back).unwrap(), Ensured::Unchanged);
        let io = pool.open_volume(volume.id).unwrap();
        assert_eq!((io.size(), read(&*io, 4096, 4)), (4 << 20, b"then".to_vec()));
        drop(io);
        assert_eq!(pool.ensure_volume(&resized(&back, 8)).unwrap(), Ensured::Grown);
        let io = pool.open_volume(volume.id).unwrap();
        assert_eq!(read(&*io, 4 << 20, 4 << 20), vec![0; 4 << 20], "what was cut off does not come back");
    });
}

#[test]
fn growth_that_stopped_half_way_is_neither_kept_nor_copied() {
    let mounted = match Mounted::xfs() {
        Ok(mounted) => mounted,
        Err(why) => return eprintln!("skipped: no XFS here: {why}"),
    };
    let path = mounted.path().join("pool");
    let (pool, _) = FilePool::ensure(&identity(), &path, None, false).unwrap();
    let volume = layout(4);
    pool.ensure_volume(&volume).unwrap();
    let image = path.join(format!("volumes/{}.img", volume.id));
    let lengthen = || std::fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(6 << 20).unwrap();
    lengthen();
    let snapshot = snapshot_of(volume.id);
    take(&pool, &snapshot);
    let back = resized(&volume, 4);
    let back = VolumeLayout { revert: Some(Revert { to: snapshot.id, since: back.generation }), ..back };
    assert_eq!(pool.ensure_volume(&back).unwrap(), Ensured::Reverted);
    lengthen();
    for source in [Source::Snapshot(snapshot.id), Source::Volume(volume.id)] {
        let copy = VolumeLayout { source: Some(source), ..layout(4) };
        assert_eq!(pool.ensure_volume(&copy).unwrap(), Ensured::Created);
        assert_eq!(pool.open_volume(copy.id).unwrap().size(), 4 << 20);
    }
}

#[test]
fn what_is_staged_does_not_exist_is_taken_anew_and_goes_without_a_trace() {
    on_every_driver(|driver| {
        let (pool, volume) = pool_with_a_volume(driver);
        let snapshot = snapshot_of(volume.id);
        pool.stage_snapshot(&snapshot, at(1)).unwrap();
        assert_eq!(pool.find_snapshot(snapshot.id).unwrap(), None);
        assert!(pool.observe_snapshots().unwrap().is_empty());
        pool.open_volume(volume.id).unwrap().write(b"late", 4096, true).unwrap();
        pool.stage_snapshot(&snapshot, at(2)).unwrap();
        assert_eq!(pool.settle_snapshot(snapshot.id).unwrap().at, at(2));
        let copy = VolumeLayout { source: Some(Source::Snapshot(snapshot.id)), ..layout(4) };
        pool.ensure_volume(&copy).unwrap();
        assert_eq!(read(&*pool.open_volume(copy.id).unwrap(), 4096, 4), b"late");
        assert!(pool.stage_snapshot(&snapshot, at(3)).is_err(), "what was settled is never taken again");
        let other = snapshot_of(volume.id);
        pool.stage_snapshot(&other, at(4)).unwrap();
        assert_eq!(pool.remove_snapshot(other.id).unwrap(), Removed::Gone);
        assert!(matches!(pool.settle_snapshot(other.id), Err(BackendError::SnapshotLost { .. })));
    });
}

#[test]
fn snapshots_survive_a_restart_and_are_found_and_keep_their_pool() {
    on_every_driver(|driver| {
        let (pool, volume) = pool_with_a_volume(driver);
        let (staged, settled) = (snapshot_of(volume.id), snapshot_of(volume.id));
        pool.stage_snapshot(&staged, at(1)).unwrap();
        take(&*pool, &settled);
        drop(pool);
        let pool = (driver.open)(true);
        let found = pool.observe_snapshots().unwrap();
        let [seen] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((seen.id, seen.volume, seen.name.as_str()), (settled.id, volume.id, "monday"));
        assert_eq!((seen.size, &seen.damage), (ByteSize::mib(4), &None));
        assert_eq!(pool.settle_snapshot(staged.id).unwrap().at, at(1), "all was staged, so it can be settled later");
        match pool.remove_volume(volume.id) {
            Ok(removed) => assert!(driver.independent && removed == Removed::Gone),
            Err(error) => {
                let text = error.to_string();
                assert!(!driver.independent && text.contains(&settled.id.to_string()), "{text}");
            }
        }
        assert!(matches!(pool.release(), Err(BackendError::Refused(_))), "a pool with snapshots is not let go");
        for snapshot in [&staged, &settled] {
            pool.remove_snapshot(snapshot.id).unwrap();
            assert_eq!(pool.remove_snapshot(snapshot.id).unwrap(), Removed::WasAbsent);
        }
        pool.remove_volume(volume.id).unwrap();
        assert_eq!(pool.release().unwrap(), Removed::Gone);
    });
}

#[test]
fn what_cannot_be_copied_is_refused_and_leaves_nothing() {
    on_every_driver(|driver| {
        let (pool, volume) = pool_with_a_volume(driver);
        let snapshot = snapshot_of(volume.id);
        take(&*pool, &snapshot);
        let missing = [Source::Snapshot(SnapshotId::generate()), Source::Volume(VolumeId::generate())];
        for source in missing {
            let copy = VolumeLayout { source: Some(source), ..layout(4) };
            assert!(pool.ensure_volume(&copy).is_err(), "{source}");
            assert_eq!(
                pool.open_volume(copy.id).err().map(|error| matches!(error, BackendError::Lost { .. })),
                Some(true)
            );
        }
        let small = VolumeLayout { source: Some(Source::Snapshot(snapshot.id)), ..layout(2) };
        let refused = pool.ensure_volume(&small).unwrap_err().to_string();
        assert!(refused.contains("does not fit"), "{refused}");
        let of_nothing = snapshot_of(VolumeId::generate());
        assert!(pool.stage_snapshot(&of_nothing, at(1)).is_err());
        assert_eq!(pool.observe_volumes().unwrap().len(), 1);
        assert_eq!(pool.observe_snapshots().unwrap().len(), 1);
    });
}

#[test]
fn a_file_system_that_cannot_share_blocks_says_so_before_anything_is_copied() {
    let memory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let driver = file_at(memory);
    let (pool, volume) = pool_with_a_volume(&driver);
    assert!(!pool.observe_capacity().unwrap().copies);
    let refused = pool.stage_snapshot(&snapshot_of(volume.id), at(1)).unwrap_err().to_string();
    assert!(refused.contains("XFS and btrfs"), "{refused}");
    let copy = VolumeLayout { source: Some(Source::Volume(volume.id)), ..layout(4) };
    assert!(pool.ensure_volume(&copy).is_err());
}
