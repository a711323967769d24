//! The manager's picture of the cluster: everything in the store, watched, in memory.
//!
//! One task applies batches whole, in order; everybody else reads. A read after one's own write waits for that
//! write's revision with [`ViewHandle::reached`].

mod handle;
mod stored;

pub use handle::{Sign, ViewHandle};
pub use stored::Stored;

use crate::model::*;
use crate::pki::Authority;
use crate::store::{self, Batch, Entry, Key, Listing, Place, Revision};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// A value and the revision that wrote it.
#[derive(Clone, Debug)]
pub struct Versioned<T> {
    pub value: Arc<T>,
    pub revision: Revision,
}

pub type Table<T> = BTreeMap<<T as Stored>::Id, Versioned<T>>;

/// Whom a commit concerns.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    pub services: BTreeSet<ServiceId>,
    pub everybody: bool,
}

#[derive(Debug, Default)]
pub struct View {
    pub revision: Revision,
    pub cluster: Option<Cluster>,
    /// That wrote the cluster's record.
    pub cluster_revision: Option<Revision>,
    pub leader: Option<Versioned<ServiceId>>,
    /// With its private keys: never logged, never sent to anybody.
    pub authority: Option<Versioned<Authority>>,
    pub services: Table<Service>,
    pub sessions: Table<Session>,
    pub pools: Table<Pool>,
    pub volumes: Table<Volume>,
    pub snapshots: Table<Snapshot>,
    pub images: Table<Image>,
    pub attachments: Table<Attachment>,
    pub clients: Table<Client>,
    pub tokens: Table<Token>,
    pub events: Table<Event>,
    pub names: BTreeMap<(Kind, Name), Versioned<String>>,
    /// Keys whose values cannot be read, and why. They are left alone.
    pub unreadable: BTreeMap<Key, String>,
    pools_of: BTreeMap<ServiceId, BTreeSet<PoolId>>,
    volumes_of: BTreeMap<ServiceId, BTreeSet<VolumeId>>,
    snapshots_of: BTreeMap<ServiceId, BTreeSet<SnapshotId>>,
    attachments_of: BTreeMap<ServiceId, BTreeSet<AttachmentId>>,
    /// Services and clients that were removed, as long as their records stay.
    revoked: BTreeSet<Uuid>,
    /// The record of changes as it came to be: by the revision that wrote each entry.
    record: BTreeSet<Recorded>,
    /// The latest entry that was dropped from the record while this view watched.
    dropped: Option<Recorded>,
}

/// An entry's place in the record of changes.
pub type Recorded = (Revision, EventId);

impl View {
    pub fn load(listing: Listing) -> Self {
        let mut view = View { revision: listing.revision, ..View::default() };
        for entry in listing.entries {
            view.put(entry, &mut Touched::default());
        }
        view
    }

    pub fn get<T: Stored>(&self, id: T::Id) -> Option<&T> {
        T::table(self).get(&id).map(|versioned| &*versioned.value)
    }

    /// Takes one commit over and says whom it concerns.
    pub fn apply(&mut self, batch: Batch) -> Touched {
        let mut touched = Touched::default();
        for event in batch.events {
            match event {
                store::Event::Put(entry) => self.put(entry, &mut touched),
                store::Event::Delete(key) => self.delete(&key, &mut touched),
            }
        }
        self.revision = self.revision.max(batch.revision);
        touched
    }

