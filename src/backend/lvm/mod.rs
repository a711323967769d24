//! The drivers `lvm` and `lvm-thin`: volumes as logical volumes in a volume group of the pool's own.
//!
//! ```text
//!   symphony-<pool id>                 the group; its tags say whose pool it is
//!   symphony-<pool id>/thin-pool       of lvm-thin: the pool that all its volumes share
//!   symphony-<pool id>/<volume id>     a volume; its tags say what it is, and whether it is whole
//!   symphony-<pool id>/s-<snapshot id> a snapshot, likewise; of `lvm` a classic one, with room of a stated size
//! ```
//!
//! The modules, from thought to deed: [`report`] and [`tags`] say what is there, [`plan`] what is to be done about it,
//! [`command`] how LVM is told, [`runner`] and [`queue`] how that is survived. A volume's size is a whole number of
//! sectors, a logical volume's one of extents: users see the former, and what lies behind it stays zero.
//!
//! LVM's executable is the only way to LVM. It sees the devices that the pool names and no other, and nothing of the
//! host's configuration. What does not answer makes the pool [`BackendError::Unreachable`], never the service: reads go
//! on beside a change that hangs, and no change is begun behind it.
//!
//! A thin pool has all that its devices hold from the beginning, or begins small and is extended as it fills up, to a
//! ceiling: whoever owns the pool asks for that with [`LvmPool::extend_if_due`].
//!
//! A snapshot of `lvm-thin` costs nothing until something changes, and stands on its own. One of `lvm` has room for a
//! part of its volume's changes, as stated or as usual ([`Room`]), and is lost when they are more: it says so, and the
//! volume is not harmed. The volume cannot be removed before it, nor grow beside it, and copies of either are made byte by
//! byte. Its room holds old bytes of the volume: those can be overwritten before it is removed.
//!
//! Never here: what should exist, and what may be promised.
//!
//! Limitations: a device is known by the path that the pool names, so that path should be a stable one. Every look at
//! one volume is a look at its whole group. The disk's own record of a group is the only one: nothing is kept below
//! `/etc/lvm`. A call of LVM that is killed at its deadline may leave a device suspended, as any kill of LVM may.

mod claim;
pub mod command;
mod effort;
mod geometry;
mod hands;
mod plan;
mod queue;
pub mod report;
mod runner;
mod snapshot;
mod steps;
pub mod tags;
mod thin;
mod volume;

pub use geometry::Room;
pub use hands::Ground;
pub use plan::pool::group_name;
pub use runner::{Executable, Lvm, LvmError};
pub use snapshot::SnapshotFill;
pub use tags::Kind;
pub use thin::mapper::Mapper;

use super::{Backend, BackendError, Ensured, PoolIdentity, Removed, SnapshotLayout, VolumeLayout};
use crate::host::lock::Lock;
use crate::io::BlockIo;
use crate::model::{
    AssignedId, ByteSize, ClusterId, InventorySnapshot, InventoryVolume, PoolCapacity, PoolMetadata, Progress,
    SnapshotId, Source, TakenSnapshot, Timestamp, VolumeId,
};
use crate::runtime::Turns;
use effort::Efforts;
use hands::Hands;
use plan::Sight;
use plan::names::Role;
use plan::pool::{THIN_POOL, growth_within, most};
use plan::volume::inventory;
use report::{Group, Lv, Reported};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tags::State;
use thin::mapper::PoolStatus;
use thin::survey::{self, Opened, Surveyor};

/// What a pool is made of, in the user's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub kind: Kind,
    /// Paths of its devices, preferably ones that stay; more than before extend it.
    pub devices: Vec<PathBuf>,
    /// Which of them may lose what they carry when they enter the pool.
    pub wipe: BTreeSet<PathBuf>,
    /// What a classic snapshot of a thick volume gets where nobody says how much.
    pub room: Room,
    /// Of a thin pool: it begins small and is extended as it fills up, to so much data at most. None: it has everything.
    pub ceiling: Option<ByteSize>,
}

/// One pool in one volume group. There is at most one value of this type per group on the host. What it opened lives on
/// when it is dropped; close that before the pool is opened again.
pub struct LvmPool {
    _lock: Lock,
    hands: Arc<Hands>,
    kind: Kind,
    /// Of the group, in bytes.
    extent: u64,
    /// Of its thin pool, in bytes.
    chunk: Option<u64>,
    present: Mutex<Present>,
    /// The one handle that all users of a volume share while any of them has it open.
    open: Opened,
    /// One verb at a time on one volume; different volumes do not wait for each other.
    turns: Arc<Turns<VolumeId>>,
    snapshot_turns: Turns<SnapshotId>,
    /// How full classic snapshots were at the last look.
    watched: Mutex<HashMap<SnapshotId, SnapshotFill>>,
    efforts: Efforts,
    /// Of a thin pool: who finds out where its volumes have holes.
    surveyor: Option<Arc<Surveyor>>,
}

