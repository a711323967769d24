//! The config directory: everything one service keeps, and the lock that keeps a second process out of it.
//!
//! What the files hold is their owners' business; here are only their places. Secrets are safe by their own modes
//! (0600, `tls/` 0700); a directory that anybody may write in is refused all the same, for files there can be
//! exchanged.

use super::directory::{Directory, FileError};
use super::document::{Document, DocumentError, load, save};
use super::files::make_directory;
use super::lock::Lock;
use super::unix_socket::{SocketError, check_socket_path, free_socket_path};
use crate::model::ServiceType;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum ConfigDirError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("{} is locked by another symphony process ({holder})", path.display())]
    Locked { path: PathBuf, holder: String },
    #[error("{} belongs to a {held} service and cannot be used by a {wanted} service: choose another directory",
        path.display())]
    OtherRole { path: PathBuf, held: ServiceType, wanted: ServiceType },
    #[error(
        "every user of this host may write in {}: take that away (chmod o-w), or name a directory below it",
        path.display()
    )]
    Exposed { path: PathBuf },
}

/// `role.json`: which role the directory was first used by.
#[derive(Debug, Serialize, Deserialize)]
struct Role {
    role: ServiceType,
}

impl Document for Role {
    const FORMAT: &'static str = "symphony role";
    const VERSION: u32 = 1;
}

const LOCK: &str = "lock";
const ROLE: &str = "role.json";

/// A config directory that this process alone uses; the lock goes when this is dropped.
#[derive(Debug)]
pub struct ConfigDir {
    path: PathBuf,
    role: ServiceType,
    _lock: Lock,
}

impl ConfigDir {
    /// Makes the directory (0700) if it is missing, locks it, and remembers the role.
    pub fn open(path: &Path, role: ServiceType) -> Result<Self, ConfigDirError> {
        Self::inherit(path, role, None)
    }

