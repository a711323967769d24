//! What every backend must do, whatever its driver. A driver joins by adding its fixture to [`DRIVERS`]. Those of LVM
//! need a kernel with device-mapper and disks of their own: `make test-vm` has both.

use crate::lvm_stage::{OnDisks, disks_are_given};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::rc::Rc;
use std::sync::Arc;
use symphony::backend::file::FilePool;
use symphony::backend::lvm::Kind;
use symphony::backend::{Backend, BackendError, Ensured, PoolIdentity, Removed, VolumeLayout};
use symphony::io::BlockIo;
use symphony::model::{ByteSize, ClusterId, Generation, PoolId, VolumeId};

/// A pool of one driver that can be closed and opened again.
pub struct Driver {
    pub name: &'static str,
    /// Opens the pool as after a restart; the last handle must be gone. The argument is `made`.
    pub open: Box<dyn Fn(bool) -> Arc<dyn Backend>>,
    /// Takes a volume's bytes away behind the backend's back.
    pub lose: Box<dyn Fn(VolumeId)>,
    /// How many random sequences it has the time for, and of how many verbs at most.
    pub sequences: (u32, usize),
    /// Whether volumes may go before their snapshots.
    pub independent: bool,
}

/// Each makes a fresh fixture; none, with a word, where this machine lacks what it needs.
const DRIVERS: [fn() -> Option<Driver>; 3] = [file, || lvm(Kind::Thick), || lvm(Kind::Thin)];

pub fn lvm(kind: Kind) -> Option<Driver> {
    let on = Rc::new(OnDisks::new(kind)?);
    let kept = Rc::clone(&on);
    Some(Driver {
        name: if kind == Kind::Thin { "lvm-thin" } else { "lvm" },
        open: Box::new(move |made| Arc::new(on.stage.open(made))),
        lose: Box::new(move |id| {
            let volume = format!("{}/{id}", kept.stage.group());
            kept.stage.lvm(&kept.stage.settings.devices, &["lvremove", "--yes", &volume]);
        }),
        sequences: (2, 10),
        independent: kind == Kind::Thin,
    })
}

/// Where there are disks, the machine is slow and this driver was tried elsewhere.
fn file() -> Option<Driver> {
    (!disks_are_given()).then(|| file_at(tempfile::tempdir().unwrap()))
}

/// The `file` driver in a directory.
pub fn file_at(scratch: tempfile::TempDir) -> Driver {
    let scratch = Arc::new(scratch);
    let identity = identity();
    let kept = Arc::clone(&scratch);
    Driver {
        name: "file",
        open: Box::new(move |made| {
            Arc::new(FilePool::ensure(&identity, &scratch.path().join("pool"), None, made).unwrap().0)
        }),
        lose: Box::new(move |id| {
            std::fs::remove_file(kept.path().join(format!("pool/volumes/{id}.img"))).unwrap();
        }),
        sequences: (24, 30),
        independent: true,
    }
}

pub fn identity() -> PoolIdentity {
    PoolIdentity { cluster: ClusterId::generate(), pool: PoolId::generate(), name: "ssd".parse().unwrap() }
}

pub fn layout(mib: u64) -> VolumeLayout {
    VolumeLayout {
        id: VolumeId::generate(),
        name: "db-01".parse().unwrap(),
        generation: Generation::FIRST,
        size: ByteSize::mib(mib),
        source: None,
        revert: None,
        shrunk: None,
        made: false,
    }
}

/// What a user's change of size makes of the layout.
pub fn resized(layout: &VolumeLayout, mib: u64) -> VolumeLayout {
    VolumeLayout { size: ByteSize::mib(mib), generation: layout.generation.next(), made: true, ..layout.clone() }
}

/// What a user's change of size makes of it that is allowed to cut off bytes.
pub fn shrunk(layout: &VolumeLayout, mib: u64) -> VolumeLayout {
    let smaller = resized(layout, mib);
    VolumeLayout { shrunk: Some(smaller.generation), ..smaller }
}

