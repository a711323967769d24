//! How a joiner, who has a token and nothing else, recognises the cluster before it tells it the secret.

use super::keyring::WallTime;
use super::verify::{refusal, schemes, verify_server, verify_tls12, verify_tls13};
use super::{Bearer, Error, PeerError, PublicKey, Role, TrustBundle, TrustedRoot, provider};
use crate::model::Timestamp;
use crate::runtime::Clock;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use std::sync::{Arc, Mutex, PoisonError};

/// The server that a joiner's handshake accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognised {
    /// The manager at the other end, and with it the cluster's id.
    pub manager: Bearer,
    /// The root that the token named; compare it with the bundle that the manager sends.
    pub root: TrustedRoot,
}

/// Where the outcome of a joiner's handshake is found. Clones share it; the last handshake counts.
#[derive(Clone, Debug, Default)]
pub struct Recognition(Arc<Mutex<Option<Recognised>>>);

impl Recognition {
    /// Nothing before a server's certificate was accepted. It counts once the handshake is through: only then has the
    /// server proved that it holds the key, too.
    pub fn get(&self) -> Option<Recognised> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Recognised>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a joiner speaks to a manager. The handshake succeeds only if the presented chain holds the self-signed root with
/// the fingerprint `ca`, as the token has it, and the server's certificate leads to that root and is a manager's. So a
/// secret that is sent after the handshake reaches the inviting cluster and nobody else. No certificate is presented.
pub fn joining_client_config(
    ca: PublicKey,
    alpn: &[&[u8]],
    clock: Arc<dyn Clock>,
) -> Result<(Arc<ClientConfig>, Recognition), Error> {
    let recognition = Recognition::default();
    let verifier = TokenVerifier { ca, recognition: recognition.clone() };
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(WallTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok((Arc::new(config), recognition))
}

#[derive(Debug)]
struct TokenVerifier {
    ca: PublicKey,
    recognition: Recognition,
}

impl TokenVerifier {
    /// The presented root that the token names, if it is valid `now`.
    fn root(&self, presented: &[CertificateDer<'_>], now: UnixTime) -> Result<TrustedRoot, PeerError> {
        let now = Timestamp::from_millis(now.as_secs().saturating_mul(1000));
        let valid = |root: &TrustedRoot| root.validity().not_before <= now && now <= root.validity().not_after;
        let roots = presented.iter().filter_map(|der| TrustedRoot::from_der(der.clone().into_owned()).ok());
        roots.into_iter().find(|root| root.public_key() == self.ca && valid(root)).ok_or(PeerError::OtherRoot(self.ca))
    }
}

impl ServerCertVerifier for TokenVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let root = self.root(others, now).map_err(refusal)?;
        let anchors =
            TrustBundle::of(root.clone(), None).anchors().map_err(|_| refusal(PeerError::OtherRoot(self.ca)))?;
        let manager = verify_server(leaf, others, &anchors, now, &[Role::Manager])?;
        *self.recognition.lock() = Some(Recognised { manager, root });
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}
