//! The consistency check: store, view and devices must tell the same story.

use super::member::Member;
use super::view::{Stored, View};
use crate::model::*;
use crate::store::{Key, Revision, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a check found. Faults are wrong; remarks are worth knowing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub faults: Vec<String>,
    pub remarks: Vec<String>,
    pub objects: usize,
    pub services_asked: usize,
}

/// How long a service may take to look at its devices.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the view may take to learn of what is in the store.
const LAG: Duration = Duration::from_secs(5);

/// # Errors
/// If the store cannot be read.
pub async fn check(member: &Member) -> Result<Findings, StoreError> {
    let listing = member.store.list(&Key::root()).await?;
    let revision = listing.revision;
    let stored = View::load(listing);
    let mut findings =
        Findings { faults: compare_when_caught_up(member, &stored, revision).await, ..Findings::default() };
    check_state(&stored, &mut findings);
    let blocks: Vec<Service> = stored
        .services
        .values()
        .filter(|service| service.value.spec.service_type == ServiceType::Block && !service.value.meta.is_removed())
        .map(|service| (*service.value).clone())
        .collect();
    let asked = blocks.iter().map(|service| member.sessions.inventory(service.meta.id, PATIENCE));
    for (service, inventory) in blocks.iter().zip(futures_util::future::join_all(asked).await) {
        let id = service.meta.id;
        match inventory {
            Some(inventory) => {
                findings.services_asked += 1;
                check_devices(&stored, &member.view.read(), id, &inventory, &mut findings);
            }
            None => findings.remarks.push(format!(
                "block service {id} on '{}' is {} and could not be asked through this manager",
                service.status.host_name, service.status.state
            )),
        }
    }
    Ok(findings)
}