pub fn read(io: &dyn BlockIo, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; length];
    io.read(&mut bytes, offset).unwrap();
    bytes
}

fn on_every_driver(test: impl Fn(&Driver)) {
    for driver in DRIVERS.iter().filter_map(|make| make()) {
        eprintln!("driver {}", driver.name);
        test(&driver);
    }
}

#[test]
fn a_fresh_volume_reads_as_zeros_from_end_to_end() {
    on_every_driver(|driver| {
        let pool = (driver.open)(false);
        let volume = layout(4);
        assert_eq!(pool.ensure_volume(&volume).unwrap(), Ensured::Created);
        let io = pool.open_volume(volume.id).unwrap();
        assert_eq!(io.size(), 4 << 20);
        assert_eq!(read(&*io, 0, 4 << 20), vec![0; 4 << 20]);
    });
}

#[test]
fn bytes_survive_a_restart_and_so_does_the_volume_s_description() {
    on_every_driver(|driver| {
        let pool = (driver.open)(false);
        let volume = layout(4);
        pool.ensure_volume(&volume).unwrap();
        pool.open_volume(volume.id).unwrap().write(b"kept", 4096, true).unwrap();
        drop(pool);
        let pool = (driver.open)(true);
        assert_eq!(pool.ensure_volume(&VolumeLayout { made: true, ..volume.clone() }).unwrap(), Ensured::Unchanged);
        assert_eq!(read(&*pool.open_volume(volume.id).unwrap(), 4096, 4), b"kept");
        let found = pool.observe_volumes().unwrap();
        let [seen] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((seen.id, seen.name.as_str(), seen.size), (volume.id, "db-01", ByteSize::mib(4)));
        assert_eq!((seen.generation, seen.exported, &seen.damage), (Generation::FIRST, false, &None));
    });
}

#[test]
fn a_verb_repeated_changes_nothing() {
    on_every_driver(|driver| {
        let pool = (driver.open)(false);
        let volume = layout(4);
        pool.ensure_volume(&volume).unwrap();
        assert_eq!(pool.ensure_volume(&volume).unwrap(), Ensured::Unchanged);
        assert_eq!(pool.remove_volume(volume.id).unwrap(), Removed::Gone);
        assert_eq!(pool.remove_volume(volume.id).unwrap(), Removed::WasAbsent);
        assert!(pool.observe_volumes().unwrap().is_empty());
        assert!(matches!(pool.open_volume(volume.id), Err(BackendError::Lost { .. })));
    });
}

#[test]
fn a_grown_volume_keeps_its_bytes_reads_zeros_beyond_and_open_handles_see_it() {
    on_every_driver(|driver| {
        let pool = (driver.open)(false);
        let volume = layout(4);
        pool.ensure_volume(&volume).unwrap();
        let io = pool.open_volume(volume.id).unwrap();
        let last = (4 << 20) - 4;
        io.write(b"last", last, false).unwrap();
        assert_eq!(pool.ensure_volume(&resized(&volume, 8)).unwrap(), Ensured::Grown);
        assert_eq!(io.size(), 8 << 20);
        assert_eq!(read(&*io, last, 4), b"last");
        assert_eq!(read(&*io, 4 << 20, 4 << 20), vec![0; 4 << 20]);
        io.write(b"more", (8 << 20) - 4, true).unwrap();
    });
}

#[test]
fn a_volume_never_shrinks_and_an_older_layout_never_wins() {
    on_every_driver(|driver| {
        let pool = (driver.open)(false);
        let volume = layout(4);
        pool.ensure_volume(&volume).unwrap();
        assert!(matches!(pool.ensure_volume(&resized(&volume, 2)), Err(BackendError::Shrink { .. })));
        let second = resized(&volume, 8);
        pool.ensure_volume(&second).unwrap();
        assert!(matches!(pool.ensure_volume(&volume), Err(BackendError::Stale { .. })));
        let other = VolumeLayout { name: "other".parse().unwrap(), ..second.clone() };
        assert!(matches!(pool.ensure_volume(&other), Err(BackendError::Refused(_))));
        assert_eq!(pool.open_volume(volume.id).unwrap().size(), 8 << 20);
    });
}

