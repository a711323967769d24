//! The LVM drivers where something runs out or breaks, on a kernel with device-mapper.

use crate::backend::{layout, read};
use crate::lvm_stage::{OnDisks, Stage, disks, text, tool};
use crate::snapshots::{at, snapshot_of};
use crate::support::loops::Loops;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use symphony::backend::lvm::{Executable, Ground, Kind, Room};
use symphony::backend::{Backend, BackendError, Ensured, Removed, VolumeLayout};
use symphony::io::BlockIo;
use symphony::model::{ByteSize, Source};

/// Writes from the beginning until it cannot; how many MiB went in, and why no more.
fn fill(io: &dyn BlockIo, byte: u8) -> (u64, Option<std::io::Error>) {
    let mebibytes = io.size() >> 20;
    for mib in 0..mebibytes {
        let written = io.write(&vec![byte; 1 << 20], mib << 20, false).and_then(|()| io.flush());
        if let Err(error) = written {
            return (mib, Some(error));
        }
    }
    (mebibytes, None)
}

#[test]
fn a_thin_pool_full_to_the_brim_refuses_writers_at_once_and_works_again_once_there_is_room() {
    let Some(on) = OnDisks::new(Kind::Thin) else { return };
    let pool = on.stage.open(false);
    let (old, greedy) = (layout(8), layout(2000));
    for volume in [&old, &greedy] {
        pool.ensure_volume(volume).unwrap();
    }
    let kept = pool.open_volume(old.id).unwrap();
    assert!(fill(&*kept, 0x11).1.is_none());
    let io = pool.open_volume(greedy.id).unwrap();
    let (went_in, error) = fill(&*io, 0x22);
    let error = error.expect("the volume is larger than the pool");
    // What was written to the kernel's cache may fail later, and then without the reason.
    eprintln!("full after {went_in} MiB: {error}");
    assert!(went_in > 500, "{went_in}");
    let full = pool.observe_use().unwrap();
    assert!(full.data.used.as_u64() + (1 << 20) >= full.data.capacity.as_u64(), "{full:?}");
    // Whoever has space keeps it, and can read and write it.
    assert!(read(&*kept, 0, 8 << 20).iter().all(|byte| *byte == 0x11));
    assert!(fill(&*kept, 0x33).1.is_none(), "what has its space can be written");
    drop(io);
    assert_eq!(pool.remove_volume(greedy.id).unwrap(), Removed::Gone);
    let after = pool.observe_use().unwrap();
    assert!(after.data.used < ByteSize::mib(16) && after.ailment.is_none(), "{after:?}");
    let fresh = layout(64);
    pool.ensure_volume(&fresh).unwrap();
    assert!(fill(&*pool.open_volume(fresh.id).unwrap(), 0x44).1.is_none());
    assert!(read(&*kept, 0, 8 << 20).iter().all(|byte| *byte == 0x33));
}

#[test]
fn a_classic_snapshot_that_overflows_says_so_and_its_volume_goes_on() {
    let Some(mut on) = OnDisks::new(Kind::Thick) else { return };
    on.stage.settings.room = Room { least: ByteSize::mib(4), percent: 1 };
    let pool = on.stage.open(false);
    let volume = layout(64);
    pool.ensure_volume(&volume).unwrap();
    let io = pool.open_volume(volume.id).unwrap();
    let (small, other) = (snapshot_of(volume.id), snapshot_of(volume.id));
    for snapshot in [&small, &other] {
        pool.stage_snapshot(snapshot, at(1)).unwrap();
        pool.settle_snapshot(snapshot.id).unwrap();
    }
    io.write(&vec![1; 1 << 20], 0, true).unwrap();
    let copy = VolumeLayout { source: Some(Source::Snapshot(small.id)), ..layout(64) };
    pool.ensure_volume(&copy).unwrap();
    assert_eq!(read(&*pool.open_volume(copy.id).unwrap(), 0, 1 << 20), vec![0; 1 << 20], "as it was");
    assert!(fill(&*io, 0x55).1.is_none(), "the volume does not notice");
    let error = pool.find_snapshot(small.id).unwrap_err();
    assert!(matches!(&error, BackendError::SnapshotSpoilt { .. }) && error.to_string().contains("room"), "{error}");
    let found = pool.observe_snapshots().unwrap();
    assert!(found.len() == 2 && found.iter().all(|seen| seen.damage.is_some()), "{found:?}");
    let again = VolumeLayout { source: Some(Source::Snapshot(small.id)), ..layout(64) };
    assert!(matches!(pool.ensure_volume(&again), Err(BackendError::SnapshotSpoilt { .. })));
    assert!(read(&*io, 0, 64 << 20).iter().all(|byte| *byte == 0x55));
    drop((io, pool));
    // Nor after a reboot.
    on.stage.lvm(&on.stage.settings.devices, &["vgchange", "--activate", "n", &on.stage.group()]);
    let pool = on.stage.open(true);
    assert!(matches!(pool.find_snapshot(other.id), Err(BackendError::SnapshotSpoilt { .. })));
    assert!(read(&*pool.open_volume(volume.id).unwrap(), 0, 1 << 20).iter().all(|byte| *byte == 0x55));
    for snapshot in [&small, &other] {
        assert_eq!(pool.remove_snapshot(snapshot.id).unwrap(), Removed::Gone);
    }
    assert_eq!(pool.remove_volume(volume.id).unwrap(), Removed::Gone);
}

