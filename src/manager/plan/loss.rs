//! Losses: what is closed without a word of the block service that has it. Its bytes stay where they are, as orphans.

use super::pool::listed;
use super::snapshot::forget_snapshot;
use super::volume::forget_volume;
use super::{find, find_service, look_up, resolve_attachment};
use crate::manager::audit::audit;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::model::{
    Attachment, Author, Image, ImageTie, Kind, Loss, Pool, PoolId, Service, ServiceId, ServiceState, Session, Snapshot,
    Volume, VolumeId,
};
use std::collections::BTreeSet;

/// How many attachments, snapshots, pools and volumes are closed in one transaction: each may take six operations of it
/// (record, name, the pool's record, and those of an image, or of the other end of a move with its name and an entry in the
/// record of changes), and the service itself with its session and its own entry three more.
const CLOSED_AT_ONCE: usize = 20;

/// What is closed together, in this order: what refers to another object goes before it.
pub(super) struct Held {
    attachments: Vec<Attachment>,
    snapshots: Vec<Snapshot>,
    volumes: Vec<Volume>,
    pools: Vec<Pool>,
}

impl Held {
    /// Everything on a service.
    pub fn of_service(draft: &Draft<'_>, id: ServiceId) -> Self {
        Self {
            attachments: draft.all::<Attachment>().filter(|held| held.is_on(id)).cloned().collect(),
            snapshots: draft.all::<Snapshot>().filter(|snapshot| snapshot.is_on(id)).cloned().collect(),
            volumes: draft.all::<Volume>().filter(|volume| volume.is_on(id)).cloned().collect(),
            pools: draft.all::<Pool>().filter(|pool| pool.spec.service == id).cloned().collect(),
        }
    }

    fn of_pool(draft: &Draft<'_>, pool: Pool) -> Self {
        let id: PoolId = pool.meta.id;
        let volumes = draft.all::<Volume>().filter(|volume| volume.is_in(id)).cloned().collect();
        Self { pools: vec![pool], ..Self::of_volumes(draft, volumes) }
    }

    fn of_volumes(draft: &Draft<'_>, volumes: Vec<Volume>) -> Self {
        let ids: BTreeSet<VolumeId> = volumes.iter().map(|volume| volume.meta.id).collect();
        Self {
            attachments: draft.all::<Attachment>().filter(|held| ids.contains(&held.spec.volume)).cloned().collect(),
            snapshots: draft.all::<Snapshot>().filter(|it| ids.contains(&it.spec.volume)).cloned().collect(),
            volumes,
            pools: Vec::new(),
        }
    }

    fn none() -> Self {
        Self { attachments: Vec::new(), snapshots: Vec::new(), volumes: Vec::new(), pools: Vec::new() }
    }

    pub fn count(&self) -> usize {
        self.attachments.len() + self.snapshots.len() + self.volumes.len() + self.pools.len()
    }

    /// Forgets as much as fits; says how many objects that were.
    pub fn close(&self, draft: &mut Draft<'_>) -> usize {
        let mut room = CLOSED_AT_ONCE;
        for held in self.attachments.iter().take(room) {
            draft.delete::<Attachment>(held.meta.id);
        }
        room = room.saturating_sub(self.attachments.len());
        for snapshot in self.snapshots.iter().take(room) {
            forget_snapshot(draft, snapshot);
        }
        room = room.saturating_sub(self.snapshots.len());
        for volume in self.volumes.iter().take(room) {
            // As it stands: one end of a move changes with the other.
            if let Some(volume) = draft.get::<Volume>(volume.meta.id).cloned() {
                forget_volume(draft, &volume);
            }
        }
        room = room.saturating_sub(self.volumes.len());
        for pool in self.pools.iter().take(room) {
            draft.release(Kind::Pool, &pool.meta.name);
            draft.delete::<Pool>(pool.meta.id);
        }
        CLOSED_AT_ONCE.min(self.count())
    }

    /// What is closed first, all of it: nothing else remembers it.
    pub fn names(&self) -> String {
        let attachments = self.attachments.iter().map(|held| format!("attachment {}", held.label()));
        let snapshots = self.snapshots.iter().map(|snapshot| format!("snapshot {}", snapshot.meta.name));
        let volumes = self.volumes.iter().map(|volume| format!("volume {}", volume.meta.name));
        let pools = self.pools.iter().map(|pool| format!("pool {}", pool.meta.name));
        let all = attachments.chain(snapshots).chain(volumes).chain(pools);
        all.take(CLOSED_AT_ONCE).collect::<Vec<_>>().join(", ")
    }

