//! Volumes made of images: where, and of what.

use super::super::find;
use super::super::volume::{fit_size, named_pool, pool_of, promise_volume, ready_pools, roomiest_pool};
use super::{add_base, disk_size};
use crate::manager::audit::audit;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::model::{
    Author, ByteSize, Image, ImageRole, ImageTie, Kind, Name, Phase, Pool, Replica, Service, ServiceId, Source, Supply,
    Volume, VolumeId, VolumeSpec,
};

/// What a volume of an image begins as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A copy of this base.
    Beside(VolumeId),
    /// A copy of a base that has to be fetched first.
    NewBase,
    /// Filled with all the bytes, as the pool cannot share blocks.
    Whole,
}

fn way(draft: &Draft<'_>, image: &Image, pool: &Pool) -> Way {
    if pool.status.copies == Some(false) {
        return Way::Whole;
    }
    let here = |id: &&VolumeId| {
        draft.get::<Volume>(**id).is_some_and(|base| base.is_in(pool.meta.id) && !base.meta.is_removed())
    };
    image.status.bases.iter().find(here).map_or(Way::NewBase, |base| Way::Beside(*base))
}

/// A volume made of an image.
///
/// # Errors
/// If there is no such image, it is not whole or does not fit into the volume, or no pool has room.
pub(in crate::manager::plan) fn create_of_image(
    draft: &mut Draft<'_>,
    author: &Author,
    (id, name): (VolumeId, &Name),
    (reference, new_base): (&str, VolumeId),
    (size, pool): (Option<ByteSize>, Option<&str>),
) -> Result<Volume, Refusal> {
    let mut image = find::<Image>(draft, reference)?;
    let of = image.meta.name.clone();
    if image.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Image, name: of });
    }
    if !image.is_whole() {
        return Err(Refusal::Precondition(format!(
            "image '{of}' is not there as a whole: see `symphony ctl image get {of}`"
        )));
    }
    let least = disk_size(image.spec.size)?;
    let size = size.unwrap_or(least);
    if size < least {
        return Err(Refusal::Invalid(format!(
            "image '{of}' holds {least} ({} bytes) and does not fit into a volume of {size}: ask for more, or leave --size \
             out",
            least.as_u64()
        )));
    }
    fit_size(size)?;
    draft.claim(Kind::Volume, name, id)?;
    let chosen = choose_pool(draft, &image, pool, (size, least))?;
    let way = way(draft, &image, &chosen);
    let (source, role) = match way {
        Way::Beside(base) => (Some(Source::Volume(base)), ImageRole::Clone),
        Way::NewBase => {
            let supply = supply(draft, &image, chosen.spec.service, None)?;
            image.status.bases.push(new_base);
            add_base(draft, &image, new_base, chosen.clone(), ImageRole::Fetched { supply })?;
            (Some(Source::Volume(new_base)), ImageRole::Clone)
        }
        Way::Whole => (None, ImageRole::Copy { supply: supply(draft, &image, chosen.spec.service, None)? }),
    };
    // Written, so that it cannot be removed at the same time.
    image.meta.updated_at = draft.now;
    let tie = Some(Box::new(ImageTie { image: image.meta.id, role }));
    draft.put(image);
    // As it is after a base has been promised its room.
    let mut chosen = pool_of(draft, chosen.meta.id)?;
    let making = if source.is_some() { chosen.room(None, least).unwrap_or_default() } else { ByteSize::ZERO };
    let promised = promise_volume(&mut chosen, size, making)?;
    let replica = Replica { pool: chosen.meta.id, service: chosen.spec.service };
    draft.guard::<Service>(replica.service);
    let named = pool.map(|_| chosen.meta.id);
    let spec = VolumeSpec { pool: named, source, image: tie, ..VolumeSpec::of_size(size) };
    let mut volume = Volume::new(draft.new_meta(id, name.clone()), spec, vec![replica]);
    volume.status.promised = Some(promised);
    let detail = format!("{size} in pool '{}', of image '{of}'", chosen.meta.name);
    draft.put(chosen);
    draft.put(volume.clone());
    audit(draft, author, "volume.create", Kind::Volume, id, name, Some(detail));
    Ok(volume)
}

