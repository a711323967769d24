//! The credentials of a running process, exchanged while it runs, and the TLS configurations that follow them.
//!
//! A configuration is made once and lives as long as its listener or dialler: every handshake asks the keyring for the
//! certificate to present, the roots to believe and the bearers to refuse. Only TLS 1.3 is spoken (libnbd, qemu and the
//! kernel speak it). No session is ever resumed, for a resumed session would skip these questions.
//!
//! Connections that are up stay up when credentials change. Whoever revokes a bearer closes its connections, and asks
//! [`Keyring::refuses`] at each call.

use super::verify::{ClientVerifier, OwnCertificate, ServerVerifier};
use super::{Bearer, Credentials, Error, PeerError, Role, TrustBundle, provider};
use crate::model::Timestamp;
use crate::runtime::Clock;
use rustls::client::Resumption;
use rustls::pki_types::{PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use uuid::Uuid;

/// Which clients a server lets through its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Those with a certificate of the cluster.
    Required,
    /// Those, and anonymous ones: a joiner has no certificate yet, a service that slept too long has none any more. A
    /// certificate that is presented must still be good.
    Optional,
}

/// A process's credentials. Clones share them.
#[derive(Clone)]
pub struct Keyring(Arc<Shared>);

struct Shared {
    clock: Arc<dyn Clock>,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    current: Option<Arc<Current>>,
    revoked: BTreeSet<Uuid>,
}

/// One set of credentials in the forms that handshakes need.
pub(super) struct Current {
    pub credentials: Credentials,
    pub presented: Arc<CertifiedKey>,
    pub anchors: Arc<RootCertStore>,
    pub clients: Arc<dyn ClientCertVerifier>,
}

impl Current {
    fn new(credentials: Credentials) -> Result<Arc<Self>, Error> {
        let der = PrivateKeyDer::Pkcs8(credentials.key().pkcs8().into()).clone_key();
        let key = provider().key_provider.load_private_key(der)?;
        let presented = Arc::new(CertifiedKey::new(credentials.chain().to_vec(), key));
        let anchors = Arc::new(credentials.trust().anchors()?);
        let clients = WebPkiClientVerifier::builder_with_provider(anchors.clone(), provider())
            .build()
            .map_err(|error| Error::certificate("trust bundle", error))?;
        Ok(Arc::new(Self { credentials, presented, anchors, clients }))
    }
}

impl Keyring {
    /// A keyring of a process that is no member yet: its handshakes fail until [`Keyring::replace`].
    pub fn empty(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Shared { clock, state: RwLock::default() }))
    }

    pub fn new(credentials: Credentials, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let keyring = Self::empty(clock);
        keyring.replace(credentials)?;
        Ok(keyring)
    }

    /// From the next handshake on, these credentials are presented and their roots believed.
    pub fn replace(&self, credentials: Credentials) -> Result<(), Error> {
        let current = Current::new(credentials)?;
        self.write(|state| state.current = Some(current));
        Ok(())
    }

    /// From the next handshake on, these roots are believed; key and chain stay.
    pub fn trust(&self, bundle: TrustBundle) -> Result<(), Error> {
        // Under the lock, lest a replacement in between be undone.
        self.write(|state| {
            let current = state.current.as_ref().ok_or(PeerError::NoCredentials)?;
            state.current = Some(Current::new(current.credentials.believing(bundle))?);
            Ok(())
        })
    }

    /// From the next handshake on, the bearers with these ids are refused, and no others.
    pub fn revoke(&self, ids: BTreeSet<Uuid>) {
        self.write(|state| state.revoked = ids);
    }

    /// Drops the credentials: the process is no member any more.
    pub fn forget(&self) {
        self.write(|state| *state = State::default());
    }

    pub fn credentials(&self) -> Option<Credentials> {
        self.current().map(|current| current.credentials.clone())
    }

    pub fn bearer(&self) -> Option<Bearer> {
        self.current().map(|current| current.credentials.bearer())
    }

    pub fn expires_at(&self) -> Option<Timestamp> {
        self.current().map(|current| current.credentials.expires_at())
    }

    /// Why `bearer`, who was let in once, is to be let in no longer, if so.
    pub fn refuses(&self, bearer: &Bearer) -> Option<PeerError> {
        match self.current() {
            None => Some(PeerError::NoCredentials),
            Some(current) => self.admit(bearer, current.credentials.bearer()).err(),
        }
    }

    /// What a listener speaks. Without credentials, every handshake fails.
    pub fn server_config(&self, clients: Clients, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
        let verifier = ClientVerifier { keyring: self.clone(), mandatory: clients == Clients::Required };
        let mut config = ServerConfig::builder_with_details(provider(), self.time())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(OwnCertificate(self.clone())));
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// What a dialler speaks to a server of this cluster in one of the roles of `expect`. The server's name is not
    /// looked at; any will do. Our own certificate is presented unless it has expired.
    pub fn client_config(&self, expect: &[Role], alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
        let verifier = ServerVerifier { keyring: self.clone(), expect: expect.to_vec() };
        let mut config = ClientConfig::builder_with_details(provider(), self.time())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(OwnCertificate(self.clone())));
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(Arc::new(config))
    }

    pub(super) fn current(&self) -> Option<Arc<Current>> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner).current.clone()
    }

    /// Whether the bearer belongs to the cluster of `ours` and is still a member of it.
    pub(super) fn admit(&self, bearer: &Bearer, ours: Bearer) -> Result<(), PeerError> {
        if bearer.cluster != ours.cluster {
            return Err(PeerError::OtherCluster { bearer: *bearer, ours: ours.cluster });
        }
        match self.0.state.read().unwrap_or_else(PoisonError::into_inner).revoked.contains(&bearer.id) {
            true => Err(PeerError::Revoked(*bearer)),
            false => Ok(()),
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.0.clock.wall()
    }

    fn time(&self) -> Arc<dyn TimeProvider> {
        Arc::new(WallTime(self.0.clock.clone()))
    }

    fn write<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.state.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keyring").field(&self.bearer()).finish()
    }
}

/// The process's clock, as rustls asks for it.
pub(super) struct WallTime(pub Arc<dyn Clock>);

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.wall().as_millis())))
    }
}

impl fmt::Debug for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WallTime({})", self.0.wall())
    }
}