    fn services(&self) -> BTreeSet<ServiceId> {
        let attachments = self.attachments.iter().flat_map(|held| held.status.placement.iter().copied());
        let snapshots = self.snapshots.iter().flat_map(|it| it.status.placement.iter().map(|replica| replica.service));
        let volumes = self.volumes.iter().flat_map(|it| it.status.placement.iter().map(|replica| replica.service));
        let pools = self.pools.iter().map(|pool| pool.spec.service);
        attachments.chain(snapshots).chain(volumes).chain(pools).collect()
    }
}

/// What is meant by a kind and a reference.
struct Target {
    held: Held,
    /// For the record of changes.
    id: String,
    name: String,
}

fn target(draft: &Draft<'_>, kind: Kind, reference: &str) -> Result<Target, Refusal> {
    let target = |held, id: &dyn std::fmt::Display, name: &dyn std::fmt::Display| Target {
        held,
        id: id.to_string(),
        name: name.to_string(),
    };
    match kind {
        Kind::Service => {
            let id = find_service(draft.view(), reference)?;
            Ok(target(Held::of_service(draft, id), &id, &reference))
        }
        Kind::Pool => {
            let pool = look_up::<Pool>(draft, reference)?;
            let (id, name) = (pool.meta.id, pool.meta.name.clone());
            Ok(target(Held::of_pool(draft, pool), &id, &name))
        }
        Kind::Volume => {
            let volume = look_up::<Volume>(draft, reference)?;
            let (id, name) = (volume.meta.id, volume.meta.name.clone());
            Ok(target(Held::of_volumes(draft, vec![volume]), &id, &name))
        }
        Kind::Snapshot => {
            let snapshot = look_up::<Snapshot>(draft, reference)?;
            let (id, name) = (snapshot.meta.id, snapshot.meta.name.clone());
            Ok(target(Held { snapshots: vec![snapshot], ..Held::none() }, &id, &name))
        }
        Kind::Image => {
            let image = look_up::<Image>(draft, reference)?;
            let bases = image.status.bases.iter().filter_map(|id| draft.get::<Volume>(*id)).cloned();
            // What a living service keeps of it is removed by that one.
            let bases = bases.filter(|base| base.status.placement.iter().all(|it| is_silent(draft, it.service)));
            Ok(target(Held::of_volumes(draft, bases.collect()), &image.meta.id, &image.meta.name))
        }
        Kind::Attachment => {
            let missing = || Refusal::NoSuch { kind, reference: reference.chars().take(80).collect() };
            let id = resolve_attachment(draft.view(), reference).ok_or_else(missing)?;
            let held = draft.get::<Attachment>(id).cloned().ok_or_else(missing)?;
            let label = held.label();
            Ok(target(Held { attachments: vec![held], ..Held::none() }, &id, &label))
        }
        Kind::Client | Kind::Token => {
            Err(Refusal::Invalid(format!("a {kind} is on no block service, so it cannot be lost with one")))
        }
    }
}

/// Whether the service is known to hold no lease.
fn is_silent(draft: &Draft<'_>, id: ServiceId) -> bool {
    let ready = draft.get::<Service>(id).is_some_and(|service| service.status.state == ServiceState::Ready);
    !ready && draft.get::<Session>(id).is_none()
}

