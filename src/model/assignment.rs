//! What one block service must hold, and how such a set changes from one message to the next.

use super::{
    Attachment, AttachmentId, AttachmentReport, ByteSize, ClientId, ClusterId, Driver, Generation, ImageTie, Limits,
    Moving, Name, Observed, Pool, PoolId, PoolReport, Report, Revert, ServiceId, Snapshot, SnapshotId, SnapshotMember,
    SnapshotReport, Source, Volume, VolumeId, VolumeReport,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolAssignment {
    pub id: PoolId,
    pub name: Name,
    pub generation: Generation,
    pub driver: Driver,
    /// The pool has been set up once; a directory without its marker is then an error, never a fresh start.
    pub made: bool,
    /// The cluster whose mark it may still bear: it was adopted from there, and bears ours from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formerly: Option<ClusterId>,
    /// Tombstone: let go of the pool and report it absent.
    pub removed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeAssignment {
    pub id: VolumeId,
    pub name: Name,
    pub generation: Generation,
    pub pool: PoolId,
    pub size: ByteSize,
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revert: Option<Revert>,
    /// The generation in which it was last allowed to become smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shrunk: Option<Generation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Box<ImageTie>>,
    /// Of a volume that is being moved, and of its copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Box<Moving>>,
    /// With the tombstone: its bytes are overwritten before its space is given back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wipe: bool,
    /// The volume has held bytes once; a missing backing file is then an error, never a fresh start.
    pub made: bool,
    /// Tombstone: permission to destroy the volume's data.
    pub removed: bool,
}

/// What to keep of a volume as it is at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotAssignment {
    pub id: SnapshotId,
    pub name: Name,
    pub generation: Generation,
    pub volume: VolumeId,
    pub pool: PoolId,
    /// All that are taken at the same instant, this one among them; empty: it is taken alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<SnapshotMember>,
    /// What it has for changes of its volume; absent where it needs none, or none was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<ByteSize>,
    /// With the tombstone: what its room holds is overwritten before that is given back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wipe: bool,
    /// The snapshot was taken once; if it is missing that is an error, never a reason to take another.
    pub made: bool,
    /// Tombstone: permission to destroy the snapshot.
    pub removed: bool,
}

/// Whom to let in to a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentAssignment {
    pub id: AttachmentId,
    pub generation: Generation,
    pub volume: VolumeId,
    /// What the volume's export is called: permissions are kept by that name.
    pub volume_name: Name,
    pub client: ClientId,
    /// For messages.
    pub client_name: Name,
    pub read_only: bool,
    /// Others may use the volume too.
    pub shared: bool,
    /// Tombstone: cut the client off, finish or refuse what it has in flight, and report it absent.
    pub removed: bool,
}

/// Everything a block service must hold. Absence from the set is never permission to destroy anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentSet {
    pub pools: BTreeMap<PoolId, PoolAssignment>,
    pub volumes: BTreeMap<VolumeId, VolumeAssignment>,
    #[serde(default)]
    pub snapshots: BTreeMap<SnapshotId, SnapshotAssignment>,
    #[serde(default)]
    pub attachments: BTreeMap<AttachmentId, AttachmentAssignment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assigned {
    Pool(PoolAssignment),
    Volume(VolumeAssignment),
    Snapshot(SnapshotAssignment),
    Attachment(AttachmentAssignment),
}

/// Which object is assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AssignedId {
    Pool(PoolId),
    Volume(VolumeId),
    Snapshot(SnapshotId),
    Attachment(AttachmentId),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Hold this from now on.
    Put(Assigned),
    /// No longer assigned here: stop serving it, keep its data.
    Drop(AssignedId),
}

pub type Changes = Vec<Change>;

/// The same field of every kind's assignment.
macro_rules! each {
    ($assigned:expr, $it:ident => $value:expr) => {
        match $assigned {
            Assigned::Pool($it) => $value,
            Assigned::Volume($it) => $value,
            Assigned::Snapshot($it) => $value,
            Assigned::Attachment($it) => $value,
        }
    };
}

impl Assigned {
    pub fn id(&self) -> AssignedId {
        each!(self, it => it.id.into())
    }

    pub fn generation(&self) -> Generation {
        each!(self, it => it.generation)
    }

