//! The store's file: making it, looking it over, opening it, and what its errors mean.

use super::{rehearsal::Rehearsal, tables};
use crate::store::StoreError;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use redb::{Database, ReadableDatabase, StorageBackend, backends::FileBackend};
use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, ErrorKind},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

/// The managers keep their own view of the state, so the database's cache only has to hold the tree's upper pages.
const CACHE_BYTES: usize = 4 << 20;

/// Opens the store at `path`, and makes it first if there is none. A damaged file is left as it is, byte for byte.
pub(super) fn open(path: &Path) -> Result<Database, StoreError> {
    if !path.try_exists().map_err(|error| unusable(path, "open", &error))? {
        create(path).map_err(|error| unusable(path, "create", &error))?;
    }
    inspect(path)?;
    let database = guarded(path, || load(reopen(path)?, false))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|error| unusable(path, "protect", &error))?;
    Ok(database)
}

/// Makes an empty store appear at `path` at once, complete and durable; one that is there already stays.
fn create(path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", uuid::Uuid::new_v4()));
    let draft = Draft(PathBuf::from(name));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&draft.0)?;
    let database = load(FileBackend::new(file).map_err(io::Error::other)?, false).map_err(io::Error::other)?;
    let format = || {
        let write = database.begin_write()?;
        tables::format(&write)?;
        write.commit()?;
        Ok::<_, redb::Error>(())
    };
    format().map_err(io::Error::other)?;
    database.close().map_err(io::Error::other)?;
    File::open(&draft.0)?.sync_all()?;
    match std::fs::hard_link(&draft.0, path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => {
            drop(draft);
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
        }
    }
}

/// A file on its way to its name.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a draft of the store stays behind");
        }
    }
}

/// Opens the file without writing to it and checks every page, so that a damaged one is told before it is touched.
fn inspect(path: &Path) -> Result<(), StoreError> {
    guarded(path, || {
        let database = load(Rehearsal::new(reopen(path)?)?, true)?;
        tables::revision(&database.begin_read()?)?;
        Ok(())
    })
}

/// What the medium holds: after a failed sync the kernel may go on showing what never got there, unless it is told to
/// forget.
fn reopen(path: &Path) -> Result<FileBackend, redb::Error> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    if file.metadata()?.len() == 0 {
        return Err(redb::Error::Corrupted("it is empty".into()));
    }
    if let Err(error) = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED) {
        tracing::debug!(%error, path = %path.display(), "the kernel may answer from memory what the medium lost");
    }
    Ok(FileBackend::new(file)?)
}

fn load(backend: impl StorageBackend, check: bool) -> Result<Database, redb::Error> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(check);
    Ok(builder.create_with_backend(backend)?)
}

/// Runs `work` on the file. The database may panic on a file it did not write, and that too means damage.
pub(super) fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| explain(path, error)),
        Err(_) => Err(StoreError::Damaged(format!("{}: its contents make no sense", path.display()))),
    }
}

fn unusable(path: &Path, verb: &str, error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("cannot {verb} {}: {error}", path.display()))
}

fn explain(path: &Path, error: redb::Error) -> StoreError {
    use redb::Error as E;
    let path_text = path.display();
    match error {
        E::DatabaseAlreadyOpen | E::LockProtocolMismatch => StoreError::InUse(path.to_owned()),
        E::Io(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
            StoreError::Damaged(format!("{path_text}: {error}"))
        }
        E::Corrupted(_)
        | E::UpgradeRequired(_)
        | E::RepairAborted
        | E::TableTypeMismatch { .. }
        | E::TypeDefinitionChanged { .. }
        | E::TableIsMultimap(_)
        | E::TableIsNotMultimap(_)
        | E::TableDoesNotExist(_)
        | E::LockPoisoned(_) => StoreError::Damaged(format!("{path_text}: {error}")),
        E::ValueTooLarge(_) => StoreError::Refused(error.to_string()),
        _ => StoreError::Unavailable(format!("{path_text}: {error}")),
    }
}
