//! What a request means for the state: pure functions from a draft to a changed draft, or to a refusal.

#[cfg(test)]
mod access_tests;
mod attachment;
mod authority;
mod carry;
mod client;
mod copying;
mod drain;
mod enrollment;
mod image;
mod loss;
mod moving;
mod orphan;
mod pool;
mod record;
mod report;
mod service;
mod snapshot;
#[cfg(test)]
mod tests;
mod token;
mod volume;

pub use attachment::{Access, attach_volume, detach_volume, resolve_attachment};
pub use authority::{advance_rotation, progress, record_certificate, rotate_authority};
pub use carry::{carry_over, has_to_carry};
pub use client::{Commission, create_client, purge_client, remove_client};
pub use copying::Origin;
pub use drain::{drain_service, draining, empty_one, has_next, remnants};
pub use enrollment::{
    Application, Granted, Renewal, Request, Standing, enroll, hosts, lifetime, record_of, renew_service,
};
pub use image::{WantedImage, import_image, record_upload, remove_image, seal_image};
pub use loss::{close_lost, loss_of};
pub use moving::{advance_move, cancel_move, due_moves, move_volume};
pub use orphan::{
    Adopted, Adoption, Sighting, adopt_pool, adopt_snapshot, adopt_some, adopt_volume, orphans, purge_orphan,
};
pub use pool::{create_pool, extend_pool, remove_pool, set_pool};
pub use record::{PRUNED_AT_ONCE, prune_events};
pub use report::take_reports;
pub use service::{admit_session, close_sessions, join_service, mark_down, purge_service, remove_service};
pub use snapshot::{WantedSnapshot, create_snapshots, remove_snapshot, revert_volume};
pub use token::{create_token, purge_token, revoke_token};
pub use volume::{LimitChanges, WantedVolume, create_volume, limit_volume, remove_volume, resize_volume};

use super::draft::{Draft, Drafted};
use super::refusal::Refusal;
use super::view::{Stored, View};
use crate::model::{
    Client, ClientId, Image, Kind, Name, Pool, Service, ServiceId, ServiceType, Snapshot, Timestamp, Token, TokenId,
    Volume,
};
use std::str::FromStr;

/// What users call by name.
pub trait Named: Drafted {
    const KIND: Kind;

    /// # Errors
    /// If it is part of something else, and nobody asks anything of it by itself.
    fn own(&self, _draft: &Draft<'_>) -> Result<(), Refusal> {
        Ok(())
    }
}

impl Named for Pool {
    const KIND: Kind = Kind::Pool;
}

impl Named for Volume {
    const KIND: Kind = Kind::Volume;

    fn own(&self, draft: &Draft<'_>) -> Result<(), Refusal> {
        image::own_volume(draft, self)?;
        moving::own_end(draft, self)
    }
}

impl Named for Snapshot {
    const KIND: Kind = Kind::Snapshot;
}

impl Named for Image {
    const KIND: Kind = Kind::Image;
}

impl Named for Client {
    const KIND: Kind = Kind::Client;
}

impl Named for Token {
    const KIND: Kind = Kind::Token;
}