/// What would be closed; nothing is.
///
/// # Errors
/// If there is no such object.
pub fn loss_of(draft: &Draft<'_>, kind: Kind, reference: &str) -> Result<Loss, Refusal> {
    let Target { held, .. } = target(draft, kind, reference)?;
    let closed: BTreeSet<VolumeId> = held.volumes.iter().map(|volume| volume.meta.id).collect();
    let service = |id: ServiceId| match draft.get::<Service>(id) {
        Some(service) => format!("{id} on '{}'", service.status.host_name),
        None => id.to_string(),
    };
    let of_images: BTreeSet<_> = held.volumes.iter().filter_map(Volume::base_of).collect();
    let images: Vec<&Image> = of_images.iter().filter_map(|id| draft.get::<Image>(*id)).collect();
    let gone = |image: &&&Image| image.status.bases.iter().all(|base| closed.contains(base));
    let name = |image: &Image| image.meta.name.to_string();
    let starved = draft.all::<Volume>().filter(|volume| {
        let supply = volume.spec.image.as_deref().and_then(ImageTie::supply);
        let from = supply.filter(|supply| closed.contains(&supply.volume));
        let elsewhere = || {
            let image = volume.spec.image.as_ref().and_then(|tie| draft.get::<Image>(tie.image));
            image.is_some_and(|image| !gone(&&image))
        };
        from.is_some() && volume.status.size.is_none() && !closed.contains(&volume.meta.id) && !elsewhere()
    });
    Ok(Loss {
        services: held.services().into_iter().map(service).collect(),
        attachments: held.attachments.iter().map(Attachment::label).collect(),
        snapshots: held.snapshots.iter().map(|snapshot| snapshot.meta.name.to_string()).collect(),
        volumes: held.volumes.iter().filter(|it| !it.is_hidden()).map(|it| it.meta.name.to_string()).collect(),
        images: images.iter().map(|image| name(image)).collect(),
        images_gone: images.iter().filter(gone).map(|image| name(image)).collect(),
        pools: held.pools.iter().map(|pool| pool.meta.name.to_string()).collect(),
        starved: starved.map(|volume| volume.meta.name.to_string()).collect(),
    })
}

/// Closes an object whose block services are all silent, a part at a time; whether there is more to close.
///
/// # Errors
/// If there is no such object, a service of it is connected, or it is a service itself.
pub fn close_lost(draft: &mut Draft<'_>, author: &Author, kind: Kind, reference: &str) -> Result<bool, Refusal> {
    if kind == Kind::Service {
        let text = "a service that is lost is taken out with `symphony ctl manager remove SERVICE --lost`";
        return Err(Refusal::Invalid(text.into()));
    }
    if draft.view().is_partial() {
        return Err(Refusal::Precondition(
            "some objects in the store cannot be read, so it is not known what belongs together: see `symphony ctl check`"
                .into(),
        ));
    }
    let Target { held, id, name } = target(draft, kind, reference)?;
    let living: Vec<ServiceId> = held.services().into_iter().filter(|id| !is_silent(draft, *id)).collect();
    if !living.is_empty() {
        let ids: Vec<String> = living.iter().map(ToString::to_string).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        return Err(Refusal::Precondition(format!(
            "{kind} '{name}' is not lost: its service {} is connected; do it without --lost",
            listed(&ids)
        )));
    }
    for service in held.services() {
        // One that comes back in this very moment is to be asked instead.
        draft.guard::<Service>(service);
        draft.guard::<Session>(service);
    }
    if kind == Kind::Image && held.count() == 0 {
        return Err(Refusal::Precondition(format!(
            "image '{name}' is not lost: whatever keeps it is connected; remove it without --lost"
        )));
    }
    if kind == Kind::Image {
        return close_image(draft, author, reference, &held);
    }
    let closed = held.close(draft);
    let detail = format!("given up for lost: {}", held.names());
    audit(draft, author, &format!("{kind}.close"), kind, id, &name, Some(detail));
    Ok(closed < held.count())
}

/// An image goes with what silent services keep of it; what the others keep is removed by them.
fn close_image(draft: &mut Draft<'_>, author: &Author, reference: &str, held: &Held) -> Result<bool, Refusal> {
    let mut image = find::<Image>(draft, reference)?;
    let closed: BTreeSet<VolumeId> = held.volumes.iter().map(|volume| volume.meta.id).collect();
    if image.bury(draft.now) {
        let (id, name) = (image.meta.id, image.meta.name.clone());
        let detail = format!("given up for lost: {}", held.names());
        for base in image.status.bases.iter().filter(|id| !closed.contains(id)) {
            let Some(mut base) = draft.get::<Volume>(*base).cloned() else { continue };
            for mut attachment in draft.attachments_to(&base) {
                if attachment.bury(draft.now) {
                    draft.put(attachment);
                }
            }
            base.bury(draft.now);
            draft.put(base);
        }
        draft.put(image);
        audit(draft, author, "image.close", Kind::Image, id, &name, Some(detail));
    }
    Ok(held.close(draft) < held.count())
}
