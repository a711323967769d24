//! Listening for gRPC on TCP and on control sockets, and finding out who comes.
//!
//! ```text
//!                        ┌─ 0x16: TLS ──┬─ certificate of the cluster ─▶ certified
//!   TCP ──first byte─────┤              └─ none ───────────────────────▶ anonymous
//!                        └─ else ───────┬─ local, says the kernel ─────▶ local
//!   control socket ── peer credentials ─┘─ else ───────────────────────▶ refused
//! ```
//!
//! A refused peer still gets a connection, and every call on it answers PERMISSION_DENIED with the reason: a closed
//! socket would leave its user guessing. A TLS peer whose certificate is not good gets the alert that says so.
//!
//! Each connection is received in a task of its own and holds a seat from its first moment, so that peers that say
//! nothing cost little and hold up nobody.

use super::caller::{Caller, Peer};
use super::connection::{Connection, Stream};
use super::limits::Limits;
use super::seats::{Holder, Seat, Seats};
use crate::host::LocalUser;
use crate::pki::{self, Clients, Keyring, Presented};
use futures_util::stream;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, timeout};
use tokio_rustls::TlsAcceptor;

/// Decides whether the peer of a plain TCP connection may ask anything, and who it is; the reason if not.
pub type Admission = Arc<dyn Fn(&TcpStream) -> Result<LocalUser, String> + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}; choose another port with --listen-port (0 takes a free one)")]
    Tcp { address: SocketAddr, source: std::io::Error },
    #[error("cannot listen on the control socket {path}", path = path.display())]
    Unix { path: PathBuf, source: std::io::Error },
    #[error("cannot set up TLS")]
    Tls(#[source] pki::Error),
}

/// What both sides of a TLS connection say they will speak: HTTP/2.
pub const ALPN: &[&[u8]] = &[b"h2"];
/// The first byte of a TLS connection: a handshake record (RFC 8446 section 5.1). HTTP/2 starts with 'P'.
const TLS_HANDSHAKE: u8 = 0x16;
/// How often open connections are held against what the keyring believes; two fit into a heartbeat.
const SWEEP: Duration = Duration::from_millis(400);

/// A bound socket, not yet serving.
pub struct Listener {
    socket: Socket,
    door: Arc<Door>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// What receives connections: one for all of a listener's.
struct Door {
    admission: Admission,
    tls: Option<(TlsAcceptor, Keyring)>,
    limits: Limits,
    /// Seats of several kinds, so that those who have proven nothing cannot crowd out those that are welcome.
    arriving: Seats,
    admitted: Seats,
    anonymous: Seats,
    refused: Seats,
}

impl Listener {
    /// Binds `address`; port 0 takes a free one. TLS peers are served with what `keyring` holds at the moment of their
    /// handshake; while it is empty they are hung up on.
    ///
    /// # Errors
    /// If the port is taken or may not be bound.
    pub async fn tcp(address: SocketAddr, admission: Admission, keyring: Keyring) -> Result<Self, ListenError> {
        let config = keyring.server_config(Clients::Optional, ALPN).map_err(ListenError::Tls)?;
        let listener = TcpListener::bind(address).await.map_err(|source| ListenError::Tcp { address, source })?;
        let tls = Some((TlsAcceptor::from(config), keyring));
        Ok(Self { socket: Socket::Tcp(listener), door: Arc::new(Door::new(admission, tls, Limits::default())) })
    }

    /// The same with a socket that another process has listened with at `address`.
    ///
    /// # Errors
    /// It listens somewhere else, or is no such socket.
    pub fn inherited_tcp(
        socket: OwnedFd,
        address: SocketAddr,
        admission: Admission,
        keyring: Keyring,
    ) -> Result<Self, ListenError> {
        let config = keyring.server_config(Clients::Optional, ALPN).map_err(ListenError::Tls)?;
        let listener = std::net::TcpListener::from(socket);
        let take = || {
            let bound = listener.local_addr()?;
            check(bound.ip() == address.ip() && (address.port() == 0 || address.port() == bound.port()))?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        let listener = take().map_err(|source| ListenError::Tcp { address, source })?;
        let tls = Some((TlsAcceptor::from(config), keyring));
        Ok(Self { socket: Socket::Tcp(listener), door: Arc::new(Door::new(admission, tls, Limits::default())) })
    }

    /// A control socket that another process has listened with at `path`.
    ///
    /// # Errors
    /// It listens somewhere else, or is no such socket.
    pub fn inherited_unix(socket: OwnedFd, path: &Path) -> Result<Self, ListenError> {
        let listener = std::os::unix::net::UnixListener::from(socket);
        let take = || {
            check(listener.local_addr()?.as_pathname() == Some(path))?;
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        };
        let listener = take().map_err(|source| ListenError::Unix { path: path.to_owned(), source })?;
        let door = Door::new(local_peers(), None, Limits::default());
        Ok(Self { socket: Socket::Unix(listener), door: Arc::new(door) })
    }

    /// The socket once more, for another process to listen with.
    pub fn duplicate(&self) -> std::io::Result<OwnedFd> {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
            Socket::Unix(listener) => listener.as_fd().try_clone_to_owned(),
        }
    }

