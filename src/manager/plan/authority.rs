//! The authority: the managers' own certificates, and the exchange of its root.
//!
//! An exchange goes on by itself. *Distributing* ends at the leader's next look: no acknowledgement is waited for, because
//! every certificate of the new root travels with a cross certificate by which those verify it who believe only the old
//! root. *Reissuing* ends when nobody hangs on the old root: whoever has a certificate of the new root got the new root
//! in the same answer, so the record of certificates is the acknowledgement. Members that are away count as well: one
//! that comes back after the old root is gone could not verify any manager.

use crate::manager::audit::audit;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::manager::view::View;
use crate::model::{Author, CertificateRecord, Client, Service, ServiceId, ServiceState, ServiceType, Timestamp};
use crate::pki::RotationPhase;

/// Who has moved to the root that signs now, and who has not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Each a sentence: who, and what is to be done about it.
    pub waiting_for: Vec<String>,
    pub moved: u64,
    pub total: u64,
}

/// Takes note of the certificate that a manager issued to itself.
///
/// # Errors
/// If it is no member any more.
pub fn record_certificate(draft: &mut Draft<'_>, id: ServiceId, record: &CertificateRecord) -> Result<(), Refusal> {
    let member = draft.get::<Service>(id).filter(|service| !service.meta.is_removed());
    let mut service = member.cloned().ok_or(Refusal::NotMember(id))?;
    service.status.certificate = Some(record.clone());
    draft.put(service);
    Ok(())
}

/// Begins the exchange of the root, or with `finish` ends it, whoever still hangs on the old one. An exchange that is
/// under way goes on as it is.
///
/// # Errors
/// If there is nothing to finish, or it is too early for that.
pub fn rotate_authority(draft: &mut Draft<'_>, author: &Author, finish: bool) -> Result<(), Refusal> {
    let mut authority = (*draft.authority()?).clone();
    match (authority.rotation(), finish) {
        (None, false) => authority.begin_rotation(draft.now)?,
        (Some(_), false) => return Ok(()),
        (None, true) => {
            return Err(Refusal::Precondition(
                "no exchange of roots is under way: begin one with `symphony ctl … manager ca rotate`".into(),
            ));
        }
        (Some(RotationPhase::Distributing), true) => {
            return Err(Refusal::Precondition("the new root does not sign yet: try again in a moment".into()));
        }
        (Some(RotationPhase::Reissuing), true) => authority.finish_rotation()?,
    };
    let action = if finish { "authority.finish" } else { "authority.rotate" };
    audit(draft, author, action, None, authority.cluster(), &"authority", None);
    draft.put_authority(authority);
    Ok(())
}

/// The leader's part: takes the next step of an exchange if it is time.
///
/// # Errors
/// If the authority cannot be read.
pub fn advance_rotation(draft: &mut Draft<'_>, author: &Author) -> Result<(), Refusal> {
    let mut authority = (*draft.authority()?).clone();
    let action = match authority.rotation() {
        None => return Ok(()),
        Some(RotationPhase::Distributing) => {
            authority.promote()?;
            "authority.promote"
        }
        Some(RotationPhase::Reissuing) => {
            let progress =
                progress_of(draft.all::<Service>(), draft.all::<Client>(), &authority.ca().to_string(), draft.now);
            if !progress.waiting_for.is_empty() {
                return Ok(());
            }
            authority.finish_rotation()?;
            "authority.finish"
        }
    };
    audit(draft, author, action, None, authority.cluster(), &"authority", None);
    draft.put_authority(authority);
    Ok(())
}

/// Who has moved, as the view shows it; none while there is no authority.
pub fn progress(view: &View, now: Timestamp) -> Option<Progress> {
    let signing = view.authority.as_ref()?.value.ca().to_string();
    let services = view.services.values().map(|held| &*held.value);
    Some(progress_of(services, view.clients.values().map(|held| &*held.value), &signing, now))
}

fn progress_of<'a>(
    services: impl Iterator<Item = &'a Service>,
    clients: impl Iterator<Item = &'a Client>,
    signing: &str,
    now: Timestamp,
) -> Progress {
    let mut progress = Progress::default();
    let mut count = |moved: bool, sentence: &dyn Fn() -> String| {
        progress.total += 1;
        match moved {
            true => progress.moved += 1,
            false => progress.waiting_for.push(sentence()),
        }
    };
    for service in services.filter(|service| !service.meta.is_removed()) {
        let Some(record) = &service.status.certificate else { continue };
        let (id, host, state) = (service.meta.id, &service.status.host_name, service.status.state);
        match (service.spec.service_type, state) {
            // A manager that is away reads the roots in the store when it comes back.
            (ServiceType::Manager, ServiceState::Down | ServiceState::Joined | ServiceState::Removed) => {}
            (kind, ServiceState::Ready) => {
                count(record.root == signing, &|| format!("{kind} service {id} on '{host}': it renews by itself"));
            }
            (kind, _) => count(record.root == signing, &|| {
                format!("{kind} service {id} on '{host}': it is {state}; start it, or remove it")
            }),
        }
    }
    // A certificate that has expired is of no use under any root.
    for client in clients.filter(|client| !client.meta.is_removed()) {
        let (name, record) = (&client.meta.name, &client.status.certificate);
        if record.expires_at > now {
            count(record.root == signing, &|| {
                format!(
                    "client '{name}': renew it with `symphony ctl … manager client create {name} --renew`, or remove it"
                )
            });
        }
    }
    progress
}
