//! What NBD is spoken over once a socket is connected: the socket itself, or TLS on it. One thread owns it; another may
//! cut it by its socket.
//!
//! rustls takes what it receives in small pieces, so they come out of a larger buffer here. Everything that is written
//! has left for the socket when the call returns.

use super::stream::Stream;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, OtherError, ServerConfig, ServerConnection,
};
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Received from the socket at once, in bytes.
const GATHERED: usize = 64 << 10;

/// Encrypted at once, in bytes; more is sent in several goes.
const SENT: usize = 256 << 10;

/// What a peer may still send after its handshake has failed, in bytes.
const DREGS: u64 = 64 << 10;

/// A peer has this long to take our leave.
const FAREWELL: Duration = Duration::from_secs(5);

/// A socket on which everything together must be done by a deadline, if there is one.
#[derive(Debug)]
pub struct Wire {
    stream: Arc<Stream>,
    deadline: Option<Instant>,
}

impl Wire {
    pub fn new(stream: Arc<Stream>, deadline: Option<Instant>) -> Self {
        Self { stream, deadline }
    }

    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// From the next call on; `None` waits for ever.
    pub fn set_deadline(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.deadline = deadline;
        if deadline.is_none() {
            self.stream.set_read_timeout(None)?;
            self.stream.set_write_timeout(None)?;
        }
        Ok(())
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let Some(deadline) = self.deadline else { return Ok(None) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }

    /// Lets the peer read what it was sent last: a socket that is closed over unread bytes takes its own back.
    fn settle(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        self.deadline.get_or_insert(Instant::now() + FAREWELL);
        io::copy(&mut self.take(DREGS), &mut io::sink()).map(drop)
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(left) = self.left()? {
            self.stream.set_read_timeout(Some(left))?;
        }
        (&*self.stream).read(buffer)
    }
}

impl Write for Wire {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buffer)])
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        if let Some(left) = self.left()? {
            self.stream.set_write_timeout(Some(left))?;
        }
        (&*self.stream).write_vectored(buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection with TLS on it, on either side.
#[derive(Debug)]
pub struct Secure {
    connection: Connection,
    wire: BufReader<Wire>,
}

impl Secure {
    /// The server's handshake.
    ///
    /// # Errors
    /// `InvalidData` with rustls' reason, which the peer has been told by an alert; or what the socket says.
    pub fn accept(config: Arc<ServerConfig>, wire: Wire) -> io::Result<Self> {
        let connection = ServerConnection::new(config).map_err(invalid)?;
        Self::shake_hands(connection.into(), wire)
    }

    /// The client's handshake. The configuration decides who the server may be, by its certificate: the name that it
    /// was dialled by has no part in that.
    ///
    /// # Errors
    /// As for [`Self::accept`]. Under TLS 1.3 a server that dislikes our certificate says so only after our handshake
    /// has succeeded, to the first read.
    pub fn connect(config: Arc<ClientConfig>, wire: Wire) -> io::Result<Self> {
        let unspecified = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
        let connection = ClientConnection::new(config, unspecified).map_err(invalid)?;
        Self::shake_hands(connection.into(), wire)
    }

    fn shake_hands(mut connection: Connection, wire: Wire) -> io::Result<Self> {
        connection.set_buffer_limit(Some(SENT));
        let mut secure = Self { connection, wire: BufReader::with_capacity(GATHERED, wire) };
        while secure.connection.is_handshaking() {
            secure.send()?;
            if secure.connection.is_handshaking() && secure.receive()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        secure.send()?;
        Ok(secure)
    }

    /// The peer's own certificate first; empty if it showed none.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.connection.peer_certificates().unwrap_or_default()
    }

    pub fn wire(&mut self) -> &mut Wire {
        self.wire.get_mut()
    }

    /// Tells the peer that nothing more comes, as far as it listens.
    pub fn farewell(&mut self) -> io::Result<()> {
        self.wire().set_deadline(Some(Instant::now() + FAREWELL))?;
        self.connection.send_close_notify();
        self.send()
    }

    fn send(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(self.wire.get_mut()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes in what has arrived and makes sense of it; 0 at the end of the stream.
    fn receive(&mut self) -> io::Result<usize> {
        let count = loop {
            match self.connection.read_tls(&mut self.wire) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome?,
            }
        };
        if let Err(error) = self.connection.process_new_packets() {
            if let Err(unheard) = self.send().and_then(|()| self.wire().settle()) {
                tracing::debug!(%unheard, "the peer could not be told why TLS ends");
            }
            return Err(invalid(error));
        }
        Ok(count)
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    match error {
        // The cluster's own reason, which rustls would show as it is built.
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) => {
            io::Error::new(io::ErrorKind::InvalidData, reason.to_string())
        }
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

impl Read for Secure {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
            // What the last records asked for, such as an answer to new keys.
            self.send()?;
            self.receive()?;
        }
    }
}

impl Write for Secure {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.connection.writer().write(buffer)?;
        self.send()?;
        Ok(count)
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let count = self.connection.writer().write_vectored(buffers)?;
        self.send()?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

/// A connection, encrypted or not.
#[derive(Debug)]
pub enum Line {
    Plain(Wire),
    Tls(Box<Secure>),
}

impl Line {
    pub fn wire(&mut self) -> &mut Wire {
        match self {
            Self::Plain(wire) => wire,
            Self::Tls(secure) => secure.wire(),
        }
    }
}

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(wire) => wire.read(buffer),
            Self::Tls(secure) => secure.read(buffer),
        }
    }
}

impl Write for Line {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(wire) => wire.write(buffer),
            Self::Tls(secure) => secure.write(buffer),
        }
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(wire) => wire.write_vectored(buffers),
            Self::Tls(secure) => secure.write_vectored(buffers),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(wire) => wire.flush(),
            Self::Tls(secure) => secure.flush(),
        }
    }
}
