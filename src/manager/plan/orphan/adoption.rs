//! Adoption: an orphan becomes an object of the cluster again, under its own id, with what its disk says of it.

use super::{Draft, Refusal, Sighting, as_shown, audit, check_free, home, is_base_name, not_found, standing, unowned};
use crate::model::*;
use crate::store::MAX_TXN_OPS;

/// Operations that one plan takes of a transaction.
const ROOM: usize = MAX_TXN_OPS - 28;
/// What a volume takes of them: its record, its name, the entry in the record of changes.
const EACH_VOLUME: usize = 3;
/// And a snapshot: its record and its name.
const EACH_SNAPSHOT: usize = 2;

/// What an operator wants an orphan to be.
#[derive(Clone, Debug, Default)]
pub struct Adoption {
    /// Absent: what it is called on its disk.
    pub name: Option<Name>,
    /// A name that is taken is replaced by one that is not.
    pub rename: bool,
    /// What was shown; absent: whatever there is.
    pub shown: Option<Generation>,
}

/// What came of an adoption.
#[derive(Clone, Debug)]
pub struct Adopted {
    pub objects: Vec<Object>,
    /// What came back under another name or not at all, each a sentence.
    pub remarks: Vec<String>,
    /// As it was written.
    pub pool: Pool,
}

/// A pool that this cluster or another one has lost. What is in it stays orphans.
///
/// # Errors
/// If it is no orphan, cannot be looked at, its name is taken, or its place is another pool's.
pub fn adopt_pool(
    draft: &mut Draft<'_>,
    author: &Author,
    sighting: &Sighting,
    id: PoolId,
    wanted: &Adoption,
) -> Result<Adopted, Refusal> {
    let found = sighting.pool(id).ok_or_else(|| not_found(id))?;
    unowned::<Pool>(draft, Kind::Pool, id)?;
    sighting.still_holds(draft, id)?;
    as_shown(Kind::Pool, OrphanId::Pool(id), wanted.shown, found.told)?;
    let place = found.place.as_ref().ok_or_else(|| not_found(id))?;
    if let Some(failure) = &found.failure {
        return Err(Refusal::Precondition(format!("pool {id} cannot be looked at: {failure}")));
    }
    member(draft, sighting.service)?;
    let mut remarks = Vec::new();
    let name = claim(draft, Kind::Pool, &place.name, id, wanted, &mut remarks)?;
    check_free(draft, sighting.service, &place.driver)?;
    let own = draft.view().cluster.as_ref().map(|cluster| cluster.meta.id);
    let formerly = Some(place.cluster).filter(|cluster| Some(*cluster) != own);
    let spec =
        PoolSpec { service: sighting.service, driver: place.driver.clone(), rules: PoolRules::default(), formerly };
    let mut pool = Pool::new(Meta::new(id, name.clone(), draft.now), spec);
    pool.meta.generation = found.told.next();
    // It was made once: a place without it is an error from now on, never a fresh start.
    pool.status.capacity = Some(ByteSize::ZERO);
    pool.status.used = Some(ByteSize::ZERO);
    // A service that is removed meanwhile must not end up with a pool.
    draft.guard::<Service>(sighting.service);
    draft.put(pool.clone());
    let from = formerly.map(|cluster| format!(", from cluster {cluster}")).unwrap_or_default();
    let detail = format!("{} at {} on service {}{from}", place.driver, place.driver.place(), sighting.service);
    audit(draft, author, "pool.adopt", Kind::Pool, id, &name, Some(detail));
    Ok(Adopted { objects: vec![Object::Pool(pool.clone())], remarks, pool })
}

