//! An image's bytes on their way into volumes, killed before and behind every change, on every driver.

use super::super::{Doors, OpenPool, Peers, TaskError, Worker};
use crate::backend::file::FilePool;
use crate::backend::lvm::Kind;
use crate::backend::lvm::tests::machine::Machine;
use crate::backend::{Backend, BackendError, Ensured, PoolIdentity, Removed, SnapshotLayout, VolumeLayout};
use crate::block::places::Places;
use crate::export::ExportTable;
use crate::image::Sum;
use crate::io::{BlockIo, Extent};
use crate::model::*;
use std::io;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// What is data or a hole as a whole.
const RUN: usize = 32 << 10;
const LENGTH: usize = 3 * RUN + 700;
const SIZE: ByteSize = ByteSize::bytes(4 * RUN as u64);

/// When a process dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Life {
    Long,
    /// It carries out so many changes, and perhaps the one behind them.
    Short(usize, bool),
    Over,
}

struct Fuse {
    life: Mutex<Life>,
    /// Writes of bytes so far.
    writes: Mutex<usize>,
}

impl Fuse {
    fn new(life: Life) -> Arc<Self> {
        Arc::new(Self { life: Mutex::new(life), writes: Mutex::default() })
    }

    fn is_burnt(&self) -> bool {
        *self.life.lock().unwrap() == Life::Over
    }

    fn burn<T>(&self, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let mut life = self.life.lock().unwrap();
        match *life {
            Life::Long => return change(),
            Life::Short(left, after) if left > 0 => {
                *life = Life::Short(left - 1, after);
                return change();
            }
            Life::Short(_, true) => drop(change()?),
            Life::Short(_, false) | Life::Over => {}
        }
        *life = Life::Over;
        Err(io::Error::other("the process is killed"))
    }
}

/// A backend of a process that is killed.
struct Mortal {
    below: Arc<dyn Backend>,
    fuse: Arc<Fuse>,
}

impl Backend for Mortal {
    fn ensure_volume(&self, volume: &VolumeLayout) -> Result<Ensured, BackendError> {
        let mut refused = None;
        let burnt = self.fuse.burn(|| match self.below.ensure_volume(volume) {
            Ok(done) => Ok(Some(done)),
            Err(error) => {
                refused = Some(error);
                Ok(None)
            }
        });
        match (burnt, refused) {
            (Err(source), _) => Err(BackendError::Io { action: "killed".into(), source }),
            (Ok(_), Some(error)) => Err(error),
            (Ok(done), None) => Ok(done.unwrap()),
        }
    }

    fn open_volume(&self, id: VolumeId) -> Result<Arc<dyn BlockIo>, BackendError> {
        Ok(Arc::new(MortalIo { below: self.below.open_volume(id)?, fuse: Arc::clone(&self.fuse) }))
    }

    fn wipe_volume(&self, id: VolumeId) -> Result<(), BackendError> {
        self.below.wipe_volume(id)
    }

    fn remove_volume(&self, id: VolumeId) -> Result<Removed, BackendError> {
        self.below.remove_volume(id)
    }

    fn observe_capacity(&self) -> Result<PoolCapacity, BackendError> {
        self.below.observe_capacity()
    }

    fn observe_volumes(&self) -> Result<Vec<InventoryVolume>, BackendError> {
        self.below.observe_volumes()
    }

    fn find_snapshot(&self, id: SnapshotId) -> Result<Option<TakenSnapshot>, BackendError> {
        self.below.find_snapshot(id)
    }

    fn stage_snapshot(&self, snapshot: &SnapshotLayout, at: Timestamp) -> Result<(), BackendError> {
        self.below.stage_snapshot(snapshot, at)
    }

    fn settle_snapshot(&self, id: SnapshotId) -> Result<TakenSnapshot, BackendError> {
        self.below.settle_snapshot(id)
    }

