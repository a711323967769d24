//! Carrying out what is planned for a pool: claiming devices, extending, letting go.

use super::Settings;
use super::command::{Devices, METADATA_AREA};
use super::hands::Hands;
use super::plan::pool::{Place, PoolStep, THIN_POOL, Wanted, group_name, next, next_of_release, pv_prefix};
use super::plan::unspeakable;
use super::report::Reported;
use super::tags::{GroupTags, State, difference};
use crate::backend::{BackendError, Ensured, PoolIdentity, Removed};
use crate::host::devices::{WipeError, blank, wipe};
use crate::host::files::make_directory;
use crate::host::lock::Lock;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// What a physical volume keeps before its first extent, at most, in bytes: metadata and its alignment.
const HEAD: u64 = METADATA_AREA + (2 << 20);
/// No pool takes more steps than this for each device; one that does goes in a circle.
const STEPS_EACH: usize = 16;

/// Locks the group for this process.
pub(super) fn lock(hands: &Hands) -> Result<Lock, BackendError> {
    let (locks, group) = (&hands.ground.locks, &hands.group);
    make_directory(locks, 0o700)?;
    let path = locks.join(group);
    let failed = |source| BackendError::Io { action: format!("cannot lock {}", path.display()), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    Lock::try_take(&file).map_err(failed)?.ok_or_else(|| BackendError::Locked { place: group.clone() })
}

/// Makes the pool what it is to be; its devices' nodes. The caller is in the queue and holds the lock.
pub(super) fn ensure(
    hands: &Hands,
    identity: &PoolIdentity,
    settings: &Settings,
    made: bool,
) -> Result<(Vec<PathBuf>, Ensured), BackendError> {
    let mut done = Ensured::Unchanged;
    for _ in 0..STEPS_EACH * (settings.devices.len() + 1) {
        let places = places(hands, settings)?;
        let elsewhere = if made { Vec::new() } else { elsewhere(hands, &places)? };
        let (nodes, devices, seen) = look(hands, &places)?;
        let (kind, ceiling) = (settings.kind, settings.ceiling);
        let wanted = Wanted { identity, kind, ceiling, made, places: &places, elsewhere: &elsewhere };
        match next(&wanted, &seen)? {
            None => {
                hands.settle(&nodes)?;
                return Ok((nodes, done));
            }
            Some(step) => {
                done = effect(&step, done);
                carry_out(hands, identity, settings, &devices, &step)?;
            }
        }
    }
    Err(BackendError::Refused(format!("{} does not come to be what it is to be", hands.group)))
}

/// Lets go of the pool. The caller is in the queue and holds the lock.
pub(super) fn release(hands: &Hands, identity: &PoolIdentity, settings: &Settings) -> Result<Removed, BackendError> {
    let mut removed = Removed::WasAbsent;
    let mut steps = 0;
    loop {
        let places = places(hands, settings)?;
        let (_, devices, seen) = look(hands, &places)?;
        let Some(step) = next_of_release(identity, &places, &seen)? else { return Ok(removed) };
        removed = Removed::Gone;
        carry_out(hands, identity, settings, &devices, &step)?;
        steps += 1;
        if steps > STEPS_EACH * (settings.devices.len() + 1) + seen.lvs.len() {
            return Err(BackendError::Refused(format!("{} does not go", hands.group)));
        }
    }
}

/// Makes a group that is `from`'s say that it is `to`'s; nothing where it says so already. The caller is in the queue and
/// holds the lock.
pub(super) fn pass_on(
    hands: &Hands,
    from: &PoolIdentity,
    to: &PoolIdentity,
    settings: &Settings,
) -> Result<Ensured, BackendError> {
    let places = places(hands, settings)?;
    let (_, devices, seen) = look(hands, &places)?;
    let group = super::find(&seen, &hands.group)?;
    match group.decoded() {
        Ok(Some(tags)) if tags.marks(to) => Ok(Ensured::Unchanged),
        Ok(Some(tags)) if tags.marks(from) => {
            let (present, tags) = (group.tags.clone(), GroupTags { cluster: to.cluster, ..tags });
            carry_out(hands, to, settings, &devices, &PoolStep::Describe { present, tags })?;
            Ok(Ensured::Updated)
        }
        Ok(Some(tags)) => Err(BackendError::Taken { place: group.name.clone(), owner: tags.owner() }),
        Ok(None) => Err(BackendError::PoolLost { place: group.name.clone(), reason: "it has no tags".to_owned() }),
        Err(error) => Err(BackendError::Damaged { path: group.name.clone(), reason: error.to_string() }),
    }
}

/// The pool's devices as they are now.
fn places(hands: &Hands, settings: &Settings) -> Result<Vec<Place>, BackendError> {
    let named: Vec<PathBuf> = settings.devices.iter().chain(&settings.wipe).cloned().collect();
    let mut found = hands.ground.scanner.find(&named)?;
    // A device may be named for wiping by another of its paths.
    let wiped: Vec<Option<PathBuf>> =
        found.split_off(settings.devices.len()).into_iter().map(|device| device.map(|device| device.path)).collect();
    let mut places: Vec<Place> = Vec::new();
    for (given, device) in settings.devices.iter().zip(found) {
        let path = device.as_ref().map(|device| &device.path);
        let twin = places.iter().find(|place| path.is_some() && place.device.as_ref().map(|it| &it.path) == path);
        if let Some(twin) = twin {
            let (one, other) = (twin.given.display(), given.display());
            return Err(BackendError::Refused(format!("{one} and {other} are the same device")));
        }
        let wipe = path.is_some_and(|path| wiped.contains(&Some(path.clone())));
        places.push(Place { given: given.clone(), device, wipe });
    }
    Ok(places)
}

/// Other devices that say they belong to a group of this name.
fn elsewhere(hands: &Hands, places: &[Place]) -> Result<Vec<PathBuf>, BackendError> {
    let named = |path: &Path| places.iter().any(|place| place.device.as_ref().is_some_and(|it| it.path == path));
    let is_of_group = |label: &crate::host::devices::PvLabel| label.group.as_ref() == Some(&hands.group);
    let all = hands.ground.scanner.scan()?;
    let others = all.into_iter().filter(|device| !named(&device.path) && device.pv().is_some_and(is_of_group));
    Ok(others.map(|device| device.path).collect())
}

fn look(hands: &Hands, places: &[Place]) -> Result<(Vec<PathBuf>, Devices, Reported), BackendError> {
    let nodes: Vec<PathBuf> =
        places.iter().filter_map(|place| place.device.as_ref()).map(|device| device.path.clone()).collect();
    let devices = allowed(&nodes)?;
    // An empty list would be all devices to LVM.
    let seen = if nodes.is_empty() { Reported::default() } else { hands.see(&devices)? };
    Ok((nodes, devices, seen))
}

pub(super) fn allowed(nodes: &[PathBuf]) -> Result<Devices, BackendError> {
    Devices::new(nodes).ok_or_else(|| BackendError::Refused("a device's path has a comma or a blank in it".to_owned()))
}

/// What a step makes of what the steps before it came to.
fn effect(step: &PoolStep, before: Ensured) -> Ensured {
    match (step, before) {
        (PoolStep::MakeGroup(_) | PoolStep::MakeThinPool(_), _) | (_, Ensured::Created) => Ensured::Created,
        (PoolStep::ExtendGroup(_) | PoolStep::GrowData(_) | PoolStep::GrowMetadata(_), _) | (_, Ensured::Grown) => {
            Ensured::Grown
        }
        (PoolStep::Activate, before) => before,
        _ => Ensured::Updated,
    }
}

fn carry_out(
    hands: &Hands,
    identity: &PoolIdentity,
    settings: &Settings,
    devices: &Devices,
    step: &PoolStep,
) -> Result<(), BackendError> {
    let group = group_name(identity.pool);
    tracing::info!(%group, ?step, "a step of a pool");
    match step {
        PoolStep::Wipe(device) => {
            let path = device.clone();
            hands.work("wipe", device, move |_| wipe(&path).map_err(plain))
        }
        PoolStep::Blank(device) => {
            let path = device.clone();
            hands.work("wipe", device, move |_| blank(&path, HEAD).map_err(plain))
        }
        PoolStep::MakePv(device) => hands.run(&devices.make_pv(device, &pv_uuid(identity))),
        PoolStep::MakeGroup(nodes) => {
            let tags = GroupTags::new(identity, settings.kind, State::Making).encode().map_err(unspeakable)?;
            hands.run(&devices.make_group(&group, nodes, &tags))
        }
        PoolStep::ExtendGroup(device) => hands.run(&devices.extend_group(&group, device)),
        PoolStep::Remove(name) => hands.run(&devices.remove(&group, name)),
        PoolStep::MakeThinPool(size) => hands.run(&devices.make_thin_pool(&group, THIN_POOL, *size)),
        PoolStep::RefuseWhenFull => hands.run(&devices.refuse_when_full(&group, THIN_POOL)),
        PoolStep::GrowMetadata(bytes) => hands.run(&devices.grow_metadata(&group, THIN_POOL, *bytes)),
        PoolStep::GrowData(extents) => hands.run(&devices.grow(&group, THIN_POOL, *extents)),
        PoolStep::Activate => hands.run(&devices.activate(&group, THIN_POOL)),
        PoolStep::Describe { present, tags } => {
            let wanted = tags.encode().map_err(unspeakable)?;
            hands.run(&devices.retag_group(&group, &difference(present, &wanted)))
        }
        PoolStep::RemoveGroup => hands.run(&devices.remove_group(&group)),
    }
}

/// An id of the pool's, and of no other physical volume.
fn pv_uuid(identity: &PoolIdentity) -> String {
    let letters: String = std::iter::repeat_with(fastrand::alphanumeric).take(14).collect();
    let [one, two, three] = [&letters[..4], &letters[4..8], &letters[8..]];
    format!("{}{one}-{two}-{three}", pv_prefix(identity.pool))
}

fn plain(error: WipeError) -> io::Error {
    match error {
        WipeError::Io { source, .. } => source,
        stubborn @ WipeError::Stubborn { .. } => io::Error::other(stubborn),
    }
}
