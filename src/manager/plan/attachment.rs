//! Attachments: who may use a volume.
//!
//! Whatever lets somebody use a volume writes the volume's record too, so that two managers that do so at once conflict,
//! and the later one judges anew.

use super::moving::settled;
use super::pool::listed;
use super::{find, resolve};
use crate::manager::audit::audit;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::manager::view::View;
use crate::model::{Attachment, AttachmentId, AttachmentSpec, Author, Client, ClientId, Kind, Name, ServiceId, Volume};
use std::collections::BTreeSet;

/// What a user asks of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// By id or name, as the client is.
    pub volume: String,
    pub client: String,
    pub read_only: bool,
    pub shared: bool,
}

/// Lets a client use a volume: alone, unless it is shared. Repeating it changes nothing.
///
/// # Errors
/// If volume or client do not live, the client is attached in another way, or others are in the way.
pub fn attach_volume(
    draft: &mut Draft<'_>,
    author: &Author,
    id: AttachmentId,
    access: &Access,
) -> Result<Attachment, Refusal> {
    let mut volume = find::<Volume>(draft, &access.volume)?;
    let mut client = find::<Client>(draft, &access.client)?;
    if volume.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Volume, name: volume.meta.name });
    }
    if client.meta.is_removed() {
        let name = client.meta.name;
        return Err(Refusal::Precondition(format!("client '{name}' was removed: its certificate is void")));
    }
    settled(draft, &volume)?;
    know_all_attachments(draft)?;
    let held = draft.attachments_to(&volume);
    if let Some(own) = held.iter().find(|held| held.spec.client == client.meta.id) {
        return same_again(own, access).map(|()| own.clone());
    }
    make_way(&volume, &held, access.shared)?;
    let spec = AttachmentSpec {
        volume: volume.meta.id,
        volume_name: volume.meta.name.clone(),
        client: client.meta.id,
        client_name: client.meta.name.clone(),
        read_only: access.read_only,
        shared: access.shared,
    };
    let detail = format!("{}, {}", spec.access(), spec.mode());
    let services: BTreeSet<ServiceId> = volume.status.placement.iter().map(|replica| replica.service).collect();
    let name = Name::resembling(&format!("{}.{}", spec.volume_name, spec.client_name), "attachment");
    let attachment = Attachment::new(draft.new_meta(id, name), spec, services.into_iter().collect());
    // Both are written, so that whoever attaches or removes them at the same time comes into conflict.
    client.meta.updated_at = draft.now;
    draft.put(client);
    volume.meta.updated_at = draft.now;
    draft.put(volume);
    draft.put(attachment.clone());
    audit(draft, author, "attachment.create", Kind::Attachment, id, &attachment.label(), Some(detail));
    Ok(attachment)
}

/// Whether the client's present attachment is what is asked for.
fn same_again(own: &Attachment, access: &Access) -> Result<(), Refusal> {
    let AttachmentSpec { volume_name, client_name, read_only, shared, .. } = &own.spec;
    if own.meta.is_removed() {
        return Err(Refusal::Precondition(format!(
            "client '{client_name}' is still being detached from volume '{volume_name}': attach it once `symphony ctl \
             attachment list` does not show it any more"
        )));
    }
    if (*read_only, *shared) == (access.read_only, access.shared) {
        return Ok(());
    }
    Err(Refusal::Precondition(format!(
        "client '{client_name}' is attached to volume '{volume_name}' already, {} and {}: to change that, detach it first \
         with `symphony ctl volume detach {volume_name} --client {client_name}`",
        own.spec.access(),
        own.spec.mode()
    )))
}

