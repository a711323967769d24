//! The NBD server: listens, shakes hands, hands connections over to the engine, and ends them all in good order.
//!
//! A handshake has a thread of its own, which ends at the latest with its deadline: a dead or slow client does not hurt
//! others. What follows the handshake is the engine's; a connection with TLS stays on its thread.

mod handover;

use super::connection;
use super::listener::{Listener, Origin, SocketFile, accept_all};
use super::table::ExportTable;
use super::tls::ServerTls;
use super::transmission::{Engine, EngineChoice, EngineError, Session};
use crate::host::tcp_peer;
use crate::nbd::Stream;
use crate::pki::Keyring;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use handover::{Adopted, Adopter, Carried, Held, HoldError, RefusalRecord, SessionRecord};

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
    /// Those that nobody accepts from now.
    listeners: Vec<Listener>,
    /// Closing it stops the accepting thread.
    stop: Option<UnixStream>,
    acceptor: Option<JoinHandle<Vec<Listener>>>,
}

/// Listening sockets that another process has left; what clients have begun there is answered here.
#[derive(Debug, Default)]
pub struct InheritedListeners {
    pub tcp: Option<OwnedFd>,
    pub unix: Option<OwnedFd>,
}

/// What all connections of a server have in common.
pub(super) struct Shared {
    pub(super) table: Arc<ExportTable>,
    pub(super) config: Rules,
    pub(super) engine: Engine,
    pub(super) closing: Arc<AtomicBool>,
    /// Connections on threads of their own are to end: at shutdown, and before others are handed over.
    pub(super) dismissing: Arc<AtomicBool>,
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
    /// Connections are being handed over; these have been.
    holding: bool,
    parted: Vec<Session>,
}

struct Connection {
    stream: Arc<Stream>,
    stage: Stage,
    /// The export's name, once it is known.
    export: String,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Shaking hands.
    Arriving,
    /// Served on a thread of its own.
    Alone,
    /// The engine has it.
    Engine,
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
        let mut this = Self::prepare(config, table, InheritedListeners::default())?;
        this.open()?;
        Ok(this)
    }

    /// Binds, or goes on with sockets that listen where they should, and accepts nobody before [`Self::open`].
    pub fn prepare(
        config: ServerConfig,
        table: Arc<ExportTable>,
        inherited: InheritedListeners,
    ) -> Result<Self, ServerError> {
        let mut listeners = Vec::new();
        let mut address = None;
        if let Some(wanted) = config.tcp {
            let failed = |source| ServerError::Tcp { address: wanted, source };
            let left = inherited.tcp.and_then(|socket| usable(Listener::inherited_tcp(socket, wanted)));
            let listener = left.map_or_else(|| Listener::tcp(wanted), Ok).map_err(failed)?;
            if let Listener::Tcp(tcp) = &listener {
                address = Some(tcp.local_addr().map_err(failed)?);
            }
            listeners.push(listener);
        }
        let mut socket = None;
        if let Some(path) = &config.unix {
            let failed = |source| ServerError::Unix { path: path.clone(), source };
            let left = inherited.unix.and_then(|socket| usable(SocketFile::inherited(socket, path)));
            let (file, listener) = left.map_or_else(|| SocketFile::listen(path), Ok).map_err(failed)?;
            socket = Some(file);
            listeners.push(listener);
        }
        let ServerConfig { max_connections, handshake_timeout, drain_timeout, local, tls, engine, .. } = config;
        let tls = tls.map(ServerTls::new).transpose()?;
        let config = Rules { max_connections, handshake_timeout, drain_timeout, local, tls };
        let (closing, dismissing) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let engine = Engine::start(engine, &closing, &dismissing)?;
        let (registry, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { table, config, engine, closing, dismissing, registry, changed });
        Ok(Self { shared, address, socket, listeners, stop: None, acceptor: None })
    }

    /// Accepts from now on, those first who have waited.
    pub fn open(&mut self) -> Result<(), ServerError> {
        if self.listeners.is_empty() {
            return Ok(());
        }
        let (stop, stopped) = UnixStream::pair().map_err(ServerError::Thread)?;
        let listeners = std::mem::take(&mut self.listeners);
        let accepting = Arc::clone(&self.shared);
        let accept = move || {
            accept_all(&listeners, &stopped, |stream, origin| accepting.begin(stream, origin));
            listeners
        };
        let acceptor = std::thread::Builder::new().name("nbd-accept".into()).spawn(accept);
        self.acceptor = Some(acceptor.map_err(ServerError::Thread)?);
        self.stop = Some(stop);
        Ok(())
    }

    /// Accepts nobody until it is opened again; whoever comes meanwhile waits.
    fn close(&mut self) {
        self.stop = None;
        if let Some(acceptor) = self.acceptor.take() {
            match acceptor.join() {
                Ok(listeners) => self.listeners = listeners,
                Err(_) => tracing::error!("the thread that accepts NBD connections has panicked"),
            }
        }
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
        self.shared.dismissing.store(true, Ordering::SeqCst);
        self.shared.table.call();
        self.close();
        // New servers may take the place from here on.
        self.listeners.clear();
        self.socket = None;
        self.shared.end_all();
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// What cannot be gone on with is closed, and somewhere else is listened.
fn usable<T>(inherited: io::Result<T>) -> Option<T> {
    inherited.inspect_err(|error| tracing::warn!(%error, "listening anew for NBD")).ok()
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
        drop(registry);
        join(ended);
        let stream = Arc::new(stream);
        let registered = self.register(&stream);
        let shared = Arc::clone(self);
        self.run(registered.number, move || connection::run(&shared, &stream, origin, registered));
    }

    fn register(self: &Arc<Self>, stream: &Arc<Stream>) -> Registered {
        let mut registry = self.registry();
        let number = registry.next;
        registry.next += 1;
        let connection = Connection { stream: Arc::clone(stream), stage: Stage::Arriving, export: String::new() };
        registry.connections.insert(number, connection);
        Registered { shared: Arc::clone(self), number }
    }

    /// Runs a connection on a thread of its own.
    fn run(&self, number: u64, serve: impl FnOnce() + Send + 'static) {
        match std::thread::Builder::new().name(format!("nbd-{number}")).spawn(serve) {
            Ok(thread) => self.registry().threads.push(thread),
            Err(error) => tracing::warn!(%error, "closing an NBD connection: no thread for it"),
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
        self.table.wake_all();
        let engine_hears = self.engine.drain();
        self.hang_up(Shutdown::Read, |connection| !(connection.stage == Stage::Engine && engine_hears));
        self.wait_until(Instant::now() + self.config.drain_timeout, |registry| registry.connections.is_empty());
        let threads = std::mem::take(&mut self.registry().threads);
        self.hang_up(Shutdown::Both, |_| true);
        join(threads);
        self.engine.end();
    }

    /// Waits for something to be true of the connections; says whether it is.
    fn wait_until(&self, deadline: Instant, is_true: impl Fn(&Registry) -> bool) -> bool {
        let mut registry = self.registry();
        while !is_true(&registry) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            registry = self.changed.wait_timeout(registry, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
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

    /// Says how far the connection has come, to which export.
    pub(super) fn enter(&self, stage: Stage, export: &str) {
        if let Some(connection) = self.shared.registry().connections.get_mut(&self.number) {
            connection.stage = stage;
            connection.export = export.to_owned();
        }
        self.shared.changed.notify_all();
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
