//! Snapshots: taken of volumes, one or several at an instant; volumes put back to them.
//!
//! Whatever depends on a volume writes the volume's record too, so that a manager that removes it at the same time comes
//! into conflict.

use super::attachment::know_all_attachments;
use super::copying::uncopied;
use super::moving::settled;
use super::volume::{detached, pool_of, promise};
use super::{find, look_up};
use crate::manager::audit::audit;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::model::{
    Author, ByteSize, Driver, Kind, Name, Phase, Pool, Revert, Room, Snapshot, SnapshotId, SnapshotMember,
    SnapshotSpec, Source, Volume,
};
use std::collections::BTreeSet;

/// The most snapshots that are taken at one instant: their exports are held still together.
const MOST_AT_ONCE: usize = 32;

/// One of the snapshots that a user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedSnapshot {
    pub id: SnapshotId,
    pub name: Name,
    /// By id or name.
    pub volume: String,
}

/// Snapshots that are all taken at the same instant, their space promised: in pools of the driver `lvm` the room for
/// changes that the words ask for, or what is usual.
///
/// # Errors
/// If a name is taken, a volume is not ready, the volumes are on different services, or room is asked for where snapshots
/// have none of their own: then none is made.
pub fn create_snapshots(
    draft: &mut Draft<'_>,
    author: &Author,
    wanted: &[WantedSnapshot],
    room: Option<Room>,
) -> Result<Vec<Snapshot>, Refusal> {
    if wanted.is_empty() || wanted.len() > MOST_AT_ONCE {
        let text =
            format!("1 to {MOST_AT_ONCE} volumes can be taken snapshots of at one instant, not {}", wanted.len());
        return Err(Refusal::Invalid(text));
    }
    let volumes: Vec<Volume> = wanted.iter().map(|one| usable(draft, &one.volume)).collect::<Result<_, _>>()?;
    let ids: BTreeSet<_> = volumes.iter().map(|volume| volume.meta.id).collect();
    if ids.len() < volumes.len() {
        return Err(Refusal::Invalid(
            "a volume is named twice: one snapshot of it is all there is at one instant".into(),
        ));
    }
    let services: BTreeSet<_> =
        volumes.iter().flat_map(|volume| volume.status.placement.iter().map(|replica| replica.service)).collect();
    if services.len() > 1 {
        return Err(Refusal::Precondition(
            "the volumes are on different block services, which cannot hold still at the same instant: take their \
             snapshots one by one"
                .into(),
        ));
    }
    if let Some(fault) = room.and_then(Room::fault) {
        return Err(Refusal::Invalid(fault));
    }
    let set = set_of(draft, wanted, &volumes, room)?;
    let mut made = Vec::new();
    for (WantedSnapshot { id, name, .. }, mut volume) in wanted.iter().zip(volumes) {
        draft.claim(Kind::Snapshot, name, id)?;
        let (mut promised, mut fitted) = (volume.spec.size, None);
        for replica in &volume.status.placement {
            let mut pool = pool_of(draft, replica.pool)?;
            fitted = fit_room(&pool, room, &volume)?;
            fit_pool(&pool)?;
            promised = fitted.unwrap_or(volume.spec.size);
            promise(&mut pool, promised)?;
            draft.put(pool);
        }
        let (of, volume_name) = (volume.meta.id, volume.meta.name.clone());
        let spec = SnapshotSpec { volume: of, volume_name, set: set.clone(), room, wipe: false };
        let placement = volume.status.placement.clone();
        let mut snapshot = Snapshot::new(draft.new_meta(*id, name.clone()), spec, placement, promised);
        snapshot.status.room = fitted;
        let with = fitted.map(|room| format!(", with {room} for changes")).unwrap_or_default();
        let detail = format!("of volume '{}'{with}", volume.meta.name);
        volume.meta.updated_at = draft.now;
        draft.put(volume);
        draft.put(snapshot.clone());
        audit(draft, author, "snapshot.create", Kind::Snapshot, id, name, Some(detail));
        made.push(snapshot);
    }
    Ok(made)
}

/// All that are taken at one instant; one alone needs no list.
fn set_of(
    draft: &Draft<'_>,
    wanted: &[WantedSnapshot],
    volumes: &[Volume],
    room: Option<Room>,
) -> Result<Vec<SnapshotMember>, Refusal> {
    let mut set = Vec::new();
    if wanted.len() == 1 {
        return Ok(set);
    }
    for (one, volume) in wanted.iter().zip(volumes) {
        let Some(replica) = volume.status.placement.first() else { continue };
        let room = fit_room(&pool_of(draft, replica.pool)?, room, volume)?;
        let (snapshot, name) = (one.id, one.name.clone());
        set.push(SnapshotMember { snapshot, name, volume: volume.meta.id, pool: replica.pool, room });
    }
    Ok(set)
}

