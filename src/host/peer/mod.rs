//! Who is at the other end of a connection: somebody who is root, or the server's own user, on this very host; or not.
//!
//! For TCP both ends must be loopback addresses, and the kernel's own record of the peer's socket must name its owner.
//! The record is asked for over `NETLINK_SOCK_DIAG` (sock_diag(7)), or read from `/proc/net/tcp` and `tcp6` (proc(5))
//! where that fails. A socket that nobody holds any more counts for nothing: the kernel lists it as user 0, whoever
//! opened it.
//!
//! Limitations: whoever forwards other people's connections from this host as root vouches for them. A peer in another
//! network namespace has no record here and is refused, and so is everybody whom a user namespace cannot name.

mod proc_net;
mod sock_diag;

use nix::errno::Errno;
use nix::sys::socket::{SockaddrStorage, getpeername, getsockname, getsockopt, sockopt::PeerCredentials};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::{fmt, io};

/// What the kernel keeps about one TCP socket of this network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SocketRecord {
    /// As numbered in the kernel's `net/tcp_states.h`.
    state: u8,
    /// Who opened the socket; meaningless when `inode` is 0.
    uid: u32,
    /// 0 once no process holds the socket.
    inode: u64,
}

const ROOT: u32 = 0;
/// What the kernel calls every user that the reader's user namespace cannot name.
const NOBODY: u32 = 65534;

/// The user of this host behind a local and trusted peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalUser(u32);

impl fmt::Display for LocalUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ROOT => f.write_str("root"),
            uid => write!(f, "user {uid}"),
        }
    }
}

/// Why a peer is not taken for local and trusted.
#[derive(Debug, thiserror::Error)]
pub enum PeerRefused {
    #[error("the peer {peer} is not on this host's loopback: only a connection with mutual TLS is trusted from there")]
    Remote { peer: SocketAddr },
    #[error(
        "{peer} belongs to user {uid}, not to root or the server's own user {own}: \
        run the command as one of these, or use the control socket or mutual TLS"
    )]
    OtherUser { peer: String, uid: u32, own: u32 },
    #[error("nobody holds the socket of the peer {peer} any more, so nobody can vouch for it: connect again")]
    Abandoned { peer: SocketAddr },
    #[error(
        "the system knows no socket of the peer {peer}, so it is gone or in another network namespace, as in a \
         container: run the command outside, or use the control socket or mutual TLS"
    )]
    Unknown { peer: SocketAddr },
    #[error("cannot tell who the peer is")]
    Io(#[source] io::Error),
}

/// Whether the connection's peer is local and trusted, and who it is then. Asked of the connection itself, the answer
/// holds for whatever can be read from it: the pair of addresses cannot have passed to another peer while our end is
/// still connected.
pub fn tcp_peer(connection: &impl AsFd) -> Result<LocalUser, PeerRefused> {
    let fd = connection.as_fd().as_raw_fd();
    let peer = address(getpeername(fd))?;
    let local = address(getsockname(fd))?;
    let user = is_local_peer(peer, local)?;
    match getpeername::<SockaddrStorage>(fd) {
        Ok(_) => Ok(user),
        Err(Errno::ENOTCONN) => Err(PeerRefused::Abandoned { peer }),
        Err(error) => Err(PeerRefused::Io(error.into())),
    }
}

/// Whether the peer of a TCP connection is local and trusted, by the connection's two addresses. Prefer [`tcp_peer`].
pub fn is_local_peer(peer: SocketAddr, local: SocketAddr) -> Result<LocalUser, PeerRefused> {
    let (peer, local) = (canonical(peer), canonical(local));
    if !peer.ip().is_loopback() || !local.ip().is_loopback() {
        return Err(PeerRefused::Remote { peer });
    }
    judge(peer, look_up(peer, local)?, nix::unistd::geteuid().as_raw())
}

/// Whether a unix socket's peer was root or the server's own user when it connected (`SO_PEERCRED`, unix(7)).
pub fn unix_peer(connection: &impl AsFd) -> Result<LocalUser, PeerRefused> {
    let credentials = getsockopt(connection, PeerCredentials).map_err(|error| PeerRefused::Io(error.into()))?;
    let peer = || format!("process {}", credentials.pid());
    admit(credentials.uid(), nix::unistd::geteuid().as_raw(), peer)
}

/// The record of the socket whose own address is `own` and that is connected to `other`.
fn look_up(own: SocketAddr, other: SocketAddr) -> Result<Option<SocketRecord>, PeerRefused> {
    match sock_diag::look_up(own, other) {
        Ok(Some(record)) => Ok(Some(record)),
        // "No such socket" and "no such diagnosis in this kernel" are one error to netlink.
        Ok(None) => proc_net::look_up(own, other).map_err(PeerRefused::Io),
        Err(error) => {
            tracing::debug!(%error, "netlink does not tell who the peer is; reading /proc/net");
            proc_net::look_up(own, other).map_err(PeerRefused::Io)
        }
    }
}

fn judge(peer: SocketAddr, record: Option<SocketRecord>, own: u32) -> Result<LocalUser, PeerRefused> {
    const ESTABLISHED: u8 = 1;
    const FIN_WAIT1: u8 = 4;
    const FIN_WAIT2: u8 = 5;
    const CLOSE_WAIT: u8 = 8;
    let Some(record) = record else { return Err(PeerRefused::Unknown { peer }) };
    let connected = matches!(record.state, ESTABLISHED | FIN_WAIT1 | FIN_WAIT2 | CLOSE_WAIT);
    // Closing takes the inode away for good before the owner reads as 0, and both are read in that order.
    if !connected || record.inode == 0 {
        return Err(PeerRefused::Abandoned { peer });
    }
    admit(record.uid, own, || format!("the peer {peer}"))
}

fn admit(uid: u32, own: u32, peer: impl Fn() -> String) -> Result<LocalUser, PeerRefused> {
    if uid == ROOT || (uid == own && uid != NOBODY) {
        Ok(LocalUser(uid))
    } else {
        Err(PeerRefused::OtherUser { peer: peer(), uid, own })
    }
}

fn address(answer: nix::Result<SockaddrStorage>) -> Result<SocketAddr, PeerRefused> {
    let storage = answer.map_err(|error| PeerRefused::Io(error.into()))?;
    let v4 = storage.as_sockaddr_in().map(|address| SocketAddr::from(*address));
    let v6 = || storage.as_sockaddr_in6().map(|address| SocketAddr::from(*address));
    v4.or_else(v6).ok_or_else(|| {
        PeerRefused::Io(io::Error::new(io::ErrorKind::InvalidInput, "the connection is not one of TCP over IP"))
    })
}

/// IPv4 in IPv6's clothes is IPv4; scope and flow have no part in telling sockets apart here.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests;
