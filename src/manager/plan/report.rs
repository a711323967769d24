//! What block services report of their devices.

use super::carry::settle_volume;
use super::image::follow_base;
use super::snapshot::forget_snapshot;
use super::volume::{forget_volume, settle_promise};
use crate::manager::audit::audit;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::model::{
    AssignedId, Attachment, AttachmentReport, Author, ByteSize, Kind, Level, Name, Phase, Pool, PoolReport, Report,
    ServiceId, Session, SessionId, Snapshot, SnapshotReport, Volume, VolumeReport,
};
use std::fmt::Display;

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
        // What is nothing new to a view that lags may be so to the store, and is not said again.
        match report.id() {
            AssignedId::Pool(id) => draft.guard::<Pool>(id),
            AssignedId::Volume(id) => draft.guard::<Volume>(id),
            AssignedId::Snapshot(id) => draft.guard::<Snapshot>(id),
            AssignedId::Attachment(id) => draft.guard::<Attachment>(id),
        }
        match report {
            Report::Pool(report) => take_pool(draft, service, session, report)?,
            Report::Volume(report) => take_volume(draft, service, report)?,
            Report::Snapshot(report) => take_snapshot(draft, service, session, report)?,
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
        let (before, size) = (pool.status.level, pool.status.size);
        if pool.observe(report) {
            draft.put(pool.clone());
        }
        if pool.status.level != before {
            record_level(draft, session, &pool);
        }
        if let (Some(old), Some(new)) = (size, pool.status.size)
            && new > old
        {
            let most = pool.status.capacity.unwrap_or_default();
            let detail = format!("from {old} to {new} of data, of at most {most}");
            record(draft, session, service, "pool.autoextend", (Kind::Pool, pool.meta.id, &pool.meta.name), detail);
        }
    }
    Ok(())
}

/// Whoever looks after a pool must hear of it before its clients do.
fn record_level(draft: &mut Draft<'_>, session: SessionId, pool: &Pool) {
    let size = |size: Option<ByteSize>| size.unwrap_or_default();
    let (used, capacity) = (size(pool.status.used), size(pool.status.capacity));
    let metadata = pool.status.metadata.map(|it| format!(", {} of {} of its metadata", it.used, it.capacity));
    let detail = format!("{used} of {capacity} are used{}", metadata.unwrap_or_default());
    let action = format!("pool.{}", pool.status.level);
    record(draft, session, pool.spec.service, &action, (Kind::Pool, pool.meta.id, &pool.meta.name), detail);
}

/// Records what a block service has seen on its devices.
fn record(
    draft: &mut Draft<'_>,
    session: SessionId,
    service: ServiceId,
    action: &str,
    (kind, id, name): (Kind, impl Display, &Name),
    detail: String,
) {
    let author = Author { who: format!("block service {service}"), origin: format!("session {session}") };
    audit(draft, &author, action, kind, id, name, Some(detail));
}

fn take_volume(draft: &mut Draft<'_>, service: ServiceId, report: &VolumeReport) -> Result<(), Refusal> {
    let Some(volume) = draft.get::<Volume>(report.id) else { return Ok(()) };
    if !volume.is_on(service) {
        return Err(Refusal::NotYours { service, kind: Kind::Volume, id: report.id.to_string() });
    }
    let mut volume = volume.clone();
    let before = volume.status.size;
    if volume.is_let_go_by(report) {
        forget_volume(draft, &volume);
    } else if volume.observe(report) {
        if before.is_none() && volume.status.size.is_some() {
            settle_promise(draft, &mut volume);
        }
        follow_base(draft, &volume);
        settle_volume(draft, &mut volume, report);
        draft.put(volume);
    }
    Ok(())
}

fn take_snapshot(
    draft: &mut Draft<'_>,
    service: ServiceId,
    session: SessionId,
    report: &SnapshotReport,
) -> Result<(), Refusal> {
    let Some(snapshot) = draft.get::<Snapshot>(report.id) else { return Ok(()) };
    if !snapshot.is_on(service) {
        return Err(Refusal::NotYours { service, kind: Kind::Snapshot, id: report.id.to_string() });
    }
    let mut snapshot = snapshot.clone();
    if snapshot.is_let_go_by(report) {
        forget_snapshot(draft, &snapshot);
    } else {
        let before = (snapshot.status.level, snapshot.status.spoilt);
        if snapshot.observe(report) {
            draft.put(snapshot.clone());
            record_fill(draft, service, session, &snapshot, before);
        }
    }
    Ok(())
}

/// Whoever needs a snapshot must hear that it fills up before it is spoilt, and that it is.
fn record_fill(
    draft: &mut Draft<'_>,
    service: ServiceId,
    session: SessionId,
    snapshot: &Snapshot,
    (level, spoilt): (Level, bool),
) {
    let (status, volume) = (&snapshot.status, &snapshot.spec.volume_name);
    let room = status.fill.map(|fill| fill.room).or(status.room).unwrap_or_default();
    let used = status.fill.map_or(room, |fill| fill.used);
    let (action, detail) = if status.spoilt && !spoilt {
        let detail = format!("more of volume '{volume}' was changed than its room of {room}; the volume is not harmed");
        ("snapshot.spoilt".to_owned(), detail)
    } else if status.level != level && !status.spoilt {
        let detail = format!("{used} of its room of {room} are used: it is spoilt when volume '{volume}' changes more");
        (format!("snapshot.{}", status.level), detail)
    } else {
        return;
    };
    record(draft, session, service, &action, (Kind::Snapshot, snapshot.meta.id, &snapshot.meta.name), detail);
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
        // Its client is in: from now on it is like any other.
        if attachment.meta.generation.is_carried() && attachment.status.phase == Phase::Ready {
            attachment.meta.touch(draft.now);
        }
        draft.put(attachment);
    }
    Ok(())
}