/// What a snapshot of the volume has for changes; none where it takes its space as they come.
///
/// # Errors
/// If room is asked for there.
fn fit_room(pool: &Pool, words: Option<Room>, volume: &Volume) -> Result<Option<ByteSize>, Refusal> {
    let room = pool.room(words, volume.spec.size);
    if let (None, Some(words)) = (room, words) {
        return Err(Refusal::Invalid(format!(
            "pool '{}' is of driver {}, where a snapshot takes space as its volume changes: a room of {words} can be set aside \
             only in pools of driver lvm",
            pool.meta.name, pool.spec.driver
        )));
    }
    Ok(room)
}

/// A volume that has bytes and is not going.
fn usable(draft: &Draft<'_>, reference: &str) -> Result<Volume, Refusal> {
    let volume = look_up::<Volume>(draft, reference)?;
    let name = volume.meta.name.clone();
    if volume.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Volume, name });
    }
    if volume.status.size.is_none() {
        return Err(Refusal::Precondition(format!(
            "volume '{name}' has not been made yet: see `symphony ctl volume get {name}`"
        )));
    }
    settled(draft, &volume)?;
    Ok(volume)
}

/// Sets a snapshot's tombstone. With `wipe` what its room holds is overwritten before that is given back; `Some(false)` gives up
/// on that where it was asked for before.
///
/// # Errors
/// If there is no such snapshot, or volumes are being made from it or put back to it: they are named. If it cannot be wiped, or
/// its removal has begun without that.
pub fn remove_snapshot(
    draft: &mut Draft<'_>,
    author: &Author,
    reference: &str,
    wipe: Option<bool>,
) -> Result<Snapshot, Refusal> {
    let mut snapshot = find::<Snapshot>(draft, reference)?;
    let (id, name) = (snapshot.meta.id, snapshot.meta.name.clone());
    if wipe == Some(true) && !snapshot.spec.wipe {
        check_wipe(draft, &snapshot)?;
    }
    if let Some(user) = user_of(draft, &snapshot).filter(|_| !snapshot.meta.is_removed()) {
        return Err(Refusal::Precondition(format!(
            "snapshot '{name}' is still being copied for volume '{user}': remove it once that volume is ready"
        )));
    }
    if snapshot.bury(draft.now) {
        snapshot.spec.wipe = wipe.unwrap_or_default();
        draft.put(snapshot.clone());
        let detail = snapshot.spec.wipe.then(|| "what its room holds is overwritten first".to_owned());
        audit(draft, author, "snapshot.remove", Kind::Snapshot, id, &name, detail);
    } else if wipe == Some(false) && snapshot.spec.wipe {
        snapshot.spec.wipe = false;
        snapshot.meta.touch(draft.now);
        (snapshot.status.message, snapshot.status.progress) = (None, None);
        draft.put(snapshot.clone());
        let detail = Some("what its room holds is overwritten no longer".to_owned());
        audit(draft, author, "snapshot.remove", Kind::Snapshot, id, &name, detail);
    }
    Ok(snapshot)
}

/// # Errors
/// If there is no room of its own to overwrite, or it is too late.
fn check_wipe(draft: &Draft<'_>, snapshot: &Snapshot) -> Result<(), Refusal> {
    let name = &snapshot.meta.name;
    if snapshot.meta.is_removed() {
        return Err(Refusal::Precondition(format!(
            "the removal of snapshot '{name}' has begun without overwriting it: its room may have been given back already"
        )));
    }
    for replica in &snapshot.status.placement {
        let pool = pool_of(draft, replica.pool)?;
        let why = match pool.spec.driver {
            Driver::Lvm(_) => continue,
            Driver::LvmThin(_) => {
                "a snapshot has no room of its own, and a thin pool zeroes what it gives to another volume"
            }
            Driver::File { .. } => {
                "a snapshot shares its blocks with its volume and copies, and a file system may keep what was there elsewhere"
            }
        };
        return Err(Refusal::Precondition(format!(
            "snapshot '{name}' is in pool '{}' of driver {}, where overwriting promises nothing: {why}; remove it without --wipe",
            pool.meta.name, pool.spec.driver
        )));
    }
    Ok(())
}

