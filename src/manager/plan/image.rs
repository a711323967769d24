//! Images: room made for an import, its seal, volumes made of it, and its end.
//!
//! ```text
//!   import ──▶ one base that takes the content in ──seal──▶ sealed, compared by its block service ──▶ ready
//!   a volume of it, in a pool that shares blocks:  beside a base of that pool, which is fetched first if there is none
//!   a volume of it, elsewhere:                     filled with what some base keeps
//! ```
//! Whatever changes the bases of an image writes the image's record, so that two that do so at once conflict.

mod volumes;

pub(super) use volumes::{create_of_image, keep_elsewhere, redirect};

use super::pool::listed;
use super::volume::{named_pool, promise_volume, roomiest_pool};
use super::{find, look_up};
use crate::manager::audit::audit;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::model::{
    Attachment, AttachmentId, AttachmentSpec, Author, ByteSize, Client, ClientId, Digest, Image, ImageFormat, ImageId,
    ImageRole, ImageSpec, ImageTie, Kind, Name, Phase, Pool, Replica, SECTOR, Seal, Service, ServiceId, Uploaded,
    Volume, VolumeId, VolumeSpec,
};

/// What a user wants to import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedImage {
    pub id: ImageId,
    pub base: VolumeId,
    pub name: Name,
    pub size: ByteSize,
    pub format: ImageFormat,
    /// By id or name; absent: wherever there is room.
    pub pool: Option<String>,
    /// Who is to write to the base from another host, and the id of the leave to do so.
    pub writer: Option<(ClientId, AttachmentId)>,
}

/// Volumes whose supply is told where its service is now, in one transaction.
const TOLD_AT_ONCE: usize = 40;

/// The smallest volume that holds so many bytes.
fn disk_size(content: ByteSize) -> Result<ByteSize, Refusal> {
    let bytes = content.as_u64().checked_next_multiple_of(SECTOR).map(ByteSize::bytes);
    match bytes {
        Some(size) if size <= ByteSize::MAX && content.as_u64() > 0 => Ok(size),
        _ => Err(Refusal::Invalid(format!(
            "an image of {} bytes fits onto no device: 1 to {} bytes do",
            content.as_u64(),
            ByteSize::MAX.as_u64()
        ))),
    }
}

/// Room for an image's content; or another attempt to fill the room that an import which was cut short has left. Whoever
/// wrote before is cut off.
///
/// # Errors
/// If the name is taken by an image that is whole or by the import of something else, or no pool has room.
pub fn import_image(draft: &mut Draft<'_>, author: &Author, wanted: &WantedImage) -> Result<(Image, Volume), Refusal> {
    let known = draft.named(Kind::Image, &wanted.name).and_then(|id| id.parse::<ImageId>().ok());
    match known.and_then(|id| draft.get::<Image>(id)).cloned() {
        Some(image) => go_on(draft, author, wanted, image),
        None => begin(draft, author, wanted),
    }
}

fn begin(draft: &mut Draft<'_>, author: &Author, wanted: &WantedImage) -> Result<(Image, Volume), Refusal> {
    let WantedImage { id, base, name, size, format, .. } = wanted;
    draft.claim(Kind::Image, name, id)?;
    let pool = place(draft, wanted)?;
    let named = wanted.pool.as_ref().map(|_| pool.meta.id);
    let spec = ImageSpec { size: *size, format: *format, pool: named, upload: 1, sha256: None };
    let image = Image::new(draft.new_meta(*id, name.clone()), spec, *base);
    let detail = format!("{size}, from {format}, in pool '{}'", pool.meta.name);
    let volume = add_base(draft, &image, *base, pool, ImageRole::Upload { upload: 1 })?;
    admit_writer(draft, &volume, wanted.writer);
    draft.put(image.clone());
    audit(draft, author, "image.import", Kind::Image, id, name, Some(detail));
    Ok((image, volume))
}

fn place(draft: &Draft<'_>, wanted: &WantedImage) -> Result<Pool, Refusal> {
    let room = disk_size(wanted.size)?;
    match &wanted.pool {
        Some(reference) => named_pool(draft, reference, room),
        None => roomiest_pool(draft, room),
    }
}