/// A volume with the snapshots that were taken of it, or the first of very many: the rest are adopted by themselves.
///
/// # Errors
/// If it is no orphan, damaged, not whole, its name is taken, or its pool is an orphan itself.
pub fn adopt_volume(
    draft: &mut Draft<'_>,
    author: &Author,
    sighting: &Sighting,
    id: VolumeId,
    wanted: &Adoption,
) -> Result<Adopted, Refusal> {
    let found = sighting.volume(id).ok_or_else(|| not_found(id))?;
    sighting.still_holds(draft, found.pool)?;
    take_volume(draft, author, sighting, found, wanted, (ROOM - EACH_VOLUME) / EACH_SNAPSHOT)
}

/// A snapshot of a volume that belongs to the cluster.
///
/// # Errors
/// If it is no orphan, damaged, its name is taken, or its volume is not there.
pub fn adopt_snapshot(
    draft: &mut Draft<'_>,
    author: &Author,
    sighting: &Sighting,
    id: SnapshotId,
    wanted: &Adoption,
) -> Result<Adopted, Refusal> {
    let found = sighting.snapshot(id).ok_or_else(|| not_found(id))?;
    unowned::<Snapshot>(draft, Kind::Snapshot, id)?;
    sighting.still_holds(draft, found.pool)?;
    as_shown(Kind::Snapshot, OrphanId::Snapshot(id), wanted.shown, found.told)?;
    let mut pool = home(draft, sighting, found.pool)?;
    let volume = draft.get::<Volume>(found.volume).filter(|volume| volume.is_in(found.pool)).cloned();
    let Some(mut volume) = volume else {
        let of = found.volume;
        return Err(Refusal::Precondition(match sighting.volume(of) {
            Some(_) => format!(
                "its volume {of} is an orphan, too: adopt that with `symphony ctl orphans adopt {of}`, and its snapshots \
                 come with it"
            ),
            None => format!("its volume {of} is not there any more, so nothing can be made of the snapshot here"),
        }));
    };
    if volume.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Volume, name: volume.meta.name });
    }
    let mut remarks = Vec::new();
    let snapshot = take_snapshot(draft, &mut pool, &volume, found, wanted, &mut remarks)?;
    // Whoever removes the volume at the same time is to see it.
    volume.meta.updated_at = draft.now;
    draft.put(volume);
    draft.put(pool.clone());
    let name = snapshot.meta.name.clone();
    audit(draft, author, "snapshot.adopt", Kind::Snapshot, id, &name, None);
    Ok(Adopted { objects: vec![Object::Snapshot(snapshot)], remarks, pool })
}

/// As many of a pool's volumes, each with its snapshots, as fit into a transaction; how many of them are done with. One
/// that cannot be adopted is named and passed over. Names that are taken are replaced.
///
/// # Errors
/// If the pool is not the cluster's.
pub fn adopt_some(
    draft: &mut Draft<'_>,
    author: &Author,
    sighting: &Sighting,
    pool: PoolId,
    volumes: &[VolumeId],
) -> Result<(Adopted, usize), Refusal> {
    sighting.still_holds(draft, pool)?;
    let wanted = Adoption { rename: true, ..Adoption::default() };
    let mut all = Adopted { objects: Vec::new(), remarks: Vec::new(), pool: home(draft, sighting, pool)? };
    let (mut left, mut done) = (ROOM, 0);
    for id in volumes {
        let Some(found) = sighting.volume(*id).filter(|found| found.pool == pool) else {
            done += 1;
            continue;
        };
        let snapshots = sighting.inventory.snapshots.iter().filter(|snapshot| snapshot.volume == *id).count();
        if left < EACH_VOLUME + EACH_SNAPSHOT * snapshots && done > 0 {
            break;
        }
        let savepoint = draft.savepoint();
        let room = left.saturating_sub(EACH_VOLUME) / EACH_SNAPSHOT;
        match take_volume(draft, author, sighting, found, &wanted, room) {
            Ok(one) => {
                left = left.saturating_sub(EACH_VOLUME + EACH_SNAPSHOT * one.objects.len().saturating_sub(1));
                all.objects.extend(one.objects);
                all.remarks.extend(one.remarks);
                all.pool = one.pool;
            }
            Err(refusal) => {
                draft.undo_to(savepoint);
                all.remarks.push(format!("volume {id} ('{}') stays an orphan: {refusal}", found.name));
            }
        }
        done += 1;
    }
    Ok((all, done))
}

