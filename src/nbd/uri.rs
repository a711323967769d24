//! NBD URIs, as in `doc/uri.md`: `nbd://host:port/export` and `nbd+unix:///export?socket=/path`.
//!
//! Limitation: the TLS schemes and parameters are recognised and refused.

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
    #[error("'{uri}' is not an NBD URI: write nbd://host:port/name or nbd+unix:///name?socket=/path")]
    Scheme { uri: String },
    #[error("'{uri}' asks for TLS, which is not supported")]
    Tls { uri: String },
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
        let target = match scheme.to_ascii_lowercase().as_str() {
            "nbd" => {
                parse_query(text, query, false)?;
                parse_authority(text, authority)?
            }
            "nbd+unix" => {
                Target::Unix { socket: parse_query(text, query, true)?.ok_or_else(|| UriError::Socket { uri: uri() })? }
            }
            "nbds" | "nbds+unix" => return Err(UriError::Tls { uri: uri() }),
            _ => return Err(UriError::Scheme { uri: uri() }),
        };
        Ok(Self { target, export })
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

fn parse_query(uri: &str, query: &str, unix: bool) -> Result<Option<PathBuf>, UriError> {
    let mut socket = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match key {
            "socket" if unix && !value.is_empty() && socket.is_none() => {
                let path = decode(value).ok_or_else(|| UriError::Encoding { uri: uri.to_owned() })?;
                socket = Some(PathBuf::from(OsString::from_vec(path)));
            }
            _ if key.starts_with("tls-") => return Err(UriError::Tls { uri: uri.to_owned() }),
            _ => return Err(UriError::Parameter { uri: uri.to_owned(), parameter: key.to_owned() }),
        }
    }
    Ok(socket)
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
        match &self.target {
            Target::Tcp { host, port } => {
                if host.contains(':') {
                    // A zone (fe80::1%eth0) has a percent sign of its own.
                    write!(f, "nbd://[{}]", host.replace('%', "%25"))?;
                } else {
                    f.write_str("nbd://")?;
                    encode(host.as_bytes(), f)?;
                }
                write!(f, ":{port}/")?;
                encode(self.export.as_bytes(), f)
            }
            Target::Unix { socket } => {
                f.write_str("nbd+unix:///")?;
                encode(self.export.as_bytes(), f)?;
                f.write_str("?socket=")?;
                encode(OsStr::as_bytes(socket.as_os_str()), f)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(host: &str, port: u16, export: &str) -> Uri {
        Uri { target: Target::Tcp { host: host.into(), port }, export: export.into() }
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
        assert_eq!(unix, Uri { target: Target::Unix { socket: "nbd.sock".into() }, export: "disk".into() });
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, told) in [
            ("http://x/", "not an NBD URI"),
            ("nbds://x/", "TLS"),
            ("nbd://x/?tls-type=psk", "TLS"),
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
        fn what_is_written_is_read_back(export in "[^\0]{0,40}", host in "[a-z0-9.-]{1,20}|[0-9a-f:]{1,9}:", port in 1u16.., path in "[^\0]{1,40}") {
            let uri = tcp(&host, port, &export);
            prop_assert_eq!(uri.to_string().parse(), Ok(uri));
            let uri = Uri { target: Target::Unix { socket: path.into() }, export };
            prop_assert_eq!(uri.to_string().parse(), Ok(uri));
        }

        #[test]
        fn no_text_can_make_it_panic(text in "(nbd|nbd\\+unix)://.{0,60}") {
            let _either_is_fine = text.parse::<Uri>().is_ok();
        }
    }
}
