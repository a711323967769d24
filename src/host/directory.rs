//! A directory held open. Names resolve inside it whatever is renamed or mounted over its path later, and it keeps its
//! file system from being unmounted.
//!
//! New files are private to their owner. Nothing here is durable until the matching `sync` has returned; the order in
//! which a caller stages, syncs and publishes is its own promise to keep.

use super::lock::Lock;
use crate::model::ByteSize;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, fstatat, mkdirat};
use nix::unistd::{AccessFlags, UnlinkatFlags, faccessat, unlinkat};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// For files that only their owner may read.
pub const PRIVATE: u32 = 0o600;

/// What could not be done to which file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    pub action: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

impl FileError {
    pub fn new(action: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self { action, path: path.into(), source: source.into() }
    }

    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// What a file system says of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    pub length: ByteSize,
    /// What it occupies; less than its length if it has holes.
    pub allocated: ByteSize,
    pub regular: bool,
}

impl From<FileStat> for Facts {
    fn from(stat: FileStat) -> Self {
        // POSIX leaves the unit of `st_blocks` open; on Linux it is 512 bytes whatever the file system's block is.
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        Self {
            length: ByteSize::bytes(u64::try_from(stat.st_size).unwrap_or(0)),
            allocated: ByteSize::bytes(allocated),
            regular: stat.st_mode & nix::libc::S_IFMT == nix::libc::S_IFREG,
        }
    }
}

/// See the module's text. `name` is always a single name, never a path.
#[derive(Debug)]
pub struct Directory {
    file: File,
    path: PathBuf,
    /// How many syncs have failed, and up to which of these a later one made up for it. See [`Self::settle`].
    failed: AtomicU64,
    healed: AtomicU64,
}

