//! The kernel's table of TCP sockets as text: `/proc/net/tcp` and `/proc/net/tcp6` (proc(5)).

use super::{SocketRecord, canonical};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The record of the socket whose own address is `own` and that is connected to `other`; both canonical. An IPv4
/// connection may be made by a socket of either family, so both tables count.
pub(super) fn look_up(own: SocketAddr, other: SocketAddr) -> io::Result<Option<SocketRecord>> {
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let file = match File::open(table) {
            // A kernel without IPv6 has no such table.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table.ends_with('6') => continue,
            other => other?,
        };
        for line in BufReader::new(file).lines() {
            match parse(&line?) {
                Some((from, to, record)) if from == own && to == other => return Ok(Some(record)),
                _ => {}
            }
        }
    }
    Ok(None)
}

/// The two ends and the record of one line; none for the table's head.
fn parse(line: &str) -> Option<(SocketAddr, SocketAddr, SocketRecord)> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let from = address(words.next()?)?;
    let to = address(words.next()?)?;
    let state = u8::from_str_radix(words.next()?, 16).ok()?;
    // Queues, timers and retransmissions lie between the state and the owner, a time-out before the inode.
    let uid = words.nth(3)?.parse().ok()?;
    let inode = words.nth(1)?.parse().ok()?;
    Some((from, to, SocketRecord { state, uid, inode }))
}

/// `0100007F:1F90`: the address as words of 32 bits in the host's order, the port as a number, both in hexadecimal.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| {
        let digits = ip.get(at..at.checked_add(8)?)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let mut octets = [0; 16];
            for (octet, byte) in octets.iter_mut().zip(words.iter().flatten()) {
                *octet = *byte;
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(canonical(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_both_tables_are_understood() {
        let v4 =
            "   1: 0100007F:3D90 0100007F:A1B2 01 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 20";
        let (from, to, record) = parse(v4).unwrap();
        assert_eq!(from, "127.0.0.1:15760".parse().unwrap());
        assert_eq!(to, "127.0.0.1:41394".parse().unwrap());
        assert_eq!(record, SocketRecord { state: 1, uid: 1000, inode: 4711 });
        let v6 = "   0: 00000000000000000000000001000000:0050 0000000000000000FFFF00000100007F:0051 06 \
                  00000000:00000000 00:00000000 00000000     0        0 0 3 0";
        let (from, to, record) = parse(v6).unwrap();
        assert_eq!(from, "[::1]:80".parse().unwrap());
        assert_eq!(to, "127.0.0.1:81".parse().unwrap());
        assert_eq!(record, SocketRecord { state: 6, uid: 0, inode: 0 });
    }

    #[test]
    fn the_head_of_the_table_is_no_socket() {
        assert_eq!(parse("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid"), None);
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_skipped_without_a_panic(line in ".{0,80}", ip in "[0-9A-Fé:]{0,40}") {
            let _either_is_fine = (parse(&line), address(&ip));
        }
    }
}