#[test]
fn a_volume_shrinks_once_where_that_is_allowed_and_what_was_cut_off_never_comes_back() {
    on_every_driver(|driver| {
        let pool = (driver.open)(false);
        let volume = layout(8);
        pool.ensure_volume(&volume).unwrap();
        let io = pool.open_volume(volume.id).unwrap();
        for mib in 0..8 {
            io.write(&[0x5a; 4096], mib << 20, true).unwrap();
        }
        drop(io);
        let smaller = shrunk(&volume, 4);
        assert_eq!(pool.ensure_volume(&smaller).unwrap(), Ensured::Shrunk);
        assert_eq!(pool.ensure_volume(&smaller).unwrap(), Ensured::Unchanged);
        let io = pool.open_volume(volume.id).unwrap();
        assert_eq!((io.size(), read(&*io, 3 << 20, 4096)), (4 << 20, vec![0x5a; 4096]));
        assert!(io.read(&mut [0; 512], 4 << 20).is_err());
        drop(io);
        // The leave was for that one time.
        let again = VolumeLayout { generation: smaller.generation.next(), size: ByteSize::mib(2), ..smaller.clone() };
        assert!(matches!(pool.ensure_volume(&again), Err(BackendError::Shrink { .. })));
        let larger = resized(&smaller, 8);
        assert_eq!(pool.ensure_volume(&larger).unwrap(), Ensured::Grown);
        let io = pool.open_volume(volume.id).unwrap();
        assert_eq!(read(&*io, 4 << 20, 4 << 20), vec![0; 4 << 20]);
        assert_eq!(read(&*io, 0, 4096), vec![0x5a; 4096]);
    });
}

#[test]
fn sizes_that_no_volume_has_are_refused_and_leave_nothing() {
    on_every_driver(|driver| {
        let pool = (driver.open)(false);
        for bytes in [0, 1, 513, u64::MAX, 1 << 63] {
            let volume = VolumeLayout { size: ByteSize::bytes(bytes), ..layout(1) };
            assert!(pool.ensure_volume(&volume).is_err(), "{bytes}");
            assert_eq!(pool.remove_volume(volume.id).unwrap(), Removed::WasAbsent);
        }
    });
}

#[test]
fn a_new_name_or_generation_is_written_down_and_the_bytes_are_not_touched() {
    on_every_driver(|driver| {
        let pool = (driver.open)(false);
        let volume = layout(4);
        pool.ensure_volume(&volume).unwrap();
        pool.open_volume(volume.id).unwrap().write(b"kept", 0, true).unwrap();
        let renamed = VolumeLayout { name: "renamed".parse().unwrap(), ..resized(&volume, 4) };
        assert_eq!(pool.ensure_volume(&renamed).unwrap(), Ensured::Updated);
        assert_eq!(pool.ensure_volume(&renamed).unwrap(), Ensured::Unchanged);
        let seen = pool.observe_volumes().unwrap().remove(0);
        assert_eq!((seen.name.as_str(), seen.generation), ("renamed", Generation::new(2)));
        assert_eq!(read(&*pool.open_volume(volume.id).unwrap(), 0, 4), b"kept");
    });
}

#[test]
fn lost_bytes_are_an_error_and_never_a_fresh_start() {
    on_every_driver(|driver| {
        let pool = (driver.open)(false);
        let known = layout(4);
        pool.ensure_volume(&known).unwrap();
        (driver.lose)(known.id);
        let never_here = VolumeLayout { made: true, ..layout(4) };
        for volume in [VolumeLayout { made: true, ..known.clone() }, never_here.clone()] {
            assert!(matches!(pool.ensure_volume(&volume), Err(BackendError::Lost { .. })));
            assert!(matches!(pool.open_volume(volume.id), Err(BackendError::Lost { .. })));
        }
        let found = pool.observe_volumes().unwrap();
        assert!(found.iter().all(|seen| seen.id == known.id && seen.damage.is_some()), "{found:?}");
        // A tombstone ends the matter.
        pool.remove_volume(known.id).unwrap();
        assert_eq!(pool.remove_volume(never_here.id).unwrap(), Removed::WasAbsent);
        assert!(pool.observe_volumes().unwrap().is_empty());
    });
}