/// The object that a user means by an id or a name. What is planned about it holds only as long as it stays as it was found,
/// also where that is to change nothing: another manager may have changed it meanwhile.
fn find<T: Named>(draft: &mut Draft<'_>, reference: &str) -> Result<T, Refusal>
where
    T::Id: FromStr,
{
    let found = look_up::<T>(draft, reference)?;
    draft.guard::<T>(found.id());
    Ok(found)
}

/// The same, for those who look at it and promise nothing by it.
fn look_up<T: Named>(draft: &Draft<'_>, reference: &str) -> Result<T, Refusal>
where
    T::Id: FromStr,
{
    let missing = || Refusal::NoSuch { kind: T::KIND, reference: reference.chars().take(80).collect() };
    let id = match reference.parse::<T::Id>() {
        Ok(id) => id,
        Err(_) => {
            let name: Name = reference.parse().map_err(|_| missing())?;
            draft.named(T::KIND, &name).and_then(|id| id.parse().ok()).ok_or_else(missing)?
        }
    };
    let found = draft.get::<T>(id).ok_or_else(missing)?;
    found.own(draft)?;
    Ok(found.clone())
}

/// The id of the object that a user means by an id or a name, as the view shows it.
pub fn resolve<T: Named>(view: &View, reference: &str) -> Option<T::Id>
where
    T::Id: FromStr,
{
    let id = match reference.parse::<T::Id>() {
        Ok(id) => id,
        Err(_) => {
            let name: Name = reference.parse().ok()?;
            view.names.get(&(T::KIND, name))?.value.parse().ok()?
        }
    };
    <T as Stored>::table(view).contains_key(&id).then_some(id)
}

/// The service that a user means by an id or by the host name that only it has.
pub fn find_service(view: &View, reference: &str) -> Result<ServiceId, Refusal> {
    let missing = || Refusal::NoSuch { kind: Kind::Service, reference: reference.chars().take(80).collect() };
    if let Ok(id) = reference.parse::<ServiceId>() {
        return view.get::<Service>(id).map(|service| service.meta.id).ok_or_else(missing);
    }
    let named = |service: &&Service| service.status.host_name == reference && !service.meta.is_removed();
    let mut hits = view.services.values().map(|service| &*service.value).filter(named);
    match (hits.next(), hits.next()) {
        (Some(one), None) => Ok(one.meta.id),
        (Some(_), Some(_)) => Err(Refusal::Ambiguous { reference: reference.into() }),
        (None, _) => Err(missing()),
    }
}

/// A block service by id or host name, or the only one there is.
fn find_block_service(view: &View, reference: Option<&str>) -> Result<Service, Refusal> {
    let blocks = || {
        let services = view.services.values().map(|service| &*service.value);
        services.filter(|service| service.spec.service_type == ServiceType::Block && !service.meta.is_removed())
    };
    let Some(reference) = reference else {
        let mut blocks = blocks();
        return match (blocks.next(), blocks.next()) {
            (Some(only), None) => Ok(only.clone()),
            (Some(_), Some(_)) => Err(Refusal::Invalid(
                "there are several block services: name one with --service (see `symphony ctl service list`)".into(),
            )),
            (None, _) => Err(Refusal::Precondition(
                "no block service has joined yet: start one with `symphony block run` and `symphony ctl … block init`"
                    .into(),
            )),
        };
    };
    if let Ok(id) = reference.parse::<ServiceId>() {
        let found = blocks().find(|service| service.meta.id == id);
        let missing = || Refusal::NoSuch { kind: Kind::Service, reference: reference.into() };
        return found.cloned().ok_or_else(missing);
    }
    let mut hits = blocks().filter(|service| service.status.host_name == reference);
    match (hits.next(), hits.next()) {
        (Some(only), None) => Ok(only.clone()),
        (Some(_), Some(_)) => Err(Refusal::Ambiguous { reference: reference.into() }),
        (None, _) => Err(Refusal::NoSuch { kind: Kind::Service, reference: reference.chars().take(80).collect() }),
    }
}

/// Removed services and clients, and tokens that are good for nothing, whose records nobody needs: those removed before
/// `limit` whose certificates expired before it, and tokens that ended before `tokens`.
pub fn past(view: &View, limit: Timestamp, tokens: Timestamp) -> (Vec<ServiceId>, Vec<ClientId>, Vec<TokenId>) {
    let services = view.services.values().filter(|held| service::is_past(&held.value, limit));
    let clients = view.clients.values().filter(|held| client::is_past(&held.value, limit));
    let ended = view.tokens.values().filter(|held| token::is_past(&held.value, tokens));
    (
        services.map(|held| held.value.meta.id).collect(),
        clients.map(|held| held.value.meta.id).collect(),
        ended.map(|held| held.value.meta.id).collect(),
    )
}