    fn put(&mut self, entry: Entry, touched: &mut Touched) {
        let read = match Place::of(&entry.key) {
            Place::Cluster => decode(&entry).map(|cluster| {
                self.cluster = Some(cluster);
                self.cluster_revision = Some(entry.revision);
                // Every session compares its history with this one, and whether it is being recovered.
                touched.everybody = true;
            }),
            Place::Leader => decode(&entry).map(|leader| {
                self.leader = Some(Versioned { value: Arc::new(leader), revision: entry.revision });
            }),
            Place::Service(_) => self.take::<Service>(&entry, touched),
            Place::Session(_) => self.take::<Session>(&entry, touched),
            Place::Pool(_) => self.take::<Pool>(&entry, touched),
            Place::Volume(_) => self.take::<Volume>(&entry, touched),
            Place::Snapshot(_) => self.take::<Snapshot>(&entry, touched),
            Place::Image(_) => self.take::<Image>(&entry, touched),
            Place::Attachment(_) => self.take::<Attachment>(&entry, touched),
            Place::Client(_) => self.take::<Client>(&entry, touched),
            Place::Token(_) => self.take::<Token>(&entry, touched),
            Place::Event(id) => {
                self.strike(id);
                let taken = self.take::<Event>(&entry, touched);
                if taken.is_ok() {
                    self.record.insert((entry.revision, id));
                }
                taken
            }
            Place::Name(kind, name) => decode(&entry).map(|id: String| {
                self.names.insert((kind, name), Versioned { value: Arc::new(id), revision: entry.revision });
            }),
            Place::Authority(id) => self.take_authority(id, &entry, touched),
            Place::Filling | Place::Moved | Place::Foreign => Ok(()),
        };
        match read {
            Ok(()) => drop(self.unreadable.remove(&entry.key)),
            Err(reason) => {
                tracing::error!(key = %entry.key, %reason, "cannot read a value in the store");
                self.unreadable.insert(entry.key, reason);
            }
        }
    }

    fn take<T: Stored>(&mut self, entry: &Entry, touched: &mut Touched) -> Result<(), String> {
        let value: T = decode(entry)?;
        if T::key(value.id()) != entry.key {
            return Err(format!("its value calls itself {}", value.id()));
        }
        self.forget::<T>(value.id(), touched);
        for service in value.services() {
            if let Some(index) = T::index(self) {
                index.entry(service).or_default().insert(value.id());
            }
            touched.services.insert(service);
        }
        touched.everybody |= value.concerns_everybody();
        self.revoked.extend(value.revoked());
        T::table_mut(self).insert(value.id(), Versioned { value: Arc::new(value), revision: entry.revision });
        Ok(())
    }

    /// What is wrong with an authority that cannot be read is not said in full: its text holds keys.
    fn take_authority(&mut self, id: ClusterId, entry: &Entry, touched: &mut Touched) -> Result<(), String> {
        let read = serde_json::from_slice::<Authority>(&entry.value).ok();
        let authority = read.filter(|authority| authority.cluster() == id);
        let authority = authority.ok_or("it is not the authority of this cluster")?;
        self.authority = Some(Versioned { value: Arc::new(authority), revision: entry.revision });
        touched.everybody = true;
        Ok(())
    }

    fn delete(&mut self, key: &Key, touched: &mut Touched) {
        match Place::of(key) {
            Place::Cluster => (self.cluster, self.cluster_revision) = (None, None),
            Place::Leader => self.leader = None,
            Place::Service(id) => self.forget::<Service>(id, touched),
            Place::Session(id) => self.forget::<Session>(id, touched),
            Place::Pool(id) => self.forget::<Pool>(id, touched),
            Place::Volume(id) => self.forget::<Volume>(id, touched),
            Place::Snapshot(id) => self.forget::<Snapshot>(id, touched),
            Place::Image(id) => self.forget::<Image>(id, touched),
            Place::Attachment(id) => self.forget::<Attachment>(id, touched),
            Place::Client(id) => self.forget::<Client>(id, touched),
            Place::Token(id) => self.forget::<Token>(id, touched),
            Place::Event(id) => {
                self.dropped = self.dropped.max(self.strike(id));
                self.forget::<Event>(id, touched);
            }
            Place::Name(kind, name) => drop(self.names.remove(&(kind, name))),
            Place::Authority(_) => self.authority = None,
            Place::Filling | Place::Moved | Place::Foreign => {}
        }
        self.unreadable.remove(key);
    }