fn take_volume(
    draft: &mut Draft<'_>,
    author: &Author,
    sighting: &Sighting,
    found: &InventoryVolume,
    wanted: &Adoption,
    snapshots: usize,
) -> Result<Adopted, Refusal> {
    let id = found.id;
    unowned::<Volume>(draft, Kind::Volume, id)?;
    as_shown(Kind::Volume, OrphanId::Volume(id), wanted.shown, found.latest())?;
    match standing(found) {
        OrphanStanding::Whole | OrphanStanding::ImageBase => {}
        OrphanStanding::Unfinished => {
            let text = format!("volume {id} never came to be, or is half destroyed: there is nothing to adopt in it");
            return Err(Refusal::Precondition(text));
        }
        OrphanStanding::Damaged(why) => return Err(Refusal::Precondition(format!("volume {id} is damaged: {why}"))),
    }
    if let Some(fault) = VolumeSpec::fault_of_size(found.size) {
        return Err(Refusal::Precondition(format!("volume {id} cannot be adopted: {fault}")));
    }
    let mut pool = home(draft, sighting, found.pool)?;
    let mut remarks = Vec::new();
    let name = claim(draft, Kind::Volume, &found.name, id, wanted, &mut remarks)?;
    // As the disk has it, unless something else is said of it, or was said to the service, than the disk knows.
    let same = name.as_str() == found.name && found.told == Generation::default();
    let generation = if same { found.generation.max(Generation::FIRST) } else { found.latest().next() };
    let spec = VolumeSpec::of_size(found.size);
    let replica = Replica { pool: pool.meta.id, service: pool.spec.service };
    let mut volume = Volume::new(Meta::new(id, name.clone(), draft.now), spec, vec![replica]);
    volume.meta.generation = generation;
    // It held bytes once: that they are missing is an error from now on, never a fresh start.
    volume.status.size = Some(found.size);
    volume.status.promised = Some(pool.takes(found.size));
    pool.status.reserved = pool.status.reserved.saturating_add(volume.promised());
    draft.put(volume.clone());
    let mut objects = vec![Object::Volume(volume.clone())];
    let of_it = sighting.inventory.snapshots.iter().filter(|snapshot| {
        let orphan = draft.get::<Snapshot>(snapshot.id).is_none();
        snapshot.volume == id && snapshot.pool == found.pool && orphan
    });
    let of_it: Vec<&InventorySnapshot> = of_it.collect();
    for found in of_it.into_iter().take(snapshots) {
        let wanted = Adoption { rename: wanted.rename, ..Adoption::default() };
        match take_snapshot(draft, &mut pool, &volume, found, &wanted, &mut remarks) {
            Ok(snapshot) => objects.push(Object::Snapshot(snapshot)),
            // All of it or nothing, but for what no repetition would mend.
            Err(refusal @ Refusal::NameTaken { .. }) => {
                return Err(Refusal::Precondition(format!(
                    "its snapshot {}: {refusal}, or have such names replaced with --rename",
                    found.id
                )));
            }
            Err(refusal) => remarks.push(format!("snapshot {} stays an orphan: {refusal}", found.id)),
        }
    }
    draft.put(pool.clone());
    let base = if is_base_name(found) { ", which kept an image's content" } else { "" };
    let snapshots = match objects.len() - 1 {
        0 => String::new(),
        1 => " with a snapshot".to_owned(),
        many => format!(" with {many} snapshots"),
    };
    let detail = format!("{}{snapshots} in pool '{}'{base}", found.size, pool.meta.name);
    audit(draft, author, "volume.adopt", Kind::Volume, id, &name, Some(detail));
    Ok(Adopted { objects, remarks, pool })
}