    /// Binds a control socket, mode 0600, at a path that was made free for it.
    ///
    /// # Errors
    /// If the path cannot be a socket's.
    pub fn unix(path: &Path) -> Result<Self, ListenError> {
        let bind = || {
            let listener = UnixListener::bind(path)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let listener = bind().map_err(|source| ListenError::Unix { path: path.to_owned(), source })?;
        let door = Door::new(local_peers(), None, Limits::default());
        Ok(Self { socket: Socket::Unix(listener), door: Arc::new(door) })
    }

    /// The same listener with other limits.
    #[cfg(test)]
    pub(super) fn limited(self, limits: Limits) -> Self {
        let Self { socket, door } = self;
        let (admission, tls) = (door.admission.clone(), door.tls.clone());
        Self { socket, door: Arc::new(Door::new(admission, tls, limits)) }
    }

    /// The bound TCP address; none for a control socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(_) => None,
        }
    }

    /// Every connection, for `serve_with_incoming`. Never ends: a failing accept is tried again.
    pub fn incoming(self) -> impl stream::Stream<Item = std::io::Result<Connection>> {
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reception = Reception { listener: self, under_way: JoinSet::new(), sweep };
        stream::unfold(reception, |mut reception| async move { Some((Ok(reception.next().await), reception)) })
    }
}

fn check(listens_there: bool) -> std::io::Result<()> {
    let other = || std::io::Error::new(std::io::ErrorKind::AddrNotAvailable, "the inherited socket listens elsewhere");
    if listens_there { Ok(()) } else { Err(other()) }
}

/// A listener at work. Dropping it drops the connections that were not received yet.
struct Reception {
    listener: Listener,
    /// Bounded by the seats of those who arrive.
    under_way: JoinSet<Option<Connection>>,
    sweep: Interval,
}

enum Came {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Reception {
    async fn next(&mut self) -> Connection {
        loop {
            let Listener { socket, door } = &self.listener;
            tokio::select! {
                came = accept(socket) => match came {
                    Ok(Came::Tcp(stream, address)) => {
                        let seat = door.arriving.take(Holder::source(address.ip()), None);
                        self.under_way.spawn(door.clone().receive(stream, address, seat));
                    }
                    Ok(Came::Unix(stream)) => return door.open(stream),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        // Out of descriptors or memory: nothing tells when that is over.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(received) = self.under_way.join_next() => match received {
                    Ok(Some(connection)) => return connection,
                    Ok(None) => {}
                    Err(error) => tracing::error!(%error, "receiving a connection failed"),
                },
                _ = self.sweep.tick() => door.sweep(),
            }
        }
    }
}

async fn accept(socket: &Socket) -> std::io::Result<Came> {
    Ok(match socket {
        Socket::Tcp(listener) => {
            let (stream, address) = listener.accept().await?;
            Came::Tcp(stream, address)
        }
        Socket::Unix(listener) => Came::Unix(listener.accept().await?.0),
    })
}

impl Door {
    fn new(admission: Admission, tls: Option<(TlsAcceptor, Keyring)>, limits: Limits) -> Self {
        Self {
            arriving: Seats::new(limits.arriving, limits.arriving),
            admitted: Seats::new(limits.admitted, limits.of_one_bearer),
            anonymous: Seats::new(limits.anonymous, limits.anonymous),
            refused: Seats::new(limits.refused, limits.refused),
            admission,
            tls,
            limits,
        }
    }

