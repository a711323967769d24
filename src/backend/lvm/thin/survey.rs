//! Surveys: which chunks of the volumes that are open hold nothing, read from their pool's own metadata.
//!
//! ```text
//!   asked ──▶ begun: every write marks the map ──▶ flushed ──▶ metadata held ──▶ read ──▶ still held ──▶ let go ──▶ told
//! ```
//! The order is what makes it true. Whatever was written before the map was begun is mapped by the time when the metadata
//! are held, since no write was in flight then and all was flushed; whatever is written later is marked in the map.
//!
//! To hold its metadata still is a message to the pool, which copies what it changes meanwhile. There is one hold for each
//! pool: volumes that ask at the same time share it, it lasts [`LONGEST`] at most, and it is let go of whatever happens. One
//! that a killed process left is let go of when the pool is opened next. What anything here fails at leaves all as data.
//!
//! Never here: what a volume's users do meanwhile. They wait for nothing but the writes before theirs, [`STILL`] at most.
//!
//! Limitation: a write of a process that was killed, which nobody acknowledged and which the kernel still carries out when
//! the next process surveys, is not seen.

use super::mapper::{PoolStatus, PoolTable, device_of, find_pool, name_of, pool_status, pool_table};
use super::metadata::{BLOCK, mapped};
use crate::backend::BackendError;
use crate::backend::lvm::hands::Hands;
use crate::backend::lvm::lock;
use crate::backend::lvm::plan::names;
use crate::backend::lvm::plan::pool::THIN_POOL;
use crate::host::block_device::number_of;
use crate::host::device_mapper::Target;
use crate::host::patience::{Pulse, within};
use crate::io::{ChunkMap, FileIo};
use crate::model::VolumeId;
use crate::runtime::Turns;
use nix::fcntl::OFlag;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long new writes wait at most for those in flight, when a map is begun.
pub const STILL: Duration = Duration::from_millis(50);
/// How long the metadata are held at most.
pub const LONGEST: Duration = Duration::from_secs(30);
/// Volumes that share a hold.
const TOGETHER: usize = 64;
/// Metadata blocks that are read between two looks at whether to go on.
const STRIDE: u64 = 64;

/// The handles that users of volumes share.
pub type Opened = Arc<Mutex<HashMap<VolumeId, Weak<FileIo>>>>;

/// Makes the maps of one pool's volumes, on a thread of its own while there is something to do.
pub struct Surveyor {
    hands: Arc<Hands>,
    turns: Arc<Turns<VolumeId>>,
    open: Opened,
    /// Of the pool, in bytes.
    chunk: u64,
    desk: Mutex<Desk>,
    idle: Condvar,
    ending: AtomicBool,
}

#[derive(Debug, Default)]
struct Desk {
    waiting: BTreeSet<VolumeId>,
    working: bool,
    /// People were told that it does not work.
    complained: bool,
    /// The metadata may be held by ourselves, since letting go has failed.
    owed: bool,
}

/// A volume whose map is begun.
struct Subject {
    volume: VolumeId,
    map: Arc<ChunkMap>,
    device: u64,
}

/// Metadata that are held.
struct Held {
    root: u64,
    /// How many there are.
    blocks: u64,
    node: PathBuf,
}

impl Surveyor {
    pub fn new(hands: Arc<Hands>, turns: Arc<Turns<VolumeId>>, open: Opened, chunk: u64) -> Arc<Self> {
        let (desk, idle, ending) = (Mutex::default(), Condvar::new(), AtomicBool::new(false));
        Arc::new(Self { hands, turns, open, chunk, desk, idle, ending })
    }

    /// Whatever an open volume's users ask from now on of its holes is answered by maps that are made here.
    pub fn watch(self: &Arc<Self>, volume: VolumeId, io: FileIo) -> FileIo {
        let surveyor = Arc::downgrade(self);
        io.mapped_by(self.chunk, move || {
            if let Some(surveyor) = surveyor.upgrade() {
                surveyor.ask(volume);
            }
        })
    }

