//! What a service that is to be emptied gives away by itself: volumes that nobody uses, and what it keeps of images.

use super::super::image::{is_spare, keep_elsewhere};
use super::super::moving::{begin, movable};
use super::super::volume::ready_pools;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::manager::view::View;
use crate::model::{Author, ByteSize, Image, Phase, Pool, Service, ServiceId, ServiceState, Source, Volume, VolumeId};
use std::collections::BTreeSet;
use std::mem::discriminant;

/// How much is on its way from one service at a time: its disks and its network have other things to do, too.
const AT_ONCE: usize = 4;

/// Volumes of one service that cannot leave it, for a cheap first look at many.
pub(super) struct Bound {
    pub attached: BTreeSet<VolumeId>,
    pub snapshotted: BTreeSet<VolumeId>,
    /// They are still being copied for others.
    pub copied: BTreeSet<VolumeId>,
}

impl Bound {
    pub fn on(view: &View, service: ServiceId) -> Self {
        let copied = |volume: &Volume| match volume.spec.source {
            Some(Source::Volume(id)) if volume.status.size.is_none() => Some(id),
            Some(Source::Volume(_) | Source::Snapshot(_)) | None => None,
        };
        Self {
            attached: view.attachments_of(service).map(|held| held.spec.volume).collect(),
            snapshotted: view.snapshots_of(service).map(|snapshot| snapshot.spec.volume).collect(),
            // Copies are made beside what they are copied from.
            copied: view.volumes_of(service).filter_map(copied).collect(),
        }
    }

    fn holds(&self, volume: &Volume) -> bool {
        let id = &volume.meta.id;
        self.attached.contains(id) || self.snapshotted.contains(id) || self.copied.contains(id)
    }
}

/// What is done next about something that is to leave.
enum Way {
    /// A volume is moved there.
    Move(Box<Volume>, Box<Pool>),
    /// What is kept of an image is fetched there, too.
    Fetch(Box<Volume>, Box<Pool>),
    /// It is kept elsewhere: it goes.
    Bury(Box<Volume>),
}

/// The living services that are to be emptied.
pub fn draining(view: &View) -> Vec<ServiceId> {
    let services = view.services.values().map(|service| &*service.value);
    let wanted = |it: &&Service| it.spec.draining.is_some() && it.status.state == ServiceState::Ready;
    services.filter(wanted).filter(|it| !it.meta.is_removed()).map(|it| it.meta.id).collect()
}

/// Where something of that size may go from a service: to a pool of the same driver if there is one, then to the roomiest.
pub(super) fn target(draft: &Draft<'_>, from: ServiceId, pool: Option<&Pool>, size: ByteSize) -> Option<Pool> {
    let same = |it: &Pool| pool.is_some_and(|pool| discriminant(&pool.spec.driver) == discriminant(&it.spec.driver));
    let away = ready_pools(draft).filter(|(free, it)| it.spec.service != from && *free >= it.takes(size));
    let ranked = away.map(|(free, it)| (same(it), free, std::cmp::Reverse(it.meta.id), it));
    ranked.max_by_key(|(same, free, id, _)| (*same, *free, *id)).map(|(_, _, _, pool)| pool.clone())
}

/// The pool that a volume is in.
fn pool_of<'d>(draft: &'d Draft<'_>, volume: &Volume) -> Option<&'d Pool> {
    volume.status.placement.first().and_then(|replica| draft.get::<Pool>(replica.pool))
}

fn way(draft: &Draft<'_>, service: ServiceId, bound: &Bound, volume: &Volume) -> Option<Way> {
    if volume.meta.is_removed() || bound.holds(volume) || volume.status.phase != Phase::Ready {
        return None;
    }
    if let Some(image) = volume.base_of() {
        if is_spare(draft, volume) {
            return Some(Way::Bury(volume.clone().into()));
        }
        let image = draft.get::<Image>(image).filter(|image| image.is_whole())?;
        let on_its_way = |id: &VolumeId| {
            let other = draft.get::<Volume>(*id).filter(|it| it.meta.id != volume.meta.id && !it.meta.is_removed());
            other.is_some_and(|it| !it.is_complete_base() && !it.is_on(service))
        };
        if !volume.is_complete_base() || image.status.bases.iter().any(on_its_way) {
            return None;
        }
        let pool = target(draft, service, pool_of(draft, volume), volume.spec.size)?;
        return Some(Way::Fetch(volume.clone().into(), pool.into()));
    }
    // What is known from the volume itself comes first, what needs a look at all of them last.
    if volume.spec.moving.is_some() || volume.status.left.is_some() {
        return None;
    }
    let pool = target(draft, service, pool_of(draft, volume), volume.spec.size)?;
    movable(draft, volume).ok()?;
    Some(Way::Move(volume.clone().into(), pool.into()))
}

/// What can leave the service now; none if nothing can, or enough is on its way.
fn next(draft: &Draft<'_>, service: ServiceId) -> Option<Way> {
    let view = draft.view();
    let supplied = |volume: &&Volume| volume.supply().is_some_and(|supply| supply.service == service);
    // Copies of volumes are counted where they come from, those of images where they go.
    let leaving = view.volumes_of(service).filter(|volume| volume.successor().is_some()).count();
    if leaving >= AT_ONCE {
        return None;
    }
    let bound = Bound::on(view, service);
    let bases: Vec<&Volume> = view.volumes_of(service).filter(|volume| volume.base_of().is_some()).collect();
    let fetched = |base: &&&Volume| {
        let image = base.base_of().and_then(|id| view.get::<Image>(id));
        let others = image.into_iter().flat_map(|image| &image.status.bases).filter_map(|id| view.get::<Volume>(*id));
        others.filter(supplied).any(|other| other.status.size.is_none())
    };
    let busy = leaving + bases.iter().filter(fetched).count() >= AT_ONCE;
    let mut ways = view.volumes_of(service).filter_map(|volume| way(draft, service, &bound, volume));
    ways.find(|way| !busy || matches!(way, Way::Bury(_)))
}

/// Whether something can leave the service now.
pub fn has_next(draft: &Draft<'_>, service: ServiceId) -> bool {
    next(draft, service).is_some()
}

/// Lets one thing leave a service that is to be emptied; whether there was one. `copy` is what a copy is called.
///
/// # Errors
/// If its new place has no room after all.
pub fn empty_one(draft: &mut Draft<'_>, author: &Author, service: ServiceId, copy: VolumeId) -> Result<bool, Refusal> {
    // Somebody may have called it off.
    draft.guard::<Service>(service);
    let wanted = draft.get::<Service>(service).is_some_and(|it| it.spec.draining.is_some());
    let Some(way) = next(draft, service).filter(|_| wanted) else { return Ok(false) };
    match way {
        Way::Move(volume, pool) => drop(begin(draft, author, *volume, *pool, (copy, true))?),
        Way::Fetch(base, pool) => keep_elsewhere(draft, &base, *pool, copy)?,
        Way::Bury(mut base) => {
            base.bury(draft.now);
            draft.put(*base);
        }
    }
    Ok(true)
}