#[test]
fn all_users_of_a_volume_share_one_handle_and_other_volumes_have_others() {
    on_every_driver(|driver| {
        let pool = (driver.open)(false);
        let (one, other) = (layout(1), layout(1));
        pool.ensure_volume(&one).unwrap();
        pool.ensure_volume(&other).unwrap();
        let first = pool.open_volume(one.id).unwrap();
        assert!(Arc::ptr_eq(&first, &pool.open_volume(one.id).unwrap()));
        first.write(b"one", 0, false).unwrap();
        assert_eq!(read(&*pool.open_volume(other.id).unwrap(), 0, 3), [0; 3]);
    });
}

#[test]
fn what_volumes_occupy_is_used_and_comes_back_when_they_go() {
    on_every_driver(|driver| {
        let pool = (driver.open)(false);
        let volume = layout(8);
        pool.ensure_volume(&volume).unwrap();
        pool.open_volume(volume.id).unwrap().write(&vec![1; 4 << 20], 0, true).unwrap();
        let full = pool.observe_capacity().unwrap();
        assert!(full.used >= ByteSize::mib(4) && full.capacity >= full.used, "{full:?}");
        pool.remove_volume(volume.id).unwrap();
        assert!(pool.observe_capacity().unwrap().used < ByteSize::mib(4));
    });
}

#[test]
fn a_pool_is_released_only_when_it_is_empty_and_then_for_good() {
    on_every_driver(|driver| {
        let pool = (driver.open)(false);
        let volume = layout(1);
        pool.ensure_volume(&volume).unwrap();
        assert!(matches!(pool.release(), Err(BackendError::Refused(_))));
        pool.open_volume(volume.id).unwrap();
        pool.remove_volume(volume.id).unwrap();
        assert_eq!(pool.release().unwrap(), Removed::Gone);
        assert_eq!(pool.release().unwrap(), Removed::WasAbsent);
        assert!(pool.ensure_volume(&volume).is_err());
        drop(pool);
        assert!((driver.open)(false).observe_volumes().unwrap().is_empty());
    });
}

#[test]
fn verbs_on_one_volume_at_once_take_turns() {
    on_every_driver(|driver| {
        let pool = (driver.open)(false);
        let volume = layout(1);
        let outcomes: Vec<Ensured> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| pool.ensure_volume(&volume).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(outcomes.iter().filter(|done| **done == Ensured::Created).count(), 1, "{outcomes:?}");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| pool.ensure_volume(&volume).unwrap());
                scope.spawn(|| pool.remove_volume(volume.id).unwrap());
                scope.spawn(|| pool.observe_volumes().unwrap().iter().for_each(|seen| assert_eq!(seen.damage, None)));
                scope.spawn(|| pool.observe_capacity().unwrap());
            }
        });
        pool.ensure_volume(&volume).unwrap();
        assert_eq!(read(&*pool.open_volume(volume.id).unwrap(), 0, 512), [0; 512]);
    });
}

#[derive(Clone, Debug)]
enum Verb {
    Ensure { volume: usize, mib: u64, older: bool },
    Write { volume: usize, at: usize, byte: u8 },
    Remove(usize),
    Restart,
}

fn verb() -> impl Strategy<Value = Verb> {
    let volume = 0..3usize;
    prop_oneof![
        4 => (volume.clone(), 1..5u64, any::<bool>())
            .prop_map(|(volume, mib, older)| Verb::Ensure { volume, mib, older }),
        4 => (volume.clone(), 0..4usize << 20, 1u8..).prop_map(|(volume, at, byte)| Verb::Write { volume, at, byte }),
        2 => volume.prop_map(Verb::Remove),
        1 => Just(Verb::Restart),
    ]
}

