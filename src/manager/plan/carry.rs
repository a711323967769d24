//! Carrying objects over into a history that began because the state became older than what the devices hold.
//!
//! The rule is in [`crate::manager::history`]. Here is what it does to one service's objects, in the transactions that
//! admit the service for the first time since: every generation is lifted above all that any device has seen, what may
//! have been made counts as made, and what would destroy bytes is ordered no longer, unless by a tombstone.

use super::moving::void_move;
use super::service::audit_service;
use crate::manager::audit;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::manager::view::View;
use crate::model::{
    Attachment, ByteSize, Epoch, Generation, Meta, Pool, Service, ServiceId, Snapshot, Volume, VolumeReport,
};

/// Objects in one transaction; each may take two operations of it.
const CARRIED_AT_ONCE: usize = 50;
/// Moves that end in one transaction; each may take five operations of it.
const VOIDED_AT_ONCE: usize = 20;

/// Whether something on `service` is still to be lifted to the generations of `epoch`.
pub fn has_to_carry(view: &View, service: ServiceId, epoch: Epoch) -> bool {
    waiting(view, service, Generation::floor(epoch)) > 0
}

/// How many objects on `service` are of generations below `floor`.
fn waiting(view: &View, service: ServiceId, floor: Generation) -> usize {
    view.pools_of(service).filter(|it| it.meta.generation < floor).count()
        + view.volumes_of(service).filter(|it| it.meta.generation < floor).count()
        + view.snapshots_of(service).filter(|it| it.meta.generation < floor).count()
        + view.attachments_of(service).filter(|it| it.meta.generation < floor).count()
}

/// Lifts what is on `service` to the generations of `epoch`, a part at a time: whether there is more to lift, and this
/// is to be called again.
///
/// # Errors
/// None of its own.
pub fn carry_over(draft: &mut Draft<'_>, service: ServiceId, epoch: Epoch, reason: &str) -> Result<bool, Refusal> {
    let (view, floor) = (draft.view(), Generation::floor(epoch));
    let ends = |it: &&Volume| it.meta.generation < floor && (it.successor().is_some() || it.predecessor().is_some());
    let moving: Vec<Volume> = view.volumes_of(service).filter(ends).take(VOIDED_AT_ONCE).cloned().collect();
    if !moving.is_empty() {
        moving.iter().for_each(|end| void_move(draft, end));
        return Ok(true);
    }
    let waiting = waiting(view, service, floor);
    let mut room = CARRIED_AT_ONCE;
    let pools: Vec<Pool> = below(view.pools_of(service), |it| &it.meta, floor, &mut room);
    let volumes: Vec<Volume> = below(view.volumes_of(service), |it| &it.meta, floor, &mut room);
    let snapshots: Vec<Snapshot> = below(view.snapshots_of(service), |it| &it.meta, floor, &mut room);
    let attachments: Vec<Attachment> = below(view.attachments_of(service), |it| &it.meta, floor, &mut room);
    let more = waiting > CARRIED_AT_ONCE;
    for mut pool in pools {
        pool.meta.generation = floor;
        pool.status.capacity.get_or_insert_default();
        draft.put(pool);
    }
    for mut volume in volumes {
        volume.meta.generation = floor;
        rescind(draft, &mut volume);
        let size = volume.spec.size;
        volume.status.size.get_or_insert(size);
        draft.put(volume);
    }
    for mut snapshot in snapshots {
        snapshot.meta.generation = floor;
        let size = snapshot.status.promised;
        snapshot.status.size.get_or_insert(size);
        draft.put(snapshot);
    }
    for mut attachment in attachments {
        attachment.meta.generation = floor;
        draft.put(attachment);
    }
    if waiting > 0
        && !more
        && let Some(service) = draft.get::<Service>(service).cloned()
    {
        let detail = format!("what the state says of it was carried over into history {epoch}: {reason}");
        audit_service(draft, &audit::managers(), "service.carry", &service, Some(detail));
    }
    Ok(more)
}

/// Objects of generations below `floor`, as many as there is room for.
fn below<'v, T: Clone + 'v, I: 'v>(
    objects: impl Iterator<Item = &'v T>,
    meta: impl Fn(&'v T) -> &'v Meta<I>,
    floor: Generation,
    room: &mut usize,
) -> Vec<T> {
    let found: Vec<T> = objects.filter(|it| meta(it).generation < floor).take(*room).cloned().collect();
    *room -= found.len();
    found
}

/// Takes back orders that lose bytes and are not known to have been carried out: whoever gave them may have taken them
/// back since, or gone on from there.
fn rescind(draft: &mut Draft<'_>, volume: &mut Volume) {
    let done = volume.status.observed_generation;
    if volume.spec.revert.is_some_and(|revert| revert.since > done) {
        volume.spec.revert = None;
    }
    if volume.spec.shrunk.is_some_and(|since| since > done) {
        volume.spec.shrunk = None;
        let size = volume.status.size.unwrap_or_default();
        enlarge(draft, volume, size);
    }
}

/// Takes over what a device says of a volume that was carried over: whoever was given more of it since keeps that. From
/// then on it is like any other.
pub(super) fn settle_volume(draft: &mut Draft<'_>, volume: &mut Volume, report: &VolumeReport) {
    let settled = volume.meta.generation.is_carried()
        && !volume.meta.is_removed()
        && report.generation == volume.meta.generation
        && report.failure.is_none();
    if let (true, crate::model::Observed::Known(served)) = (settled, &report.volume) {
        let before = volume.spec.size;
        enlarge(draft, volume, served.size);
        volume.meta.touch(draft.now);
        if volume.spec.size > before {
            let author = audit::managers();
            let detail = format!("from {before} to {}, as it is on its device", volume.spec.size);
            let (id, name) = (volume.meta.id, volume.meta.name.clone());
            audit::audit(draft, &author, "volume.resize", crate::model::Kind::Volume, id, &name, Some(detail));
        }
    }
}

/// Promises the difference, too, whether or not the pool has it to promise: the bytes are there.
fn enlarge(draft: &mut Draft<'_>, volume: &mut Volume, size: ByteSize) {
    if size <= volume.spec.size {
        return;
    }
    let held = volume.promised();
    for replica in &volume.status.placement {
        if let Some(mut pool) = draft.get::<Pool>(replica.pool).cloned() {
            let wanted = pool.takes(size).max(held);
            pool.status.reserved = pool.status.reserved.saturating_add(wanted.saturating_sub(held));
            volume.status.promised = Some(wanted);
            draft.put(pool);
        }
    }
    volume.spec.size = size;
}
