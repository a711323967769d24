//! The NBD server: listens, gives each connection a thread of its own, and ends them all in good order.
//!
//! A thread per connection keeps a dead or slow client from hurting others. How many there are, and how much memory
//! each may hold, is bounded: a batch of requests, one payload and one reply, so at most some 64 MiB for a client that
//! uses requests of the largest size, and less than 3 MiB for an idle one.

use super::connection;
use super::listener::{Listener, Origin, SocketFile, accept_all};
use super::table::ExportTable;
use crate::nbd::Stream;
use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Connections that are only told why they are refused; beyond these they are closed without a word.
const REFUSALS: usize = 64;

/// Decides whether a TCP peer may come in, from its address and the local one it reached; the error is told to it.
/// Called on the connection's own thread.
pub type PeerPolicy = Arc<dyn Fn(&SocketAddr, &SocketAddr) -> Result<(), String> + Send + Sync>;

/// Where and how to serve.
#[derive(Clone)]
pub struct ServerConfig {
    /// Port 0 picks a free one.
    pub tcp: Option<SocketAddr>,
    /// Made with mode 0600. Whoever may open it is trusted.
    pub unix: Option<PathBuf>,
    pub max_connections: usize,
    /// A client must have chosen its export by then.
    pub handshake_timeout: Duration,
    /// At shutdown, clients have this long to take the replies they are owed.
    pub drain_timeout: Duration,
    pub admit: PeerPolicy,
}

impl ServerConfig {
    /// Listens nowhere yet, with the usual limits.
    pub fn new(admit: PeerPolicy) -> Self {
        Self {
            tcp: None,
            unix: None,
            max_connections: 1024,
            handshake_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(10),
            admit,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("listening for NBD on {address}")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("listening for NBD on {}", .path.display())]
    Unix { path: PathBuf, source: io::Error },
    #[error("starting the thread that accepts NBD connections")]
    Thread(#[source] io::Error),
}

/// A running server; dropping it shuts it down.
pub struct NbdServer {
    shared: Arc<Shared>,
    address: Option<SocketAddr>,
    socket: Option<SocketFile>,
    /// Closing it stops the accepting thread.
    stop: Option<UnixStream>,
    acceptor: Option<JoinHandle<()>>,
}

/// What all connections of a server have in common.
pub(super) struct Shared {
    pub(super) table: Arc<ExportTable>,
    pub(super) config: ServerConfig,
    pub(super) closing: AtomicBool,
    registry: Mutex<Registry>,
    changed: Condvar,
}

#[derive(Default)]
struct Registry {
    connections: HashMap<u64, Arc<Stream>>,
    threads: Vec<JoinHandle<()>>,
    next: u64,
    seats: [usize; 2],
}

/// Two kinds of room, so that clients that are refused cannot crowd out those that are welcome.
#[derive(Clone, Copy, Debug)]
pub(super) enum Seats {
    Admitted = 0,
    Refused = 1,
}

/// Room for one connection of its kind; given back when dropped.
pub(super) struct Seat<'a> {
    shared: &'a Shared,
    kind: Seats,
}

impl NbdServer {
    /// Binds, and accepts from then on.
    pub fn start(config: ServerConfig, table: Arc<ExportTable>) -> Result<Self, ServerError> {
        let mut listeners = Vec::new();
        let mut address = None;
        if let Some(wanted) = config.tcp {
            let failed = |source| ServerError::Tcp { address: wanted, source };
            let listener = Listener::tcp(wanted).map_err(failed)?;
            if let Listener::Tcp(tcp) = &listener {
                address = Some(tcp.local_addr().map_err(failed)?);
            }
            listeners.push(listener);
        }
        let mut socket = None;
        if let Some(path) = &config.unix {
            let failed = |source| ServerError::Unix { path: path.clone(), source };
            let (file, listener) = SocketFile::listen(path).map_err(failed)?;
            socket = Some(file);
            listeners.push(listener);
        }
        let (stop, stopped) = UnixStream::pair().map_err(ServerError::Thread)?;
        let (closing, registry, changed) = (AtomicBool::new(false), Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { table, config, closing, registry, changed });
        let accepting = Arc::clone(&shared);
        let acceptor = std::thread::Builder::new()
            .name("nbd-accept".into())
            .spawn(move || accept_all(&listeners, &stopped, |stream, origin| accepting.begin(stream, origin)))
            .map_err(ServerError::Thread)?;
        Ok(Self { shared, address, socket, stop: Some(stop), acceptor: Some(acceptor) })
    }

