//! Emptying a block service: nothing new is placed on it, what can leave it by itself does, and what it still holds is named
//! with what to do about it.

mod emptying;

pub use emptying::{draining, empty_one, has_next};

use super::find_service;
use super::moving::call_off;
use super::pool::listed;
use crate::manager::audit::audit;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::model::{
    Author, ByteSize, Kind, Moving, Phase, Pool, Progress, Service, ServiceId, ServiceState, ServiceType, Volume,
};
use emptying::{Bound, target};

/// Something that a service which is to be emptied still holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remnant {
    pub kind: Kind,
    pub id: String,
    pub name: String,
    /// What to do about it, or what happens to it.
    pub advice: String,
    /// Of what is on its way to another service.
    pub progress: Option<Progress>,
}

/// Places nothing new on a service any more; with `undo`, does again, and calls off what it has set in motion. Repeating it
/// changes nothing.
///
/// # Errors
/// If there is no such block service, or it is dead: that one cannot be emptied.
pub fn drain_service(draft: &mut Draft<'_>, author: &Author, reference: &str, undo: bool) -> Result<Service, Refusal> {
    let id = find_service(draft.view(), reference)?;
    let missing = || Refusal::NoSuch { kind: Kind::Service, reference: id.to_string() };
    let mut service = draft.get::<Service>(id).cloned().ok_or_else(missing)?;
    if service.spec.service_type != ServiceType::Block {
        return Err(Refusal::Invalid(format!("service {id} is a manager: it holds nothing that could be drained")));
    }
    if service.meta.is_removed() {
        return Err(Refusal::Precondition(format!("service {id} was removed")));
    }
    if !undo && service.status.state == ServiceState::Down {
        return Err(Refusal::Precondition(format!(
            "service {id} is down, and nothing can be taken off a host that does not answer: bring it back, or give it up \
             with `symphony ctl manager remove {id} --lost`"
        )));
    }
    let draining = (!undo).then_some(draft.now);
    if service.spec.draining.is_some() != draining.is_some() {
        service.spec.draining = draining;
        service.meta.touch(draft.now);
        draft.put(service.clone());
        let action = if undo { "service.undrain" } else { "service.drain" };
        audit(draft, author, action, Kind::Service, id, &service.status.host_name, None);
    }
    if undo {
        let drained = |it: &&Volume| matches!(it.spec.moving.as_deref(), Some(Moving::Leaving { drain: true, .. }));
        let moving: Vec<Volume> = draft.view().volumes_of(id).filter(drained).cloned().collect();
        for volume in moving {
            call_off(draft, author, volume);
        }
    }
    Ok(service)
}

/// # Errors
/// If the service is to be emptied.
pub(super) fn admits(draft: &Draft<'_>, service: ServiceId) -> Result<(), Refusal> {
    match draft.get::<Service>(service).filter(|service| service.spec.draining.is_some()) {
        Some(_) => Err(Refusal::Precondition(format!(
            "service {service} is being drained, so nothing new is placed on it: choose another pool, or end that with \
             `symphony ctl service undrain {service}`"
        ))),
        None => Ok(()),
    }
}

/// What a service still holds: what can be seen to first comes first.
pub fn remnants(draft: &Draft<'_>, service: ServiceId) -> Vec<Remnant> {
    let view = draft.view();
    let bound = Bound::on(view, service);
    let roomiest = target(draft, service, None, ByteSize::ZERO);
    let volumes = view.volumes_of(service).map(|volume| Remnant {
        kind: Kind::Volume,
        id: volume.meta.id.to_string(),
        name: volume.meta.name.to_string(),
        advice: advice(draft, &bound, roomiest.as_ref(), volume),
        progress: volume.successor().and_then(|copy| view.get::<Volume>(copy)?.status.progress),
    });
    let pools = view.pools_of(service).map(|pool: &Pool| Remnant {
        kind: Kind::Pool,
        id: pool.meta.id.to_string(),
        name: pool.meta.name.to_string(),
        advice: match pool.meta.is_removed() {
            true => "it is being removed".to_owned(),
            false => format!("once it is empty: `symphony ctl pool remove {}`", pool.meta.name),
        },
        progress: None,
    });
    volumes.chain(pools).collect()
}

/// Where a volume goes by itself, or what keeps it.
fn advice(draft: &Draft<'_>, bound: &Bound, roomiest: Option<&Pool>, volume: &Volume) -> String {
    let name = &volume.meta.name;
    if volume.meta.is_removed() {
        return "it is being removed".to_owned();
    }
    let away = || roomiest.is_some_and(|pool| pool.free() >= Some(pool.takes(volume.spec.size)));
    if let Some(image) = volume.base_of() {
        return match away() || volume.status.phase != Phase::Ready {
            true => {
                format!("it keeps the content of image {image}: it goes as soon as another service keeps that, too")
            }
            false => format!(
                "it keeps the content of image {image}, and no pool on another service has {} for it: make room there, or \
                 remove the image",
                volume.spec.size
            ),
        };
    }
    match volume.spec.moving.as_deref() {
        Some(Moving::Leaving { to, pool, .. }) => {
            let why =
                volume.status.message.as_ref().or(draft.get::<Volume>(*to).and_then(|it| it.status.message.as_ref()));
            let pool = draft.get::<Pool>(*pool).map_or_else(|| pool.to_string(), |pool| pool.meta.name.to_string());
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            return format!("it is being moved to pool '{pool}'{why}");
        }
        Some(Moving::Arriving { supply, .. }) => {
            let of = supply.volume;
            return format!("volume {of} is being moved here: `symphony ctl volume move {of} --cancel` calls that off");
        }
        Some(Moving::Left { .. }) => return "it has been moved, and goes once it is served there".to_owned(),
        None => {}
    }
    let mut steps = Vec::new();
    let id = volume.meta.id;
    if bound.attached.contains(&id) {
        let held = draft.attachments_to(volume);
        let clients: Vec<&str> = held.iter().map(|held| held.spec.client_name.as_str()).collect();
        steps.push(format!("it is attached to {}: detach first", listed(&clients)));
    }
    if bound.snapshotted.contains(&id) {
        let snapshots = draft.snapshots_to(volume);
        let names: Vec<&str> = snapshots.iter().map(|snapshot| snapshot.meta.name.as_str()).collect();
        steps.push(format!("it has snapshots {}, which cannot move: remove them", listed(&names)));
    }
    if bound.copied.contains(&id) {
        steps.push("it is still being copied for another volume".to_owned());
    }
    if volume.status.phase != Phase::Ready {
        steps.push(format!("it is {}: see `symphony ctl volume get {name}`", volume.status.phase));
    }
    if !away() {
        let size = volume.spec.size;
        steps.push(format!("no pool on another service has {size} for it: make room there, or remove it"));
    }
    steps.push("it is moved by itself".to_owned());
    match steps.as_slice() {
        [_only] => "it is moved as soon as its turn comes".to_owned(),
        _ => steps.join("; then "),
    }
}