    pub fn ask(self: &Arc<Self>, volume: VolumeId) {
        let mut desk = lock(&self.desk);
        desk.waiting.insert(volume);
        if std::mem::replace(&mut desk.working, true) {
            return;
        }
        drop(desk);
        let own = Arc::clone(self);
        // Ended by [`Self::end`].
        let begun = std::thread::Builder::new().name("survey".to_owned()).spawn(move || own.work());
        if let Err(error) = begun {
            tracing::warn!(group = %self.hands.group, %error, "no thread for a survey of a thin pool");
            let waiting = std::mem::take(&mut lock(&self.desk).waiting);
            self.rest();
            waiting.into_iter().for_each(|volume| self.decline(volume));
        }
    }

    /// Returns when no survey is under way, and none is from then on.
    pub fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
        self.wait();
    }

    /// Returns when no survey is under way.
    pub fn wait(&self) {
        let mut desk = lock(&self.desk);
        while desk.working {
            desk = self.idle.wait(desk).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn rest(&self) {
        lock(&self.desk).working = false;
        self.idle.notify_all();
    }

    fn work(&self) {
        /// Whoever waits for the end must not do so for ever.
        struct AtWork<'s>(&'s Surveyor);
        impl Drop for AtWork<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.rest();
                }
            }
        }
        let _at_work = AtWork(self);
        loop {
            let mut desk = lock(&self.desk);
            let batch: Vec<VolumeId> = desk.waiting.iter().copied().take(TOGETHER).collect();
            desk.waiting.retain(|volume| !batch.contains(volume));
            if batch.is_empty() || self.ending.load(Ordering::SeqCst) {
                // Under the same lock, so that who asks now is heard by another thread.
                desk.working = false;
                self.idle.notify_all();
                return;
            }
            drop(desk);
            self.survey(&batch);
        }
    }

    fn survey(&self, volumes: &[VolumeId]) {
        let mut begun = Vec::new();
        for volume in volumes {
            match self.begin(*volume) {
                Ok(Some(subject)) => begun.push(subject),
                Ok(None) => self.decline(*volume),
                Err(error) => {
                    self.decline(*volume);
                    self.complain(&error);
                }
            }
        }
        if begun.is_empty() {
            return;
        }
        match self.hold_and_read(&begun) {
            Ok(()) => {
                tracing::debug!(group = %self.hands.group, volumes = begun.len(), "holes of thin volumes are known");
                lock(&self.desk).complained = false;
                begun.iter().for_each(|subject| self.finish(subject));
            }
            Err(error) => {
                begun.iter().for_each(|subject| self.decline(subject.volume));
                self.complain(&error);
            }
        }
    }

    /// None for a volume that nobody has open, and one whose writes in flight take too long.
    fn begin(&self, volume: VolumeId) -> Result<Option<Subject>, BackendError> {
        // Whoever removes it, or puts it back, waits for the handle that is used here.
        let _turn = self.turns.take(volume);
        let Some(io) = self.io(volume) else { return Ok(None) };
        let (group, mapper) = (&self.hands.group, Arc::clone(&self.hands.ground.mapper));
        let (node, name) = (self.hands.node(&names::volume(volume)), name_of(group, &names::volume(volume)));
        let begin = move |_: &Pulse| {
            let device = device_of(&mapper.table(&name)?).ok_or_else(|| odd("it is no thin volume of its own"))?;
            Ok(io.begin_map(Instant::now() + STILL)?.map(|map| (map, device)))
        };
        let begun = self.hands.work("survey", &node, begin)?;
        Ok(begun.map(|(map, device)| Subject { volume, map, device }))
    }

    fn hold_and_read(&self, subjects: &[Subject]) -> Result<(), BackendError> {
        let held = self.hands.change(|| self.hold())?;
        let read = self.read(&held, subjects);
        let let_go = self.hands.change(|| self.let_go(held.root));
        lock(&self.desk).owed = let_go.is_err();
        read.and(let_go)
    }

    /// The caller is in the queue.
    fn hold(&self) -> Result<Held, BackendError> {
        let owed = lock(&self.desk).owed;
        let (name, mapper) = (self.pool()?, Arc::clone(&self.hands.ground.mapper));
        let dev = self.hands.ground.scanner.roots().dev.clone();
        let chunk = self.chunk;
        self.hands.work("hold the metadata of", Path::new(&name.clone()), move |_| {
            let status = || pool_status(&mapper.status(&name)?).ok_or_else(|| odd("it has failed, or is no thin pool"));
            let before = status()?;
            let PoolTable { metadata, chunk: own } =
                pool_table(&mapper.table(&name)?).ok_or_else(|| odd("its table is odd"))?;
            if own != chunk {
                return Err(odd("its chunks are of another size"));
            }
            let node = node_of(&dev, metadata)?;
            check_room(&before)?;
            match before.held {
                Some(_) if owed => mapper.message(&name, RELEASE)?,
                Some(_) => return Err(odd("somebody else holds a snapshot of its metadata")),
                None => {}
            }
            mapper.message(&name, RESERVE)?;
            match status() {
                Ok(PoolStatus { held: Some(root), metadata: (_, blocks), .. }) => Ok(Held { root, blocks, node }),
                other => {
                    mapper.message(&name, RELEASE)?;
                    Err(other.err().unwrap_or_else(|| odd("it does not hold its metadata")))
                }
            }
        })
    }

    /// # Errors
    /// If what was read may not be what was held. The caller is in the queue.
    fn let_go(&self, root: u64) -> Result<(), BackendError> {
        let (name, mapper) = (self.pool()?, Arc::clone(&self.hands.ground.mapper));
        self.hands.work("let go of the metadata of", Path::new(&name.clone()), move |_| {
            let held = pool_status(&mapper.status(&name)?).and_then(|status| status.held);
            mapper.message(&name, RELEASE)?;
            if held == Some(root) { Ok(()) } else { Err(odd("somebody else has let go of them meanwhile")) }
        })
    }

    fn read(&self, held: &Held, subjects: &[Subject]) -> Result<(), BackendError> {
        let until = Instant::now() + LONGEST;
        for Subject { map, device, .. } in subjects {
            if self.ending.load(Ordering::SeqCst) {
                return Err(BackendError::Refused("the pool is closed".to_owned()));
            }
            let (node, root, of) = (held.node.clone(), (held.root, held.blocks), (*device, self.chunk));
            let map = Arc::clone(map);
            self.hands.work("read", &held.node, move |pulse| mark_mapped(&node, root, of, &map, (pulse, until)))?;
        }
        Ok(())
    }

    /// What device-mapper calls the thin pool.
    fn pool(&self) -> Result<String, BackendError> {
        pool_name(&self.hands)
    }

    fn io(&self, volume: VolumeId) -> Option<Arc<FileIo>> {
        lock(&self.open).get(&volume).and_then(Weak::upgrade)
    }

    fn finish(&self, subject: &Subject) {
        if let Some(io) = self.io(subject.volume)
            && let Some(allocation) = io.allocation()
        {
            allocation.finish(&subject.map);
        }
    }

    fn decline(&self, volume: VolumeId) {
        if let Some(io) = self.io(volume)
            && let Some(allocation) = io.allocation()
        {
            allocation.decline();
        }
    }

    /// Once, until it works again.
    fn complain(&self, error: &BackendError) {
        let (group, error) = (&self.hands.group, error as &dyn std::error::Error);
        if std::mem::replace(&mut lock(&self.desk).complained, true) {
            tracing::debug!(%group, error, "holes of thin volumes are still not known");
        } else {
            tracing::warn!(%group, error, "which parts of its volumes are holes cannot be told: all of them count as data");
        }
    }
}

