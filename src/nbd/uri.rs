//! NBD URIs, as in `doc/uri.md`: `nbd://host:port/export` and `nbd+unix:///export?socket=/path`, with TLS
//! `nbds://host:port/export?tls-certificates=/directory` and `nbds+unix:///…`.
//!
//! Limitation: of the TLS parameters only the directory of the certificates is understood.

use super::wire::{MAX_STRING, NBD_DEFAULT_PORT};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

/// Where an export is and what it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    pub target: Target,
    /// The name of the export; may be empty, which is a server's default export.
    pub export: String,
    /// Absent: in plain.
    pub tls: Option<Tls>,
}

/// The connection must be encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// A directory with `ca-cert.pem`, `client-cert.pem` and `client-key.pem`; absent: the caller has credentials.
    pub certificates: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The host is a name or an address, an IPv6 address without brackets.
    Tcp {
        host: String,
        port: u16,
    },
    Unix {
        socket: PathBuf,
    },
}

/// Why a text is not an [`Uri`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    #[error(
        "'{uri}' is not an NBD URI: write nbd://host:port/name, nbds://host:port/name or nbd+unix:///name?socket=/path"
    )]
    Scheme { uri: String },
    #[error("'{uri}' has a parameter '{parameter}' for TLS, but its scheme is not nbds or nbds+unix")]
    Plain { uri: String, parameter: String },
    #[error("'{uri}' names no host")]
    Host { uri: String },
    #[error("'{port}' in '{uri}' is not a port: it is a number from 1 to 65535")]
    Port { uri: String, port: String },
    #[error("'{uri}' has no parameter socket=/path")]
    Socket { uri: String },
    #[error("'{uri}' has a parameter '{parameter}' that is not understood")]
    Parameter { uri: String, parameter: String },
    #[error("'{uri}' is not properly percent-encoded")]
    Encoding { uri: String },
    #[error("the export's name in '{uri}' is too long or has a NUL in it")]
    Export { uri: String },
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let uri = || text.to_owned();
        let (scheme, rest) = text.split_once("://").ok_or_else(|| UriError::Scheme { uri: uri() })?;
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decode(path).and_then(|bytes| String::from_utf8(bytes).ok());
        let export = export.ok_or_else(|| UriError::Encoding { uri: uri() })?;
        if export.len() > MAX_STRING || export.contains('\0') {
            return Err(UriError::Export { uri: uri() });
        }
        let (unix, secure) = match scheme.to_ascii_lowercase().as_str() {
            "nbd" => (false, false),
            "nbds" => (false, true),
            "nbd+unix" => (true, false),
            "nbds+unix" => (true, true),
            _ => return Err(UriError::Scheme { uri: uri() }),
        };
        let Parameters { socket, certificates } = Parameters::parse(text, query, unix, secure)?;
        let target = match unix {
            true => Target::Unix { socket: socket.ok_or_else(|| UriError::Socket { uri: uri() })? },
            false => parse_authority(text, authority)?,
        };
        Ok(Self { target, export, tls: secure.then_some(Tls { certificates }) })
    }
}

fn parse_authority(uri: &str, authority: &str) -> Result<Target, UriError> {
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let no_host = || UriError::Host { uri: uri.to_owned() };
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (host, port) = bracketed.split_once(']').ok_or_else(no_host)?;
            if !port.is_empty() && !port.starts_with(':') {
                return Err(no_host());
            }
            (host, port.strip_prefix(':').unwrap_or(""))
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let host = decode(host).and_then(|bytes| String::from_utf8(bytes).ok());
    let host = host.filter(|host| !host.is_empty()).ok_or_else(no_host)?;
    let port = match port {
        "" => NBD_DEFAULT_PORT,
        digits => match digits.parse() {
            Ok(port) if port > 0 && digits.bytes().all(|byte| byte.is_ascii_digit()) => port,
            _ => return Err(UriError::Port { uri: uri.to_owned(), port: digits.to_owned() }),
        },
    };
    Ok(Target::Tcp { host, port })
}

#[derive(Default)]
struct Parameters {
    socket: Option<PathBuf>,
    certificates: Option<PathBuf>,
}

impl Parameters {
    fn parse(uri: &str, query: &str, unix: bool, secure: bool) -> Result<Self, UriError> {
        let mut parameters = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let place = match key {
                "socket" if unix => &mut parameters.socket,
                "tls-certificates" if secure => &mut parameters.certificates,
                _ if key.starts_with("tls-") && !secure => {
                    return Err(UriError::Plain { uri: uri.to_owned(), parameter: key.to_owned() });
                }
                _ => return Err(UriError::Parameter { uri: uri.to_owned(), parameter: key.to_owned() }),
            };
            if value.is_empty() || place.is_some() {
                return Err(UriError::Parameter { uri: uri.to_owned(), parameter: key.to_owned() });
            }
            let path = decode(value).ok_or_else(|| UriError::Encoding { uri: uri.to_owned() })?;
            *place = Some(PathBuf::from(OsString::from_vec(path)));
        }
        Ok(parameters)
    }
}