    fn wipe_snapshot(&self, id: SnapshotId) -> Result<(), BackendError> {
        self.below.wipe_snapshot(id)
    }

    fn remove_snapshot(&self, id: SnapshotId) -> Result<Removed, BackendError> {
        self.below.remove_snapshot(id)
    }

    fn observe_snapshots(&self) -> Result<Vec<InventorySnapshot>, BackendError> {
        self.below.observe_snapshots()
    }

    fn release(&self) -> Result<Removed, BackendError> {
        self.below.release()
    }
}

struct MortalIo {
    below: Arc<dyn BlockIo>,
    fuse: Arc<Fuse>,
}

impl BlockIo for MortalIo {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.below.read(buffer, offset)
    }

    fn write(&self, buffer: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        *self.fuse.writes.lock().unwrap() += 1;
        self.fuse.burn(|| self.below.write(buffer, offset, fua))
    }

    fn flush(&self) -> io::Result<()> {
        self.fuse.burn(|| self.below.flush())
    }

    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        self.fuse.burn(|| self.below.trim(offset, length))
    }

    fn zero(&self, offset: u64, length: u64, may_punch: bool) -> io::Result<()> {
        self.fuse.burn(|| self.below.zero(offset, length, may_punch))
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> io::Result<Vec<Extent>> {
        self.below.extents(offset, length, limit)
    }
}

/// Where the volume is that is to hold the image's bytes.
enum Ground {
    Files(TempDir, PoolIdentity),
    Volumes(Machine),
}

impl Ground {
    fn files() -> Self {
        Self::Files(tempfile::tempdir().unwrap(), identity())
    }

    fn every() -> [fn() -> Self; 3] {
        [Self::files, || Self::Volumes(Machine::new(Kind::Thick)), || Self::Volumes(Machine::new(Kind::Thin))]
    }

    fn open(&self, made: bool) -> Arc<dyn Backend> {
        match self {
            Ground::Files(directory, identity) => {
                Arc::new(FilePool::ensure(identity, &directory.path().join("pool"), None, made).unwrap().0)
            }
            Ground::Volumes(machine) => Arc::new(machine.open(made)),
        }
    }

    /// LVM is to die at its n-th change.
    fn light(&self, fuse: Option<(usize, bool)>) {
        if let Ground::Volumes(machine) = self {
            machine.model.state().fuse = fuse;
        }
    }

    /// Whether LVM has died since.
    fn is_burnt(&self) -> bool {
        matches!(self, Ground::Volumes(machine) if machine.model.state().fuse.take().is_none())
    }
}

fn identity() -> PoolIdentity {
    PoolIdentity { cluster: ClusterId::generate(), pool: PoolId::generate(), name: "fast".parse().unwrap() }
}

/// What is to be done with the bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    /// They were imported, and are compared with their seal.
    Seal,
    /// Another base is filled with them.
    Fetch,
    /// Somebody's volume is.
    Copy,
}

const ACTS: [Act; 3] = [Act::Seal, Act::Fetch, Act::Copy];

struct Stage {
    ground: Ground,
    /// What the bytes are fetched from: another pool of the same host.
    source: Arc<FilePool>,
    subject: VolumeAssignment,
    bystander: VolumeLayout,
    scratch: TempDir,
    runtime: tokio::runtime::Runtime,
}

/// Data with a hole in them, and nothing of them zero.
fn content() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..LENGTH).map(|place| (place % 251) as u8 + 1).collect();
    bytes[RUN..2 * RUN].fill(0);
    bytes
}

fn layout(id: VolumeId) -> VolumeLayout {
    let (name, generation) = ("other".parse().unwrap(), Generation::FIRST);
    VolumeLayout { id, name, generation, size: SIZE, source: None, revert: None, shrunk: None, made: false }
}

fn write_content(io: &dyn BlockIo) {
    let bytes = content();
    io.write(&bytes[..RUN], 0, false).unwrap();
    io.write(&bytes[2 * RUN..], 2 * RUN as u64, true).unwrap();
}

