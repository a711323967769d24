//! A transaction in the making: the view with planned changes laid over it.
//!
//! Planners read and write a [`Draft`] as if it were the state; what they touched becomes the transaction's
//! comparisons, so that a plan made on an old view commits nothing. Several plans may share one draft and so one
//! transaction; a plan that fails is undone by [`Draft::undo_to`].

use super::history::first_generation;
use super::refusal::Refusal;
use super::view::{Stored, View};
use crate::model::{
    Attachment, Client, Event, EventId, Image, Kind, Meta, Name, Pool, Service, Session, Snapshot, Timestamp, Token,
    Volume,
};
use crate::pki::Authority;
use crate::store::{Compare, Key, LeaseId, Op, Txn};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Planned values; none stands for a planned deletion.
type Planned<T> = BTreeMap<<T as Stored>::Id, Option<Arc<T>>>;

#[derive(Clone, Default)]
struct Overlay {
    services: Planned<Service>,
    sessions: Planned<Session>,
    pools: Planned<Pool>,
    volumes: Planned<Volume>,
    snapshots: Planned<Snapshot>,
    images: Planned<Image>,
    attachments: Planned<Attachment>,
    clients: Planned<Client>,
    tokens: Planned<Token>,
    events: Planned<Event>,
    authority: Option<Arc<Authority>>,
    names: BTreeMap<(Kind, Name), Option<String>>,
    leases: BTreeMap<Key, LeaseId>,
    compares: BTreeMap<Key, Compare>,
}

pub struct Draft<'v> {
    view: &'v View,
    overlay: Overlay,
    pub now: Timestamp,
    /// The identity of its first entry in the record of changes; further ones follow it.
    first_event: EventId,
}

/// A point to which a draft can go back.
pub struct Savepoint(Overlay);

/// What a draft can change.
pub trait Drafted: Stored {
    #[doc(hidden)]
    fn planned<'d>(draft: &'d mut Draft<'_>) -> &'d mut Planned<Self>;
    #[doc(hidden)]
    fn planned_ref<'d>(draft: &'d Draft<'_>) -> &'d Planned<Self>;
}

macro_rules! drafted {
    ($($type:ident: $field:ident),*) => {$(
        impl Drafted for $type {
            fn planned<'d>(draft: &'d mut Draft<'_>) -> &'d mut Planned<Self> {
                &mut draft.overlay.$field
            }
            fn planned_ref<'d>(draft: &'d Draft<'_>) -> &'d Planned<Self> {
                &draft.overlay.$field
            }
        }
    )*};
}
drafted!(
    Service: services, Session: sessions, Pool: pools, Volume: volumes,
    Snapshot: snapshots, Image: images, Attachment: attachments, Client: clients, Token: tokens, Event: events
);

impl<'v> Draft<'v> {
    /// `first_event` must be new: entries in the record of changes take it and those that follow it.
    pub fn new(view: &'v View, now: Timestamp, first_event: EventId) -> Self {
        Self { view, overlay: Overlay::default(), now, first_event }
    }

