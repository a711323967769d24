//! Claiming a directory for a pool, and letting go of it.
//!
//! The marker is the first thing written and the last removed; `volumes/` lies between. The lock is on the directory
//! itself, so that it can be taken before the marker is there and outlives the marker's replacement.

use super::layout::{LOST_AND_FOUND, MARKER, Marker, SNAPSHOTS, VOLUMES, part, snapshot_of};
use super::{FilePool, Settings};
use crate::backend::{BackendError, Ensured, PoolIdentity, Removed};
use crate::host::directory::{Directory, FileError};
use crate::host::document::{load, load_document, save};
use crate::host::files::make_directory;
use crate::host::lock::Lock;
use crate::model::ByteSize;
use std::collections::HashMap;
use std::io;
use std::path::{Component, Path};
use std::sync::{Mutex, OnceLock};

pub(super) fn ensure(
    identity: &PoolIdentity,
    path: &Path,
    limit: Option<ByteSize>,
    made: bool,
) -> Result<(FilePool, Ensured), BackendError> {
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        let path = path.display();
        return Err(BackendError::Refused(format!(
            "'{path}' is no place for a pool: give an absolute path without '..'"
        )));
    }
    let root = open_root(path, made)?;
    let _lock = lock_for(&root, identity)?;
    root.check_writable()?;
    let done = match load::<Marker>(&root, MARKER)? {
        None if made => {
            return Err(lost(&root, format!("its marker {MARKER} is missing; is its file system mounted?")));
        }
        None => claim(&root, identity)?,
        Some(_) => ensure_marker(&root, identity)?,
    };
    sweep_marker(&root)?;
    let volumes = match root.open_child(VOLUMES)? {
        Some(volumes) => volumes,
        None if made => return Err(lost(&root, format!("its directory {VOLUMES} is missing"))),
        None => root.make_child(VOLUMES)?,
    };
    volumes.check_writable()?;
    volumes.sweep_staged(|name| part(name).is_some())?;
    let snapshots = root.open_child(SNAPSHOTS)?;
    if let Some(snapshots) = &snapshots {
        snapshots.check_writable()?;
        snapshots.sweep_staged(|name| snapshot_of(name).is_some())?;
    }
    // A process that was killed may have left names that no sync has covered. Whatever is found from here on is
    // durable, so that finding things as they should be costs nothing later.
    root.sync()?;
    volumes.sync()?;
    snapshots.map_or(Ok(()), |snapshots| snapshots.sync())?;
    let settings = Mutex::new(Settings { identity: identity.clone(), limit });
    let pool = FilePool {
        _lock,
        root,
        volumes,
        copies: OnceLock::new(),
        settings,
        open: Mutex::new(HashMap::new()),
        turns: Default::default(),
        snapshot_turns: Default::default(),
    };
    Ok((pool, done))
}