impl Stage {
    fn new(act: Act, ground: Ground) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let source = FilePool::ensure(&identity(), &scratch.path().join("source"), None, false).unwrap().0;
        let (base, mut sum) = (layout(VolumeId::generate()), Sum::default());
        source.ensure_volume(&base).unwrap();
        write_content(&*source.open_volume(base.id).unwrap());
        sum.add_data(&content());
        let (length, sha256) = (ByteSize::bytes(LENGTH as u64), sum.digest());
        let (pool, service, address) = (PoolId::from_bytes([9; 16]), ServiceId::generate(), None);
        let supply = Supply { volume: base.id, pool, service, address, length, sha256: Some(sha256) };
        let role = match act {
            Act::Seal => ImageRole::Sealed { seal: Seal { length, sha256, since: Generation::new(2) } },
            Act::Fetch => ImageRole::Fetched { supply },
            Act::Copy => ImageRole::Copy { supply },
        };
        let subject = VolumeAssignment {
            image: Some(Box::new(ImageTie { image: ImageId::generate(), role })),
            made: act == Act::Seal,
            ..VolumeAssignment::bare(
                VolumeId::generate(),
                "subject",
                if act == Act::Seal { 2 } else { 1 },
                PoolId::generate(),
                SIZE,
            )
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bystander = layout(VolumeId::generate());
        let stage = Self { ground, source: Arc::new(source), subject, bystander, scratch, runtime };
        let pool = stage.ground.open(false);
        pool.ensure_volume(&stage.bystander).unwrap();
        pool.open_volume(stage.bystander.id).unwrap().write(b"precious", 4096, true).unwrap();
        if act == Act::Seal {
            let imported = VolumeLayout { name: stage.subject.name.clone(), ..layout(stage.subject.id) };
            pool.ensure_volume(&imported).unwrap();
            write_content(&*pool.open_volume(imported.id).unwrap());
        }
        stage
    }

    /// What a block service does, in a process that dies by the fuse. As the first thing it opens the pool.
    fn run(&self, fuse: &Arc<Fuse>) -> Result<(), TaskError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let peers = Peers { runtime: self.runtime.handle().clone(), client: Arc::new(client) };
        let doors = Doors::at(None, self.scratch.path().join("nbd.sock"));
        let places = Places::open(self.scratch.path().join("places.json")).unwrap();
        let worker = Worker::new(ClusterId::generate(), ExportTable::new(), doors, peers, Arc::new(places));
        worker.pools().insert(PoolId::from_bytes([9; 16]), OpenPool::File(Arc::clone(&self.source)));
        let backend = Mortal { below: self.ground.open(true), fuse: Arc::clone(fuse) };
        worker.make_volume(&self.subject, &backend)
    }

    fn bytes(&self, pool: &dyn Backend, id: VolumeId) -> Vec<u8> {
        let io = pool.open_volume(id).unwrap();
        let mut bytes = vec![0xff; io.size() as usize];
        io.read(&mut bytes, 0).unwrap();
        bytes
    }

    /// What the disk says is finished is, and nobody else's volume is another.
    fn check_honesty(&self) -> bool {
        let pool = self.ground.open(true);
        let found = pool.observe_volumes().unwrap();
        let other = found.iter().find(|seen| seen.id == self.bystander.id).unwrap();
        assert_eq!((other.generation, &other.damage), (Generation::FIRST, &None));
        let mut expected = vec![0; 4 * RUN];
        expected[4096..4104].copy_from_slice(b"precious");
        assert!(self.bytes(&*pool, self.bystander.id) == expected, "another volume is harmed");
        let finished =
            found.iter().any(|seen| seen.id == self.subject.id && seen.generation == self.subject.generation);
        if finished {
            let mut expected = content();
            expected.resize(4 * RUN, 0);
            assert!(self.bytes(&*pool, self.subject.id) == expected, "it is called finished and is not");
        }
        finished
    }

    fn check_repeated(&self) {
        self.run(&Fuse::new(Life::Long)).unwrap();
        assert!(self.check_honesty());
        let fuse = Fuse::new(Life::Long);
        self.run(&fuse).unwrap();
        assert_eq!(*fuse.writes.lock().unwrap(), 0, "what is finished is not written again");
    }

    fn check_removed(&self) {
        let pool = self.ground.open(true);
        pool.remove_volume(self.subject.id).unwrap();
        let left = pool.observe_volumes().unwrap().into_iter().chain(pool.observe_unfinished().unwrap());
        assert_eq!(left.map(|seen| seen.id).collect::<Vec<_>>(), [self.bystander.id]);
        if let Ground::Files(directory, _) = &self.ground {
            assert_eq!(std::fs::read_dir(directory.path().join("pool/volumes")).unwrap().count(), 2);
        }
        drop(pool);
        self.check_honesty();
    }
}