const RESERVE: &str = "reserve_metadata_snap";
const RELEASE: &str = "release_metadata_snap";

/// Lets go of metadata that a process which is no more has held. The caller has locked the pool and is in the queue.
pub fn let_go_of_remains(hands: &Hands) -> Result<bool, BackendError> {
    let (name, mapper) = (pool_name(hands)?, Arc::clone(&hands.ground.mapper));
    hands.work("let go of the metadata of", Path::new(&name.clone()), move |_| {
        let held = pool_status(&mapper.status(&name)?).is_some_and(|status| status.held.is_some());
        if held {
            mapper.message(&name, RELEASE)?;
        }
        Ok(held)
    })
}

/// How the pool of a group is; it changes nothing, and waits for no disk.
pub fn look(hands: &Hands) -> io::Result<PoolStatus> {
    let (_, targets) = ask_pool(hands)?;
    pool_status(&targets).ok_or_else(|| odd("it has failed, or is no thin pool"))
}

/// What device-mapper calls the thin pool, and how it is. Aside: whoever hangs in device-mapper may keep others waiting.
fn ask_pool(hands: &Hands) -> io::Result<(String, Vec<Target>)> {
    let (group, mapper) = (hands.group.clone(), Arc::clone(&hands.ground.mapper));
    let ask = move |_: &Pulse| find_pool(&group, THIN_POOL, |name| mapper.status(name));
    within("a look at a thin pool", hands.ground.patience, ask).map_err(io::Error::other)?
}