/// Another attempt at an import that did not come to its end.
fn go_on(
    draft: &mut Draft<'_>,
    author: &Author,
    wanted: &WantedImage,
    mut image: Image,
) -> Result<(Image, Volume), Refusal> {
    let name = image.meta.name.clone();
    if image.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Image, name });
    }
    if image.is_whole() {
        return Err(Refusal::NameTaken { kind: Kind::Image, name });
    }
    if (image.spec.size, image.spec.format) != (wanted.size, wanted.format) {
        return Err(Refusal::Precondition(format!(
            "the import of something else as '{name}' ({} bytes, from {}) was not finished: finish it, or have it thrown \
             away with `symphony ctl image remove {name}`",
            image.spec.size.as_u64(),
            image.spec.format
        )));
    }
    image.spec.upload = image.spec.upload.saturating_add(1);
    // What was written and turned out wrong is no beginning.
    image.status.uploaded = image.status.uploaded.filter(|_| image.spec.sha256.is_none());
    image.spec.sha256 = None;
    image.status.phase = Phase::Pending;
    image.status.message = None;
    image.meta.touch(draft.now);
    let role = ImageRole::Upload { upload: image.spec.upload };
    let volume = match image.status.bases.first().and_then(|id| draft.get::<Volume>(*id)).cloned() {
        Some(mut base) => {
            if let Some(reference) = &wanted.pool
                && !base.is_in(look_up::<Pool>(draft, reference)?.meta.id)
            {
                return Err(Refusal::Precondition(format!(
                    "image '{name}' was begun in another pool: go on without --pool, or remove it first"
                )));
            }
            base.spec.image = Some(Box::new(ImageTie { image: image.meta.id, role }));
            base.meta.touch(draft.now);
            base.status.phase = Phase::Pending;
            draft.put(base.clone());
            base
        }
        None => {
            let pool = place(draft, wanted)?;
            image.status.bases = vec![wanted.base];
            add_base(draft, &image, wanted.base, pool, role)?
        }
    };
    admit_writer(draft, &volume, wanted.writer);
    draft.put(image.clone());
    let detail = format!("attempt {}", image.spec.upload);
    audit(draft, author, "image.import", Kind::Image, image.meta.id, &name, Some(detail));
    Ok((image, volume))
}

/// A base of the image in a pool, its space promised. The caller writes the image's record.
fn add_base(
    draft: &mut Draft<'_>,
    image: &Image,
    id: VolumeId,
    mut pool: Pool,
    role: ImageRole,
) -> Result<Volume, Refusal> {
    let size = disk_size(image.spec.size)?;
    let name = Name::resembling(&format!("image-{id}"), "image");
    draft.claim(Kind::Volume, &name, id)?;
    let promised = promise_volume(&mut pool, size, ByteSize::ZERO)?;
    let replica = Replica { pool: pool.meta.id, service: pool.spec.service };
    draft.guard::<Service>(replica.service);
    let tie = Some(Box::new(ImageTie { image: image.meta.id, role }));
    let spec = VolumeSpec { image: tie, ..VolumeSpec::of_size(size) };
    let mut volume = Volume::new(draft.new_meta(id, name), spec, vec![replica]);
    volume.status.promised = Some(promised);
    draft.put(pool);
    draft.put(volume.clone());
    Ok(volume)
}

/// Lets a client of another host write to a base, and nobody who did so before.
fn admit_writer(draft: &mut Draft<'_>, base: &Volume, writer: Option<(ClientId, AttachmentId)>) {
    let client = writer.and_then(|(client, _)| draft.get::<Client>(client)).cloned();
    let mut there = false;
    for mut held in draft.attachments_to(base) {
        match &client {
            Some(client) if held.spec.client == client.meta.id && !held.meta.is_removed() => there = true,
            _ => drop(held.bury(draft.now).then(|| draft.put(held))),
        }
    }
    if let (Some(client), Some((_, id)), false) = (client, writer, there) {
        let name = Name::resembling(&format!("{}.{}", base.meta.name, client.meta.name), "attachment");
        let spec = AttachmentSpec {
            volume: base.meta.id,
            volume_name: base.meta.name.clone(),
            client: client.meta.id,
            client_name: client.meta.name,
            read_only: false,
            shared: true,
        };
        let services = base.status.placement.iter().map(|replica| replica.service).collect();
        draft.put(Attachment::new(draft.new_meta(id, name), spec, services));
    }
}