/// Compares until nothing differs or the view has had time to catch up. Its revision does not tell that it has: others
/// may share the store, and what they write moves the store's revision and not the view's.
async fn compare_when_caught_up(member: &Member, stored: &View, revision: Revision) -> Vec<String> {
    let mut changes = member.view.changes();
    let compare = || {
        let mut faults = Vec::new();
        compare_views(stored, &member.view.read(), revision, &mut faults);
        faults
    };
    let caught_up = async {
        while !compare().is_empty() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    match tokio::time::timeout(LAG, caught_up).await {
        Ok(()) => Vec::new(),
        Err(_) => compare(),
    }
}

/// The live view against a fresh reading of the store; what was written after the reading is left out.
fn compare_views(stored: &View, live: &View, revision: Revision, faults: &mut Vec<String>) {
    fn tables<T: Stored + PartialEq>(stored: &View, live: &View, revision: Revision, faults: &mut Vec<String>) {
        for (id, held) in T::table(stored) {
            match T::table(live).get(id) {
                Some(seen) if seen.revision > revision || seen.value == held.value => {}
                Some(_) => faults.push(format!("the view shows an old {}", T::key(*id))),
                None if live.revision > revision => {}
                None => faults.push(format!("the view lacks {}", T::key(*id))),
            }
        }
        for (id, seen) in T::table(live) {
            if seen.revision <= revision && !T::table(stored).contains_key(id) {
                faults.push(format!("the view shows {}, which the store does not hold", T::key(*id)));
            }
        }
    }
    tables::<Service>(stored, live, revision, faults);
    tables::<Session>(stored, live, revision, faults);
    tables::<Pool>(stored, live, revision, faults);
    tables::<Volume>(stored, live, revision, faults);
    tables::<Snapshot>(stored, live, revision, faults);
    tables::<Image>(stored, live, revision, faults);
    tables::<Attachment>(stored, live, revision, faults);
    tables::<Client>(stored, live, revision, faults);
    tables::<Token>(stored, live, revision, faults);
    tables::<Event>(stored, live, revision, faults);
}

/// Rules that hold within any one revision of the store.
pub fn check_state(view: &View, findings: &mut Findings) {
    findings.objects = view.services.len() + view.pools.len() + view.volumes.len() + view.attachments.len();
    findings.objects += view.snapshots.len() + view.images.len() + view.clients.len() + view.tokens.len();
    let Findings { faults, remarks, .. } = findings;
    faults.extend(view.unreadable.iter().map(|(key, reason)| format!("{key} cannot be read: {reason}")));
    let mut expected = BTreeMap::new();
    let mut promised: BTreeMap<PoolId, ByteSize> = BTreeMap::new();
    for volume in view.volumes.values().map(|volume| &*volume.value) {
        let name = &volume.meta.name;
        expected.insert((Kind::Volume, name.clone()), volume.meta.id.to_string());
        if volume.status.placement.is_empty() {
            faults.push(format!("volume '{name}' is placed nowhere"));
        }
        for replica in &volume.status.placement {
            let total = promised.entry(replica.pool).or_default();
            *total = total.saturating_add(volume.promised());
            match view.get::<Pool>(replica.pool) {
                None => {
                    faults.push(format!("volume '{name}' is placed in pool {}, which does not exist", replica.pool))
                }
                Some(pool) if pool.spec.service != replica.service => {
                    faults.push(format!("volume '{name}' and its pool '{}' name different services", pool.meta.name));
                }
                Some(_) => {}
            }
        }
    }
    for snapshot in view.snapshots.values().map(|snapshot| &*snapshot.value) {
        let name = &snapshot.meta.name;
        expected.insert((Kind::Snapshot, name.clone()), snapshot.meta.id.to_string());
        for replica in &snapshot.status.placement {
            let total = promised.entry(replica.pool).or_default();
            *total = total.saturating_add(snapshot.status.promised);
        }
        match view.get::<Volume>(snapshot.spec.volume) {
            // One that is only there to be destroyed needs no volume.
            None if snapshot.meta.is_removed() => {}
            None => {
                faults.push(format!("snapshot '{name}' is of volume {}, which does not exist", snapshot.spec.volume))
            }
            Some(volume) if volume.status.placement != snapshot.status.placement => {
                faults.push(format!("snapshot '{name}' is not where its volume '{}' is", volume.meta.name));
            }
            Some(_) => {}
        }
    }
    for pool in view.pools.values().map(|pool| &*pool.value) {
        let name = &pool.meta.name;
        expected.insert((Kind::Pool, name.clone()), pool.meta.id.to_string());
        let (sum, reserved) = (promised.get(&pool.meta.id).copied().unwrap_or_default(), pool.status.reserved);
        if sum != reserved {
            faults.push(format!(
                "pool '{name}' has {} bytes reserved, its volumes and snapshots add up to {}",
                reserved.as_u64(),
                sum.as_u64()
            ));
        }
        match view.get::<Service>(pool.spec.service) {
            Some(service) if !service.meta.is_removed() => {}
            _ => faults.push(format!("pool '{name}' is on service {}, which is no member", pool.spec.service)),
        }
    }
    // The name of a removed client is free at once.
    let clients = view.clients.values().map(|client| &client.value.meta).filter(|meta| !meta.is_removed());
    expected.extend(clients.map(|meta| ((Kind::Client, meta.name.clone()), meta.id.to_string())));
    let tokens = view.tokens.values().map(|token| &token.value.meta);
    expected.extend(tokens.map(|meta| ((Kind::Token, meta.name.clone()), meta.id.to_string())));
    check_images(view, &mut expected, faults, remarks);
    check_moves(view, faults);
    check_attachments(view, faults);
    for ((kind, name), id) in &expected {
        match view.names.get(&(*kind, name.clone())) {
            Some(held) if *held.value == *id => {}
            _ => faults.push(format!("{kind} '{name}' does not own its name")),
        }
    }
    for (kind, name) in view.names.keys().filter(|slot| !expected.contains_key(*slot)) {
        faults.push(format!("the name '{name}' is taken by a {kind} that does not exist"));
    }
    for session in view.sessions.values() {
        match view.get::<Service>(session.value.service) {
            Some(service) if !service.meta.is_removed() => {}
            _ => faults.push(format!("session {} belongs to a service that is no member", session.value.id)),
        }
    }
}

/// Images and the volumes that keep their bytes name each other.
fn check_images(
    view: &View,
    expected: &mut BTreeMap<(Kind, Name), String>,
    faults: &mut Vec<String>,
    remarks: &mut Vec<String>,
) {
    for image in view.images.values().map(|image| &*image.value) {
        let name = &image.meta.name;
        expected.insert((Kind::Image, name.clone()), image.meta.id.to_string());
        for base in &image.status.bases {
            match view.get::<Volume>(*base) {
                Some(volume) if volume.base_of() == Some(image.meta.id) => {}
                Some(_) => faults.push(format!("image '{name}' is kept by volume {base}, which is not its own")),
                None => faults.push(format!("image '{name}' is kept by volume {base}, which does not exist")),
            }
        }
        let bases = || image.status.bases.iter().filter_map(|base| view.get::<Volume>(*base));
        if image.is_whole() && !bases().any(Volume::has_image) {
            faults.push(format!("image '{name}' is ready, but nothing keeps its content"));
        } else if image.is_whole() && !bases().any(Volume::is_complete_base) {
            let why = bases().find_map(|base| base.status.message.as_deref()).unwrap_or("nothing more is known");
            remarks.push(format!("nothing that keeps image '{name}' can be read now: {why}"));
        }
        if image.meta.is_removed() && bases().any(|base| !base.meta.is_removed()) {
            faults.push(format!("image '{name}' is being removed, but not all that keeps its content"));
        }
    }
    for volume in view.volumes.values().map(|volume| &*volume.value) {
        let Some(id) = volume.base_of() else { continue };
        let listed = view.get::<Image>(id).is_some_and(|image| image.status.bases.contains(&volume.meta.id));
        if !listed {
            faults
                .push(format!("volume '{}' keeps the content of image {id}, which does not list it", volume.meta.name));
        }
    }
}

/// The two ends of a move name each other.
fn check_moves(view: &View, faults: &mut Vec<String>) {
    let get = |id: VolumeId| view.get::<Volume>(id);
    for volume in view.volumes.values().map(|volume| &*volume.value).filter(|volume| !volume.meta.is_removed()) {
        let (id, name) = (volume.meta.id, &volume.meta.name);
        let whole = match volume.spec.moving.as_deref() {
            Some(Moving::Leaving { to, .. }) => get(*to).is_some_and(|copy| copy.predecessor() == Some(id)),
            Some(Moving::Arriving { supply, .. }) => get(supply.volume).is_some_and(|it| it.successor() == Some(id)),
            Some(Moving::Left { to }) => get(*to).is_some_and(|it| it.status.left == Some(id)),
            None => true,
        };
        if !whole {
            faults.push(format!("volume '{name}' is one end of a move, and the other end does not say so"));
        }
        if let Some(left) = volume.status.left.filter(|left| get(*left).is_none()) {
            faults.push(format!("volume '{name}' has left volume {left} behind, which does not exist"));
        }
        if volume.spec.moving.is_some() && view.attachments.values().any(|held| held.value.spec.volume == id) {
            faults.push(format!("volume '{name}' is being moved, and somebody is attached to it"));
        }
    }
}

/// Who may use which volume: an exclusive client is alone, and let in where the volume is.
fn check_attachments(view: &View, faults: &mut Vec<String>) {
    let mut by_volume: BTreeMap<VolumeId, Vec<&Attachment>> = BTreeMap::new();
    for held in view.attachments.values().map(|held| &*held.value) {
        by_volume.entry(held.spec.volume).or_default().push(held);
        let label = held.label();
        let client = view.get::<Client>(held.spec.client);
        if client.is_none_or(|client| client.meta.is_removed()) && !held.meta.is_removed() {
            faults.push(format!("attachment '{label}' belongs to client {}, which does not live", held.spec.client));
        }
        let Some(volume) = view.get::<Volume>(held.spec.volume) else {
            faults.push(format!("attachment '{label}' is to volume {}, which does not exist", held.spec.volume));
            continue;
        };
        if volume.meta.name != held.spec.volume_name {
            faults.push(format!("attachment '{label}' calls volume '{}' by another name", volume.meta.name));
        }
        if volume.meta.is_removed() && !held.meta.is_removed() {
            faults.push(format!("attachment '{label}' is to a volume that is being removed"));
        }
        let replicas: BTreeSet<ServiceId> = volume.status.placement.iter().map(|replica| replica.service).collect();
        let holders: BTreeSet<ServiceId> = held.status.placement.iter().copied().collect();
        // One that ends leaves its services one by one.
        let fits = if held.meta.is_removed() { holders.is_subset(&replicas) } else { holders == replicas };
        if !fits || holders.is_empty() {
            faults.push(format!("attachment '{label}' and its volume are on different services"));
        }
    }
    for held in by_volume.into_values().filter(|held| held.len() > 1) {
        if let Some(alone) = held.iter().find(|held| !held.spec.shared) {
            let (label, others) = (alone.label(), held.len() - 1);
            faults.push(format!("attachment '{label}' is exclusive, but its volume has {others} more"));
        }
    }
}

/// What a service finds on its devices against what the state says of it. Objects that are changing are left out.
fn check_devices(stored: &View, live: &View, service: ServiceId, found: &Inventory, findings: &mut Findings) {
    for pool in &found.pools {
        let known = stored.get::<Pool>(pool.id).or(live.get::<Pool>(pool.id));
        let place = pool.place.as_ref().filter(|_| known.is_none());
        if let Some(place) = place {
            let failure = pool.failure.as_ref().map(|failure| format!(": {failure}")).unwrap_or_default();
            findings.remarks.push(format!(
                "orphan: pool {} ('{}', {} at {}) is on the disks of service {service} and in no cluster state{failure}",
                pool.id,
                place.name,
                place.driver,
                place.driver.place()
            ));
        } else if let Some(failure) = &pool.failure {
            findings.faults.push(format!("pool {} on service {service}: {failure}", pool.id));
        }
    }
    let open: BTreeSet<PoolId> = found.pools.iter().map(|pool| pool.id).collect();
    let pools = stored.pools.values().map(|pool| &*pool.value).filter(|pool| pool.spec.service == service);
    for pool in pools.filter(|pool| matches!(pool.status.phase, Phase::Ready | Phase::Failed)) {
        if live.get::<Pool>(pool.meta.id) == Some(pool) && !open.contains(&pool.meta.id) {
            let why = pool.status.message.as_deref().unwrap_or("it is not open");
            findings.faults.push(format!("pool '{}' on service {service} cannot be used: {why}", pool.meta.name));
        }
    }
    let on_disk: BTreeMap<VolumeId, &InventoryVolume> =
        found.volumes.iter().map(|volume| (volume.id, volume)).collect();
    for volume in stored.volumes_of(service) {
        if live.get::<Volume>(volume.meta.id) != Some(volume) {
            continue;
        }
        let name = &volume.meta.name;
        match volume.status.phase {
            Phase::Ready => {}
            Phase::Failed => {
                let why = volume.status.message.as_deref().unwrap_or("no reason was given");
                findings.faults.push(format!("volume '{name}' is not as it should be: {why}"));
                continue;
            }
            phase @ (Phase::Pending | Phase::Removing) => {
                findings.remarks.push(format!("volume '{name}' is {phase}"));
                continue;
            }
        }
        match on_disk.get(&volume.meta.id) {
            None => findings.faults.push(format!("volume '{name}' is ready, but service {service} does not have it")),
            Some(disk) => {
                if Some(disk.size) != volume.status.size || disk.size != volume.spec.size {
                    findings.faults.push(format!(
                        "volume '{name}' should be {} bytes and is {} on service {service}",
                        volume.spec.size.as_u64(),
                        disk.size.as_u64()
                    ));
                }
                // An older one is as good where the size is right: limits are not written to disks.
                if disk.generation > volume.meta.generation {
                    findings.faults.push(format!(
                        "volume '{name}' is at generation {}, its disk at {}",
                        volume.meta.generation.as_u64(),
                        disk.generation.as_u64()
                    ));
                }
                let kept = volume.spec.image.as_deref().is_some_and(ImageTie::is_kept_from_clients);
                let hidden = kept || volume.spec.moving.is_some();
                if !disk.exported && !hidden {
                    findings.faults.push(format!("volume '{name}' is ready, but not exported"));
                }
            }
        }
    }
    check_snapshots(stored, live, service, found, findings);
    for disk in &found.volumes {
        let orphan = live.get::<Volume>(disk.id).is_none() && stored.get::<Volume>(disk.id).is_none();
        if let Some(damage) = disk.damage.as_ref().filter(|_| !disk.unfinished) {
            let said = if orphan { &mut findings.remarks } else { &mut findings.faults };
            said.push(format!("volume {} on service {service} is damaged: {damage}", disk.id));
        }
        if orphan {
            findings.remarks.push(format!(
                "orphan: volume {} ('{}', {}) is on the disks of service {service} and in no cluster state",
                disk.id, disk.name, disk.size
            ));
        }
    }
}

/// As [`check_devices`], for snapshots.
fn check_snapshots(stored: &View, live: &View, service: ServiceId, found: &Inventory, findings: &mut Findings) {
    let on_disk: BTreeSet<SnapshotId> = found.snapshots.iter().map(|snapshot| snapshot.id).collect();
    for snapshot in stored.snapshots_of(service) {
        if live.get::<Snapshot>(snapshot.meta.id) != Some(snapshot) {
            continue;
        }
        let name = &snapshot.meta.name;
        match snapshot.status.phase {
            Phase::Ready if on_disk.contains(&snapshot.meta.id) => {}
            Phase::Ready => {
                findings.faults.push(format!("snapshot '{name}' is ready, but service {service} does not have it"));
            }
            Phase::Failed => {
                let why = snapshot.status.message.as_deref().unwrap_or("no reason was given");
                findings.faults.push(format!("snapshot '{name}' is not as it should be: {why}"));
            }
            phase @ (Phase::Pending | Phase::Removing) => {
                findings.remarks.push(format!("snapshot '{name}' is {phase}"));
            }
        }
    }
    for disk in &found.snapshots {
        let orphan = live.get::<Snapshot>(disk.id).is_none() && stored.get::<Snapshot>(disk.id).is_none();
        // One that is going is no snapshot any more.
        let goes = live.get::<Snapshot>(disk.id).is_some_and(|snapshot| snapshot.meta.is_removed());
        if let Some(damage) = disk.damage.as_ref().filter(|_| !goes) {
            let said = if orphan { &mut findings.remarks } else { &mut findings.faults };
            said.push(format!("snapshot {} on service {service} is damaged: {damage}", disk.id));
        }
        if orphan {
            findings.remarks.push(format!(
                "orphan: snapshot {} ('{}', of volume {}) is on the disks of service {service} and in no cluster state",
                disk.id, disk.name, disk.volume
            ));
        }
    }
}
