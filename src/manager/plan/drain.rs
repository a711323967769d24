//! Emptying a block service: nothing new is placed on it, and what it still holds is named with what to do about it.

use super::find_service;
use crate::manager::audit::audit;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::manager::view::View;
use crate::model::{Attachment, Author, Kind, Pool, Service, ServiceId, ServiceState, ServiceType, Volume};

/// Something that a service which is to be emptied still holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remnant {
    pub kind: Kind,
    pub id: String,
    pub name: String,
    /// What to do about it.
    pub advice: String,
}

/// Places nothing new on a service any more; with `undo`, does again. Repeating it changes nothing.
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
pub fn remnants(view: &View, service: ServiceId) -> Vec<Remnant> {
    let attached = |volume: &Volume| {
        let held = view.attachments_of(service).filter(|held| held.spec.volume == volume.meta.id);
        let clients: Vec<String> = held.map(|held: &Attachment| format!("'{}'", held.spec.client_name)).collect();
        (!clients.is_empty()).then(|| clients.join(", "))
    };
    let snapshots = |volume: &Volume| {
        let of_it = view.snapshots_of(service).filter(|snapshot| snapshot.spec.volume == volume.meta.id);
        let names: Vec<String> = of_it.map(|snapshot| format!("'{}'", snapshot.meta.name)).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let advice = |volume: &Volume| {
        let name = &volume.meta.name;
        if volume.meta.is_removed() {
            return "it is being removed".to_owned();
        }
        if let Some(image) = volume.base_of() {
            return format!(
                "it keeps the content of image {image}: it goes with its pool if the image is kept elsewhere, too; else \
                 import the image into another pool, or remove it"
            );
        }
        let mut steps = Vec::new();
        steps.extend(attached(volume).map(|clients| format!("it is attached to {clients}: detach first")));
        steps
            .extend(snapshots(volume).map(|names| format!("it has snapshots {names}, which cannot move: remove them")));
        steps.push(format!(
            "copy it to a volume on another service (`symphony ctl volume download {name} FILE`, `volume create`, `volume \
             upload`), then `symphony ctl volume remove {name}`"
        ));
        steps.join("; then ")
    };
    let volumes = view.volumes_of(service).map(|volume| Remnant {
        kind: Kind::Volume,
        id: volume.meta.id.to_string(),
        name: volume.meta.name.to_string(),
        advice: advice(volume),
    });
    let pools = view.pools_of(service).map(|pool: &Pool| Remnant {
        kind: Kind::Pool,
        id: pool.meta.id.to_string(),
        name: pool.meta.name.to_string(),
        advice: match pool.meta.is_removed() {
            true => "it is being removed".to_owned(),
            false => format!("once it is empty: `symphony ctl pool remove {}`", pool.meta.name),
        },
    });
    volumes.chain(pools).collect()
}
