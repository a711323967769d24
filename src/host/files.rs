//! Files by path: read whole, replaced whole. A reader sees the old content or the new, and so does the next start
//! after a power cut; never a mixture, never an empty file.

use super::directory::{Directory, FileError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

/// Larger files than this are not ours, in bytes.
pub(super) const MAX_FILE: u64 = 256 << 20;

/// Replaces the file durably: new content beside it, synced, renamed over it, directory synced. After an error the file
/// holds the old content or the new, whole. The mode is subject to the umask.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let (directory, name) = place(path)?;
    let staged = directory.stage(name, bytes, mode)?;
    staged.sync()?;
    staged.publish()?;
    directory.sync()
}

/// The file's content, none if there is no such file or no such directory.
pub fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match place(path) {
        Ok((directory, name)) => directory.read(name, MAX_FILE),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The content of a file that must be closed to others as far as `forbidden` says (bits of its mode); none if there is
/// no such file. Content and mode are those of one file, even if the path changes hands meanwhile.
pub fn read_guarded(path: &Path, forbidden: u32) -> Result<Option<Vec<u8>>, FileError> {
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| FileError::new("open", path, error))?,
    };
    let facts = file.metadata().map_err(|error| FileError::new("look at", path, error))?;
    if facts.mode() & forbidden != 0 {
        let reason = format!("others may use it (mode {:03o}): run chmod 600 {}", facts.mode() & 0o777, path.display());
        return Err(FileError::new("trust", path, io::Error::new(io::ErrorKind::PermissionDenied, reason)));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(|error| FileError::new("read", path, error))?;
    Ok(Some(bytes))
}

/// Makes the names in a directory durable.
pub fn sync_dir(path: &Path) -> Result<(), FileError> {
    Directory::open(path)?.sync()
}

/// Makes the directory, and those above it that are missing, durably; false if it exists. `mode` holds for the last
/// one, the others get what the umask leaves.
pub fn make_directory(path: &Path, mode: u32) -> Result<bool, FileError> {
    let make = || std::fs::DirBuilder::new().mode(mode).create(path);
    let parent = path.parent().unwrap_or(Path::new("/"));
    let made = match make() {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !parent.as_os_str().is_empty() => {
            make_directory(parent, 0o777)?;
            make()
        }
        other => other,
    };
    match made {
        Ok(()) => sync_dir(parent).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(FileError::new("make the directory", path, error)),
    }
}

/// Makes the directory for its owner alone (0700). One that exists must belong to the caller and be closed to others.
pub fn make_private_directory(path: &Path) -> Result<(), FileError> {
    if make_directory(path, 0o700)? {
        return Ok(());
    }
    let refused = |reason: String| {
        let source = io::Error::new(io::ErrorKind::PermissionDenied, reason);
        Err(FileError::new("keep secrets in", path, source))
    };
    let facts = std::fs::metadata(path).map_err(|error| FileError::new("look at", path, error))?;
    let own = nix::unistd::geteuid().as_raw();
    if !facts.is_dir() {
        return refused("it is not a directory".into());
    }
    if facts.uid() != own {
        return refused(format!("it belongs to user {}, not to user {own}", facts.uid()));
    }
    if facts.mode() & 0o077 != 0 {
        return refused(format!("others may enter it: run chmod 700 {}", path.display()));
    }
    Ok(())
}

/// The directory that holds the file, and the file's name in it.
pub(super) fn place(path: &Path) -> Result<(Directory, &str), FileError> {
    let name = path.file_name().and_then(|name| name.to_str());
    let Some(name) = name else {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the path does not end in a UTF-8 name");
        return Err(FileError::new("open", path, source));
    };
    Ok((Directory::open(path.parent().unwrap_or(Path::new("/")))?, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        assert_eq!(read_optional(&path).unwrap(), None);
        assert_eq!(read_optional(&scratch.path().join("no/such/file")).unwrap(), None);
        write_atomic(&path, b"one", 0o600).unwrap();
        write_atomic(&path, b"two", 0o600).unwrap();
        assert_eq!(read_optional(&path).unwrap().unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_guarded_file_that_others_may_use_is_refused_with_the_command_that_helps() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("key");
        assert_eq!(read_guarded(&path, 0o077).unwrap(), None);
        write_atomic(&path, b"secret", 0o600).unwrap();
        assert_eq!(read_guarded(&path, 0o077).unwrap().unwrap(), b"secret");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let error = read_guarded(&path, 0o077).unwrap_err();
        assert!(error.source.to_string().contains("chmod 600"), "{error}: {}", error.source);
        assert_eq!(read_guarded(&path, 0o022).unwrap().unwrap(), b"secret", "reading was not forbidden");
    }

    #[test]
    fn a_write_that_cannot_happen_leaves_the_old_file_and_no_litter() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        std::fs::create_dir(&path).unwrap();
        let error = write_atomic(&path, b"new", 0o600).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert!(path.is_dir());
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
        assert!(write_atomic(&scratch.path().join("missing/file"), b"", 0o600).is_err());
        assert!(write_atomic(Path::new("/"), b"", 0o600).is_err());
    }

    #[test]
    fn directories_are_made_with_all_that_is_above_them() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a/b/c");
        assert!(make_directory(&path, 0o700).unwrap());
        assert!(!make_directory(&path, 0o700).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_directory_that_others_may_enter_is_no_place_for_secrets() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("tls");
        make_private_directory(&path).unwrap();
        make_private_directory(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o750)).unwrap();
        let error = make_private_directory(&path).unwrap_err();
        assert!(error.source.to_string().contains("chmod 700"), "{error}: {}", error.source);
    }
}
