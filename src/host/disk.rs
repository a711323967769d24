//! Facts about file systems.

use super::directory::{Directory, FileError};
use crate::model::ByteSize;
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io;
use std::path::Path;

/// The room on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub total: ByteSize,
    /// What an unprivileged writer can still fill.
    pub available: ByteSize,
}

/// The room on the file system that holds `path`.
pub fn capacity(path: &Path) -> Result<Space, FileError> {
    capacity_of(&Directory::open(path)?)
}

/// The room on the file system that holds the directory.
pub fn capacity_of(directory: &Directory) -> Result<Space, FileError> {
    let stat = fstatvfs(directory)
        .map_err(|error| FileError::new("ask for the room on the file system of", directory.path(), error))?;
    let bytes = |blocks: u64| ByteSize::bytes(blocks.saturating_mul(stat.fragment_size()));
    Ok(Space { total: bytes(stat.blocks()), available: bytes(stat.blocks_available()) })
}

/// Makes `target` hold what `source` holds, the blocks shared until either is changed: takes the same time for any size.
///
/// # Errors
/// `Unsupported` if the file system cannot do that.
pub fn share_blocks(source: &File, target: &File) -> io::Result<()> {
    use rustix::io::Errno;
    match rustix::fs::ioctl_ficlone(target, source) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV) => Err(io::ErrorKind::Unsupported.into()),
        Err(error) => Err(error.into()),
    }
}

/// Whether files in the directory can share blocks, found by trying with two files that have no name.
pub fn can_share_blocks(directory: &Directory) -> Result<bool, FileError> {
    let failed = |error| FileError::new("try to share blocks in", directory.path(), error);
    let nameless = || tempfile_in(directory).map_err(failed);
    match share_blocks(&nameless()?, &nameless()?) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// A file without a name, gone when it is closed.
fn tempfile_in(directory: &Directory) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, openat};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(openat(directory, c".", flags, Mode::RUSR | Mode::WUSR).map(File::from)?)
}

/// Whether any byte of the file at or after `offset` may be something but a hole. A file system that cannot tell holes
/// from data answers yes for every byte that exists.
pub fn holds_data(file: &File, offset: u64) -> io::Result<bool> {
    let offset = i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    match lseek(file, offset, Whence::SeekData) {
        Ok(_) => Ok(true),
        // Nothing but a hole up to the end, or the end itself.
        Err(nix::errno::Errno::ENXIO) => Ok(false),
        Err(nix::errno::Errno::EINVAL) => Ok(file.metadata()?.len() > offset.unsigned_abs()),
        Err(error) => Err(error.into()),
    }
}

/// Where the file's next data lie, at or after `offset`: from where to where; none if only a hole is left. A file system that
/// cannot tell holes from data has one run of data.
pub fn next_data(file: &File, offset: u64) -> io::Result<Option<std::ops::Range<u64>>> {
    let seek = |from: u64, whence| {
        let from = i64::try_from(from).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        match lseek(file, from, whence) {
            Ok(at) => Ok(Some(at.unsigned_abs())),
            Err(nix::errno::Errno::ENXIO) => Ok(None),
            Err(error) => Err(io::Error::from(error)),
        }
    };
    let length = file.metadata()?.len();
    match seek(offset, Whence::SeekData) {
        Ok(None) => Ok(None),
        Ok(Some(start)) => Ok(Some(start..seek(start, Whence::SeekHole)?.unwrap_or(length))),
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EINVAL as i32) => {
            Ok((offset < length).then_some(offset..length))
        }
        Err(error) => Err(error),
    }
}

/// A file without a name in a directory, gone when it is closed.
pub fn nameless_file(directory: &Path) -> Result<File, FileError> {
    tempfile_in(&Directory::open(directory)?).map_err(|error| FileError::new("make a file in", directory, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_file_system_has_room_and_no_more_is_free_than_there_is() {
        let space = capacity(Path::new("/")).unwrap();
        assert!(space.total > ByteSize::ZERO && space.available <= space.total);
        assert!(capacity(Path::new("/no/such/place")).is_err());
    }

    #[test]
    fn holes_are_told_from_data() {
        let file = tempfile::tempfile().unwrap();
        assert!(!holds_data(&file, 0).unwrap());
        file.set_len(1 << 30).unwrap();
        assert!(!holds_data(&file, 0).unwrap());
        file.write_all_at(b"x", 1 << 29).unwrap();
        assert!(holds_data(&file, 0).unwrap());
        assert!(!holds_data(&file, (1 << 29) + (64 << 10)).unwrap());
        let run = next_data(&file, 0).unwrap().unwrap();
        assert!(run.contains(&(1 << 29)) && run.end <= (1 << 29) + (64 << 10), "{run:?}");
        assert_eq!(next_data(&file, run.end).unwrap(), None);
    }
}