/// A volume as a list of bytes, which is what all of this is to be like.
struct Oracle {
    layout: VolumeLayout,
    bytes: Option<Vec<u8>>,
}

impl Oracle {
    fn apply(&mut self, pool: &dyn Backend, verb: &Verb) {
        match verb {
            Verb::Ensure { mib, older, .. } => {
                let generation = if *older { Generation::FIRST } else { self.layout.generation.next() };
                let made = self.bytes.is_some();
                let wanted = VolumeLayout { generation, made, size: ByteSize::mib(*mib), ..self.layout.clone() };
                let length = (*mib as usize) << 20;
                let outcome = pool.ensure_volume(&wanted);
                match &mut self.bytes {
                    None => assert_eq!(outcome.unwrap(), Ensured::Created),
                    Some(_) if wanted == self.layout => return assert_eq!(outcome.unwrap(), Ensured::Unchanged),
                    Some(_) if generation <= self.layout.generation => return assert!(outcome.is_err()),
                    Some(bytes) if length < bytes.len() => {
                        return assert!(matches!(outcome, Err(BackendError::Shrink { .. })));
                    }
                    Some(bytes) if length > bytes.len() => assert_eq!(outcome.unwrap(), Ensured::Grown),
                    Some(_) => assert_eq!(outcome.unwrap(), Ensured::Updated),
                }
                self.bytes.get_or_insert_default().resize(length, 0);
                self.layout = VolumeLayout { made: true, ..wanted };
            }
            Verb::Write { at, byte, .. } => {
                let (Some(bytes), Ok(io)) = (&mut self.bytes, pool.open_volume(self.layout.id)) else { return };
                if let Some(place) = bytes.get_mut(*at) {
                    *place = *byte;
                    io.write(&[*byte], *at as u64, false).unwrap();
                }
            }
            Verb::Remove(_) => {
                let expected = if self.bytes.is_some() { Removed::Gone } else { Removed::WasAbsent };
                assert_eq!(pool.remove_volume(self.layout.id).unwrap(), expected);
                *self = Oracle { layout: layout(1), bytes: None };
            }
            Verb::Restart => {}
        }
    }

    fn check(&self, pool: &dyn Backend) {
        match (&self.bytes, pool.open_volume(self.layout.id)) {
            (None, opened) => assert!(opened.is_err()),
            (Some(bytes), opened) => assert!(read(&*opened.unwrap(), 0, bytes.len()) == *bytes, "the bytes differ"),
        }
    }
}

#[test]
fn any_sequence_of_verbs_and_restarts_does_what_a_list_of_bytes_would() {
    for make in DRIVERS {
        let Some((cases, longest)) = make().map(|driver| driver.sequences) else { continue };
        let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
        let run = |verbs: Vec<Verb>| {
            play(&make().expect("it was there a moment ago"), &verbs);
            Ok(())
        };
        TestRunner::new(config).run(&proptest::collection::vec(verb(), 1..longest), run).unwrap();
    }
}

fn play(driver: &Driver, verbs: &[Verb]) {
    let mut open = Some((driver.open)(false));
    let mut volumes = [1; 3].map(|mib| Oracle { layout: layout(mib), bytes: None });
    for verb in verbs {
        match verb {
            Verb::Restart => {
                drop(open.take());
                open = Some((driver.open)(true));
            }
            Verb::Ensure { volume, .. } | Verb::Write { volume, .. } | Verb::Remove(volume) => {
                volumes[*volume].apply(&**open.as_ref().unwrap(), verb);
            }
        }
    }
    let pool = open.unwrap();
    volumes.iter().for_each(|volume| volume.check(&*pool));
    let there = volumes.iter().filter(|volume| volume.bytes.is_some()).count();
    assert_eq!(pool.observe_volumes().unwrap().len(), there);
}