impl fmt::Debug for LvmPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LvmPool").field("group", &self.hands.group).field("kind", &self.kind).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
struct Present {
    identity: PoolIdentity,
    settings: Settings,
    /// The kernel's names of its devices.
    nodes: Vec<PathBuf>,
}

/// How full a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUse {
    pub data: PoolCapacity,
    /// LVM's word for what ails its thin pool: `out_of_data`, `metadata_read_only`, `failed`.
    pub ailment: Option<String>,
}

/// LVM's word for a thin pool whose data are full.
const OUT_OF_DATA: &str = "out_of_data";

impl LvmPool {
    /// Makes the devices this pool's, or finds that they are, and locks it for this process. Without `made` devices
    /// that carry nothing are taken, and those named for wiping; with it, anything but the pool as it was is an error,
    /// apart from devices that it does not have yet: they extend it.
    pub fn ensure(
        ground: &Ground,
        identity: &PoolIdentity,
        settings: &Settings,
        made: bool,
    ) -> Result<(Self, Ensured), BackendError> {
        let hands = Arc::new(Hands::new(ground.clone(), group_name(identity.pool)));
        let held = claim::lock(&hands)?;
        let (nodes, done) = hands.change(|| claim::ensure(&hands, identity, settings, made))?;
        let seen = hands.look(&claim::allowed(&nodes)?)?;
        let group = find(&seen, &hands.group)?;
        let chunk = seen
            .lv(&group.name, THIN_POOL)
            .filter(|pool| settings.kind == Kind::Thin && pool.chunk > 0)
            .map(|pool| pool.chunk);
        if settings.kind == Kind::Thin {
            let_go_of_remains(&hands);
        }
        let (open, turns) = (Opened::default(), Arc::<Turns<VolumeId>>::default());
        let surveyor = chunk.map(|chunk| Surveyor::new(hands.clone(), turns.clone(), open.clone(), chunk));
        let pool = Self {
            _lock: held,
            kind: settings.kind,
            extent: group.extent,
            chunk,
            present: Mutex::new(Present { identity: identity.clone(), settings: settings.clone(), nodes }),
            open,
            turns,
            snapshot_turns: Turns::default(),
            watched: Mutex::default(),
            efforts: Efforts::default(),
            surveyor,
            hands,
        };
        Ok((pool, done))
    }

    /// Takes over another name and more devices while the pool is in use.
    pub fn ensure_settings(&self, identity: &PoolIdentity, settings: &Settings) -> Result<Ensured, BackendError> {
        let own = self.settings().identity;
        if (identity.cluster, identity.pool) != (own.cluster, own.pool) {
            return Err(BackendError::Taken { place: self.hands.group.clone(), owner: format!("pool {}", own.pool) });
        }
        let ensure = || claim::ensure(&self.hands, identity, settings, true);
        let (nodes, done) = self.hands.change(ensure)?;
        *lock(&self.present) = Present { identity: identity.clone(), settings: settings.clone(), nodes };
        Ok(done)
    }

    /// Lets go of a pool that is not open, so that a release can be repeated after it was cut short: what
    /// [`Backend::release`] does, and nothing where the devices are gone or not this pool's.
    pub fn release_at(ground: &Ground, identity: &PoolIdentity, settings: &Settings) -> Result<Removed, BackendError> {
        let hands = Hands::new(ground.clone(), group_name(identity.pool));
        let _lock = claim::lock(&hands)?;
        hands.change(|| claim::release(&hands, identity, settings))
    }

    /// The cluster whose mark it bears.
    pub fn cluster(&self) -> ClusterId {
        self.settings().identity.cluster
    }

    /// Lets the pool, while it is in use, bear the mark of another cluster than the one that it was opened for.
    pub fn pass_on(&self, cluster: ClusterId) -> Result<Ensured, BackendError> {
        let Present { identity, settings, .. } = self.settings();
        let to = PoolIdentity { cluster, ..identity.clone() };
        let done = self.hands.change(|| claim::pass_on(&self.hands, &identity, &to, &settings))?;
        lock(&self.present).identity = to;
        Ok(done)
    }

    /// The same for a pool that is not open: what bears `from`'s mark bears `to`'s from then on.
    pub fn pass_on_at(
        ground: &Ground,
        from: &PoolIdentity,
        to: &PoolIdentity,
        settings: &Settings,
    ) -> Result<Ensured, BackendError> {
        let hands = Hands::new(ground.clone(), group_name(from.pool));
        let _lock = claim::lock(&hands)?;
        hands.change(|| claim::pass_on(&hands, from, to, settings))
    }

