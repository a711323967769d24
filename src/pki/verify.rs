//! What is asked in a handshake: rustls' webpki verifies the path, the dates and the purpose; behind it stand this
//! cluster's own questions (which cluster, which role, still a member). Signatures are left to rustls.

use super::bearer::bearer_of;
use super::keyring::{Current, Keyring};
use super::{Bearer, PeerError, Role, provider};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};
use std::sync::Arc;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// Presents the keyring's certificate of the moment.
#[derive(Debug)]
pub(super) struct OwnCertificate(pub Keyring);

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.current().map(|current| current.presented.clone())
    }
}

impl ResolvesClientCert for OwnCertificate {
    /// An expired certificate is not presented: any server would refuse it, where one that also takes anonymous
    /// clients lets us prove ourselves by our key.
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let current = self.0.current()?;
        (!current.credentials.expired(self.0.now())).then(|| current.presented.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A server's questions to its clients.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub keyring: Keyring,
    pub mandatory: bool,
}

/// A client's questions to the server.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub keyring: Keyring,
    pub expect: Vec<Role>,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// None: the roots change while the listener lives, and clients have one certificate to offer anyhow.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let current = current(&self.keyring)?;
        current.clients.verify_client_cert(leaf, others, now).map_err(unknown_issuer)?;
        let bearer = leaf_bearer(leaf).map_err(refusal)?;
        self.keyring.admit(&bearer, current.credentials.bearer()).map_err(refusal)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let current = current(&self.keyring)?;
        let bearer = verify_server(leaf, others, &current.anchors, now, &self.expect)?;
        self.keyring.admit(&bearer, current.credentials.bearer()).map_err(refusal)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Verifies that a server's certificate leads to one of `anchors`, may serve, and names a bearer in one of the roles.
pub(super) fn verify_server(
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    anchors: &RootCertStore,
    now: UnixTime,
    expect: &[Role],
) -> Result<Bearer, Error> {
    let parsed = ParsedCertificate::try_from(leaf)?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, anchors, others, now, algorithms).map_err(unknown_issuer)?;
    let bearer = leaf_bearer(leaf).map_err(refusal)?;
    match expect.contains(&bearer.role) {
        true => Ok(bearer),
        false => Err(refusal(PeerError::OtherRole { presented: bearer.role, expected: expect.to_vec() })),
    }
}

/// All roots of a cluster have one name, so a leaf of a root that is not believed fails at the signature of one that is.
fn unknown_issuer(error: Error) -> Error {
    match error {
        Error::InvalidCertificate(CertificateError::BadSignature) => CertificateError::UnknownIssuer.into(),
        error => error,
    }
}

/// The bearer of a verified certificate. webpki takes a certificate without purposes for one with all of them; we do not.
fn leaf_bearer(leaf: &CertificateDer<'_>) -> Result<Bearer, PeerError> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| PeerError::Unreadable(error.to_string()))?;
    let purposes = parsed.extended_key_usage().map_err(|error| PeerError::Unreadable(error.to_string()))?;
    match purposes {
        Some(_) => bearer_of(&parsed),
        None => Err(PeerError::NoPurpose),
    }
}

fn current(keyring: &Keyring) -> Result<Arc<Current>, Error> {
    keyring.current().ok_or_else(|| refusal(PeerError::NoCredentials))
}

/// The error for rustls, which chooses the alert by it: the peer learns that it was revoked, the rest stays with us.
pub(super) fn refusal(error: PeerError) -> Error {
    Error::InvalidCertificate(match error {
        PeerError::Revoked(_) => CertificateError::Revoked,
        error => CertificateError::Other(OtherError(Arc::new(error))),
    })
}

pub(super) fn verify_tls12(
    message: &[u8],
    leaf: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = &provider().signature_verification_algorithms;
    rustls::crypto::verify_tls12_signature(message, leaf, signature, algorithms)
}

pub(super) fn verify_tls13(
    message: &[u8],
    leaf: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = &provider().signature_verification_algorithms;
    rustls::crypto::verify_tls13_signature(message, leaf, signature, algorithms)
}

pub(super) fn schemes() -> Vec<SignatureScheme> {
    provider().signature_verification_algorithms.supported_schemes()
}
