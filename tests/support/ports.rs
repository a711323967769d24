//! Ports that no other test, in this process or another one, takes meanwhile.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// Below those that the kernel hands out to connections: a server that is down for a while would lose one of those.
const FIRST: u32 = 20_000;
const COUNT: u32 = 12_000;
/// What one test has to have.
const TAKEN: u16 = 22_379;

/// Ports that nobody uses; they stay this process's until it ends.
pub fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let candidate = || {
        let offset = std::process::id().wrapping_mul(61) % COUNT + NEXT.fetch_add(1, Ordering::SeqCst);
        u16::try_from(FIRST + offset % COUNT).expect("a port")
    };
    std::iter::repeat_with(candidate).filter(|port| *port != TAKEN && reserve(*port)).take(count).collect()
}

/// Takes a name that stands for the port, so that test processes do not take it from each other while it is not bound.
fn reserve(port: u16) -> bool {
    static HELD: Mutex<Vec<UnixDatagram>> = Mutex::new(Vec::new());
    let name = SocketAddr::from_abstract_name(format!("symphony-test-port-{port}")).expect("a short name");
    let Ok(claim) = UnixDatagram::bind_addr(&name) else { return false };
    HELD.lock().unwrap_or_else(PoisonError::into_inner).push(claim);
    TcpListener::bind(("0.0.0.0", port)).is_ok()
}
