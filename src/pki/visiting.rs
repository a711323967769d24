//! TLS for a member that comes without its certificate: it has expired, is lost, or is not liked any more. It believes
//! the roots that it has kept, and proves itself by its key in the call that follows.

use super::keyring::WallTime;
use super::verify::{refusal, schemes, verify_server, verify_tls12, verify_tls13};
use super::{Error, PeerError, Role, TrustBundle, provider};
use crate::model::ClusterId;
use crate::runtime::Clock;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::sync::Arc;

/// What a visitor speaks to a manager of `cluster` whose certificate leads to one of the roots. No certificate is
/// presented; any server name will do.
///
/// # Errors
/// If a root cannot be used.
pub fn visiting_client_config(
    cluster: ClusterId,
    trust: &TrustBundle,
    alpn: &[&[u8]],
    clock: Arc<dyn Clock>,
) -> Result<Arc<ClientConfig>, Error> {
    let verifier = ManagerVerifier { cluster, anchors: trust.anchors()? };
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(WallTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct ManagerVerifier {
    cluster: ClusterId,
    anchors: RootCertStore,
}

impl ServerCertVerifier for ManagerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let bearer = verify_server(leaf, others, &self.anchors, now, &[Role::Manager])?;
        match bearer.cluster == self.cluster {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(refusal(PeerError::OtherCluster { bearer, ours: self.cluster })),
        }
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