    /// Whether the tombstone is set.
    pub fn is_removed(&self) -> bool {
        each!(self, it => it.removed)
    }

    /// A report that nobody knows how it stands, and why.
    pub fn unknown(&self, failure: String) -> Report {
        let (generation, failure) = (self.generation(), Some(failure));
        match self {
            Assigned::Pool(pool) => {
                Report::Pool(PoolReport { id: pool.id, generation, capacity: Observed::Unknown, failure })
            }
            Assigned::Volume(volume) => {
                let volume_seen = Observed::Unknown;
                Report::Volume(VolumeReport { id: volume.id, generation, volume: volume_seen, progress: None, failure })
            }
            Assigned::Snapshot(snapshot) => {
                let (id, seen, spoilt, progress) = (snapshot.id, Observed::Unknown, false, None);
                Report::Snapshot(SnapshotReport { id, generation, snapshot: seen, spoilt, progress, failure })
            }
            Assigned::Attachment(held) => {
                Report::Attachment(AttachmentReport { id: held.id, generation, in_force: Observed::Unknown, failure })
            }
        }
    }
}

impl std::fmt::Display for Assigned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Assigned::Pool(pool) => write!(f, "pool '{}'", pool.name),
            Assigned::Volume(volume) => write!(f, "volume '{}'", volume.name),
            Assigned::Snapshot(snapshot) => write!(f, "snapshot '{}'", snapshot.name),
            Assigned::Attachment(held) => write!(f, "attachment '{}/{}'", held.volume_name, held.client_name),
        }
    }
}

/// What the kinds of assignments have in common.
pub trait Assignment: Clone + PartialEq + Into<Assigned> {
    type Id: Copy + Ord + std::fmt::Display + Into<AssignedId>;
    const KIND: &'static str;
    fn id(&self) -> Self::Id;
    fn generation(&self) -> Generation;
    /// Whether the tombstone is set.
    fn is_removed(&self) -> bool;
    /// Sticky: once set it stays, whatever the manager says later. None for kinds that keep nothing.
    fn made(&mut self) -> Option<&mut bool>;
    /// What becomes of one that was carried over from an older state, where this is held now.
    fn carry_onto(&mut self, _held: Option<&Self>) {}

    /// Whether `newer` may replace `self`: a later generation, or the same one with the same body.
    fn admits(&self, newer: &Self) -> bool {
        let body = |assignment: &Self| {
            let mut body = assignment.clone();
            if let Some(made) = body.made() {
                *made = true;
            }
            body
        };
        newer.generation() > self.generation() || body(newer) == body(self)
    }
}

macro_rules! assignment {
    ($type:ident, $id:ident, $variant:ident, $kind:literal, |$it:ident| $made:expr $(, |$new:ident, $held:ident| $carry:expr)?) => {
        impl Assignment for $type {
            type Id = $id;
            const KIND: &'static str = $kind;
            fn id(&self) -> $id {
                self.id
            }
            fn generation(&self) -> Generation {
                self.generation
            }
            fn is_removed(&self) -> bool {
                self.removed
            }
            fn made(&mut self) -> Option<&mut bool> {
                let $it = self;
                $made
            }
            $(fn carry_onto(&mut self, $held: Option<&Self>) {
                let $new = self;
                $carry
            })?
        }

        impl From<$type> for Assigned {
            fn from(assignment: $type) -> Self {
                Assigned::$variant(assignment)
            }
        }

        impl From<$id> for AssignedId {
            fn from(id: $id) -> Self {
                AssignedId::$variant(id)
            }
        }
    };
}
impl From<Source> for AssignedId {
    fn from(source: Source) -> Self {
        match source {
            Source::Snapshot(id) => id.into(),
            Source::Volume(id) => id.into(),
        }
    }
}

assignment!(PoolAssignment, PoolId, Pool, "pool", |pool| Some(&mut pool.made));
assignment!(VolumeAssignment, VolumeId, Volume, "volume", |volume| Some(&mut volume.made));
assignment!(SnapshotAssignment, SnapshotId, Snapshot, "snapshot", |snapshot| Some(&mut snapshot.made));
assignment!(
    AttachmentAssignment,
    AttachmentId,
    Attachment,
    "attachment",
    |_attachment| None,
    // Who was cut off since is not let in again.
    |attachment, held| attachment.removed |= held.is_none_or(|held| held.removed)
);

