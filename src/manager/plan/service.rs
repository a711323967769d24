//! Membership.

use super::image::{follow_service, images_of, redirect};
use super::loss::Held;
use super::pool::listed;
use crate::manager::audit::{audit, of_service};
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::model::{Author, Kind, Pool, Service, ServiceId, ServiceState, Session, SessionId, Timestamp, Volume};
use crate::session::Greeting;
use crate::store::LeaseId;

/// Makes `service` a member. Repeating it for the same service changes nothing.
///
/// # Errors
/// If this very service was removed: an id has one life.
pub fn join_service(draft: &mut Draft<'_>, author: &Author, service: &Service) -> Result<(), Refusal> {
    match draft.get::<Service>(service.meta.id) {
        Some(known) if known.meta.is_removed() => Err(Refusal::NotMember(service.meta.id)),
        Some(_) => Ok(()),
        None => {
            draft.put(service.clone());
            audit_service(draft, author, "service.join", service, None);
            Ok(())
        }
    }
}

/// Takes note that `session` is open: the service is ready, and what it says of itself is what holds now.
///
/// # Errors
/// If the service is no member.
pub fn admit_session(
    draft: &mut Draft<'_>,
    session: &Session,
    greeting: &Greeting,
    lease: LeaseId,
) -> Result<(), Refusal> {
    let member = draft.get::<Service>(session.service).filter(|service| !service.meta.is_removed());
    let mut service = member.cloned().ok_or(Refusal::NotMember(session.service))?;
    let status = &mut service.status;
    let was_down = status.state == ServiceState::Down;
    if status.state != ServiceState::Ready {
        status.state = ServiceState::Ready;
        status.since = draft.now;
    }
    if status.addresses.rpc != greeting.addresses.rpc {
        follow_service(draft, session.service, greeting.addresses.rpc.as_deref());
    }
    status.host_name.clone_from(&greeting.host_name);
    status.addresses.clone_from(&greeting.addresses);
    status.version.clone_from(&greeting.version);
    status.manager = Some(session.manager);
    if was_down {
        let author = of_service(service.meta.id, service.spec.service_type, session.manager);
        audit_service(draft, &author, "service.ready", &service, None);
    }
    draft.put(service);
    draft.overwrite_leased(session.clone(), lease);
    Ok(())
}

/// Takes note that these sessions are over, but for services that have opened another one meanwhile.
pub fn close_sessions(draft: &mut Draft<'_>, over: &[(ServiceId, SessionId)]) -> Result<(), Refusal> {
    for (service, session) in over {
        if draft.get::<Session>(*service).is_some_and(|held| held.id == *session) {
            draft.delete::<Session>(*service);
        }
    }
    Ok(())
}

/// Takes note that a ready service holds no lease any more.
pub fn mark_down(draft: &mut Draft<'_>, author: &Author, id: ServiceId) -> Result<(), Refusal> {
    let alive = draft.get::<Session>(id).is_some();
    if let Some(service) = draft.get::<Service>(id)
        && !alive
        && service.status.state == ServiceState::Ready
    {
        let mut service = service.clone();
        service.status.state = ServiceState::Down;
        service.status.since = draft.now;
        audit_service(draft, author, "service.down", &service, None);
        draft.put(service);
        draft.guard::<Session>(id);
    }
    Ok(())
}

/// Forgets a service that was removed, and whose certificate expired, before `limit`: until then the record is what
/// makes the certificate void.
pub fn purge_service(draft: &mut Draft<'_>, id: ServiceId, limit: Timestamp) -> Result<(), Refusal> {
    if draft.get::<Service>(id).is_some_and(|service| is_past(service, limit)) {
        draft.delete::<Service>(id);
    }
    Ok(())
}

pub(super) fn is_past(service: &Service, limit: Timestamp) -> bool {
    let expired = service.status.certificate.as_ref().is_none_or(|record| record.expires_at < limit);
    service.meta.removed_at.is_some_and(|at| at < limit) && expired
}

pub(super) fn audit_service(
    draft: &mut Draft<'_>,
    author: &Author,
    action: &str,
    service: &Service,
    detail: Option<String>,
) {
    audit(draft, author, action, Kind::Service, service.meta.id, &service.status.host_name, detail);
}

/// Takes a service out. With `lost`, what others fetch from it is fetched elsewhere from then on, if there is such a place;
/// and attachments, volumes and pools on it are closed first, a part at a time: the answer
/// is none while there is more to close, and this is to be called again.
///
/// # Errors
/// If there is no such service, or it holds pools or volumes and is not lost.
pub fn remove_service(
    draft: &mut Draft<'_>,
    author: &Author,
    id: ServiceId,
    lost: bool,
) -> Result<Option<Service>, Refusal> {
    let missing = || Refusal::NoSuch { kind: Kind::Service, reference: id.to_string() };
    let mut service = draft.get::<Service>(id).cloned().ok_or_else(missing)?;
    if service.meta.is_removed() {
        return Ok(Some(service));
    }
    if draft.view().is_partial() {
        return Err(Refusal::Precondition(
            "some objects in the store cannot be read, so it is not known what the service holds: see `symphony ctl check`"
                .into(),
        ));
    }
    let holds = draft.view().volumes_of(id).next().is_some() || draft.view().pools_of(id).next().is_some();
    if lost && holds && service.status.state == ServiceState::Ready {
        return Err(Refusal::Precondition(format!(
            "service {id} is connected, so it is not lost: stop it first, or remove what it holds"
        )));
    }
    let volumes: Vec<Volume> = draft.all::<Volume>().filter(|volume| volume.is_on(id)).cloned().collect();
    let pools: Vec<Pool> = draft.all::<Pool>().filter(|pool| pool.spec.service == id).cloned().collect();
    if !lost && (!volumes.is_empty() || !pools.is_empty()) {
        let images = images_of(draft, volumes.iter());
        let own = volumes.iter().filter(|volume| volume.base_of().is_none());
        let volumes: Vec<&str> = own.map(|volume| volume.meta.name.as_str()).collect();
        let pools: Vec<&str> = pools.iter().map(|pool| pool.meta.name.as_str()).collect();
        let mut held = Vec::new();
        if !volumes.is_empty() {
            held.push(format!("volumes {}", listed(&volumes)));
        }
        if let Some(images) = images {
            held.push(format!("images {images}"));
        }
        if !pools.is_empty() {
            held.push(format!("pools {}", listed(&pools)));
        }
        return Err(Refusal::Precondition(format!(
            "service {id} holds {}: remove them first; if the service will not come back, --lost closes them here and \
             leaves their data on its disks",
            held.join(" and ")
        )));
    }
    if redirect(draft, id) > 0 {
        return Ok(None);
    }
    let held = Held::of_service(draft, id);
    let closed = held.close(draft);
    if closed < held.count() {
        let detail = format!("{closed} objects of a lost service are closed: {}", held.names());
        audit_service(draft, author, "service.close", &service, Some(detail));
        return Ok(None);
    }
    let detail = (closed > 0).then(|| format!("lost, with {}", held.names()));
    audit_service(draft, author, "service.remove", &service, detail);
    service.meta.bury(draft.now);
    service.status.state = ServiceState::Removed;
    service.status.since = draft.now;
    draft.put(service.clone());
    if draft.get::<Session>(id).is_some() {
        draft.delete::<Session>(id);
    }
    Ok(Some(service))
}