    /// How full it is, of a thin pool the metadata too.
    pub fn observe_use(&self) -> Result<PoolUse, BackendError> {
        let seen = self.look()?;
        let sight = self.sight(&seen)?;
        let group = sight.group;
        self.watch_fill(&sight);
        match self.kind {
            Kind::Thick => {
                // The room of snapshots is promised as volumes are; what is a stranger's is nobody's to promise.
                let ours = seen.lvs_of(&group.name).filter(|lv| Role::of(&lv.name).is_some());
                let used: ByteSize = ours.map(|lv| lv.size).sum();
                let (capacity, extent) = (group.free.saturating_add(used), Some(ByteSize::bytes(group.extent)));
                let data = PoolCapacity { capacity, used, copies: true, extent, ..PoolCapacity::default() };
                Ok(PoolUse { data, ailment: None })
            }
            Kind::Thin => self.use_of_thin_pool(group, seen.lv(&group.name, THIN_POOL)),
        }
    }

    fn use_of_thin_pool(&self, group: &Group, pool: Option<&Lv>) -> Result<PoolUse, BackendError> {
        let lost = |reason: &str| BackendError::PoolLost { place: self.hands.group.clone(), reason: reason.to_owned() };
        let pool = pool.ok_or_else(|| lost("its thin pool is gone"))?;
        let used = pool.data.ok_or_else(|| lost("its thin pool is not active"))?.of(pool.size);
        let chunk = ByteSize::bytes(pool.chunk);
        let metadata = pool.metadata_size.zip(pool.metadata);
        let mut metadata = metadata.map(|(capacity, part)| PoolMetadata { capacity, used: part.of(capacity), chunk });
        let (mut capacity, mut size) = (pool.size, None);
        if let Some(most) = self.settings().settings.ceiling.and_then(|ceiling| most(pool, group, ceiling)) {
            (capacity, size) = (ByteSize::bytes(most.data_extents.saturating_mul(group.extent)), Some(pool.size));
            metadata = metadata.map(|it| PoolMetadata { capacity: ByteSize::bytes(most.metadata_bytes), ..it });
        }
        let data = PoolCapacity { capacity, used, metadata, copies: true, extent: None, size };
        Ok(PoolUse { data, ailment: pool.ailment.clone() })
    }

    /// Extends a thin pool that has a ceiling, if it is full enough; says whether it was.
    pub fn extend_if_due(&self) -> Result<bool, BackendError> {
        let Present { identity, settings, .. } = self.settings();
        let Some(ceiling) = settings.ceiling.filter(|_| self.is_filling_up()) else { return Ok(false) };
        let seen = self.look()?;
        let group = self.group_in(&seen)?;
        let pool = seen.lv(&group.name, THIN_POOL);
        if pool.and_then(|pool| growth_within(pool, group, ceiling)).is_none() {
            return Ok(false);
        }
        self.ensure_settings(&identity, &settings).map(|done| done == Ensured::Grown)
    }

    /// Whether it may become larger as it fills up, and may be full enough for that. The kernel says it for nothing; a report
    /// of LVM costs a process and reads from every disk.
    pub fn is_filling_up(&self) -> bool {
        self.can_grow() && !survey::look(&self.hands).is_ok_and(|status| !may_be_due(&status))
    }

    /// Whether it may become larger as it fills up.
    pub fn can_grow(&self) -> bool {
        self.kind == Kind::Thin && self.settings().settings.ceiling.is_some()
    }

    fn settings(&self) -> Present {
        lock(&self.present).clone()
    }

    /// What is on the pool's devices now, whatever changes are under way.
    fn look(&self) -> Result<Reported, BackendError> {
        self.hands.look(&self.devices()?)
    }

    /// The group as plans see it.
    fn sight<'r>(&self, seen: &'r Reported) -> Result<Sight<'r>, BackendError> {
        let group = self.group_in(seen)?;
        Ok(Sight { kind: self.kind, room: self.settings().settings.room, group, seen })
    }

    fn group_in<'r>(&self, seen: &'r Reported) -> Result<&'r Group, BackendError> {
        let group = find(seen, &self.hands.group)?;
        let identity = self.settings().identity;
        match group.decoded() {
            Ok(Some(tags)) if !tags.marks(&identity) => {
                Err(BackendError::Taken { place: group.name.clone(), owner: tags.owner() })
            }
            Ok(Some(tags)) if tags.state == State::Removing => {
                let reason = "its release has begun".to_owned();
                Err(BackendError::PoolLost { place: group.name.clone(), reason })
            }
            _ if group.missing > 0 => {
                let reason = format!("{} of its physical volumes are missing", group.missing);
                Err(BackendError::PoolLost { place: group.name.clone(), reason })
            }
            _ => Ok(group),
        }
    }
}

