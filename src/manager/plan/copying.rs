//! What volumes are copied from, and what must not happen to it until they are.

use super::find;
use super::moving::settled;
use super::pool::listed;
use super::snapshot::fit_source;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::model::{ByteSize, Kind, Name, PoolId, Snapshot, Source, Volume, VolumeId};

/// What a user wants a volume to be made from, by id or name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Snapshot(String),
    Volume(String),
    Image {
        reference: String,
        /// The volume that keeps the image's bytes in the pool from then on, if there is none yet.
        base: VolumeId,
    },
}

/// An origin that can be copied from.
pub(super) struct Copyable {
    pub source: Source,
    pub size: ByteSize,
    /// Where the copy can be made: only beside the origin.
    pub pool: PoolId,
    /// For the record.
    pub text: String,
}

/// An origin as it stands; its record is written too, so that it cannot be removed at the same time.
///
/// # Errors
/// If it is going, or has no bytes yet.
pub(super) fn copyable(draft: &mut Draft<'_>, origin: &Origin) -> Result<Option<Copyable>, Refusal> {
    let text = |kind: Kind, name: &Name| format!("{kind} '{name}'");
    let unplaced = |text: &str| Refusal::Precondition(format!("{text} is nowhere"));
    match origin {
        Origin::Snapshot(reference) => {
            let mut snapshot = find::<Snapshot>(draft, reference)?;
            fit_source(&snapshot)?;
            let text = text(Kind::Snapshot, &snapshot.meta.name);
            let pool = snapshot.status.placement.first().ok_or_else(|| unplaced(&text))?.pool;
            let (source, size) = (Source::Snapshot(snapshot.meta.id), snapshot.status.size.unwrap_or_default());
            snapshot.meta.updated_at = draft.now;
            draft.put(snapshot);
            Ok(Some(Copyable { source, size, pool, text }))
        }
        Origin::Volume(reference) => {
            let mut volume = find::<Volume>(draft, reference)?;
            let name = volume.meta.name.clone();
            if volume.meta.is_removed() {
                return Err(Refusal::Removing { kind: Kind::Volume, name });
            }
            settled(draft, &volume)?;
            let text = text(Kind::Volume, &name);
            let made = volume.status.size.ok_or_else(|| {
                Refusal::Precondition(format!("{text} has not been made yet: see `symphony ctl volume get {name}`"))
            })?;
            // While it grows or shrinks it may have either size when it is copied.
            let size = volume.spec.size.max(made);
            let pool = volume.status.placement.first().ok_or_else(|| unplaced(&text))?.pool;
            let source = Source::Volume(volume.meta.id);
            volume.meta.updated_at = draft.now;
            draft.put(volume);
            Ok(Some(Copyable { source, size, pool, text }))
        }
        Origin::Image { .. } => Ok(None),
    }
}

/// # Errors
/// If copies of the volume are still being made, which need it as it is: they are named.
pub(super) fn uncopied(draft: &Draft<'_>, volume: &Volume, wanted: &str) -> Result<(), Refusal> {
    let of_it = |it: &&Volume| it.spec.source == Some(Source::Volume(volume.meta.id)) && it.status.size.is_none();
    let copies: Vec<&str> = draft.all::<Volume>().filter(of_it).map(|copy| copy.meta.name.as_str()).collect();
    if copies.is_empty() {
        return Ok(());
    }
    let (name, copies) = (&volume.meta.name, listed(&copies));
    Err(Refusal::Precondition(format!(
        "volume '{name}' is still being copied for {copies}: {wanted} it once they are ready"
    )))
}