    fn forget<T: Stored>(&mut self, id: T::Id, touched: &mut Touched) {
        if let Some(old) = T::table_mut(self).remove(&id) {
            for service in old.value.services() {
                if let Some(index) = T::index(self)
                    && let Some(ids) = index.get_mut(&service)
                {
                    ids.remove(&id);
                }
                touched.services.insert(service);
            }
            touched.everybody |= old.value.concerns_everybody();
            if let Some(id) = old.value.revoked() {
                self.revoked.remove(&id);
            }
        }
    }

    /// Services and clients whose certificates are void.
    pub fn revoked(&self) -> &BTreeSet<Uuid> {
        &self.revoked
    }

    /// Takes an entry out of the order of the record; its place, if it had one.
    fn strike(&mut self, id: EventId) -> Option<Recorded> {
        let place = (self.events.get(&id)?.revision, id);
        self.record.remove(&place).then_some(place)
    }

    /// Up to `limit` entries of the record that follow `after`, oldest first.
    pub fn events_after(&self, after: Option<Recorded>, limit: usize) -> Vec<(Recorded, Arc<Event>)> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let places = self.record.range((from, Bound::Unbounded)).take(limit);
        places.filter_map(|place| Some((*place, self.events.get(&place.1)?.value.clone()))).collect()
    }

    /// The place of the latest entry of the record.
    pub fn last_event(&self) -> Option<Recorded> {
        self.record.last().copied()
    }

    /// The place of the oldest entry of the record.
    pub fn first_event(&self) -> Option<Recorded> {
        self.record.first().copied()
    }

    /// Which history the state is in.
    pub fn history(&self) -> History {
        self.cluster.as_ref().map(|cluster| cluster.history.clone()).unwrap_or_default()
    }

    pub fn epoch(&self) -> Epoch {
        self.cluster.as_ref().map_or(Epoch::FIRST, |cluster| cluster.history.epoch)
    }

    /// How far the state has come, as far as this view shows.
    pub fn mark(&self) -> Mark {
        Mark { epoch: self.epoch(), revision: self.revision.0 }
    }

    /// Whether entries that follow `after` were dropped from the record since this view began.
    pub fn has_dropped_after(&self, after: Recorded) -> bool {
        self.dropped.is_some_and(|dropped| dropped > after)
    }

    /// Whether every attachment in the store could be read: else somebody may be attached whom nobody sees.
    pub fn knows_all_attachments(&self) -> bool {
        !self.unreadable.keys().any(|key| matches!(Place::of(key), Place::Attachment(_)))
    }

    /// Whether something that could be assigned cannot be read: then what is missing may only look so.
    pub fn is_partial(&self) -> bool {
        let assigned = |key: &Key| {
            matches!(Place::of(key), Place::Pool(_) | Place::Volume(_) | Place::Snapshot(_) | Place::Attachment(_))
        };
        self.unreadable.keys().any(assigned)
    }

    /// Since when the cluster is being made of what is on disks, if it is.
    pub fn recovering(&self) -> Option<Timestamp> {
        self.cluster.as_ref()?.recovering
    }

    /// Whether what is missing here may be somewhere all the same: then nobody is told to drop it.
    pub fn withholds(&self) -> bool {
        self.is_partial() || self.recovering().is_some()
    }

    pub fn pools_of(&self, service: ServiceId) -> impl Iterator<Item = &Pool> {
        self.pools_of.get(&service).into_iter().flatten().filter_map(|id| self.get::<Pool>(*id))
    }

    pub fn volumes_of(&self, service: ServiceId) -> impl Iterator<Item = &Volume> {
        self.volumes_of.get(&service).into_iter().flatten().filter_map(|id| self.get::<Volume>(*id))
    }

    pub fn snapshots_of(&self, service: ServiceId) -> impl Iterator<Item = &Snapshot> {
        self.snapshots_of.get(&service).into_iter().flatten().filter_map(|id| self.get::<Snapshot>(*id))
    }

    pub fn attachments_of(&self, service: ServiceId) -> impl Iterator<Item = &Attachment> {
        self.attachments_of.get(&service).into_iter().flatten().filter_map(|id| self.get::<Attachment>(*id))
    }

    /// What `service` must hold now.
    pub fn assignments(&self, service: ServiceId) -> AssignmentSet {
        AssignmentSet {
            pools: self.pools_of(service).map(|pool| (pool.meta.id, pool.into())).collect(),
            volumes: self
                .volumes_of(service)
                .filter_map(|volume| VolumeAssignment::of(volume, service))
                .map(|volume| (volume.id, volume))
                .collect(),
            snapshots: self
                .snapshots_of(service)
                .filter_map(|snapshot| SnapshotAssignment::of(snapshot, service))
                .map(|snapshot| (snapshot.id, snapshot))
                .collect(),
            attachments: self.attachments_of(service).map(|held| (held.meta.id, held.into())).collect(),
        }
    }

    /// `host:port` of every manager that is not removed, `first` first.
    pub fn manager_addresses(&self, first: ServiceId) -> Vec<String> {
        let mut managers: Vec<&Service> = self
            .services
            .values()
            .map(|service| &*service.value)
            .filter(|service| service.spec.service_type == ServiceType::Manager && !service.meta.is_removed())
            .collect();
        managers.sort_by_key(|service| (service.meta.id != first, service.meta.id));
        managers.into_iter().filter_map(|service| service.status.addresses.rpc.clone()).collect()
    }
}

fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, String> {
    serde_json::from_slice(&entry.value).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry<T: Stored>(value: &T, revision: i64) -> store::Event {
        let value_json = serde_json::to_vec(value).unwrap();
        store::Event::Put(Entry {
            key: T::key(value.id()),
            value: value_json,
            revision: Revision(revision),
            lease: None,
        })
    }

    fn volume(service: u8) -> Volume {
        let meta = Meta::new(VolumeId::from_bytes([1; 16]), "v".parse().unwrap(), Timestamp::from_millis(0));
        let replica = Replica { pool: PoolId::from_bytes([2; 16]), service: ServiceId::from_bytes([service; 16]) };
        let spec = VolumeSpec::of_size(ByteSize::mib(1));
        Volume::new(meta, spec, vec![replica])
    }

    #[test]
    fn a_volume_that_moves_concerns_both_services_and_is_indexed_under_the_new_one() {
        let (from, to) = (ServiceId::from_bytes([7; 16]), ServiceId::from_bytes([8; 16]));
        let mut view = View::default();
        view.apply(Batch { revision: Revision(1), events: vec![entry(&volume(7), 1)] });
        assert_eq!(view.assignments(from).volumes.len(), 1);
        let touched = view.apply(Batch { revision: Revision(2), events: vec![entry(&volume(8), 2)] });
        assert_eq!(touched, Touched { services: BTreeSet::from([from, to]), everybody: false });
        assert_eq!((view.assignments(from).volumes.len(), view.assignments(to).volumes.len()), (0, 1));
        let gone = store::Event::Delete(Key::volume(VolumeId::from_bytes([1; 16])));
        view.apply(Batch { revision: Revision(3), events: vec![gone] });
        assert_eq!((view.volumes.len(), view.assignments(to).volumes.len(), view.revision), (0, 0, Revision(3)));
    }

    #[test]
    fn what_cannot_be_read_is_named_and_left_out() {
        let mut view = View::default();
        let key = Key::volume(VolumeId::from_bytes([1; 16]));
        for value in [&b"\xff"[..], b"{}", b"null"] {
            let put = Entry { key: key.clone(), value: value.to_vec(), revision: Revision(1), lease: None };
            view.apply(Batch { revision: Revision(1), events: vec![store::Event::Put(put)] });
            assert!(view.unreadable.contains_key(&key) && view.volumes.is_empty());
        }
        view.apply(Batch { revision: Revision(2), events: vec![entry(&volume(7), 2)] });
        assert!(view.unreadable.is_empty());
    }
}