/// Whether a thin pool may be full enough to be extended; one of which that is not known may be.
fn may_be_due(status: &PoolStatus) -> bool {
    let reaches = |(used, of): (u64, u64)| u128::from(used) * 100 >= u128::from(of) * u128::from(geometry::EXTEND_AT);
    reaches(status.data) || reaches(status.metadata)
}

/// A hold on the metadata costs room only, so that nothing here keeps the pool from being used.
fn let_go_of_remains(hands: &Hands) {
    match hands.change(|| survey::let_go_of_remains(hands)) {
        Ok(false) => {}
        Ok(true) => tracing::info!(group = %hands.group, "let go of metadata that a process before had held"),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::debug!(group = %hands.group, error, "whether somebody holds a thin pool's metadata is not known");
        }
    }
}

fn find<'r>(seen: &'r Reported, name: &str) -> Result<&'r Group, BackendError> {
    seen.groups.iter().find(|group| group.name == name).ok_or_else(|| BackendError::PoolLost {
        place: name.to_owned(),
        reason: "its volume group is on none of its devices".to_owned(),
    })
}

impl Backend for LvmPool {
    fn ensure_volume(&self, volume: &VolumeLayout) -> Result<Ensured, BackendError> {
        self.keep(volume)
    }

    fn begin_copy(&self, volume: &VolumeLayout) -> Result<(), BackendError> {
        match (self.kind, volume.source) {
            (Kind::Thick, Some(Source::Volume(source))) => self.hold_still(volume, source),
            // Nobody changes a snapshot, and what is no copy has no source.
            (Kind::Thick, Some(Source::Snapshot(_)) | None) => Ok(()),
            (Kind::Thin, _) => self.keep(volume).map(drop),
        }
    }

    fn wipe_volume(&self, id: VolumeId) -> Result<(), BackendError> {
        self.overwrite(id)
    }

    fn progress(&self) -> Vec<(AssignedId, Progress)> {
        self.efforts.progress()
    }

    fn abandon(&self, id: Option<AssignedId>) {
        self.efforts.abandon(id);
    }

    fn remove_volume(&self, id: VolumeId) -> Result<Removed, BackendError> {
        self.destroy(id)
    }

    fn open_volume(&self, id: VolumeId) -> Result<Arc<dyn BlockIo>, BackendError> {
        Ok(self.share(id)?)
    }

    fn observe_capacity(&self) -> Result<PoolCapacity, BackendError> {
        let PoolUse { data, ailment, .. } = self.observe_use()?;
        match ailment {
            // Its data are full: that is what the figures say. Anything else keeps even those from writing who have space.
            Some(word) if word != OUT_OF_DATA => Err(BackendError::Damaged {
                path: format!("{}/{THIN_POOL}", self.hands.group),
                reason: format!("LVM says of it: {word}; nothing in it can be written until it is repaired"),
            }),
            _ => Ok(data),
        }
    }

    fn observe_volumes(&self) -> Result<Vec<InventoryVolume>, BackendError> {
        let seen = self.look()?;
        let sight = self.sight(&seen)?;
        let pool = self.settings().identity.pool;
        Ok(seen.lvs_of(&sight.group.name).filter_map(|lv| inventory(&sight, pool, lv)).collect())
    }

    fn find_snapshot(&self, id: SnapshotId) -> Result<Option<TakenSnapshot>, BackendError> {
        self.find(id)
    }

    fn stage_snapshot(&self, snapshot: &SnapshotLayout, at: Timestamp) -> Result<(), BackendError> {
        self.stage(snapshot, at)
    }

    fn settle_snapshot(&self, id: SnapshotId) -> Result<TakenSnapshot, BackendError> {
        self.settle(id)
    }

    fn wipe_snapshot(&self, id: SnapshotId) -> Result<(), BackendError> {
        self.overwrite_room(id)
    }

    fn remove_snapshot(&self, id: SnapshotId) -> Result<Removed, BackendError> {
        self.destroy_snapshot(id)
    }

    fn observe_snapshots(&self) -> Result<Vec<InventorySnapshot>, BackendError> {
        self.snapshot_inventory()
    }

    fn release(&self) -> Result<Removed, BackendError> {
        if let Some(surveyor) = &self.surveyor {
            surveyor.wait();
        }
        let Present { identity, settings, .. } = self.settings();
        self.hands.change(|| claim::release(&self.hands, &identity, &settings))
    }
}

impl Drop for LvmPool {
    fn drop(&mut self) {
        if let Some(surveyor) = &self.surveyor {
            surveyor.end();
        }
    }
}

/// No code panics between two changes of what these locks guard, so what a panicking thread leaves is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub mod tests;