fn pool_name(hands: &Hands) -> Result<String, BackendError> {
    let found = ask_pool(hands);
    let failed = |source| BackendError::Io { action: format!("cannot find the thin pool of {}", hands.group), source };
    found.map(|(name, _)| name).map_err(failed)
}

fn odd(reason: &'static str) -> io::Error {
    io::Error::other(reason)
}

/// What is changed while the metadata are held is copied: there must be room for that.
fn check_room(status: &PoolStatus) -> io::Result<()> {
    let (used, all) = status.metadata;
    match status.writable {
        false => Err(odd("its metadata cannot be changed now")),
        true if used >= all - all / 4 => Err(odd("its metadata are too full to be held")),
        true => Ok(()),
    }
}

/// The node of a device of device-mapper, which the kernel names by its minor number.
fn node_of(dev: &Path, number: (u64, u64)) -> io::Result<PathBuf> {
    let node = dev.join(format!("dm-{}", number.1));
    match number_of(&node)? {
        Some(found) if found != number => Err(odd("its metadata are not where they should be")),
        _ => Ok(node),
    }
}

/// Memory for reads around the page cache, which knows nothing of what the kernel writes for itself.
#[repr(align(4096))]
struct Page([u8; BLOCK]);

fn mark_mapped(
    node: &Path,
    root: (u64, u64),
    (device, chunk): (u64, u64),
    map: &ChunkMap,
    (pulse, until): (&Pulse, Instant),
) -> io::Result<()> {
    let direct = File::options().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(node);
    let file = match direct {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => File::open(node)?,
        opened => opened?,
    };
    let (mut page, mut read) = (Page([0; BLOCK]), 0u64);
    let mut source = |block: u64, into: &mut [u8; BLOCK]| {
        read += 1;
        if read.is_multiple_of(STRIDE) && (!pulse.beat() || Instant::now() > until) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it takes too long"));
        }
        let offset = block.checked_mul(BLOCK as u64).ok_or(io::ErrorKind::InvalidInput)?;
        file.read_exact_at(&mut page.0, offset)?;
        *into = page.0;
        Ok(())
    };
    let mut mark = |number: u64| map.mark(number.saturating_mul(chunk), chunk);
    mapped(&mut source, root, (device, chunk), &mut mark).map_err(io::Error::other)
}