/// The image that an attempt to import it speaks of.
fn imported(draft: &Draft<'_>, reference: &str, upload: u64) -> Result<Image, Refusal> {
    let image = look_up::<Image>(draft, reference)?;
    let name = image.meta.name.clone();
    if image.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Image, name });
    }
    if image.spec.upload != upload {
        return Err(Refusal::Precondition(format!(
            "another import of image '{name}' has taken over: see `symphony ctl image get {name}`"
        )));
    }
    Ok(image)
}

/// Takes note of how far an import has come.
///
/// # Errors
/// If another attempt has taken over, or more is said to be there than there is to come.
pub fn record_upload(
    draft: &mut Draft<'_>,
    reference: &str,
    upload: u64,
    uploaded: Option<Uploaded>,
) -> Result<Image, Refusal> {
    let mut image = imported(draft, reference, upload)?;
    if let Some(uploaded) = uploaded.filter(|uploaded| uploaded.bytes > image.spec.size) {
        let (done, all) = (uploaded.bytes.as_u64(), image.spec.size.as_u64());
        return Err(Refusal::Invalid(format!("{done} bytes of an image of {all} cannot have arrived")));
    }
    if image.spec.sha256.is_none() && image.status.uploaded != uploaded {
        image.status.uploaded = uploaded;
        draft.put(image.clone());
    }
    Ok(image)
}

/// Ends an import: nobody writes to its base any more, and what is there is compared with `sha256`. Repeating it changes
/// nothing.
///
/// # Errors
/// If another attempt has taken over.
pub fn seal_image(
    draft: &mut Draft<'_>,
    author: &Author,
    reference: &str,
    upload: u64,
    sha256: Digest,
) -> Result<Image, Refusal> {
    let mut image = imported(draft, reference, upload)?;
    let name = image.meta.name.clone();
    match image.spec.sha256 {
        Some(sealed) if sealed == sha256 => return Ok(image),
        Some(_) => return Err(Refusal::Precondition(format!("image '{name}' was sealed with another checksum"))),
        None => {}
    }
    let base = image.status.bases.first().and_then(|id| draft.get::<Volume>(*id)).cloned();
    let Some(mut base) = base else {
        return Err(Refusal::Precondition(format!("what was sent of image '{name}' is lost: import it again")));
    };
    for mut held in draft.attachments_to(&base) {
        if held.bury(draft.now) {
            draft.put(held);
        }
    }
    image.spec.sha256 = Some(sha256);
    image.status.phase = Phase::Pending;
    image.status.message = None;
    image.meta.touch(draft.now);
    base.meta.touch(draft.now);
    let seal = Seal { length: image.spec.size, sha256, since: base.meta.generation };
    base.spec.image = Some(Box::new(ImageTie { image: image.meta.id, role: ImageRole::Sealed { seal } }));
    base.status.phase = Phase::Pending;
    draft.put(base);
    draft.put(image.clone());
    audit(draft, author, "image.seal", Kind::Image, image.meta.id, &name, Some(format!("sha256 {sha256}")));
    Ok(image)
}

/// Sets an image's tombstone and those of its bases. Volumes that were made of it stay.
///
/// # Errors
/// If there is no such image, or volumes are being made of it: they are named.
pub fn remove_image(draft: &mut Draft<'_>, author: &Author, reference: &str) -> Result<Image, Refusal> {
    let mut image = find::<Image>(draft, reference)?;
    let (id, name) = (image.meta.id, image.meta.name.clone());
    let waits = |volume: &&Volume| {
        let of = volume.spec.image.as_ref().is_some_and(|tie| tie.image == id && !tie.is_base());
        of && volume.status.size.is_none() && !volume.meta.is_removed()
    };
    let users: Vec<&str> = draft.all::<Volume>().filter(waits).map(|volume| volume.meta.name.as_str()).collect();
    if !users.is_empty() {
        let users = listed(&users);
        return Err(Refusal::Precondition(format!(
            "volumes {users} are being made of image '{name}': remove it once they are ready"
        )));
    }
    if !image.bury(draft.now) {
        return Ok(image);
    }
    for base in image.status.bases.clone() {
        let Some(mut base) = draft.get::<Volume>(base).cloned() else { continue };
        for mut held in draft.attachments_to(&base) {
            if held.bury(draft.now) {
                draft.put(held);
            }
        }
        base.bury(draft.now);
        draft.put(base);
    }
    audit(draft, author, "image.remove", Kind::Image, id, &name, None);
    match image.status.bases.is_empty() {
        true => forget_image(draft, &image),
        false => draft.put(image.clone()),
    }
    Ok(image)
}

