//! The NBD server: listens, shakes hands, hands connections over to the engine, and ends them all in good order.
//!
//! A handshake has a thread of its own, which ends at the latest with its deadline: a dead or slow client does not hurt
//! others. What follows the handshake is the engine's; a connection with TLS stays on its thread.

use super::connection;
use super::listener::{Listener, Origin, SocketFile, accept_all};
use super::table::ExportTable;
use super::tls::ServerTls;
use super::transmission::{Engine, EngineChoice, EngineError};
use crate::host::tcp_peer;
use crate::nbd::Stream;
use crate::pki::Keyring;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Connections that are only told why they are refused; beyond these they are closed without a word.
const REFUSALS: usize = 64;

/// Connections that have yet to prove who they are; beyond these the oldest makes room for the newest, so that whoever
/// holds connections half open keeps nobody out for long.
const UNPROVEN: usize = 256;

/// Decides whether a TCP peer is a local guest; the error is told to it, as the reason why it needs TLS. Called on the
/// connection's own thread.
pub type PeerPolicy = Arc<dyn Fn(&TcpStream) -> Result<(), String> + Send + Sync>;

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
    pub local: PeerPolicy,
    /// What the server presents and believes; without it, or while it is empty, there is no TLS, and only local guests
    /// come in.
    pub tls: Option<Keyring>,
    /// What carries requests out.
    pub engine: EngineChoice,
}