impl From<&Pool> for PoolAssignment {
    fn from(pool: &Pool) -> Self {
        Self {
            id: pool.meta.id,
            name: pool.meta.name.clone(),
            generation: pool.meta.generation,
            driver: pool.spec.driver.clone(),
            made: pool.status.capacity.is_some(),
            formerly: pool.spec.formerly,
            removed: pool.meta.is_removed(),
        }
    }
}

impl VolumeAssignment {
    /// An empty volume that is still to be made, for tests.
    #[cfg(test)]
    pub fn bare(id: VolumeId, name: &str, generation: u64, pool: PoolId, size: ByteSize) -> Self {
        Self {
            id,
            name: name.parse().expect("a name"),
            generation: Generation::new(generation),
            pool,
            size,
            limits: Limits::NONE,
            source: None,
            revert: None,
            shrunk: None,
            image: None,
            moving: None,
            wipe: false,
            made: false,
            removed: false,
        }
    }

    /// What `service` must hold of `volume`; none if nothing of it is placed there, or nothing yet: a copy is begun when
    /// nobody uses what it is a copy of.
    pub fn of(volume: &Volume, service: ServiceId) -> Option<Self> {
        let waits = matches!(volume.spec.moving.as_deref(), Some(Moving::Arriving { begun: false, .. }));
        if waits && !volume.meta.is_removed() {
            return None;
        }
        let replica = volume.status.placement.iter().find(|replica| replica.service == service)?;
        Some(Self {
            id: volume.meta.id,
            name: volume.meta.name.clone(),
            generation: volume.meta.generation,
            pool: replica.pool,
            size: volume.spec.size,
            limits: volume.spec.limits,
            source: volume.spec.source,
            revert: volume.spec.revert,
            shrunk: volume.spec.shrunk,
            image: volume.spec.image.clone(),
            moving: volume.spec.moving.clone(),
            wipe: volume.spec.wipe,
            made: volume.status.size.is_some(),
            removed: volume.meta.is_removed(),
        })
    }
}

impl SnapshotAssignment {
    /// What `service` must hold of `snapshot`; none if nothing of it is placed there.
    pub fn of(snapshot: &Snapshot, service: ServiceId) -> Option<Self> {
        let replica = snapshot.status.placement.iter().find(|replica| replica.service == service)?;
        Some(Self {
            id: snapshot.meta.id,
            name: snapshot.meta.name.clone(),
            generation: snapshot.meta.generation,
            volume: snapshot.spec.volume,
            pool: replica.pool,
            set: snapshot.spec.set.clone(),
            room: snapshot.status.room,
            wipe: snapshot.spec.wipe,
            made: snapshot.status.size.is_some(),
            removed: snapshot.meta.is_removed(),
        })
    }
}

impl From<&Attachment> for AttachmentAssignment {
    fn from(attachment: &Attachment) -> Self {
        let spec = &attachment.spec;
        Self {
            id: attachment.meta.id,
            generation: attachment.meta.generation,
            volume: spec.volume,
            volume_name: spec.volume_name.clone(),
            client: spec.client,
            client_name: spec.client_name.clone(),
            read_only: spec.read_only,
            shared: spec.shared,
            removed: attachment.meta.is_removed(),
        }
    }
}

type Map<A> = BTreeMap<<A as Assignment>::Id, A>;

fn puts<A: Assignment>(held: &Map<A>, next: &Map<A>, changes: &mut Changes) {
    let new = next.iter().filter(|(id, assignment)| held.get(id) != Some(assignment));
    changes.extend(new.map(|(_, assignment)| Change::Put(assignment.clone().into())));
}

fn drops<A: Assignment>(held: &Map<A>, next: &Map<A>, changes: &mut Changes) {
    changes.extend(held.keys().filter(|id| !next.contains_key(id)).map(|id| Change::Drop((*id).into())));
}

fn fill<A: Assignment>(held: &mut Map<A>, other: &Map<A>) {
    for (id, assignment) in other {
        held.entry(*id).or_insert_with(|| assignment.clone());
    }
}