impl Directory {
    /// Opens an existing directory.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        // The empty path is what `Path::parent` calls the parent of a lone name.
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        match openat(AT_FDCWD, path, Self::FLAGS, Mode::empty()) {
            Ok(fd) => Ok(Self::held(fd, path.to_path_buf())),
            Err(error) => Err(FileError::new("open the directory", path, error)),
        }
    }

    /// Opens the directory `name` in this one, none if there is none. A symbolic link is not followed.
    pub fn open_child(&self, name: &str) -> Result<Option<Self>, FileError> {
        match openat(self, name, Self::FLAGS | OFlag::O_NOFOLLOW, Mode::empty()) {
            Ok(fd) => Ok(Some(Self::held(fd, self.path_of(name)))),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(self.error("open the directory", name, error)),
        }
    }

    /// Makes the private directory `name` in this one unless it exists, and opens it.
    pub fn make_child(&self, name: &str) -> Result<Self, FileError> {
        match mkdirat(self, name, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(self.error("make the directory", name, error)),
        }
        self.open_child(name)?.ok_or_else(|| self.error("open the directory", name, Errno::ENOENT))
    }

    const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

    fn held(fd: OwnedFd, path: PathBuf) -> Self {
        Self { file: File::from(fd), path, failed: AtomicU64::new(0), healed: AtomicU64::new(0) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn error(&self, action: &'static str, name: &str, source: impl Into<io::Error>) -> FileError {
        FileError::new(action, self.path_of(name), source)
    }

    /// Locks the directory itself; none if somebody else holds it.
    pub fn try_lock(&self) -> Result<Option<Lock>, FileError> {
        Lock::try_take(&self.file).map_err(|error| FileError::new("lock the directory", &self.path, error))
    }

    /// Says why names cannot be added or removed, if they cannot.
    pub fn check_writable(&self) -> Result<(), FileError> {
        faccessat(self, ".", AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS)
            .map_err(|error| FileError::new("write in the directory", &self.path, error))
    }

    /// Every name but `.` and `..`, unsorted. Names that are not UTF-8 come with replacement characters.
    pub fn names(&self) -> Result<Vec<String>, FileError> {
        let failed = |error: Errno| FileError::new("list the directory", &self.path, error);
        // A descriptor of its own, since the position in the listing belongs to the open directory.
        let listing = Dir::openat(self, ".", Self::FLAGS, Mode::empty()).map_err(failed)?;
        let mut names = Vec::new();
        for entry in listing {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy();
            if name != "." && name != ".." {
                names.push(name.into_owned());
            }
        }
        Ok(names)
    }

    /// What is known of `name`, without following a symbolic link; none if it does not exist.
    pub fn facts(&self, name: &str) -> Result<Option<Facts>, FileError> {
        match fstatat(self, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat.into())),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(self.error("look at", name, error)),
        }
    }

    /// Opens a regular file for reading and writing; none if it does not exist. A symbolic link is not followed.
    pub fn open_file(&self, name: &str) -> Result<Option<File>, FileError> {
        // Opened for both directions not even a pipe makes this wait; O_NONBLOCK would stay with the file and show in
        // how io_uring treats it.
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        self.regular(name, openat(self, name, flags, Mode::empty()))
    }

    /// Creates a file for reading and writing that did not exist before.
    pub fn create_file(&self, name: &str, mode: u32) -> Result<File, FileError> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        match openat(self, name, flags, Mode::from_bits_truncate(mode)) {
            Ok(fd) => Ok(File::from(fd)),
            Err(error) => Err(self.error("create", name, error)),
        }
    }

    /// The whole content of a regular file, none if it does not exist; a file of more than `limit` bytes is an error.
    pub fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
        // O_NONBLOCK keeps the open from waiting on a pipe; it means nothing to the regular files let through.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let Some(file) = self.regular(name, openat(self, name, flags, Mode::empty()))? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| self.error("read", name, error))?;
        if bytes.len() as u64 > limit {
            let source = io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {limit} bytes"));
            return Err(self.error("read", name, source));
        }
        Ok(Some(bytes))
    }

    fn regular(&self, name: &str, opened: nix::Result<OwnedFd>) -> Result<Option<File>, FileError> {
        let file = match opened {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(self.error("open", name, error)),
        };
        if file.metadata().map_err(|error| self.error("look at", name, error))?.is_file() {
            return Ok(Some(file));
        }
        Err(self.error("open", name, io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")))
    }

    /// Writes `bytes` under a temporary name beside `name`, ready to take its place. The mode is subject to the umask.
    pub fn stage(&self, name: &str, bytes: &[u8], mode: u32) -> Result<Staged<'_>, FileError> {
        let staged = loop {
            let temporary = temporary_name(name);
            match self.create_file(&temporary, mode) {
                Ok(file) => break Staged { directory: self, name: name.to_owned(), temporary, file, published: false },
                // Left by a killed process that had our process id: numbers never repeat, so this ends.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(self.error("write", name, error.source)),
            }
        };
        (&staged.file).write_all(bytes).map_err(|error| self.error("write", name, error))?;
        Ok(staged)
    }

    /// Removes what killed processes left staged for names that `of` picks; the caller holds whatever lock keeps other
    /// writers away. Says how many there were.
    pub fn sweep_staged(&self, of: impl Fn(&str) -> bool) -> Result<usize, FileError> {
        let mut swept = 0;
        for name in self.names()? {
            if staged_for(&name).is_some_and(&of) {
                swept += usize::from(self.remove_file(&name)?);
            }
        }
        Ok(swept)
    }

    /// Removes a file; false if there was none.
    pub fn remove_file(&self, name: &str) -> Result<bool, FileError> {
        self.unlink(name, UnlinkatFlags::NoRemoveDir)
    }

    /// Gives a file another name, in place of whatever has that; durable when the directory has been synced.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), FileError> {
        renameat(self, from, self, to).map_err(|error| self.error("rename", from, error))
    }

    /// Removes an empty directory; false if there was none.
    pub fn remove_child(&self, name: &str) -> Result<bool, FileError> {
        self.unlink(name, UnlinkatFlags::RemoveDir)
    }

    fn unlink(&self, name: &str, flag: UnlinkatFlags) -> Result<bool, FileError> {
        match unlinkat(self, name, flag) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(self.error("remove", name, error)),
        }
    }

    /// Makes every name added, replaced or removed so far durable.
    pub fn sync(&self) -> Result<(), FileError> {
        let failed = self.failed.load(Ordering::SeqCst);
        match self.file.sync_all() {
            Ok(()) => {
                self.healed.fetch_max(failed, Ordering::SeqCst);
                Ok(())
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::SeqCst);
                Err(FileError::new("sync the directory", &self.path, error))
            }
        }
    }

    /// Syncs again if an earlier sync failed and none begun since has succeeded, else costs nothing. Whoever finds the
    /// names just as they should be asks this before calling them durable.
    pub fn settle(&self) -> Result<(), FileError> {
        if self.healed.load(Ordering::SeqCst) < self.failed.load(Ordering::SeqCst) { self.sync() } else { Ok(()) }
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// New content of a file, not yet under its name. Dropped before [`Staged::publish`], it disappears.
#[derive(Debug)]
pub struct Staged<'d> {
    directory: &'d Directory,
    name: String,
    temporary: String,
    file: File,
    published: bool,
}