/// Opens the pool's directory, and makes it first if it may be made.
fn open_root(path: &Path, made: bool) -> Result<Directory, BackendError> {
    match Directory::open(path) {
        Ok(root) => Ok(root),
        Err(error) if error.kind() == io::ErrorKind::NotFound && made => Err(BackendError::PoolLost {
            place: path.display().to_string(),
            reason: "the directory is not there".to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            refuse_nested(path)?;
            make_directory(path, 0o700)?;
            Ok(Directory::open(path)?)
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(BackendError::Refused(format!("{} is not a directory", path.display())))
        }
        Err(error) => Err(error.into()),
    }
}

/// Locks the directory; where that fails, another pool's name says more than a lock's.
fn lock_for(root: &Directory, identity: &PoolIdentity) -> Result<Lock, BackendError> {
    if let Some(lock) = root.try_lock()? {
        return Ok(lock);
    }
    if let Some(marker) = load::<Marker>(root, MARKER)? {
        check_owner(root, &marker, identity)?;
    }
    Err(BackendError::Locked { place: place(root) })
}

/// Takes an empty directory for the pool.
fn claim(root: &Directory, identity: &PoolIdentity) -> Result<Ensured, BackendError> {
    sweep_marker(root)?;
    let mut foreign: Vec<String> = root.names()?.into_iter().filter(|name| name != LOST_AND_FOUND).collect();
    if !foreign.is_empty() {
        foreign.sort();
        return Err(BackendError::Refused(format!(
            "{} holds other files ({}): a pool needs an empty directory",
            place(root),
            excerpt(&foreign)
        )));
    }
    refuse_nested(root.path())?;
    save(root, MARKER, &Marker::from(identity))?;
    Ok(Ensured::Created)
}

/// Removes what is left of a marker whose writing was cut short. The caller holds the lock.
fn sweep_marker(root: &Directory) -> Result<(), BackendError> {
    root.sweep_staged(|name| name == MARKER)?;
    Ok(())
}

/// Makes the marker that is there say the pool's present name.
pub(super) fn ensure_marker(root: &Directory, identity: &PoolIdentity) -> Result<Ensured, BackendError> {
    let Some(marker) = load::<Marker>(root, MARKER)? else {
        return Err(lost(root, format!("its marker {MARKER} is missing")));
    };
    check_owner(root, &marker, identity)?;
    if marker == Marker::from(identity) {
        root.settle()?;
        return Ok(Ensured::Unchanged);
    }
    save(root, MARKER, &Marker::from(identity))?;
    Ok(Ensured::Updated)
}

/// Makes a marker that is `from`'s say that the directory is `to`'s; nothing where it says so already. The caller holds the lock.
pub(super) fn pass_on(root: &Directory, from: &PoolIdentity, to: &PoolIdentity) -> Result<Ensured, BackendError> {
    let Some(marker) = load::<Marker>(root, MARKER)? else {
        return Err(lost(root, format!("its marker {MARKER} is missing")));
    };
    if marker.marks(to) {
        return Ok(Ensured::Unchanged);
    }
    check_owner(root, &marker, from)?;
    save(root, MARKER, &Marker::from(to))?;
    Ok(Ensured::Updated)
}

/// The same for a pool that is closed.
pub(super) fn pass_on_at(from: &PoolIdentity, to: &PoolIdentity, path: &Path) -> Result<Ensured, BackendError> {
    let root = open_root(path, true)?;
    let _lock = lock_for(&root, from)?;
    pass_on(&root, from, to)
}

/// Whose marker is in a directory, if there is one.
pub(super) fn find(path: &Path) -> Result<Option<PoolIdentity>, BackendError> {
    let marker = load::<Marker>(&Directory::open(path)?, MARKER)?;
    Ok(marker.map(|Marker { cluster, pool, name }| PoolIdentity { cluster, pool, name }))
}

fn check_owner(root: &Directory, marker: &Marker, identity: &PoolIdentity) -> Result<(), BackendError> {
    if marker.marks(identity) { Ok(()) } else { Err(BackendError::Taken { place: place(root), owner: marker.owner() }) }
}

/// Refuses a path below another pool's directory, whether or not the path exists yet.
fn refuse_nested(path: &Path) -> Result<(), BackendError> {
    let mut existing = path;
    let real = loop {
        match (existing.canonicalize(), existing.parent()) {
            (Ok(real), _) => break real,
            (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => existing = parent,
            (Err(error), _) => return Err(FileError::new("follow", existing, error).into()),
        }
    };
    // The directory itself is not above itself.
    for above in real.ancestors().skip(usize::from(existing == path)) {
        let marker = above.join(MARKER);
        // A directory above need not be readable, and a file above is for the making of directories to meet.
        let unseen = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
        match std::fs::symlink_metadata(&marker) {
            Err(error) if unseen.contains(&error.kind()) => continue,
            Err(error) => return Err(FileError::new("look for", marker, error).into()),
            Ok(_) => {}
        }
        if let Some(found) = load_document::<Marker>(&marker)? {
            return Err(BackendError::Taken { place: above.display().to_string(), owner: found.owner() });
        }
    }
    Ok(())
}

/// Lets go of a pool that is closed.
pub(super) fn release_at(identity: &PoolIdentity, path: &Path) -> Result<Removed, BackendError> {
    let root = match Directory::open(path) {
        // Where no directory can be, no pool has been.
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {
            return Ok(Removed::WasAbsent);
        }
        other => other?,
    };
    match load::<Marker>(&root, MARKER)? {
        Some(marker) if !marker.marks(identity) => return Ok(Removed::WasAbsent),
        _ => {}
    }
    let _lock = lock_for(&root, identity)?;
    // Between the look and the lock the directory may have become another pool's.
    match load::<Marker>(&root, MARKER)? {
        Some(marker) if marker.marks(identity) => release(&root),
        Some(_) => Ok(Removed::WasAbsent),
        None => {
            // The marker may have gone in a process that was killed before that was durable.
            sweep_marker(&root)?;
            root.sync()?;
            Ok(Removed::WasAbsent)
        }
    }
}

/// Removes `volumes/`, `snapshots/` and the marker; everything else stays. The caller holds the lock.
pub(super) fn release(root: &Directory) -> Result<Removed, BackendError> {
    let is_ours = |name: &str| part(name).is_some() || snapshot_of(name).is_some();
    for name in [SNAPSHOTS, VOLUMES] {
        let Some(child) = root.open_child(name)? else { continue };
        child.sweep_staged(is_ours)?;
        let mut held = child.names()?;
        if !held.is_empty() {
            held.sort();
            let reason = format!("{} still holds files ({})", child.path().display(), excerpt(&held));
            return Err(BackendError::Refused(reason));
        }
        root.remove_child(name)?;
        // After a power cut there may be a marker without this directory, but never the directory without its marker.
        root.sync()?;
    }
    let removed = root.remove_file(MARKER)?;
    sweep_marker(root)?;
    root.sync()?;
    Ok(if removed { Removed::Gone } else { Removed::WasAbsent })
}

fn lost(root: &Directory, reason: String) -> BackendError {
    BackendError::PoolLost { place: place(root), reason }
}

fn place(root: &Directory) -> String {
    root.path().display().to_string()
}

fn excerpt(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
