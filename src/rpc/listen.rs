//! Listening for gRPC on TCP and on control sockets, and turning away who may not ask.
//!
//! A refused peer still gets a connection, and every call on it answers PERMISSION_DENIED with the reason: a closed
//! socket would leave its user guessing.

use futures_util::stream::{self, Stream};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::either::Either;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

/// Decides whether the peer of a TCP connection may ask anything; the reason if not.
pub type Admission = Arc<dyn Fn(&TcpStream) -> Result<(), String> + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}; choose another port with --listen-port (0 takes a free one)")]
    Tcp { address: SocketAddr, source: std::io::Error },
    #[error("cannot listen on the control socket {path}", path = path.display())]
    Unix { path: PathBuf, source: std::io::Error },
}

/// Where a connection comes from, as every request on it carries.
#[derive(Clone, Debug)]
pub struct Peer {
    /// For logs: an address, or the control socket.
    pub peer: String,
    refused: Option<String>,
}

/// A bound socket, not yet serving.
pub struct Listener {
    socket: Socket,
    admission: Admission,
    /// Seats of two kinds, so that peers that are refused cannot crowd out those that are welcome.
    admitted: Arc<Semaphore>,
    refused: Arc<Semaphore>,
}

/// Connections of peers that may ask: block services, operators.
const ADMITTED: usize = 4096;
/// Connections of peers that are only told why they may not.
const REFUSED: usize = 64;

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Binds `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// If the port is taken or may not be bound.
    pub async fn tcp(address: SocketAddr, admission: Admission) -> Result<Self, ListenError> {
        let listener = TcpListener::bind(address).await.map_err(|source| ListenError::Tcp { address, source })?;
        Ok(Self::new(Socket::Tcp(listener), admission))
    }

    fn new(socket: Socket, admission: Admission) -> Self {
        let seats = |number| Arc::new(Semaphore::new(number));
        Self { socket, admission, admitted: seats(ADMITTED), refused: seats(REFUSED) }
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
        Ok(Self::new(Socket::Unix(listener), Arc::new(|_| Ok(()))))
    }

    /// The bound TCP address; none for a control socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(_) => None,
        }
    }

    /// Every connection, for `serve_with_incoming`. Never ends: a failing accept is tried again.
    pub fn incoming(self) -> impl Stream<Item = std::io::Result<Connection>> {
        stream::unfold(self, |listener| async move { Some((Ok(listener.accept().await), listener)) })
    }

    async fn accept(&self) -> Connection {
        loop {
            match self.try_accept().await {
                Ok(Some(connection)) => return connection,
                Ok(None) => tracing::debug!("no seat is free for a peer; it is hung up on"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Out of descriptors or memory: nothing tells when that is over.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn try_accept(&self) -> std::io::Result<Option<Connection>> {
        let (stream, peer, verdict) = match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                let verdict = (self.admission)(&stream);
                // A peer that has gone already must not be taken for a failure to accept.
                if stream.set_nodelay(true).is_err() {
                    return Ok(None);
                }
                (Either::Left(stream), peer.to_string(), verdict)
            }
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let verdict = crate::host::unix_peer(&stream).map_err(|refused| refused.to_string());
                (Either::Right(stream), "the control socket".to_owned(), verdict)
            }
        };
        let refused = verdict.err();
        let seats = match &refused {
            None => &self.admitted,
            Some(reason) => {
                tracing::warn!(%peer, %reason, "refused a peer");
                &self.refused
            }
        };
        let seat = seats.clone().try_acquire_owned().ok();
        Ok(seat.map(|seat| Connection { stream, origin: Peer { peer, refused }, _seat: seat }))
    }
}

/// An accepted connection.
pub struct Connection {
    stream: Either<TcpStream, UnixStream>,
    origin: Peer,
    /// Given back when the connection ends.
    _seat: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.origin.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
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

/// The interceptor in front of every service: refused peers get their reason, and so does a request that did not come
/// through a [`Listener`].
///
/// # Errors
/// PERMISSION_DENIED.
pub fn gate(request: Request<()>) -> Result<Request<()>, Status> {
    match request.extensions().get::<Peer>() {
        Some(Peer { refused: None, .. }) => Ok(request),
        Some(Peer { refused: Some(reason), .. }) => Err(Status::permission_denied(reason.clone())),
        None => Err(Status::permission_denied("this connection says nothing of its peer")),
    }
}