/// Whether one more client may use the volume beside those that do.
fn make_way(volume: &Volume, held: &[Attachment], shared: bool) -> Result<(), Refusal> {
    let name = &volume.meta.name;
    let refuse = |text: String| Err(Refusal::Precondition(text));
    let detach = |held: &Attachment| format!("`symphony ctl volume detach {name} --client {}`", held.spec.client_name);
    if let Some(alone) = held.iter().find(|held| !held.spec.shared) {
        let client = &alone.spec.client_name;
        return refuse(match alone.meta.is_removed() {
            false => {
                format!("client '{client}' has volume '{name}' for itself: detach it first with {}", detach(alone))
            }
            true => format!(
                "client '{client}' had volume '{name}' for itself and is still being detached: try again once `symphony \
                 ctl attachment list` does not show it any more"
            ),
        });
    }
    match held.first() {
        Some(first) if !shared => refuse(format!(
            "volume '{name}' is attached to {}: attach with --shared, or detach them first, as with {}",
            clients(held),
            detach(first)
        )),
        _ => Ok(()),
    }
}

/// The clients of attachments, for a sentence.
pub(super) fn clients(held: &[Attachment]) -> String {
    listed(&held.iter().map(|held| held.spec.client_name.as_str()).collect::<Vec<_>>())
}

/// # Errors
/// If some attachments cannot be read: then it is not known who uses what.
pub(super) fn know_all_attachments(draft: &Draft<'_>) -> Result<(), Refusal> {
    if draft.view().knows_all_attachments() {
        return Ok(());
    }
    let text = "some attachments in the store cannot be read, so it is not known who uses the volume: see `symphony ctl \
                check`";
    Err(Refusal::Precondition(text.into()))
}

/// Sets the tombstone of a client's attachment. It goes once every service that lets the client in has cut it off.
///
/// # Errors
/// If the client is not attached to the volume.
pub fn detach_volume(
    draft: &mut Draft<'_>,
    author: &Author,
    volume: &str,
    client: &str,
) -> Result<Attachment, Refusal> {
    let volume = find::<Volume>(draft, volume)?;
    let mut held = draft.attachments_to(&volume);
    held.retain(|held| is_of(held, client));
    // A client's name may have passed to another one while the former is still being cut off.
    held.sort_by_key(|held| held.meta.is_removed());
    let missing = || {
        let (name, client) = (&volume.meta.name, client.chars().take(80).collect::<String>());
        Refusal::NoSuch { kind: Kind::Attachment, reference: format!("{name}/{client}") }
    };
    let mut held = held.into_iter().next().ok_or_else(missing)?;
    if held.bury(draft.now) {
        draft.put(held.clone());
        audit(draft, author, "attachment.remove", Kind::Attachment, held.meta.id, &held.label(), None);
    }
    Ok(held)
}

/// The attachment that a user means by its id or by `volume/client`, as the view shows it.
pub fn resolve_attachment(view: &View, reference: &str) -> Option<AttachmentId> {
    let Some((volume, client)) = reference.split_once('/') else {
        let id = reference.parse().ok()?;
        return view.get::<Attachment>(id).map(|held| held.meta.id);
    };
    let volume = view.get::<Volume>(resolve::<Volume>(view, volume)?)?;
    let services = volume.status.placement.iter().map(|replica| replica.service);
    let held = services.flat_map(|service| view.attachments_of(service));
    let named = held.filter(|held| held.spec.volume == volume.meta.id && is_of(held, client));
    named.min_by_key(|held| held.meta.is_removed()).map(|held| held.meta.id)
}

/// Whether an attachment is the client's, which is given by name or id.
fn is_of(held: &Attachment, client: &str) -> bool {
    held.spec.client_name.as_str() == client || held.spec.client.to_string() == client
}

/// Attachments whose tombstones are set in one transaction, with room beside them for what ends them.
const BURIED_AT_ONCE: usize = 50;

/// Sets the tombstones of a client's attachments, a part at a time; false while there are more.
pub fn bury_attachments_of(draft: &mut Draft<'_>, author: &Author, client: ClientId) -> bool {
    let live = |held: &&Attachment| held.spec.client == client && !held.meta.is_removed();
    let held: Vec<Attachment> = draft.all::<Attachment>().filter(live).take(BURIED_AT_ONCE + 1).cloned().collect();
    let all = held.len() <= BURIED_AT_ONCE;
    for mut held in held.into_iter().take(BURIED_AT_ONCE) {
        held.bury(draft.now);
        audit(draft, author, "attachment.remove", Kind::Attachment, held.meta.id, &held.label(), None);
        draft.put(held);
    }
    all
}
