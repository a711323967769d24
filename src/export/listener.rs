//! Listening sockets, and the thread that accepts from them until it is told to stop.

use crate::nbd::Stream;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// How long to leave waiting connections alone when the process or system has no room for another socket, in
/// milliseconds.
const BREATHER: u8 = 100;

/// A peer that takes nothing of what it is sent for so long is taken for dead, in milliseconds.
const UNTAKEN: u32 = 120_000;

/// Where a connection came in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    Tcp(SocketAddr),
    Unix,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(peer) => write!(f, "{peer}"),
            Self::Unix => f.write_str("the unix socket"),
        }
    }
}

#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    pub(super) fn tcp(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self::Tcp(listener))
    }

    /// One that another process has listened with, if it listens where it should.
    pub(super) fn inherited_tcp(socket: OwnedFd, wanted: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::from(socket);
        let bound = listener.local_addr()?;
        check(bound.ip() == wanted.ip() && (wanted.port() == 0 || bound.port() == wanted.port()))?;
        listener.set_nonblocking(true)?;
        Ok(Self::Tcp(listener))
    }

    fn accept(&self) -> io::Result<(Stream, Origin)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                prepare(&stream)?;
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                Ok((Stream::Tcp(stream), Origin::Tcp(peer)))
            }
            Self::Unix(listener) => listener.accept().map(|(stream, _)| (Stream::Unix(stream), Origin::Unix)),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

/// Small replies leave at once, and peers that have vanished without a word are noticed while nothing is asked.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::KeepAlive, &true)?;
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::TcpKeepIdle, &60)?;
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::TcpKeepInterval, &15)?;
    // Replies that nobody takes hold memory that others could use.
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::TcpUserTimeout, &UNTAKEN)?;
    Ok(())
}

/// A socket's place in the file system, removed when it is dropped, unless something else has taken the place.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Absent when another process goes on with it.
    identity: Option<(u64, u64)>,
}

fn check(listens_there: bool) -> io::Result<()> {
    let other = || io::Error::new(io::ErrorKind::AddrNotAvailable, "the inherited socket listens elsewhere");
    if listens_there { Ok(()) } else { Err(other()) }
}

impl SocketFile {
    /// Listens at `path`, readable and writable by its owner only from the first moment on. A socket that nobody
    /// answers on is replaced; anything else at that place is left alone.
    ///
    /// # Errors
    /// `AddrInUse` if somebody answers, `AlreadyExists` if something that is no socket is in the way.
    pub(super) fn listen(path: &Path) -> io::Result<(Self, Listener)> {
        remove_stale(path)?;
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        // Linux gives the file the mode that the socket has when it is bound.
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        let identity = Some(identity(path)?);
        listen(&fd, Backlog::new(BACKLOG)?)?;
        let listener = UnixListener::from(fd);
        listener.set_nonblocking(true)?;
        Ok((Self { path: path.to_owned(), identity }, Listener::Unix(listener)))
    }

    /// The same with a socket that another process has listened with at `path`.
    pub(super) fn inherited(socket: OwnedFd, path: &Path) -> io::Result<(Self, Listener)> {
        let listener = UnixListener::from(socket);
        check(listener.local_addr()?.as_pathname() == Some(path))?;
        let identity = Some(identity(path)?);
        listener.set_nonblocking(true)?;
        Ok((Self { path: path.to_owned(), identity }, Listener::Unix(listener)))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Does not remove the file.
    pub(super) fn leave(mut self) {
        self.identity = None;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Some(left) = self.identity else { return };
        let ours = identity(&self.path).is_ok_and(|identity| identity == left);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "could not remove the socket");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is not a socket is in its place"));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers on it")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Accepts until the other end of `stop` is closed.
pub(super) fn accept_all(listeners: &[Listener], stop: &UnixStream, mut serve: impl FnMut(Stream, Origin)) {
    let mut breather = false;
    loop {
        let mut waits = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        if !breather {
            waits.extend(listeners.iter().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)));
        }
        match poll(&mut waits, if breather { PollTimeout::from(BREATHER) } else { PollTimeout::NONE }) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => {
                tracing::error!(%error, "waiting for connections");
                return;
            }
        }
        if waits.first().and_then(PollFd::any).unwrap_or(true) && stopped(stop) {
            return;
        }
        breather = false;
        for listener in listeners {
            breather |= accept_waiting(listener, &mut serve);
        }
    }
}

/// Nothing is ever written into it: readable means closed.
fn stopped(stop: &UnixStream) -> bool {
    let mut stop = stop;
    !matches!(stop.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::Interrupted)
}

/// Accepts what is waiting; says whether there was no room for it.
fn accept_waiting(listener: &Listener, serve: &mut impl FnMut(Stream, Origin)) -> bool {
    use nix::errno::Errno;
    // The other listener has its turn after so many.
    for _ in 0..BACKLOG {
        match listener.accept() {
            Ok((stream, origin)) => serve(stream, origin),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                    tracing::warn!(%error, "no room for another connection");
                    return true;
                }
                // That one connection has failed before it was accepted.
                _ => tracing::debug!(%error, "accepting a connection"),
            },
        }
    }
    false
}
