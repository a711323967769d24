//! Reaching a gRPC server: a control socket, or a manager at an address, plain or over TLS.

use super::listen::ALPN;
use super::sentences::{Trouble, trouble};
use crate::host::{PeerRefused, tcp_peer};
use crate::pki::{self, Keyring, Role};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("no symphony process answers at {path}: start one with `symphony {role} run` or `symphony dev`, or name its socket with --socket", path = path.display(), role = role_of(path))]
    Socket { path: PathBuf, source: io::Error },
    #[error("you may not use the control socket {path}: be root or the user that symphony runs as", path = path.display())]
    Denied { path: PathBuf, source: io::Error },
    #[error("no manager answers at {address}")]
    Address { address: String, source: io::Error },
    #[error("'{address}' is not an address: write HOST or HOST:PORT")]
    Malformed { address: String },
    #[error(
        "{address} is not shown to be on this host, so nothing is said to it in plain text: operators elsewhere bring a \
         certificate with --bundle, which `symphony ctl … manager client create` makes"
    )]
    Stranger { address: String, source: PeerRefused },
    #[error("{address} answers, but not in TLS: is this the port of a symphony service?")]
    NotTls { address: String },
    #[error(
        "{address} has no certificate yet: it is starting, or no member of a cluster, in which case run \
         `symphony ctl … manager init` on its host"
    )]
    Bare { address: String },
    #[error("the server at {address} cannot be trusted: {reason}")]
    Server { address: String, reason: String },
    #[error("the server at {address} refuses the connection: {reason}")]
    Refused { address: String, reason: String },
}

impl DialError {
    /// Whether somebody answered and one side did not accept the other: trying again alone will not help.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Stranger { .. } | Self::Bare { .. } | Self::Server { .. } | Self::Refused { .. } => true,
            Self::Socket { .. }
            | Self::Denied { .. }
            | Self::Address { .. }
            | Self::Malformed { .. }
            | Self::NotTls { .. } => false,
        }
    }
}

/// How a server at an address is spoken to.
#[derive(Clone, Debug)]
pub enum Transport {
    /// Among peers that the kernel shows to be on one host.
    Plain,
    /// What is presented, and which servers are accepted, is the configuration's business; its ALPN is [`ALPN`].
    Tls(Arc<ClientConfig>),
}

impl Transport {
    /// As a member dials servers in one of the roles of `expect`: with its certificate; plain as long as it has none.
    ///
    /// # Errors
    /// If TLS cannot be set up at all.
    pub fn of_member(keyring: &Keyring, expect: &[Role]) -> Result<Self, pki::Error> {
        match keyring.bearer() {
            Some(_) => keyring.client_config(expect, ALPN).map(Self::Tls),
            None => Ok(Self::Plain),
        }
    }
}

/// Whose socket it would be, by the name of its directory.
fn role_of(path: &Path) -> &'static str {
    let directory = path.parent().and_then(Path::file_name).unwrap_or_default();
    if directory.as_encoded_bytes().starts_with(b"block") { "block" } else { "manager" }
}

/// How long a connection may take to come up, and how long a TLS handshake on it.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How often to look whether the server has accepted.
const ACCEPT_POLL: Duration = Duration::from_millis(2);

fn endpoint() -> Endpoint {
    // The URI names nothing: the connector below decides where to go.
    Endpoint::from_static("http://symphony")
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
}

/// Connects to a control socket.
///
/// # Errors
/// If nobody answers there.
pub async fn dial_socket(path: &Path) -> Result<Channel, DialError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied => DialError::Denied { path: path.to_owned(), source },
        _ => DialError::Socket { path: path.to_owned(), source },
    };
    let first = UnixStream::connect(path).await.map_err(failed)?;
    over(first).await.map_err(failed)
}

