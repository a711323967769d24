//! What block services report of their devices.

use super::image::follow_base;
use super::snapshot::forget_snapshot;
use super::volume::forget_volume;
use crate::manager::audit::audit;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::model::{
    Attachment, AttachmentReport, Author, ByteSize, Kind, Pool, PoolReport, Report, ServiceId, Session, SessionId,
    Snapshot, SnapshotReport, Volume, VolumeReport,
};

/// Takes reports of `service` over. Reports on objects that are gone are ignored; nothing is written where nothing changed.
///
/// # Errors
/// If the session is not the service's present one, or a report speaks of an object that is not the service's: then
/// none is taken.
pub fn take_reports(
    draft: &mut Draft<'_>,
    service: ServiceId,
    session: SessionId,
    reports: &[Report],
) -> Result<(), Refusal> {
    if draft.get::<Session>(service).is_none_or(|present| present.id != session) {
        return Err(Refusal::Superseded(service));
    }
    // A report that was held up must not overwrite what a newer session said.
    draft.guard::<Session>(service);
    for report in reports {
        match report {
            Report::Pool(report) => take_pool(draft, service, session, report)?,
            Report::Volume(report) => take_volume(draft, service, report)?,
            Report::Snapshot(report) => take_snapshot(draft, service, report)?,
            Report::Attachment(report) => take_attachment(draft, service, report)?,
        }
    }
    Ok(())
}

fn take_pool(
    draft: &mut Draft<'_>,
    service: ServiceId,
    session: SessionId,
    report: &PoolReport,
) -> Result<(), Refusal> {
    let Some(pool) = draft.get::<Pool>(report.id) else { return Ok(()) };
    if pool.spec.service != service {
        return Err(Refusal::NotYours { service, kind: Kind::Pool, id: report.id.to_string() });
    }
    let mut pool = pool.clone();
    if pool.is_let_go_by(report) {
        draft.release(Kind::Pool, &pool.meta.name);
        draft.delete::<Pool>(pool.meta.id);
    } else {
        let before = pool.status.level;
        if pool.observe(report) {
            draft.put(pool.clone());
        }
        if pool.status.level != before {
            record_level(draft, session, &pool);
        }
    }
    Ok(())
}

/// Whoever looks after a pool must hear of it before its clients do.
fn record_level(draft: &mut Draft<'_>, session: SessionId, pool: &Pool) {
    let who = format!("block service {}", pool.spec.service);
    let author = Author { who, origin: format!("session {session}") };
    let size = |size: Option<ByteSize>| size.unwrap_or_default();
    let (used, capacity) = (size(pool.status.used), size(pool.status.capacity));
    let metadata = pool.status.metadata.map(|it| format!(", {} of {} of its metadata", it.used, it.capacity));
    let detail = format!("{used} of {capacity} are used{}", metadata.unwrap_or_default());
    let action = format!("pool.{}", pool.status.level);
    audit(draft, &author, &action, Kind::Pool, pool.meta.id, &pool.meta.name, Some(detail));
}

fn take_volume(draft: &mut Draft<'_>, service: ServiceId, report: &VolumeReport) -> Result<(), Refusal> {
    let Some(volume) = draft.get::<Volume>(report.id) else { return Ok(()) };
    if !volume.is_on(service) {
        return Err(Refusal::NotYours { service, kind: Kind::Volume, id: report.id.to_string() });
    }
    let mut volume = volume.clone();
    if volume.is_let_go_by(report) {
        forget_volume(draft, &volume);
    } else if volume.observe(report) {
        follow_base(draft, &volume);
        draft.put(volume);
    }
    Ok(())
}

fn take_snapshot(draft: &mut Draft<'_>, service: ServiceId, report: &SnapshotReport) -> Result<(), Refusal> {
    let Some(snapshot) = draft.get::<Snapshot>(report.id) else { return Ok(()) };
    if !snapshot.is_on(service) {
        return Err(Refusal::NotYours { service, kind: Kind::Snapshot, id: report.id.to_string() });
    }
    let mut snapshot = snapshot.clone();
    if snapshot.is_let_go_by(report) {
        forget_snapshot(draft, &snapshot);
    } else if snapshot.observe(report) {
        draft.put(snapshot);
    }
    Ok(())
}

fn take_attachment(draft: &mut Draft<'_>, service: ServiceId, report: &AttachmentReport) -> Result<(), Refusal> {
    let Some(attachment) = draft.get::<Attachment>(report.id) else { return Ok(()) };
    if !attachment.is_on(service) {
        return Err(Refusal::NotYours { service, kind: Kind::Attachment, id: report.id.to_string() });
    }
    let mut attachment = attachment.clone();
    if attachment.is_let_go_by(report) {
        // Gone is what every service has let go of.
        attachment.status.placement.retain(|holder| *holder != service);
        match attachment.status.placement.is_empty() {
            true => draft.delete::<Attachment>(attachment.meta.id),
            false => draft.put(attachment),
        }
    } else if attachment.observe(report) {
        draft.put(attachment);
    }
    Ok(())
}
