//! One question to the kernel over netlink: whose TCP socket is this? (sock_diag(7), `linux/inet_diag.h`)
//!
//! All numbers are in the host's order, ports and addresses in the network's.

use super::{SocketRecord, canonical};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};
use nix::sys::socket::{recvfrom, sendto, socket};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const IPPROTO_TCP: u8 = 6;
const HEADER: usize = 16;
const REQUEST: usize = HEADER + 56;
const SEQUENCE: u32 = 1;

/// The record of the socket whose own address is `own` and that is connected to `other`; both canonical.
pub(super) fn look_up(own: SocketAddr, other: SocketAddr) -> io::Result<Option<SocketRecord>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let netlink = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkSockDiag)?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(netlink.as_raw_fd(), &request(own, other), &kernel, MsgFlags::empty())?;
    // The kernel answers before the send returns, so there is never anything to wait for.
    let mut buffer = [0; 4096];
    let (length, sender) = recvfrom::<NetlinkAddr>(netlink.as_raw_fd(), &mut buffer)?;
    if sender.is_none_or(|sender| sender.pid() != 0) {
        return Err(malformed("it does not come from the kernel"));
    }
    reply(buffer.get(..length).unwrap_or(&buffer), own, other)
}

/// `nlmsghdr` and `inet_diag_req_v2`.
fn request(own: SocketAddr, other: SocketAddr) -> Vec<u8> {
    let family = if own.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let mut bytes = Vec::with_capacity(REQUEST);
    bytes.extend((REQUEST as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend(SEQUENCE.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([family as u8, IPPROTO_TCP, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes()); // every state: what it is in is for the caller to judge
    bytes.extend(own.port().to_be_bytes());
    bytes.extend(other.port().to_be_bytes());
    bytes.extend(address(own.ip()));
    bytes.extend(address(other.ip()));
    bytes.extend(0u32.to_ne_bytes()); // any interface
    bytes.extend([0xff; 8]); // no cookie
    bytes
}

fn address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// `nlmsghdr` and either `nlmsgerr` or `inet_diag_msg`. The kernel falls back to listening sockets when no connected
/// one matches, so an answer about any other pair of addresses is no answer.
fn reply(bytes: &[u8], own: SocketAddr, other: SocketAddr) -> io::Result<Option<SocketRecord>> {
    let fields = Fields(bytes);
    if fields.u32(8)? != SEQUENCE {
        return Err(malformed("it answers another question"));
    }
    match fields.u16(4)? {
        NLMSG_ERROR => match Errno::from_raw(fields.u32(HEADER)?.cast_signed().saturating_neg()) {
            Errno::ENOENT => Ok(None),
            errno => Err(errno.into()),
        },
        SOCK_DIAG_BY_FAMILY => {
            let message = Fields(bytes.get(HEADER..).ok_or_else(|| malformed("it is too short"))?);
            if message.socket(4, 8)? != own || message.socket(6, 24)? != other {
                return Ok(None);
            }
            let [state] = message.bytes(1)?;
            Ok(Some(SocketRecord { state, uid: message.u32(64)?, inode: u64::from(message.u32(68)?) }))
        }
        _ => Err(malformed("its type is not known")),
    }
}

struct Fields<'b>(&'b [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> io::Result<[u8; N]> {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(|| malformed("it is too short"))
    }

    fn u16(&self, at: usize) -> io::Result<u16> {
        Ok(u16::from_ne_bytes(self.bytes(at)?))
    }

    fn u32(&self, at: usize) -> io::Result<u32> {
        Ok(u32::from_ne_bytes(self.bytes(at)?))
    }

    /// One end of an `inet_diag_msg`, whose first byte is the family.
    fn socket(&self, port: usize, ip: usize) -> io::Result<SocketAddr> {
        let [family] = self.bytes(0)?;
        let ip = if i32::from(family) == AddressFamily::Inet as i32 {
            IpAddr::V4(Ipv4Addr::from(self.bytes::<4>(ip)?))
        } else {
            IpAddr::V6(Ipv6Addr::from(self.bytes::<16>(ip)?))
        };
        Ok(canonical(SocketAddr::new(ip, u16::from_be_bytes(self.bytes(port)?))))
    }
}

fn malformed(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("netlink's answer is not understood: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn end(port: u16) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
    }

    #[test]
    fn an_answer_about_a_listener_on_the_same_port_is_no_answer() {
        let mut bytes = request(end(1), end(2));
        bytes.resize(HEADER + 72, 0);
        // A request and an answer name the socket alike, but the answer has four bytes less before it.
        bytes.drain(HEADER + 4..HEADER + 8);
        bytes.resize(HEADER + 72, 0);
        assert!(reply(&bytes, end(1), end(2)).unwrap().is_some());
        assert_eq!(reply(&bytes, end(1), end(3)).unwrap(), None);
        bytes.get_mut(HEADER + 24..HEADER + 28).unwrap().fill(0);
        assert_eq!(reply(&bytes, end(1), end(2)).unwrap(), None);
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _either_is_fine = reply(&bytes, end(1), end(2)).is_ok();
        }
    }
}