/// Connects to `host:port`, trying each address that the name has.
///
/// # Errors
/// If the text is no address, nobody answers there, or one side does not accept the other.
pub async fn dial_address(address: &str, transport: &Transport) -> Result<Channel, DialError> {
    if !is_address(address) {
        return Err(DialError::Malformed { address: address.to_owned() });
    }
    let failed = |source| DialError::Address { address: address.to_owned(), source };
    let stream = in_time(TcpStream::connect(address)).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    match transport {
        Transport::Plain => {
            let stranger = |source| DialError::Stranger { address: address.to_owned(), source };
            vouched(&stream).await.map_err(stranger)?;
            over(stream).await.map_err(failed)
        }
        Transport::Tls(config) => {
            let stream = in_time(secure(stream, config)).await.map_err(|source| of_tls(address, source))?;
            over(stream).await.map_err(failed)
        }
    }
}

/// Waits until the kernel shows who holds the other end, and that it is root or this process's own user: on loopback
/// anybody may listen. Before the server has accepted the connection nobody holds it yet.
async fn vouched(stream: &TcpStream) -> Result<(), PeerRefused> {
    let began = tokio::time::Instant::now();
    loop {
        match tcp_peer(stream) {
            Ok(_) => return Ok(()),
            Err(PeerRefused::Abandoned { .. } | PeerRefused::Unknown { .. }) if began.elapsed() < CONNECT_LIMIT => {
                tokio::time::sleep(ACCEPT_POLL).await;
            }
            Err(refused) => return Err(refused),
        }
    }
}

async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let timeout = || io::Error::new(io::ErrorKind::TimedOut, "the connection attempt timed out");
    tokio::time::timeout(CONNECT_LIMIT, step).await.map_err(|_| timeout())?
}

/// Shakes hands, and waits for the server's first word (its HTTP/2 settings, RFC 9113 section 3.4): in TLS 1.3 a client
/// takes the handshake for done before the server has judged its certificate.
async fn secure(stream: TcpStream, config: &Arc<ClientConfig>) -> io::Result<BufReader<TlsStream<TcpStream>>> {
    // Members know each other by ids. A name is asked for, and neither sent nor looked at.
    let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::UNSPECIFIED));
    let mut stream = BufReader::new(TlsConnector::from(config.clone()).connect(name, stream).await?);
    match stream.fill_buf().await? {
        [] => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection at once")),
        _ => Ok(stream),
    }
}

fn of_tls(address: &str, source: io::Error) -> DialError {
    let address = address.to_owned();
    match trouble(&source) {
        Trouble::NotTls => DialError::NotTls { address },
        Trouble::Bare => DialError::Bare { address },
        Trouble::Server(reason) => DialError::Server { address, reason },
        Trouble::Client(reason) => DialError::Refused { address, reason },
        Trouble::Broken => DialError::Address { address, source },
    }
}

/// A channel over this one connection. It is not remade when it breaks: whoever holds it decides whether to dial again.
async fn over<S>(stream: S) -> io::Result<Channel>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut only = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = only.take().ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "connection lost"));
        std::future::ready(stream)
    });
    endpoint().connect_with_connector(connector).await.map_err(io::Error::other)
}

fn is_address(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        !host.is_empty() && host.len() <= 253 && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

/// `HOST` or `HOST:PORT` as `HOST:PORT`; a bare IPv6 address is put in brackets.
pub fn with_default_port(address: &str, port: u16) -> String {
    match address.parse::<std::net::IpAddr>() {
        Ok(ip) => std::net::SocketAddr::new(ip, port).to_string(),
        Err(_) if address.contains(':') => address.to_owned(),
        Err(_) => format!("{address}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_added_only_where_none_is() {
        assert_eq!(with_default_port("db-01", 15760), "db-01:15760");
        assert_eq!(with_default_port("127.0.0.1:1", 15760), "127.0.0.1:1");
        assert_eq!(with_default_port("::1", 15760), "[::1]:15760");
        assert_eq!(with_default_port("[::1]:7", 15760), "[::1]:7");
    }

    #[test]
    fn what_is_no_address_is_told_apart() {
        for address in ["", ":1", "host", "host:", "host:0", "host:99999"] {
            assert!(!is_address(address), "{address}");
        }
        assert!(is_address("127.0.0.1:15760") && is_address("[::1]:15760"));
    }
}