impl ServerConfig {
    /// Listens nowhere yet, with the usual limits; local is who the kernel says is.
    pub fn new() -> Self {
        Self {
            tcp: None,
            unix: None,
            max_connections: 1024,
            handshake_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(10),
            local: Arc::new(|stream| tcp_peer(stream).map(drop).map_err(|refused| refused.to_string())),
            tls: None,
            engine: EngineChoice::Auto,
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("listening for NBD on {address}")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("listening for NBD on {}", .path.display())]
    Unix { path: PathBuf, source: io::Error },
    #[error("setting up TLS for NBD")]
    Tls(#[source] crate::pki::Error),
    #[error("starting the thread that accepts NBD connections")]
    Thread(#[source] io::Error),
    #[error(transparent)]
    Engine(#[from] EngineError),
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
    pub(super) config: Rules,
    pub(super) engine: Engine,
    pub(super) closing: Arc<AtomicBool>,
    registry: Mutex<Registry>,
    changed: Condvar,
}

/// A server's configuration as its connections need it.
pub(super) struct Rules {
    pub(super) max_connections: usize,
    pub(super) handshake_timeout: Duration,
    drain_timeout: Duration,
    pub(super) local: PeerPolicy,
    pub(super) tls: Option<ServerTls>,
}

#[derive(Default)]
struct Registry {
    connections: HashMap<u64, Connection>,
    threads: Vec<JoinHandle<()>>,
    next: u64,
    admitted: usize,
    refused: usize,
    /// In the order of their coming.
    unproven: VecDeque<u64>,
}

struct Connection {
    stream: Arc<Stream>,
    /// The engine has it now.
    handed: bool,
}

/// Kinds of room, so that clients that are refused, or come to nothing, cannot crowd out those that are welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seats {
    Admitted,
    Refused,
    Unproven,
}

/// Room for one connection of its kind; given back when dropped.
pub(super) struct Seat {
    shared: Arc<Shared>,
    kind: Seats,
    number: u64,
}

impl Seat {
    pub(super) fn kind(&self) -> Seats {
        self.kind
    }

    /// The connection's.
    pub(super) fn number(&self) -> u64 {
        self.number
    }
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
        let ServerConfig { max_connections, handshake_timeout, drain_timeout, local, tls, engine, .. } = config;
        let tls = tls.map(ServerTls::new).transpose()?;
        let config = Rules { max_connections, handshake_timeout, drain_timeout, local, tls };
        let (stop, stopped) = UnixStream::pair().map_err(ServerError::Thread)?;
        let (closing, registry, changed) = (Arc::<AtomicBool>::default(), Mutex::default(), Condvar::new());
        let engine = Engine::start(engine, &closing)?;
        let shared = Arc::new(Shared { table, config, engine, closing, registry, changed });
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

    /// What carries requests out, in a word.
    pub fn engine(&self) -> &'static str {
        self.shared.engine.name()
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
        if registry.connections.len() >= self.config.max_connections.saturating_add(REFUSALS + UNPROVEN) {
            tracing::warn!(%origin, "closing an NBD connection: there are too many");
            return;
        }
        let number = registry.next;
        registry.next += 1;
        let stream = Arc::new(stream);
        registry.connections.insert(number, Connection { stream: Arc::clone(&stream), handed: false });
        drop(registry);
        join(ended);
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("nbd-{number}")).spawn(move || {
            let registered = Registered { shared: Arc::clone(&shared), number };
            connection::run(&shared, &stream, origin, registered);
        });
        match thread {
            Ok(thread) => self.registry().threads.push(thread),
            Err(error) => {
                tracing::warn!(%error, %origin, "closing an NBD connection: no thread for it");
                self.forget(number);
            }
        }
    }

    /// Room for the connection of this number, if there is any. For an unproven one there always is: the oldest of its
    /// kind is cut for it.
    pub(super) fn seat(self: &Arc<Self>, kind: Seats, number: u64) -> Option<Seat> {
        let mut registry = self.registry();
        match kind {
            Seats::Admitted if registry.admitted < self.config.max_connections => registry.admitted += 1,
            Seats::Refused if registry.refused < REFUSALS => registry.refused += 1,
            Seats::Admitted | Seats::Refused => return None,
            Seats::Unproven => {
                if registry.unproven.len() >= UNPROVEN
                    && let Some(oldest) = registry.unproven.pop_front()
                    && let Some(connection) = registry.connections.get(&oldest)
                    && let Err(error) = connection.stream.shutdown(Shutdown::Both)
                {
                    tracing::debug!(%error, "making room for an NBD client");
                }
                registry.unproven.push_back(number);
            }
        }
        drop(registry);
        Some(Seat { shared: Arc::clone(self), kind, number })
    }

    /// Why there is no seat.
    pub(super) fn full(&self) -> String {
        format!("there are {} connections already, which is the limit", self.config.max_connections)
    }

    fn forget(&self, number: u64) {
        self.registry().connections.remove(&number);
        self.changed.notify_all();
    }

    fn end_all(&self) {
        // An engine that waits for all its clients at once needs no word from their sockets.
        let engine_hears = self.engine.drain();
        self.hang_up(Shutdown::Read, |connection| !(connection.handed && engine_hears));
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
        self.hang_up(Shutdown::Both, |_| true);
        join(threads);
        self.engine.end();
    }

    fn hang_up(&self, how: Shutdown, whom: impl Fn(&Connection) -> bool) {
        for connection in self.registry().connections.values().filter(|connection| whom(connection)) {
            if let Err(error) = connection.stream.shutdown(how) {
                tracing::debug!(%error, "hanging up on an NBD client");
            }
        }
    }
}

/// A connection's entry in the registry; taken out when dropped.
pub(super) struct Registered {
    shared: Arc<Shared>,
    number: u64,
}

impl Registered {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Says that the engine has the connection now.
    pub(super) fn hand_over(&self) {
        if let Some(connection) = self.shared.registry().connections.get_mut(&self.number) {
            connection.handed = true;
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.forget(self.number);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut registry = self.shared.registry();
        match self.kind {
            Seats::Admitted => registry.admitted = registry.admitted.saturating_sub(1),
            Seats::Refused => registry.refused = registry.refused.saturating_sub(1),
            Seats::Unproven => registry.unproven.retain(|number| *number != self.number),
        }
    }
}