#[test]
fn a_device_that_fails_underneath_fails_what_is_on_it_and_nothing_waits_for_it() {
    if disks().is_none() {
        return;
    }
    for kind in [Kind::Thick, Kind::Thin] {
        let Some(loops) = Loops::new(1) else { return };
        let device = Mapped::over(&loops.devices[0], "conformance-failing");
        let Some(stage) = Stage::new(kind, std::slice::from_ref(&device.path)) else { return };
        let pool = stage.open(false);
        let volume = layout(4);
        pool.ensure_volume(&volume).unwrap();
        let io = pool.open_volume(volume.id).unwrap();
        io.write(b"kept", 0, true).unwrap();
        device.fail();
        let written = io.write(b"lost", 1 << 20, true);
        assert!(written.is_err(), "{kind}");
        let errors = [pool.ensure_volume(&layout(4)).unwrap_err(), pool.observe_capacity().unwrap_err()];
        for error in errors {
            eprintln!("{kind}: {error}");
            assert!(matches!(error, BackendError::PoolLost { .. } | BackendError::Io { .. }), "{error}");
        }
        drop(io);
        device.mend();
        drop(pool);
        // A thin pool whose metadata could not be written is read-only until it is activated anew.
        stage.lvm(&stage.settings.devices, &["vgchange", "--activate", "n", &stage.group()]);
        let pool = stage.open(true);
        let made = VolumeLayout { made: true, ..volume.clone() };
        assert_eq!(pool.ensure_volume(&made).unwrap(), Ensured::Unchanged, "{kind}");
        assert_eq!(read(&*pool.open_volume(volume.id).unwrap(), 0, 4), b"kept");
        assert_eq!(pool.remove_volume(volume.id).unwrap(), Removed::Gone);
        assert_eq!(pool.release().unwrap(), Removed::Gone);
    }
}

/// A device that can be held still, and be gone: device-mapper over a loop device.
struct Mapped {
    path: PathBuf,
    table: String,
}

impl Mapped {
    fn over(device: &std::path::Path, name: &str) -> Self {
        let sectors =
            File::open(device).and_then(|mut file| std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))).unwrap()
                / 512;
        let table = format!("0 {sectors} linear {} 0", device.display());
        tool("dmsetup", &["create", name, "--table", &table]);
        Self { path: format!("/dev/mapper/{name}").into(), table }
    }

    /// All that is read from it or written to it fails from now on.
    fn fail(&self) {
        self.become_table(&format!("{} error", self.table.split(" linear").next().unwrap()));
    }

    fn mend(&self) {
        self.become_table(&self.table);
    }

    fn become_table(&self, table: &str) {
        tool("dmsetup", &["load", text(&self.path), "--table", table]);
        tool("dmsetup", &["suspend", "--noflush", "--nolockfs", text(&self.path)]);
        self.resume();
    }

    fn suspend(&self) {
        tool("dmsetup", &["suspend", "--noflush", "--nolockfs", text(&self.path)]);
    }

    fn resume(&self) {
        tool("dmsetup", &["resume", text(&self.path)]);
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.resume();
        tool("dmsetup", &["remove", "--retry", text(&self.path)]);
    }
}

#[test]
fn a_device_that_hangs_makes_the_pool_unreachable_with_the_reason_and_the_pool_comes_back_with_it() {
    if disks().is_none() {
        return;
    }
    let Some(loops) = Loops::new(1) else { return };
    let device = Mapped::over(&loops.devices[0], "conformance-frozen");
    let Some(mut stage) = Stage::new(Kind::Thick, std::slice::from_ref(&device.path)) else { return };
    stage.ground = Ground { patience: Duration::from_secs(2), ..stage.ground };
    let short = Duration::from_secs(5);
    stage.ground.lvm = Arc::new(Executable::at(std::path::Path::new("/usr/sbin/lvm"), short, Duration::from_secs(30)));
    let pool = stage.open(false);
    let volume = layout(4);
    pool.ensure_volume(&volume).unwrap();
    device.suspend();
    let error = pool.ensure_volume(&layout(4)).unwrap_err();
    eprintln!("a change: {error}");
    assert!(matches!(&error, BackendError::Unreachable { .. }) && error.to_string().contains("state D"), "{error}");
    let error = pool.observe_volumes().unwrap_err();
    eprintln!("a look: {error}");
    assert!(matches!(&error, BackendError::Unreachable { .. }), "{error}");
    device.resume();
    let mut found = pool.observe_volumes();
    while matches!(found, Err(BackendError::Unreachable { .. })) {
        std::thread::yield_now();
        found = pool.observe_volumes();
    }
    assert_eq!(found.unwrap().len(), 1);
    while let Err(BackendError::Unreachable { .. }) = pool.ensure_volume(&VolumeLayout { made: true, ..volume.clone() })
    {
        std::thread::yield_now();
    }
    assert_eq!(pool.remove_volume(volume.id).unwrap(), Removed::Gone);
    assert_eq!(pool.release().unwrap(), Removed::Gone);
}