impl Staged<'_> {
    /// Makes the content durable, which must come before its name.
    pub fn sync(&self) -> Result<(), FileError> {
        self.file.sync_all().map_err(|error| self.directory.error("sync", &self.name, error))
    }

    /// Takes the place of whatever has the name, at once; durable when the directory has been synced.
    pub fn publish(mut self) -> Result<(), FileError> {
        renameat(self.directory, self.temporary.as_str(), self.directory, self.name.as_str())
            .map_err(|error| self.directory.error("replace", &self.name, error))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = self.directory.remove_file(&self.temporary)
        {
            tracing::debug!(%error, reason = %error.source, "a temporary file stays until the next start");
        }
    }
}

fn temporary_name(name: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!(".{name}.{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The name that a file with a [`temporary_name`] was staged for.
fn staged_for(temporary: &str) -> Option<&str> {
    let (name, token) = temporary.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
    let (process, number) = token.split_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (!name.is_empty() && digits(process) && digits(number)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, Directory) {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(temporary.path()).unwrap();
        (temporary, directory)
    }

    #[test]
    fn what_is_staged_replaces_the_file_only_when_published() {
        let (_keep, directory) = scratch();
        directory.stage("a", b"old", PRIVATE).unwrap().publish().unwrap();
        let staged = directory.stage("a", b"new", PRIVATE).unwrap();
        assert_eq!(directory.read("a", 10).unwrap().unwrap(), b"old");
        staged.sync().unwrap();
        staged.publish().unwrap();
        assert_eq!(directory.read("a", 10).unwrap().unwrap(), b"new");
        assert_eq!(directory.names().unwrap(), ["a"]);
    }

    #[test]
    fn what_is_staged_and_dropped_leaves_nothing() {
        let (_keep, directory) = scratch();
        drop(directory.stage("a", b"new", PRIVATE).unwrap());
        assert!(directory.names().unwrap().is_empty());
    }

    #[test]
    fn sweeping_takes_leftovers_of_the_picked_names_and_nothing_else() {
        let (_keep, directory) = scratch();
        let others = [".a.tmp", ".a.1-.tmp", "a.1-1.tmp", ".b.1-1.tmp", ".profile", "a"];
        for name in others {
            directory.create_file(name, PRIVATE).unwrap();
        }
        directory.create_file(".a.12-7.tmp", PRIVATE).unwrap();
        assert_eq!(directory.sweep_staged(|name| name == "a").unwrap(), 1);
        let mut left = directory.names().unwrap();
        left.sort();
        let mut expected = others.map(String::from);
        expected.sort();
        assert_eq!(left, expected);
    }

    #[test]
    fn two_writers_of_one_name_never_mix() {
        let (_keep, directory) = scratch();
        std::thread::scope(|scope| {
            for byte in [b'a', b'b', b'c'] {
                let directory = &directory;
                scope.spawn(move || {
                    for _ in 0..50 {
                        directory.stage("file", &[byte; 4096], PRIVATE).unwrap().publish().unwrap();
                        let read = directory.read("file", 4096).unwrap().unwrap();
                        assert!(read.len() == 4096 && read.iter().all(|other| Some(other) == read.first()));
                    }
                });
            }
        });
        assert_eq!(directory.names().unwrap(), ["file"]);
    }

    #[test]
    fn a_directory_is_locked_once_however_it_is_reached() {
        let (keep, directory) = scratch();
        let lock = directory.try_lock().unwrap();
        assert!(lock.is_some());
        let link = keep.path().join("link");
        std::os::unix::fs::symlink(keep.path(), &link).unwrap();
        let again = Directory::open(&link).unwrap();
        assert!(again.try_lock().unwrap().is_none());
        drop(lock);
        assert!(again.try_lock().unwrap().is_some());
    }

    #[test]
    fn pipes_links_and_oversized_files_are_refused_without_waiting() {
        let (keep, directory) = scratch();
        nix::unistd::mkfifo(&keep.path().join("pipe"), Mode::S_IRWXU).unwrap();
        std::fs::write(keep.path().join("file"), b"12345").unwrap();
        std::os::unix::fs::symlink("file", keep.path().join("link")).unwrap();
        assert_eq!(directory.read("pipe", 10).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(directory.open_file("pipe").is_err());
        assert!(directory.open_file("link").is_err());
        assert_eq!(directory.read("file", 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(directory.read("absent", 4).unwrap(), None);
        assert!(!directory.facts("link").unwrap().unwrap().regular);
    }

    #[test]
    fn a_failed_sync_is_made_up_for_before_anything_counts_as_durable() {
        let (_keep, directory) = scratch();
        directory.settle().unwrap();
        directory.failed.fetch_add(1, Ordering::SeqCst);
        directory.settle().unwrap();
        assert_eq!(directory.healed.load(Ordering::SeqCst), 1);
    }
}