/// Undoes percent-encoding; `None` where two hexadecimal digits are missing.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
        decoded.push(u8::try_from(high * 16 + low).ok()?);
    }
    Some(decoded)
}

/// Writes bytes so that they mean themselves in any part of an URI; slashes stay readable.
fn encode(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                write!(f, "{}", char::from(*byte))?;
            }
            _ => write!(f, "%{byte:02X}")?,
        }
    }
    Ok(())
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "nbds" } else { "nbd" };
        let mut separator = '?';
        match &self.target {
            Target::Tcp { host, port } => {
                write!(f, "{scheme}://")?;
                if host.contains(':') {
                    // A zone (fe80::1%eth0) has a percent sign of its own.
                    write!(f, "[{}]", host.replace('%', "%25"))?;
                } else {
                    encode(host.as_bytes(), f)?;
                }
                write!(f, ":{port}/")?;
                encode(self.export.as_bytes(), f)?;
            }
            Target::Unix { socket } => {
                write!(f, "{scheme}+unix:///")?;
                encode(self.export.as_bytes(), f)?;
                f.write_str("?socket=")?;
                encode(OsStr::as_bytes(socket.as_os_str()), f)?;
                separator = '&';
            }
        }
        if let Some(Tls { certificates: Some(directory) }) = &self.tls {
            write!(f, "{separator}tls-certificates=")?;
            encode(OsStr::as_bytes(directory.as_os_str()), f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(host: &str, port: u16, export: &str) -> Uri {
        Uri { target: Target::Tcp { host: host.into(), port }, export: export.into(), tls: None }
    }

    #[test]
    fn the_specification_s_examples_are_understood() {
        for (text, export) in [
            ("nbd://example.com/disk", "disk"),
            ("nbd://example.com/", ""),
            ("nbd://example.com", ""),
            ("nbd://example.com//disk", "/disk"),
            ("nbd://example.com/hello%20world", "hello world"),
        ] {
            assert_eq!(text.parse(), Ok(tcp("example.com", NBD_DEFAULT_PORT, export)), "{text}");
        }
        assert_eq!("NBD://[::1]:11000/a".parse(), Ok(tcp("::1", 11000, "a")));
        let unix: Uri = "nbd+unix:///disk?socket=nbd.sock".parse().expect("an URI");
        assert_eq!(unix, Uri { target: Target::Unix { socket: "nbd.sock".into() }, export: "disk".into(), tls: None });
        let tls = |certificates: Option<&str>| Some(Tls { certificates: certificates.map(PathBuf::from) });
        let secure: Uri = "nbds://h:1/a?tls-certificates=/etc/a%20b".parse().expect("an URI");
        assert_eq!(secure, Uri { tls: tls(Some("/etc/a b")), ..tcp("h", 1, "a") });
        assert_eq!("nbds://h:1/a".parse(), Ok(Uri { tls: tls(None), ..tcp("h", 1, "a") }));
        let both: Uri = "nbds+unix:///disk?tls-certificates=/c&socket=nbd.sock".parse().expect("an URI");
        assert_eq!(both, Uri { tls: tls(Some("/c")), ..unix });
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, told) in [
            ("http://x/", "not an NBD URI"),
            ("nbds://x/?tls-type=psk", "'tls-type'"),
            ("nbds://x/?tls-certificates=", "'tls-certificates'"),
            ("nbd://x/?tls-certificates=/c", "scheme"),
            ("nbds+unix:///x", "no parameter socket"),
            ("nbd:///x", "no host"),
            ("nbd://[::1/x", "no host"),
            ("nbd://h:0/x", "not a port"),
            ("nbd://h:65536/x", "not a port"),
            ("nbd+unix:///x", "no parameter socket"),
            ("nbd+unix:///x?socket=a&colour=red", "'colour'"),
            ("nbd://h/%2", "percent"),
            ("nbd://h/%ff", "percent"),
            ("nbd://h/%00", "NUL"),
        ] {
            let error = text.parse::<Uri>().expect_err(text).to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(export in "[^\0]{0,40}", host in "[a-z0-9.-]{1,20}|[0-9a-f:]{1,9}:", port in 1u16.., path in "[^\0]{1,40}",
                                         secure: bool, directory in proptest::option::of("[^\0]{1,40}")) {
            let tls = secure.then(|| Tls { certificates: directory.map(PathBuf::from) });
            let uri = Uri { tls: tls.clone(), ..tcp(&host, port, &export) };
            prop_assert_eq!(uri.to_string().parse(), Ok(uri));
            let uri = Uri { target: Target::Unix { socket: path.into() }, export, tls };
            prop_assert_eq!(uri.to_string().parse(), Ok(uri));
        }

        #[test]
        fn no_text_can_make_it_panic(text in "nbds?(\\+unix)?://.{0,60}") {
            let _either_is_fine = text.parse::<Uri>().is_ok();
        }
    }
}
