//! A lock on an open file or directory (`flock(2)`): one holder, here or in any other process.
//!
//! It sits on the inode, so symbolic links and bind mounts lead to the same lock, and it is gone with the process.
//! Limitation: network file systems may keep it to one host, or refuse it on directories.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::OwnedFd;

/// Unlocks when dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Locks the file; none if somebody else holds it, which another opening in this process does too.
    pub fn try_take(file: &File) -> io::Result<Option<Self>> {
        // The same open file description under a second descriptor: one lock.
        let file = file.try_clone()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// A second descriptor of the same lock.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(OwnedFd::from)
    }
}

impl Drop for Lock {
    /// Closing would not be enough: a child on its way from `fork` to `exec` holds a copy of every descriptor.
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "a lock was not given back");
        }
    }
}
