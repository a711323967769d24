//! The protocol's error values, and which of them stands for which error of the operating system.

use nix::errno::Errno;
use std::io;

/// Section "Error values".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u32)]
pub enum NbdErrno {
    #[error("operation not permitted")]
    Perm = 1,
    #[error("input/output error")]
    Io = 5,
    #[error("cannot allocate memory")]
    NoMem = 12,
    #[error("invalid argument")]
    Inval = 22,
    #[error("no space left on device")]
    NoSpc = 28,
    #[error("value too large")]
    Overflow = 75,
    #[error("operation not supported")]
    NotSup = 95,
    #[error("the server is shutting down")]
    Shutdown = 108,
}

impl NbdErrno {
    pub fn number(self) -> u32 {
        self as u32
    }

    /// What a server sent; a number that no specification knows counts as `NBD_EINVAL`. Zero is no error.
    pub fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => return None,
            1 => Self::Perm,
            5 => Self::Io,
            12 => Self::NoMem,
            28 => Self::NoSpc,
            75 => Self::Overflow,
            95 => Self::NotSup,
            108 => Self::Shutdown,
            _ => Self::Inval,
        })
    }

    /// `NBD_ENOTSUP` and `NBD_EOVERFLOW` are not among them: the protocol keeps those for negotiated cases.
    pub fn from_io(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES | Errno::EROFS) => Self::Perm,
            Some(Errno::ENOMEM) => Self::NoMem,
            Some(Errno::EINVAL | Errno::EOPNOTSUPP) => Self::Inval,
            Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => Self::NoSpc,
            Some(Errno::ESHUTDOWN) => Self::Shutdown,
            Some(_) => Self::Io,
            None if error.kind() == io::ErrorKind::InvalidInput => Self::Inval,
            None if error.kind() == io::ErrorKind::StorageFull => Self::NoSpc,
            None => Self::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_survives_the_wire_and_strangers_are_invalid_arguments() {
        use NbdErrno::*;
        for errno in [Perm, Io, NoMem, Inval, NoSpc, Overflow, NotSup, Shutdown] {
            assert_eq!(NbdErrno::from_number(errno.number()), Some(errno));
        }
        assert_eq!(NbdErrno::from_number(0), None);
        assert_eq!(NbdErrno::from_number(4711), Some(Inval));
    }

    #[test]
    fn a_full_disk_and_a_quota_are_no_space() {
        for errno in [Errno::ENOSPC, Errno::EDQUOT, Errno::EFBIG] {
            assert_eq!(NbdErrno::from_io(&io::Error::from_raw_os_error(errno as i32)), NbdErrno::NoSpc);
        }
        assert_eq!(NbdErrno::from_io(&io::ErrorKind::UnexpectedEof.into()), NbdErrno::Io);
    }
}