/// Takes one over; the refusal if what is held does not admit it.
fn take<A: Assignment>(map: &mut Map<A>, mut offered: A) -> Option<String> {
    let id = offered.id();
    let known = map.get(&id);
    if offered.generation().is_carried() {
        if known.is_some_and(|held| held.generation() == offered.generation()) {
            return None;
        }
        offered.carry_onto(known);
    }
    if let Some(held) = map.get_mut(&id) {
        if !held.admits(&offered) {
            let (held, offered) = (held.generation().as_u64(), offered.generation().as_u64());
            return Some(format!("{} {id}: generation {offered} does not follow the held generation {held}", A::KIND));
        }
        let was_made = held.made().is_some_and(|made| *made);
        if let Some(made) = offered.made() {
            *made |= was_made;
        }
    }
    map.insert(id, offered);
    None
}

impl AssignmentSet {
    /// What must be said to a holder of `self` so that it holds `next`.
    pub fn changes_to(&self, next: &Self) -> Changes {
        let mut changes = Changes::new();
        puts(&self.pools, &next.pools, &mut changes);
        puts(&self.volumes, &next.volumes, &mut changes);
        puts(&self.snapshots, &next.snapshots, &mut changes);
        puts(&self.attachments, &next.attachments, &mut changes);
        drops(&self.attachments, &next.attachments, &mut changes);
        drops(&self.snapshots, &next.snapshots, &mut changes);
        drops(&self.volumes, &next.volumes, &mut changes);
        drops(&self.pools, &next.pools, &mut changes);
        changes
    }

    /// Adds what only `other` names.
    pub fn fill_from(&mut self, other: &Self) {
        fill(&mut self.pools, &other.pools);
        fill(&mut self.volumes, &other.volumes);
        fill(&mut self.snapshots, &other.snapshots);
        fill(&mut self.attachments, &other.attachments);
    }

    /// Takes `changes` over. An entry that is older than what is held, or differs under the same generation, is left
    /// out and named in the answer; the rest is taken.
    pub fn apply(&mut self, changes: Changes) -> Vec<String> {
        let mut refused = Vec::new();
        for change in changes {
            match change {
                Change::Put(Assigned::Pool(pool)) => refused.extend(take(&mut self.pools, pool)),
                Change::Put(Assigned::Volume(volume)) => refused.extend(take(&mut self.volumes, volume)),
                Change::Put(Assigned::Snapshot(snapshot)) => refused.extend(take(&mut self.snapshots, snapshot)),
                Change::Put(Assigned::Attachment(held)) => refused.extend(take(&mut self.attachments, held)),
                Change::Drop(AssignedId::Pool(id)) => drop(self.pools.remove(&id)),
                Change::Drop(AssignedId::Volume(id)) => drop(self.volumes.remove(&id)),
                Change::Drop(AssignedId::Snapshot(id)) => drop(self.snapshots.remove(&id)),
                Change::Drop(AssignedId::Attachment(id)) => drop(self.attachments.remove(&id)),
            }
        }
        refused
    }

    /// Remembers that the object has been made once; says whether that is new.
    pub fn mark_made(&mut self, id: AssignedId) -> bool {
        let made = match id {
            AssignedId::Pool(id) => self.pools.get_mut(&id).and_then(Assignment::made),
            AssignedId::Volume(id) => self.volumes.get_mut(&id).and_then(Assignment::made),
            AssignedId::Snapshot(id) => self.snapshots.get_mut(&id).and_then(Assignment::made),
            AssignedId::Attachment(id) => self.attachments.get_mut(&id).and_then(Assignment::made),
        };
        made.is_some_and(|made| !std::mem::replace(made, true))
    }

    pub fn contains(&self, id: AssignedId) -> bool {
        match id {
            AssignedId::Pool(id) => self.pools.contains_key(&id),
            AssignedId::Volume(id) => self.volumes.contains_key(&id),
            AssignedId::Snapshot(id) => self.snapshots.contains_key(&id),
            AssignedId::Attachment(id) => self.attachments.contains_key(&id),
        }
    }

    /// Takes a COMPLETE set over under the same rule as [`Self::apply`]; what `next` does not name is dropped.
    pub fn replace(&mut self, next: Self) -> Vec<String> {
        let changes = self.changes_to(&next);
        self.apply(changes)
    }
}

#[cfg(test)]
mod tests;
