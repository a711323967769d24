//! The whole way from root to handshake, in memory: two rustls connections whose bytes are carried by hand.

mod handshakes;
mod hostile;
mod joining;
mod rotation;
mod tools;

use super::*;
use crate::model::{ClusterId, Timestamp};
use crate::runtime::{Clock, ManualClock};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ConnectionCommon, ServerConfig, ServerConnection};
use std::io::{Read, Write};
use std::time::Duration;
use uuid::Uuid;

pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);
const ALPN: &[&[u8]] = &[b"h2"];

/// A cluster with a clock of its own.
pub(super) struct Stage {
    pub clock: Arc<ManualClock>,
    pub authority: Authority,
}

impl Stage {
    pub fn new() -> Self {
        let clock = Arc::new(ManualClock::new());
        let name = "prod".parse().unwrap();
        let authority = Authority::create(ClusterId::generate(), &name, clock.wall()).unwrap();
        Self { clock, authority }
    }

    pub fn now(&self) -> Timestamp {
        self.clock.wall()
    }

    pub fn bearer(&self, role: Role) -> Bearer {
        Bearer { cluster: self.authority.cluster(), role, id: Uuid::new_v4() }
    }

    pub fn issue(&self, bearer: Bearer) -> Credentials {
        let key = SigningKey::generate().unwrap();
        let names = ["host-1.example".to_owned(), "10.0.0.1".to_owned()];
        let issued = self.authority.issue(&key.request().unwrap(), &bearer, &names, self.now(), DAY).unwrap();
        assert_eq!(issued.public_key, key.public_key());
        let credentials = Credentials::new(key, &issued.chain_pem, self.authority.trust()).unwrap();
        assert_eq!((credentials.bearer(), credentials.expires_at()), (bearer, issued.expires_at));
        credentials
    }

    pub fn keyring_of(&self, credentials: Credentials) -> Keyring {
        Keyring::new(credentials, self.clock.clone()).unwrap()
    }

    pub fn keyring(&self, role: Role) -> Keyring {
        self.keyring_of(self.issue(self.bearer(role)))
    }

    pub fn joiner(&self, ca: PublicKey) -> (Arc<ClientConfig>, Recognition) {
        joining_client_config(ca, ALPN, self.clock.clone()).unwrap()
    }
}

/// What came of a handshake: whom the server saw, or the error of whoever gave up first.
pub(super) type Outcome = Result<Result<Bearer, PeerError>, rustls::Error>;

pub(super) fn server(keyring: &Keyring, clients: Clients) -> Arc<ServerConfig> {
    keyring.server_config(clients, ALPN).unwrap()
}

pub(super) fn client(keyring: &Keyring, expect: &[Role]) -> Arc<ClientConfig> {
    keyring.client_config(expect, ALPN).unwrap()
}

/// Connects `from` to `to`, who serves and asks for certificates.
pub(super) fn meet(from: &Keyring, to: &Keyring) -> Outcome {
    handshake(client(from, &[Role::Manager, Role::Block]), server(to, Clients::Required))
}

/// A handshake in which the client says a word as soon as it may, and the server's word on who said it.
pub(super) fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Outcome {
    let (outcome, heard) = converse(client, server, b"hello");
    assert_eq!(heard, if outcome.is_ok() { &b"hello"[..] } else { b"" }, "the word is heard exactly by those let in");
    outcome
}

/// Carries bytes to and fro until nothing is left to carry or one side gives up; says what the server heard, too.
pub(super) fn converse(client: Arc<ClientConfig>, server: Arc<ServerConfig>, word: &[u8]) -> (Outcome, Vec<u8>) {
    let name = ServerName::try_from("nowhere.invalid").unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    client.writer().write_all(word).unwrap();
    let mut outcome = Ok(Err(PeerError::Absent));
    while outcome.is_ok() && (client.wants_write() || server.wants_write()) {
        outcome = carry(&mut client, &mut server)
            .and_then(|()| carry(&mut server, &mut client))
            .map(|()| peer_bearer(server.peer_certificates().unwrap_or_default()));
    }
    // What a side that gave up had still to say, its alert above all, is sent as well.
    let last_words = carry(&mut client, &mut server);
    let mut heard = Vec::new();
    let end = server.reader().read_to_end(&mut heard);
    assert!(end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) || outcome.is_err());
    if outcome.is_ok() {
        assert_eq!(last_words, Ok(()));
        assert!(!client.is_handshaking() && !server.is_handshaking(), "both sides are through");
        assert_eq!(server.alpn_protocol(), Some(&b"h2"[..]));
        assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full), "no session is resumed");
    }
    (outcome, heard)
}

/// Brings what `from` has to send to `to`, and lets it act on that.
fn carry<A, B>(from: &mut ConnectionCommon<A>, to: &mut ConnectionCommon<B>) -> Result<(), rustls::Error> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        assert_ne!(to.read_tls(&mut rest).unwrap(), 0);
        to.process_new_packets()?;
    }
    Ok(())
}

/// The reason that stands in the error of a refused handshake.
pub(super) fn reason(outcome: Outcome) -> String {
    let error = outcome.expect_err("the handshake is refused");
    PeerError::within(&error).map_or_else(|| error.to_string(), PeerError::to_string)
}

pub(super) fn pem(der: &CertificateDer<'_>) -> String {
    certificate::to_pem(der)
}