/// The pool that the user named; else the roomiest of those that have a base already; else the roomiest.
fn choose_pool(
    draft: &Draft<'_>,
    image: &Image,
    pool: Option<&str>,
    (size, base): (ByteSize, ByteSize),
) -> Result<Pool, Refusal> {
    let room = |way: Way| match way {
        Way::Beside(_) | Way::Whole => size,
        Way::NewBase => size.saturating_add(base),
    };
    if let Some(reference) = pool {
        let named = named_pool(draft, reference, size)?;
        return named_pool(draft, reference, room(way(draft, image, &named)));
    }
    let fitting = ready_pools(draft).filter_map(|(free, pool)| {
        let way = way(draft, image, pool);
        (free >= room(way)).then_some((matches!(way, Way::Beside(_)), free, std::cmp::Reverse(pool.meta.id), pool))
    });
    match fitting.max_by_key(|(beside, free, id, _)| (*beside, *free, *id)) {
        Some((_, _, _, pool)) => Ok(pool.clone()),
        None => roomiest_pool(draft, size.saturating_add(base)),
    }
}

/// Volumes that are told of another supply in one transaction.
const REDIRECTED_AT_ONCE: usize = 40;

/// Lets volumes that are still to be filled from a service that is lost be filled from another one that keeps their image;
/// how many were told so, perhaps not yet all. Those whose image nobody else keeps are left as they are.
pub(in crate::manager::plan) fn redirect(draft: &mut Draft<'_>, lost: ServiceId) -> usize {
    let starving = |volume: &&Volume| {
        let supply = volume.spec.image.as_deref().and_then(ImageTie::supply);
        let from = supply.is_some_and(|supply| supply.service == lost);
        from && volume.status.size.is_none() && !volume.is_on(lost) && !volume.meta.is_removed()
    };
    let starving: Vec<Volume> = draft.all::<Volume>().filter(starving).cloned().collect();
    let mut told = 0;
    for mut volume in starving {
        let image = volume.spec.image.as_ref().and_then(|tie| draft.get::<Image>(tie.image));
        let home = volume.status.placement.first().map(|replica| replica.service);
        let (Some(image), Some(home)) = (image, home) else { continue };
        let Ok(other) = supply(draft, image, home, Some(lost)) else { continue };
        if let Some(supply) = volume.spec.image.as_deref_mut().and_then(ImageTie::supply_mut) {
            *supply = other;
        }
        volume.meta.touch(draft.now);
        volume.status.phase = Phase::Pending;
        draft.put(volume);
        told += 1;
        if told == REDIRECTED_AT_ONCE {
            break;
        }
    }
    told
}

/// Lets another pool keep what this base keeps, for when the base is to go.
///
/// # Errors
/// If the image is gone, or the pool has no room after all.
pub(in crate::manager::plan) fn keep_elsewhere(
    draft: &mut Draft<'_>,
    base: &Volume,
    pool: Pool,
    id: VolumeId,
) -> Result<(), Refusal> {
    let Some(mut image) = base.base_of().and_then(|id| draft.get::<Image>(id)).cloned() else { return Ok(()) };
    let supply = supply(draft, &image, pool.spec.service, None)?;
    image.status.bases.push(id);
    add_base(draft, &image, id, pool, ImageRole::Fetched { supply })?;
    image.meta.updated_at = draft.now;
    draft.put(image);
    Ok(())
}

/// Where a service fetches an image's content: at home if it can, and not from `avoided`.
fn supply(draft: &Draft<'_>, image: &Image, service: ServiceId, avoided: Option<ServiceId>) -> Result<Supply, Refusal> {
    let name = &image.meta.name;
    let complete: Vec<&Volume> = image
        .status
        .bases
        .iter()
        .filter_map(|id| draft.get::<Volume>(*id))
        .filter(|base| base.is_complete_base() && avoided.is_none_or(|lost| !base.is_on(lost)))
        .collect();
    let own = complete.iter().find(|base| base.is_on(service));
    let base = own.or(complete.first()).ok_or_else(|| {
        Refusal::Precondition(format!("nothing that keeps image '{name}' can be read now: see `symphony ctl check`"))
    })?;
    let replica = base.status.placement.first().copied();
    let (Some(replica), Some(sha256)) = (replica, image.spec.sha256) else {
        return Err(Refusal::Precondition(format!("image '{name}' is nowhere")));
    };
    let address = draft.get::<Service>(replica.service).and_then(|service| service.status.addresses.rpc.clone());
    Ok(Supply {
        volume: base.meta.id,
        pool: replica.pool,
        service: replica.service,
        address: address.filter(|_| replica.service != service),
        length: image.spec.size,
        sha256: Some(sha256),
    })
}