    /// The same with a lock on it that another program of this process has taken, if that is what it is.
    pub fn inherit(path: &Path, role: ServiceType, lock: Option<OwnedFd>) -> Result<Self, ConfigDirError> {
        // Before anything is made: a path that can never hold its sockets is the user's to change now.
        check_socket_path(&control_socket(path))?;
        check_socket_path(&nbd_socket(path))?;
        make_directory(path, 0o700)?;
        let directory = Directory::open(path)?;
        check_exposure(path)?;
        directory.check_writable()?;
        let lock = take_lock(path, lock)?;
        directory.sweep_staged(|_| true)?;
        match load::<Role>(&directory, ROLE)? {
            Some(Role { role: held }) if held != role => {
                return Err(ConfigDirError::OtherRole { path: path.to_owned(), held, wanted: role });
            }
            Some(_) => {}
            None => save(&directory, ROLE, &Role { role })?,
        }
        Ok(Self { path: path.to_owned(), role, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lock once more, for another program of this process: it is free when nobody has it any more.
    pub fn lock(&self) -> io::Result<OwnedFd> {
        self._lock.duplicate()
    }

    pub fn role(&self) -> ServiceType {
        self.role
    }

    pub fn control_socket(&self) -> PathBuf {
        control_socket(&self.path)
    }

    /// NBD over a unix socket, for clients on this host.
    pub fn nbd_socket(&self) -> PathBuf {
        nbd_socket(&self.path)
    }

    pub fn identity(&self) -> PathBuf {
        self.path.join("identity.json")
    }

    /// Whether an identity lies here that was put aside when its service was removed from the cluster.
    pub fn was_removed(&self) -> io::Result<bool> {
        for entry in std::fs::read_dir(&self.path)? {
            if entry?.file_name().as_encoded_bytes().starts_with(b"identity.removed") {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The directory of keys and certificates; whoever fills it makes it with
    /// [`make_private_directory`](super::files::make_private_directory).
    pub fn tls(&self) -> PathBuf {
        self.path.join("tls")
    }

    /// The embedded store's database.
    pub fn store(&self) -> PathBuf {
        self.path.join("store.redb")
    }

    /// What the block service was last told to hold.
    pub fn ledger(&self) -> PathBuf {
        self.path.join("ledger.json")
    }

    /// Where pools of this host are and were.
    pub fn places(&self) -> PathBuf {
        self.path.join("places.json")
    }

    /// Makes the control socket's path free to bind to, if nobody answers on it. Holding the lock, we alone may.
    pub fn free_control_socket(&self) -> Result<PathBuf, SocketError> {
        let path = self.control_socket();
        free_socket_path(&path).map(|()| path)
    }

    /// The same for the NBD socket.
    pub fn free_nbd_socket(&self) -> Result<PathBuf, SocketError> {
        let path = self.nbd_socket();
        free_socket_path(&path).map(|()| path)
    }
}

fn control_socket(path: &Path) -> PathBuf {
    path.join("control.sock")
}

fn nbd_socket(path: &Path) -> PathBuf {
    path.join("nbd.sock")
}

fn check_exposure(path: &Path) -> Result<(), ConfigDirError> {
    let facts = std::fs::metadata(path).map_err(|error| FileError::new("look at", path, error))?;
    if facts.mode() & 0o002 != 0 {
        return Err(ConfigDirError::Exposed { path: path.to_owned() });
    }
    if facts.mode() & 0o020 != 0 {
        tracing::warn!(path = %path.display(), group = facts.gid(), "the group may write in the config directory");
    }
    Ok(())
}

/// The lock file is never removed: whoever locks a removed one would share the directory with whoever made it anew.
fn take_lock(directory: &Path, inherited: Option<OwnedFd>) -> Result<Lock, ConfigDirError> {
    let path = directory.join(LOCK);
    let failed = |action| move |error: io::Error| FileError::new(action, directory.join(LOCK), error);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(failed("open"))?;
    if let Some(inherited) = inherited.map(File::from) {
        let identity = |file: &File| file.metadata().map(|facts| (facts.dev(), facts.ino())).map_err(failed("look at"));
        if identity(&file)? == identity(&inherited)? {
            file = inherited;
        }
    }
    let Some(lock) = Lock::try_take(&file).map_err(failed("lock"))? else {
        return Err(ConfigDirError::Locked { path: directory.to_owned(), holder: holder(&mut file) });
    };
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        writeln!(file, "{}", std::process::id())
    };
    // Only ever read to word a message, so it need not be durable.
    write(&mut file).map_err(failed("write"))?;
    Ok(lock)
}

/// Who wrote itself into the lock file; it may be about to, so its absence is no error.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(20).read_to_string(&mut text).map(|_| text.trim().parse::<u32>()) {
        Ok(Ok(pid)) => format!("pid {pid}"),
        Ok(Err(_)) | Err(_) => "its pid is not known".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("deep/config");
        (scratch, path)
    }

    #[test]
    fn a_missing_directory_is_made_private_and_opens_again() {
        let (_keep, path) = scratch();
        for _ in 0..2 {
            let config = ConfigDir::open(&path, ServiceType::Manager).unwrap();
            assert_eq!(config.control_socket(), path.join("control.sock"));
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_second_process_is_told_who_holds_the_directory() {
        let (_keep, path) = scratch();
        let held = ConfigDir::open(&path, ServiceType::Block).unwrap();
        let error = ConfigDir::open(&path, ServiceType::Block).unwrap_err();
        let words = format!("locked by another symphony process (pid {})", std::process::id());
        assert!(error.to_string().contains(&words), "{error}");
        drop(held);
        ConfigDir::open(&path, ServiceType::Block).unwrap();
    }

    #[test]
    fn a_lock_that_was_inherited_is_never_free_in_between() {
        let (_keep, path) = scratch();
        let held = ConfigDir::open(&path, ServiceType::Block).unwrap();
        let other = tempfile::tempfile().unwrap();
        ConfigDir::inherit(&path, ServiceType::Block, Some(other.into())).unwrap_err();
        let inherited = held.lock().unwrap();
        // As at exec: closed, not unlocked.
        std::mem::forget(held);
        let heir = ConfigDir::inherit(&path, ServiceType::Block, Some(inherited)).unwrap();
        ConfigDir::open(&path, ServiceType::Block).unwrap_err();
        drop(heir);
        ConfigDir::open(&path, ServiceType::Block).unwrap();
    }

    #[test]
    fn a_directory_keeps_the_role_it_was_first_used_for() {
        let (_keep, path) = scratch();
        drop(ConfigDir::open(&path, ServiceType::Manager).unwrap());
        let error = ConfigDir::open(&path, ServiceType::Block).unwrap_err();
        assert!(matches!(error, ConfigDirError::OtherRole { held: ServiceType::Manager, .. }), "{error}");
        ConfigDir::open(&path, ServiceType::Manager).unwrap();
    }

    #[test]
    fn a_path_too_long_for_its_sockets_is_refused_before_anything_is_made() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("x".repeat(100));
        let error = ConfigDir::open(&path, ServiceType::Manager).unwrap_err();
        assert!(error.to_string().contains("control.sock"), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_everybody_may_write_in_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o1777)).unwrap();
        let error = ConfigDir::open(scratch.path(), ServiceType::Manager).unwrap_err();
        assert!(matches!(error, ConfigDirError::Exposed { .. }), "{error}");
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_role_is_named_and_kept() {
        let (_keep, path) = scratch();
        drop(ConfigDir::open(&path, ServiceType::Manager).unwrap());
        std::fs::write(path.join(ROLE), "{").unwrap();
        let error = ConfigDir::open(&path, ServiceType::Manager).unwrap_err();
        assert!(error.to_string().contains("role.json is damaged"), "{error}");
        assert_eq!(std::fs::read_to_string(path.join(ROLE)).unwrap(), "{");
    }

    #[test]
    fn a_file_in_the_directory_s_place_is_an_error_that_names_it() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        std::fs::write(&path, "").unwrap();
        let error = ConfigDir::open(&path, ServiceType::Manager).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}