    /// The TCP address that is listened on, with the port picked.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.address
    }

    pub fn unix_path(&self) -> Option<&Path> {
        self.socket.as_ref().map(SocketFile::path)
    }

    /// Connections that are being served or shaken hands with now.
    pub fn connections(&self) -> usize {
        self.shared.registry().connections.len()
    }

    /// Accepts nobody any more, lets operations in flight finish and be answered, answers later ones with
    /// `NBD_ESHUTDOWN`, and returns when every thread has ended. Clients that do not take their replies are cut off
    /// after the drain timeout; an operation that the medium does not finish is waited for.
    pub fn shutdown(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.stop = None;
        join(self.acceptor.take());
        // New servers may take the place from here on.
        self.socket = None;
        self.shared.end_all();
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn join(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a connection's thread has panicked");
        }
    }
}

impl Shared {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a fresh connection its thread.
    fn begin(self: &Arc<Self>, stream: Stream, origin: Origin) {
        let mut registry = self.registry();
        let (ended, running) = registry.threads.drain(..).partition::<Vec<_>, _>(JoinHandle::is_finished);
        registry.threads = running;
        if registry.connections.len() >= self.config.max_connections.saturating_add(REFUSALS) {
            tracing::warn!(?origin, "closing an NBD connection: there are too many");
            return;
        }
        let number = registry.next;
        registry.next += 1;
        let stream = Arc::new(stream);
        registry.connections.insert(number, Arc::clone(&stream));
        drop(registry);
        join(ended);
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("nbd-{number}")).spawn(move || {
            // Declared in this order, the entry goes after all that the connection holds.
            let _registered = Registered { shared: &shared, number };
            connection::run(&shared, &stream, origin);
        });
        match thread {
            Ok(thread) => self.registry().threads.push(thread),
            Err(error) => {
                tracing::warn!(%error, ?origin, "closing an NBD connection: no thread for it");
                self.forget(number);
            }
        }
    }

    /// Room for one more, if there is any.
    pub(super) fn seat(&self, kind: Seats) -> Option<Seat<'_>> {
        let limit = match kind {
            Seats::Admitted => self.config.max_connections,
            Seats::Refused => REFUSALS,
        };
        let mut registry = self.registry();
        let taken = registry.seats.get_mut(kind as usize)?;
        if *taken >= limit {
            return None;
        }
        *taken += 1;
        Some(Seat { shared: self, kind })
    }

    fn forget(&self, number: u64) {
        self.registry().connections.remove(&number);
        self.changed.notify_all();
    }

    fn end_all(&self) {
        self.hang_up(Shutdown::Read);
        let deadline = Instant::now() + self.config.drain_timeout;
        let mut registry = self.registry();
        while !registry.connections.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            registry = self.changed.wait_timeout(registry, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let threads = std::mem::take(&mut registry.threads);
        drop(registry);
        self.hang_up(Shutdown::Both);
        join(threads);
    }

    fn hang_up(&self, how: Shutdown) {
        for stream in self.registry().connections.values() {
            if let Err(error) = stream.shutdown(how) {
                tracing::debug!(%error, "hanging up on an NBD client");
            }
        }
    }
}

struct Registered<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.shared.forget(self.number);
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if let Some(taken) = self.shared.registry().seats.get_mut(self.kind as usize) {
            *taken = taken.saturating_sub(1);
        }
    }
}