fn forget_image(draft: &mut Draft<'_>, image: &Image) {
    draft.release(Kind::Image, &image.meta.name);
    draft.delete::<Image>(image.meta.id);
}

/// Takes note that a base is gone: an image that was to go is gone with its last one.
pub(super) fn forget_base(draft: &mut Draft<'_>, base: &Volume) {
    let image = base.base_of().and_then(|id| draft.get::<Image>(id)).cloned();
    let Some(mut image) = image else { return };
    image.status.bases.retain(|id| *id != base.meta.id);
    if image.meta.is_removed() && image.status.bases.is_empty() {
        return forget_image(draft, &image);
    }
    // One that was still to be fetched from this one is no help.
    let kept = image.status.bases.iter().filter_map(|id| draft.get::<Volume>(*id)).any(Volume::has_image);
    if !kept && (image.is_whole() || image.status.bases.is_empty()) && !image.meta.is_removed() {
        image.status.phase = Phase::Failed;
        image.status.uploaded = None;
        image.status.message = Some("what kept its content was taken out of the cluster: import it again".into());
    }
    draft.put(image);
}

/// Lets an image follow what was reported of a base.
pub(super) fn follow_base(draft: &mut Draft<'_>, base: &Volume) {
    let image = base.base_of().and_then(|id| draft.get::<Image>(id)).cloned();
    if let Some(mut image) = image
        && image.follow(base)
    {
        draft.put(image);
    }
}

/// Tells those who are yet to fetch from a service where it is now.
pub(super) fn follow_service(draft: &mut Draft<'_>, service: ServiceId, address: Option<&str>) {
    let outdated = |volume: &&Volume| {
        let supply = volume.supply();
        let away = supply.is_some_and(|it| it.service == service && it.address.as_deref() != address);
        away && volume.status.size.is_none() && !volume.is_on(service) && !volume.meta.is_removed()
    };
    let outdated: Vec<Volume> = draft.all::<Volume>().filter(outdated).take(TOLD_AT_ONCE).cloned().collect();
    for mut volume in outdated {
        if let Some(supply) = volume.supply_mut() {
            supply.address = address.map(str::to_owned);
        }
        volume.meta.touch(draft.now);
        draft.put(volume);
    }
}

/// The images whose bytes are kept in a pool or on a service, for a sentence; none: there are none.
pub(super) fn images_of<'v>(draft: &Draft<'_>, bases: impl Iterator<Item = &'v Volume>) -> Option<String> {
    let mut names: Vec<String> = bases
        .filter_map(Volume::base_of)
        .map(|id| draft.get::<Image>(id).map_or_else(|| id.to_string(), |image| image.meta.name.to_string()))
        .collect();
    names.sort();
    names.dedup();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    (!names.is_empty()).then(|| listed(&names))
}

/// Whether an image is kept elsewhere, too, and nobody is fetching it from this base.
pub(super) fn is_spare(draft: &Draft<'_>, base: &Volume) -> bool {
    let fetches = |volume: &Volume| {
        let supply = volume.spec.image.as_deref().and_then(ImageTie::supply);
        supply.is_some_and(|supply| supply.volume == base.meta.id) && volume.status.size.is_none()
    };
    let image = base.base_of().and_then(|id| draft.get::<Image>(id));
    image.is_some_and(|image| {
        let others = image.status.bases.iter().filter(|id| **id != base.meta.id);
        let whole = |other: &Volume| other.is_complete_base() && other.status.placement != base.status.placement;
        image.is_whole() && others.filter_map(|id| draft.get::<Volume>(*id)).any(whole)
    }) && !draft.all::<Volume>().any(fetches)
}

/// # Errors
/// If the volume belongs to an image: nobody does anything to it by itself.
pub(super) fn own_volume(draft: &Draft<'_>, volume: &Volume) -> Result<(), Refusal> {
    let Some(id) = volume.base_of() else { return Ok(()) };
    let name = draft.get::<Image>(id).map_or_else(|| id.to_string(), |image| image.meta.name.to_string());
    Err(Refusal::Precondition(format!(
        "volume '{}' keeps the content of image '{name}' and is no volume of its own: see `symphony ctl image get {name}`",
        volume.meta.name
    )))
}