/// The caller writes the pool.
fn take_snapshot(
    draft: &mut Draft<'_>,
    pool: &mut Pool,
    volume: &Volume,
    found: &InventorySnapshot,
    wanted: &Adoption,
    remarks: &mut Vec<String>,
) -> Result<Snapshot, Refusal> {
    if let Some(damage) = &found.damage {
        return Err(Refusal::Precondition(format!("it is damaged: {damage}")));
    }
    let name = claim(draft, Kind::Snapshot, &found.name, found.id, wanted, remarks)?;
    let (of, volume_name) = (volume.meta.id, volume.meta.name.clone());
    let spec = SnapshotSpec { volume: of, volume_name, set: Vec::new(), room: None, wipe: false };
    let meta = Meta::new(found.id, name, draft.now);
    // What it has, whatever would be usual now: that much of the pool is taken.
    let room = pool.room(None, volume.spec.size).map(|usual| found.room.unwrap_or(usual));
    let promised = room.unwrap_or(found.size);
    let mut snapshot = Snapshot::new(meta, spec, volume.status.placement.clone(), promised);
    snapshot.status.room = room;
    snapshot.meta.generation = found.told.next();
    snapshot.status.size = Some(found.size);
    snapshot.status.taken_at = Some(found.at);
    pool.status.reserved = pool.status.reserved.saturating_add(promised);
    draft.put(snapshot.clone());
    Ok(snapshot)
}

/// # Errors
/// If the service is no member any more.
fn member(draft: &Draft<'_>, service: ServiceId) -> Result<(), Refusal> {
    let living = draft.get::<Service>(service).is_some_and(|service| !service.meta.is_removed());
    if living { Ok(()) } else { Err(Refusal::NotMember(service)) }
}

/// Takes the wanted name, the one on disk, or one that comes close to it where that is taken and may be replaced.
fn claim(
    draft: &mut Draft<'_>,
    kind: Kind,
    on_disk: &str,
    id: impl std::fmt::Display + Copy,
    wanted: &Adoption,
    remarks: &mut Vec<String>,
) -> Result<Name, Refusal> {
    let name = match (&wanted.name, on_disk.parse::<Name>()) {
        (Some(name), _) => name.clone(),
        (None, Ok(name)) => name,
        (None, Err(_)) if wanted.rename => Name::resembling(on_disk, kind.as_str()),
        (None, Err(error)) => {
            let text = format!("{kind} {id} has no name on its disk that it could have here ({error}): give --name");
            return Err(Refusal::Invalid(text));
        }
    };
    match draft.claim(kind, &name, id) {
        Ok(()) => Ok(name),
        Err(Refusal::NameTaken { .. }) if wanted.rename => {
            let other = untaken(draft, kind, &name, id)?;
            remarks.push(format!("{kind} '{name}' ({id}) is called '{other}' now: the name was taken"));
            Ok(other)
        }
        Err(Refusal::NameTaken { .. }) => Err(Refusal::NameTaken { kind, name }),
        Err(refusal) => Err(refusal),
    }
}

/// The name with the end of the id behind it, or as a last resort with all of it.
fn untaken(draft: &mut Draft<'_>, kind: Kind, name: &Name, id: impl std::fmt::Display + Copy) -> Result<Name, Refusal> {
    let id_text = id.to_string();
    let tail: String = id_text.chars().skip(id_text.len().saturating_sub(8)).collect();
    let head: String = name.as_str().chars().take(Name::MAX - 9).collect();
    let close = Name::resembling(&format!("{head}-{tail}"), kind.as_str());
    match draft.claim(kind, &close, id) {
        Err(Refusal::NameTaken { .. }) => {}
        other => return other.map(|()| close),
    }
    let unique = Name::resembling(&format!("{kind}-{id_text}"), kind.as_str());
    draft.claim(kind, &unique, id).map(|()| unique)
}