    /// Finds out who has come; none if nothing sensible was said in time.
    async fn receive(self: Arc<Self>, stream: TcpStream, address: SocketAddr, arriving: Seat) -> Option<Connection> {
        let welcomed = tokio::select! {
            () = arriving.evicted().cancelled() => Err("too many come at once".to_owned()),
            welcomed = self.welcome(stream, address) => welcomed,
        };
        match welcomed {
            Ok(connection) => Some(connection),
            Err(reason) => {
                tracing::debug!(peer = %address, %reason, "a connection came to nothing");
                None
            }
        }
    }

    async fn welcome(&self, stream: TcpStream, address: SocketAddr) -> Result<Connection, String> {
        let broken = |error: std::io::Error| error.to_string();
        stream.set_nodelay(true).map_err(broken)?;
        let mut first = [0];
        let read = timeout(self.limits.first_byte, stream.peek(&mut first)).await;
        match (read.map_err(|_| "it said nothing in time")?.map_err(broken)?, first) {
            (0, _) => Err("it went without a word".into()),
            (_, [TLS_HANDSHAKE]) => self.handshake(stream, address).await,
            _ => {
                let verdict = (self.admission)(&stream);
                Ok(self.seat(stream, address.to_string(), Holder::source(address.ip()), verdict))
            }
        }
    }

    /// Receives a peer that speaks TLS.
    async fn handshake(&self, stream: TcpStream, address: SocketAddr) -> Result<Connection, String> {
        let (acceptor, keyring) = self.tls.as_ref().ok_or("it speaks TLS, which is not served here")?;
        let accepted = timeout(self.limits.handshake, acceptor.accept(stream)).await;
        let stream = accepted.map_err(|_| "its handshake took too long")?.map_err(|error| {
            if is_about_its_certificate(&error) {
                tracing::warn!(peer = %address, reason = %error, "refused a peer's certificate");
            }
            error.to_string()
        })?;
        let shown = Presented::read(stream.get_ref().1.peer_certificates().unwrap_or_default());
        let peer = address.to_string();
        Ok(match shown.map_err(|error| error.to_string())? {
            Some(presented) => {
                let seat = self.admitted.take(Holder::Bearer(presented.bearer.id), Some(presented));
                let peer = Peer::certified(peer, presented, keyring.clone());
                Connection::new(stream, peer, seat, &self.limits)
            }
            None => {
                let seat = self.anonymous.take(Holder::source(address.ip()), None);
                Connection::new(stream, Peer::new(peer, Caller::Anonymous), seat, &self.limits)
            }
        })
    }

    /// Receives a peer of the control socket.
    fn open(&self, stream: UnixStream) -> Connection {
        let verdict = crate::host::unix_peer(&stream).map_err(|refused| refused.to_string());
        self.seat(stream, "the control socket".to_owned(), Holder::Source(0), verdict)
    }

    /// Seats a peer that shows no certificate by what the kernel says of it.
    fn seat<S>(&self, stream: S, peer: String, source: Holder, verdict: Result<LocalUser, String>) -> Connection
    where
        S: Stream + 'static,
    {
        let (caller, seat) = match verdict {
            Ok(user) => (Caller::Local { who: user.to_string() }, self.admitted.take(Holder::Local, None)),
            Err(reason) => {
                tracing::warn!(%peer, %reason, "refused a peer");
                (Caller::Refused(reason), self.refused.take(source, None))
            }
        };
        Connection::new(stream, Peer::new(peer, caller), seat, &self.limits)
    }

    /// Ends the connections of those whose certificates are void or have expired since they came.
    fn sweep(&self) {
        let Some((_, keyring)) = &self.tls else { return };
        self.admitted.sweep(|presented| match keyring.dismisses(presented) {
            Some(reason) => {
                tracing::warn!(bearer = %presented.bearer, %reason, "ending a connection");
                true
            }
            None => false,
        });
    }
}

/// Whether the handshake failed for what the peer showed of itself, rather than by accident or noise.
fn is_about_its_certificate(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

/// Admits TCP peers that the kernel shows to be local.
pub fn local_peers() -> Admission {
    Arc::new(|connection| crate::host::tcp_peer(connection).map_err(|refused| refused.to_string()))
}

/// What others are told of a listener: this host with its port, or what its address allows to conclude.
pub fn advertised(host: Option<&str>, bound: SocketAddr) -> String {
    host.map_or_else(|| reachable(bound), |host| super::with_default_port(host, bound.port()))
}

/// `host:port` under which a bound address can be reached: itself, or loopback where it stands for all addresses.
fn reachable(bound: SocketAddr) -> String {
    let ip = match bound.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, bound.port()).to_string()
}
