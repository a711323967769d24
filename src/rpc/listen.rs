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
}

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
        Ok(Self { socket: Socket::Tcp(listener), admission })
    }

    /// Binds a control socket, mode 0600, in place of one that a dead process left behind. The caller holds the lock
    /// of the directory it is in, so that no living process is behind an old one.
    ///
    /// # Errors
    /// If the path cannot be a socket's.
    pub fn unix(path: &Path) -> Result<Self, ListenError> {
        let bind = || {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(path)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let listener = bind().map_err(|source| ListenError::Unix { path: path.to_owned(), source })?;
        Ok(Self { socket: Socket::Unix(listener), admission: Arc::new(|_| Ok(())) })
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
                Ok(connection) => return connection,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Out of descriptors or memory: nothing tells when that is over.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn try_accept(&self) -> std::io::Result<Connection> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let refused = (self.admission)(&stream).err();
                if let Some(reason) = &refused {
                    tracing::warn!(%peer, %reason, "refused a peer");
                }
                Ok(Connection { stream: Either::Left(stream), origin: Peer { peer: peer.to_string(), refused } })
            }
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred()?.uid();
                let own = nix::unistd::geteuid().as_raw();
                let refused = (uid != 0 && uid != own).then(|| format!("user {uid} may not use this control socket"));
                let origin = Peer { peer: format!("the control socket (user {uid})"), refused };
                Ok(Connection { stream: Either::Right(stream), origin })
            }
        }
    }
}

/// An accepted connection.
pub struct Connection {
    stream: Either<TcpStream, UnixStream>,
    origin: Peer,
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