    pub fn view(&self) -> &'v View {
        self.view
    }

    /// Who a new object is. Its first generation is one of the history that the state is in.
    pub fn new_meta<I>(&self, id: I, name: Name) -> Meta<I> {
        let generation = first_generation(self.view);
        Meta { generation, ..Meta::new(id, name, self.now) }
    }

    pub fn savepoint(&self) -> Savepoint {
        Savepoint(self.overlay.clone())
    }

    pub fn undo_to(&mut self, savepoint: Savepoint) {
        self.overlay = savepoint.0;
    }

    pub fn get<T: Drafted>(&self, id: T::Id) -> Option<&T> {
        match T::planned_ref(self).get(&id) {
            Some(planned) => planned.as_deref(),
            None => self.view.get::<T>(id),
        }
    }

    /// All objects of a kind as planned.
    pub fn all<T: Drafted>(&self) -> impl Iterator<Item = &T> {
        let planned = T::planned_ref(self);
        let old = T::table(self.view).iter().filter(|(id, _)| !planned.contains_key(id)).map(|(_, old)| &*old.value);
        old.chain(planned.values().flatten().map(|planned| &**planned))
    }

    /// Makes the transaction fail if this object is changed by somebody else meanwhile.
    pub fn guard<T: Drafted>(&mut self, id: T::Id) {
        let key = T::key(id);
        let compare = match T::table(self.view).get(&id) {
            Some(held) => Compare::Unchanged(key.clone(), held.revision),
            None => Compare::Absent(key.clone()),
        };
        self.overlay.compares.insert(key, compare);
    }

    pub fn require(&mut self, compare: Compare) {
        let (Compare::Absent(key) | Compare::Present(key) | Compare::Unchanged(key, _)) = &compare;
        self.overlay.compares.insert(key.clone(), compare);
    }

    pub fn put<T: Drafted>(&mut self, value: T) {
        self.guard::<T>(value.id());
        T::planned(self).insert(value.id(), Some(Arc::new(value)));
    }

    /// Writes whatever was there before, attached to a lease: for what only its writer may own.
    pub fn overwrite_leased<T: Drafted>(&mut self, value: T, lease: LeaseId) {
        self.overlay.leases.insert(T::key(value.id()), lease);
        T::planned(self).insert(value.id(), Some(Arc::new(value)));
    }

    /// The cluster's authority as planned. The transaction fails if somebody else changes it meanwhile.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn authority(&mut self) -> Result<Arc<Authority>, Refusal> {
        if let Some(planned) = &self.overlay.authority {
            return Ok(planned.clone());
        }
        let held = self.view.authority.as_ref().ok_or_else(|| {
            Refusal::Precondition("the cluster's authority cannot be read: see `symphony ctl check`".into())
        })?;
        let key = Key::authority(held.value.cluster());
        self.overlay.compares.insert(key.clone(), Compare::Unchanged(key, held.revision));
        Ok(held.value.clone())
    }

    /// Changes the authority that [`Self::authority`] gave.
    pub fn put_authority(&mut self, authority: Authority) {
        self.overlay.authority = Some(Arc::new(authority));
    }

    /// Puts an entry into the record of changes, in the transaction of the change itself; made of the identity it gets.
    pub fn record(&mut self, entry: impl FnOnce(EventId) -> Event) {
        let number = self.overlay.events.values().flatten().count() as u128;
        let id = self.first_event.as_uuid().as_u128().wrapping_add(number);
        let id = EventId::from_bytes(id.to_be_bytes());
        self.overlay.events.insert(id, Some(Arc::new(entry(id))));
    }

    /// The attachments of a volume as planned, those that are to go included.
    pub fn attachments_to(&self, volume: &Volume) -> Vec<Attachment> {
        let planned = &self.overlay.attachments;
        let services = volume.status.placement.iter().map(|replica| replica.service);
        let old = services.flat_map(|service| self.view.attachments_of(service));
        let old = old.filter(|held| !planned.contains_key(&held.meta.id));
        let all = old.chain(planned.values().flatten().map(|planned| &**planned));
        let held = all.filter(|held| held.spec.volume == volume.meta.id).map(|held| (held.meta.id, held.clone()));
        held.collect::<BTreeMap<_, _>>().into_values().collect()
    }

    /// The snapshots of a volume as planned, those that are to go included.
    pub fn snapshots_to(&self, volume: &Volume) -> Vec<Snapshot> {
        let planned = &self.overlay.snapshots;
        let services = volume.status.placement.iter().map(|replica| replica.service);
        let old = services.flat_map(|service| self.view.snapshots_of(service));
        let old = old.filter(|held| !planned.contains_key(&held.meta.id));
        let all = old.chain(planned.values().flatten().map(|planned| &**planned));
        let held = all.filter(|held| held.spec.volume == volume.meta.id).map(|held| (held.meta.id, held.clone()));
        held.collect::<BTreeMap<_, _>>().into_values().collect()
    }

    pub fn delete<T: Drafted>(&mut self, id: T::Id) {
        self.guard::<T>(id);
        T::planned(self).insert(id, None);
    }

    pub fn named(&self, kind: Kind, name: &Name) -> Option<&str> {
        let slot = (kind, name.clone());
        match self.overlay.names.get(&slot) {
            Some(planned) => planned.as_deref(),
            None => self.view.names.get(&slot).map(|held| held.value.as_str()),
        }
    }

    /// Takes a name for an object.
    ///
    /// # Errors
    /// If another object has it.
    pub fn claim(&mut self, kind: Kind, name: &Name, id: impl std::fmt::Display) -> Result<(), Refusal> {
        if self.named(kind, name).is_some() {
            return Err(Refusal::NameTaken { kind, name: name.clone() });
        }
        self.set_name(kind, name, Some(id.to_string()));
        Ok(())
    }

    pub fn release(&mut self, kind: Kind, name: &Name) {
        self.set_name(kind, name, None);
    }

    /// Gives a name to an object, whoever had it, or to nobody.
    pub fn set_name(&mut self, kind: Kind, name: &Name, id: Option<String>) {
        let slot = (kind, name.clone());
        let key = Key::name(kind, name);
        let compare = match self.view.names.get(&slot) {
            Some(held) => Compare::Unchanged(key.clone(), held.revision),
            None => Compare::Absent(key.clone()),
        };
        self.overlay.compares.insert(key, compare);
        self.overlay.names.insert(slot, id);
    }

    /// Whether nothing was planned, and nothing taken for granted.
    pub fn is_empty(&self) -> bool {
        self.operations() == 0 && self.overlay.compares.is_empty()
    }

    /// How large the transaction is: the larger of its two parts, to be kept under the store's limit.
    pub fn weight(&self) -> usize {
        // And the cluster's record.
        self.operations().max(self.overlay.compares.len() + 1)
    }

    fn operations(&self) -> usize {
        let overlay = &self.overlay;
        overlay.services.len()
            + overlay.sessions.len()
            + overlay.pools.len()
            + overlay.volumes.len()
            + overlay.snapshots.len()
            + overlay.images.len()
            + overlay.attachments.len()
            + overlay.clients.len()
            + overlay.tokens.len()
            + overlay.events.len()
            + overlay.names.len()
            + usize::from(overlay.authority.is_some())
    }

    /// The transaction; none if nothing is to be written and nothing was taken for granted.
    ///
    /// # Errors
    /// If a value cannot be written as JSON.
    pub fn finish(self) -> Result<Option<Txn>, serde_json::Error> {
        let Overlay {
            services,
            sessions,
            pools,
            volumes,
            snapshots,
            images,
            attachments,
            clients,
            tokens,
            events,
            authority,
            names,
            leases,
            compares,
        } = self.overlay;
        let mut ops = Vec::new();
        extend(&mut ops, services, self.view, &leases)?;
        extend(&mut ops, sessions, self.view, &leases)?;
        extend(&mut ops, pools, self.view, &leases)?;
        extend(&mut ops, volumes, self.view, &leases)?;
        extend(&mut ops, snapshots, self.view, &leases)?;
        extend(&mut ops, images, self.view, &leases)?;
        extend(&mut ops, attachments, self.view, &leases)?;
        extend(&mut ops, clients, self.view, &leases)?;
        extend(&mut ops, tokens, self.view, &leases)?;
        extend(&mut ops, events, self.view, &leases)?;
        if let Some(authority) = authority {
            let key = Key::authority(authority.cluster());
            ops.push(Op::Put { key, value: serde_json::to_vec(&*authority)?, lease: None });
        }
        for ((kind, name), id) in names {
            let held = self.view.names.contains_key(&(kind, name.clone()));
            let key = Key::name(kind, &name);
            match id {
                Some(id) => ops.push(Op::Put { key, value: serde_json::to_vec(&id)?, lease: None }),
                None if held => ops.push(Op::Delete { key }),
                None => {}
            }
        }
        if ops.is_empty() && compares.is_empty() {
            return Ok(None);
        }
        let mut compares: Vec<Compare> = compares.into_values().collect();
        // A plan made in one history commits nothing in the next, however alike they are.
        compares.extend(self.view.cluster_revision.map(|revision| Compare::Unchanged(Key::cluster(), revision)));
        Ok(Some(Txn { compares, ops }))
    }
}

fn extend<T: Stored>(
    ops: &mut Vec<Op>,
    planned: Planned<T>,
    view: &View,
    leases: &BTreeMap<Key, LeaseId>,
) -> Result<(), serde_json::Error> {
    for (id, value) in planned {
        let key = T::key(id);
        match value {
            Some(value) => {
                let lease = leases.get(&key).copied();
                ops.push(Op::Put { key, value: serde_json::to_vec(&*value)?, lease });
            }
            None if T::table(view).contains_key(&id) => ops.push(Op::Delete { key }),
            // Made and unmade within one draft.
            None => {}
        }
    }
    Ok(())
}