#[test]
fn the_bytes_of_an_image_can_be_cut_short_anywhere_and_are_brought_again_or_taken_back() {
    for (act, ground) in ACTS.into_iter().flat_map(|act| Ground::every().map(|ground| (act, ground))) {
        let mut kills = 0;
        for (left, after) in (0..).flat_map(|left| [(left, false), (left, true)]) {
            let mut spared = false;
            for check in [Stage::check_repeated, Stage::check_removed] {
                let (stage, fuse) = (Stage::new(act, ground()), Fuse::new(Life::Short(left, after)));
                let done = stage.run(&fuse);
                spared = !fuse.is_burnt();
                assert_eq!(done.is_ok(), spared, "{act:?} {left} {after}: {done:?}");
                assert!(stage.check_honesty() || !spared);
                check(&stage);
            }
            if spared {
                break;
            }
            kills += 1;
        }
        let least = if act == Act::Seal { 6 } else { 10 };
        assert!(kills >= least, "{act:?} was killed only {kills} times");
    }
}

#[test]
fn the_bytes_of_an_image_survive_that_lvm_is_killed_at_any_of_its_changes_around_them() {
    for (act, kind) in ACTS.into_iter().flat_map(|act| [Kind::Thick, Kind::Thin].map(|kind| (act, kind))) {
        let mut kills = 0;
        for (left, after) in (0..).flat_map(|left| [(left, false), (left, true)]) {
            let stage = Stage::new(act, Ground::Volumes(Machine::new(kind)));
            stage.ground.light(Some((left, after)));
            let done = stage.run(&Fuse::new(Life::Long));
            let burnt = stage.ground.is_burnt();
            assert_eq!(done.is_err(), burnt, "{kind} {act:?} {left} {after}: {done:?}");
            stage.check_honesty();
            stage.check_repeated();
            if !burnt {
                break;
            }
            kills += 1;
        }
        assert!(kills >= 2, "{kind} {act:?} changes something");
    }
}

#[test]
fn bytes_that_are_not_what_was_sealed_are_never_finished_however_often_they_are_looked_at() {
    for ground in Ground::every() {
        for act in ACTS {
            let stage = Stage::new(act, ground());
            let wrong = |io: Arc<dyn BlockIo>| io.write(&[0], 2 * RUN as u64, true).unwrap();
            match stage.subject.image.as_deref().and_then(ImageTie::supply) {
                Some(supply) => wrong(stage.source.open_volume(supply.volume).unwrap()),
                None => wrong(stage.ground.open(true).open_volume(stage.subject.id).unwrap()),
            }
            for _ in 0..2 {
                assert!(matches!(stage.run(&Fuse::new(Life::Long)), Err(TaskError::Differs { .. })), "{act:?}");
                assert!(!stage.check_honesty());
            }
            stage.check_removed();
        }
    }
}
