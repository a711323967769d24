//! What only block devices can be asked, through `ioctl(2)`. Linux's `include/uapi/linux/fs.h` has the numbers.

use nix::errno::Errno;
use nix::libc;
use rustix::ioctl::{NoArg, Setter, ioctl, opcode};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// `BLKDISCARD`, with an offset and a length in bytes.
const DISCARD: rustix::ioctl::Opcode = opcode::none(0x12, 119);
/// `BLKRRPART`.
const REREAD_PARTITIONS: rustix::ioctl::Opcode = opcode::none(0x12, 95);

/// Gives a range of whole blocks back; `Ok(false)` if the device cannot. What is read from there afterwards is for the
/// device to say: zeros from a thin volume whose chunks lie wholly within the range, anything from a disk.
pub fn discard(device: &File, offset: u64, length: u64) -> io::Result<bool> {
    // SAFETY: BLKDISCARD reads two numbers of 64 bits through its pointer and keeps none of it.
    let done = unsafe { ioctl(device, Setter::<DISCARD, [u64; 2]>::new([offset, length])) };
    match done.map_err(io::Error::from) {
        Ok(()) => Ok(true),
        Err(error) if is_unsupported(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Lets the kernel look for partitions again; nothing happens on a device that cannot have any.
///
/// # Errors
/// `EBUSY` while a partition is in use.
pub fn reread_partitions(device: &File) -> io::Result<()> {
    // SAFETY: BLKRRPART takes no argument.
    let done = unsafe { ioctl(device, NoArg::<REREAD_PARTITIONS>::new()) };
    match done.map_err(io::Error::from) {
        Err(error) if error.raw_os_error() != Some(Errno::EINVAL as i32) && !is_unsupported(&error) => Err(error),
        _ => Ok(()),
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    let codes = [Errno::EOPNOTSUPP, Errno::ENOTTY, Errno::ENOSYS].map(|errno| errno as i32);
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Opens a device that nobody else holds: neither a mount, nor another device on top of it, nor a program like us.
///
/// # Errors
/// `EBUSY` if it is held.
pub fn open_alone(path: &Path, write: bool) -> io::Result<File> {
    // On a block device O_EXCL without O_CREAT is a claim, and O_NONBLOCK does not wait for a medium to be put in.
    File::options().read(true).write(write).custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(path)
}

/// The device number of a path that leads to a block device; none if it leads to something else.
pub fn number_of(path: &Path) -> io::Result<Option<(u64, u64)>> {
    let facts = std::fs::metadata(path)?;
    let number = facts.rdev();
    let split = (libc::major(number).into(), libc::minor(number).into());
    Ok(facts.file_type().is_block_device().then_some(split))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_no_device_and_is_told_so_without_harm() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; 4096]).unwrap();
        let opened = open_alone(file.path(), true).unwrap();
        assert!(!discard(&opened, 0, 4096).unwrap());
        reread_partitions(&opened).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), [7; 4096]);
        assert_eq!(number_of(file.path()).unwrap(), None);
    }
}
