//! Paths of unix sockets: short enough for the kernel, and free to bind to.

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Longest path of a unix socket in bytes: `sun_path` has 108 (unix(7)), the last of them ends the string.
pub const MAX_SOCKET_PATH: usize = 107;

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "the socket path {} has {length} bytes and the system allows {max}: choose a shorter directory, \
         or name it relative to the working directory", path.display(), max = MAX_SOCKET_PATH
    )]
    TooLong { path: PathBuf, length: usize },
    #[error("{} is in use: another process answers on it", path.display())]
    InUse { path: PathBuf },
    #[error("{} exists and is not a socket: move it away", path.display())]
    NotASocket { path: PathBuf },
    #[error("cannot {action} the socket {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

/// Says whether the kernel can take the path at all.
pub fn check_socket_path(path: &Path) -> Result<(), SocketError> {
    let length = path.as_os_str().as_bytes().len();
    if length > MAX_SOCKET_PATH { Err(SocketError::TooLong { path: path.to_owned(), length }) } else { Ok(()) }
}

/// Makes the path free to bind to: removes a socket that nobody answers on, and nothing else. The caller holds the lock
/// that keeps other processes of its kind from binding in between.
pub fn free_socket_path(path: &Path) -> Result<(), SocketError> {
    check_socket_path(path)?;
    let failed = |action, source: io::Error| SocketError::Io { action, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Ok(facts) if facts.file_type().is_socket() => {}
        Ok(_) => return Err(SocketError::NotASocket { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", error)),
    }
    match knock(path) {
        Err(Errno::ECONNREFUSED) => match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", error)),
            _ => Ok(()),
        },
        Err(Errno::ENOENT) => Ok(()),
        // A listener with a full queue, or one of another socket type, is a listener all the same.
        Ok(()) | Err(Errno::EAGAIN | Errno::EINPROGRESS | Errno::EPROTOTYPE) => {
            Err(SocketError::InUse { path: path.to_owned() })
        }
        Err(error) => Err(failed("ask who listens on", error.into())),
    }
}

fn knock(path: &Path) -> nix::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let client = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(client.as_raw_fd(), &UnixAddr::new(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_longest_path_the_kernel_takes_is_the_longest_allowed() {
        let scratch = tempfile::tempdir().unwrap();
        let room = MAX_SOCKET_PATH - scratch.path().as_os_str().len() - 1;
        let fits = scratch.path().join("s".repeat(room));
        check_socket_path(&fits).unwrap();
        UnixListener::bind(&fits).unwrap();
        let error = check_socket_path(&scratch.path().join("s".repeat(room + 1))).unwrap_err();
        assert!(error.to_string().contains("108 bytes"), "{error}");
    }

    #[test]
    fn a_socket_without_a_listener_is_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("control.sock");
        free_socket_path(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        free_socket_path(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_somebody_answers_on_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("control.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(free_socket_path(&path), Err(SocketError::InUse { .. })));
        assert!(path.exists());
        let datagrams = scratch.path().join("datagrams.sock");
        let _other = std::os::unix::net::UnixDatagram::bind(&datagrams).unwrap();
        assert!(matches!(free_socket_path(&datagrams), Err(SocketError::InUse { .. })));
        assert!(datagrams.exists());
    }

    #[test]
    fn a_file_in_the_socket_s_place_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("control.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(free_socket_path(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