/// A volume whose bytes are still to come from the snapshot.
fn user_of(draft: &Draft<'_>, snapshot: &Snapshot) -> Option<Name> {
    let id = snapshot.meta.id;
    let waits = |volume: &&Volume| {
        let made = volume.status.size.is_some();
        let from = volume.spec.source == Some(Source::Snapshot(id)) && !made;
        let back = volume.spec.revert.is_some_and(|revert| {
            revert.to == id && (volume.status.observed_generation < revert.since || volume.status.phase != Phase::Ready)
        });
        !volume.meta.is_removed() && (from || back)
    };
    draft.all::<Volume>().find(waits).map(|volume| volume.meta.name.clone())
}

/// Puts a volume's bytes back to those of one of its snapshots.
///
/// # Errors
/// If the snapshot is not this volume's or not taken yet, the sizes differ, or somebody is attached.
pub fn revert_volume(
    draft: &mut Draft<'_>,
    author: &Author,
    reference: &str,
    snapshot: &str,
) -> Result<Volume, Refusal> {
    let mut volume = usable(draft, reference)?;
    let mut snapshot = find::<Snapshot>(draft, snapshot)?;
    let (name, of) = (volume.meta.name.clone(), snapshot.meta.name.clone());
    if snapshot.spec.volume != volume.meta.id {
        let other = &snapshot.spec.volume_name;
        return Err(Refusal::Precondition(format!("snapshot '{of}' is one of volume '{other}', not of '{name}'")));
    }
    fit_source(&snapshot)?;
    know_all_attachments(draft)?;
    detached(draft, &volume)?;
    // Somebody may have asked for a copy of what is to go.
    uncopied(draft, &volume, "revert")?;
    if snapshot.status.size != Some(volume.spec.size) {
        let was = snapshot.status.size.unwrap_or_default();
        return Err(Refusal::Precondition(format!(
            "volume '{name}' is {} now and was {was} when snapshot '{of}' was taken: make a volume of it instead, with \
             `symphony ctl volume create … --from-snapshot {of}`",
            volume.spec.size
        )));
    }
    volume.meta.touch(draft.now);
    volume.spec.revert = Some(Revert { to: snapshot.meta.id, since: volume.meta.generation });
    volume.status.phase = Phase::Pending;
    snapshot.meta.updated_at = draft.now;
    draft.put(snapshot);
    draft.put(volume.clone());
    audit(draft, author, "volume.revert", Kind::Volume, volume.meta.id, &name, Some(format!("to snapshot '{of}'")));
    Ok(volume)
}

/// # Errors
/// If the pool cannot make copies that share what they have in common.
pub(super) fn fit_pool(pool: &Pool) -> Result<(), Refusal> {
    if pool.status.copies != Some(false) {
        return Ok(());
    }
    Err(Refusal::Precondition(format!(
        "pool '{}' is on a file system that cannot share blocks between files, so there are no snapshots and copies in \
         it: XFS and btrfs can",
        pool.meta.name
    )))
}

/// # Errors
/// If nothing can be copied from the snapshot.
pub(super) fn fit_source(snapshot: &Snapshot) -> Result<(), Refusal> {
    let name = snapshot.meta.name.clone();
    if snapshot.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Snapshot, name });
    }
    if snapshot.status.spoilt {
        return Err(Refusal::Precondition(format!(
            "snapshot '{name}' is spoilt: more of volume '{}' was changed than it had room for; remove it with `symphony ctl \
             snapshot remove {name}`",
            snapshot.spec.volume_name
        )));
    }
    if !snapshot.is_taken() {
        return Err(Refusal::Precondition(format!(
            "snapshot '{name}' has not been taken yet: see `symphony ctl snapshot get {name}`"
        )));
    }
    Ok(())
}

/// Takes a snapshot that its block service has let go of out of the state: record, name and promised space.
pub(super) fn forget_snapshot(draft: &mut Draft<'_>, snapshot: &Snapshot) {
    for replica in &snapshot.status.placement {
        if let Some(mut pool) = draft.get::<Pool>(replica.pool).cloned() {
            pool.status.reserved = pool.status.reserved.saturating_sub(snapshot.status.promised);
            draft.put(pool);
        }
    }
    draft.release(Kind::Snapshot, &snapshot.meta.name);
    draft.delete::<Snapshot>(snapshot.meta.id);
}
