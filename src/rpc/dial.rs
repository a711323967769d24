//! Reaching a gRPC server: a control socket, or a manager at an address.

use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint, Uri};

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("no symphony process answers at {path}: start one with `symphony {role} run` or `symphony dev`, or name its socket with --socket", path = path.display(), role = role_of(path))]
    Socket { path: PathBuf, source: std::io::Error },
    #[error("you may not use the control socket {path}: be root or the user that symphony runs as", path = path.display())]
    Denied { path: PathBuf, source: std::io::Error },
    #[error("no manager answers at {address}")]
    Address { address: String, source: std::io::Error },
    #[error("'{address}' is not an address: write HOST or HOST:PORT")]
    Malformed { address: String },
}

/// Whose socket it would be, by the name of its directory.
fn role_of(path: &Path) -> &'static str {
    let directory = path.parent().and_then(Path::file_name).unwrap_or_default();
    if directory.as_encoded_bytes().starts_with(b"block") { "block" } else { "manager" }
}

/// How long a connection may take to come up.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

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
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::PermissionDenied => DialError::Denied { path: path.to_owned(), source },
        _ => DialError::Socket { path: path.to_owned(), source },
    };
    let first = UnixStream::connect(path).await.map_err(failed)?;
    over(first).await.map_err(failed)
}

/// Connects to `host:port`, trying each address that the name has.
///
/// # Errors
/// If the text is no address or nobody answers there.
pub async fn dial_address(address: &str) -> Result<Channel, DialError> {
    if !is_address(address) {
        return Err(DialError::Malformed { address: address.to_owned() });
    }
    let failed = |source| DialError::Address { address: address.to_owned(), source };
    let timeout = || std::io::Error::new(std::io::ErrorKind::TimedOut, "the connection attempt timed out");
    let connected = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(address)).await;
    let stream = connected.map_err(|_| failed(timeout()))?.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    over(stream).await.map_err(failed)
}

/// A channel over this one connection. It is not remade when it breaks: whoever holds it decides whether to dial again.
async fn over<S>(stream: S) -> std::io::Result<Channel>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut only = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: Uri| {
        let stream =
            only.take().ok_or_else(|| std::io::Error::new(std::io::ErrorKind::NotConnected, "connection lost"));
        std::future::ready(stream)
    });
    endpoint().connect_with_connector(connector).await.map_err(std::io::Error::other)
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
