//! What is kept under keys of its own, and whom each kind of it concerns.

use super::{Table, View};
use crate::model::*;
use crate::store::Key;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// For each service the objects that concern it.
pub type Index<T> = BTreeMap<ServiceId, BTreeSet<<T as Stored>::Id>>;

/// What is kept under a key of its own.
pub trait Stored: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    type Id: Ord + Copy + Send + Sync + std::fmt::Display;
    fn id(&self) -> Self::Id;
    fn key(id: Self::Id) -> Key;
    fn table(view: &View) -> &Table<Self>;
    fn table_mut(view: &mut View) -> &mut Table<Self>;
    /// The services whose sessions must hear of a change.
    fn services(&self) -> Vec<ServiceId>;
    fn index(view: &mut View) -> Option<&mut Index<Self>>;
    /// Whether every session must hear of a change.
    fn concerns_everybody(&self) -> bool {
        false
    }
    /// Whose certificates are void because of this.
    fn revoked(&self) -> Option<Uuid> {
        None
    }
}

macro_rules! stored {
    ($type:ident, $id:ident, $key:ident, $table:ident, $index:expr, $get:expr, $services:expr $(, $all:expr, $revoked:expr)?) => {
        impl Stored for $type {
            type Id = $id;
            fn id(&self) -> $id {
                let get: fn(&Self) -> $id = $get;
                get(self)
            }
            fn key(id: $id) -> Key {
                Key::$key(id)
            }
            fn table(view: &View) -> &Table<Self> {
                &view.$table
            }
            fn table_mut(view: &mut View) -> &mut Table<Self> {
                &mut view.$table
            }
            fn services(&self) -> Vec<ServiceId> {
                let services: fn(&Self) -> Vec<ServiceId> = $services;
                services(self)
            }
            fn index(view: &mut View) -> Option<&mut Index<Self>> {
                let index: fn(&mut View) -> Option<&mut Index<Self>> = $index;
                index(view)
            }
            $(fn concerns_everybody(&self) -> bool {
                let all: fn(&Self) -> bool = $all;
                all(self)
            }
            fn revoked(&self) -> Option<Uuid> {
                let revoked: fn(&Self) -> Option<Uuid> = $revoked;
                revoked(self)
            })?
        }
    };
}
stored!(
    Service,
    ServiceId,
    service,
    services,
    |_| None,
    |service| service.meta.id,
    |service| vec![service.meta.id],
    // Block services must know every manager, to find another one when theirs dies; and whose certificates are void.
    |service| service.spec.service_type == ServiceType::Manager || service.meta.is_removed(),
    |service| service.meta.is_removed().then(|| service.meta.id.as_uuid())
);
stored!(Session, ServiceId, session, sessions, |_| None, |session| session.service, |session| vec![session.service]);
stored!(Pool, PoolId, pool, pools, |view| Some(&mut view.pools_of), |pool| pool.meta.id, |pool| vec![
    pool.spec.service
]);
stored!(Volume, VolumeId, volume, volumes, |view| Some(&mut view.volumes_of), |volume| volume.meta.id, |volume| volume
    .status
    .placement
    .iter()
    .map(|replica| replica.service)
    .collect());
stored!(
    Snapshot,
    SnapshotId,
    snapshot,
    snapshots,
    |view| Some(&mut view.snapshots_of),
    |snapshot| snapshot.meta.id,
    |snapshot| snapshot.status.placement.iter().map(|replica| replica.service).collect()
);
stored!(
    Attachment,
    AttachmentId,
    attachment,
    attachments,
    |view| Some(&mut view.attachments_of),
    |attachment| attachment.meta.id,
    |attachment| attachment.status.placement.clone()
);
stored!(
    Client,
    ClientId,
    client,
    clients,
    |_| None,
    |client| client.meta.id,
    |_| Vec::new(),
    // A client that is removed is revoked everywhere.
    |client| client.meta.is_removed(),
    |client| client.meta.is_removed().then(|| client.meta.id.as_uuid())
);
stored!(Image, ImageId, image, images, |_| None, |image| image.meta.id, |_| Vec::new());
stored!(Token, TokenId, token, tokens, |_| None, |token| token.meta.id, |_| Vec::new());
stored!(Event, EventId, event, events, |_| None, |event| event.id, |_| Vec::new());
