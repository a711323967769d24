//! Why something could not be issued, read or accepted.

use super::{Bearer, PublicKey, Role};
use crate::model::{ClusterId, Timestamp};

/// An action of this module failed. No variant carries a secret.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("the private key is not an ECDSA P-256 key as PKCS#8 in PEM")]
    Key,
    #[error("the certificate request is not one PKCS#10 request in PEM")]
    RequestForm,
    #[error("the certificate request is for a key of another kind than ECDSA P-256")]
    RequestKey,
    #[error("the certificate request is not signed by the key that it names")]
    RequestSignature,
    #[error("'{name}' can stand in no certificate: it is neither a host name nor an IP address")]
    HostName { name: String },
    #[error("a certificate names at most {most} hosts and addresses, {given} were given")]
    TooManyNames { given: usize, most: usize },
    #[error("the lifetime of a certificate must be at least a second")]
    Lifetime,
    #[error("the cluster's root certificate expired at {expired}: no certificate can be issued from it")]
    RootExpired { expired: Timestamp },
    #[error("the bearer belongs to cluster {theirs}, this authority to cluster {ours}")]
    ForeignBearer { theirs: ClusterId, ours: ClusterId },
    #[error("the {what} cannot be read: {reason}")]
    Certificate { what: &'static str, reason: String },
    #[error("the {what} is for another key than the private key beside it")]
    KeyMismatch { what: &'static str },
    #[error("cannot {step} now: {reason}")]
    Rotation { step: &'static str, reason: &'static str },
    #[error("signing failed: {reason}")]
    Signing { reason: String },
    #[error("the operating system gave no randomness")]
    Randomness,
    #[error("TLS cannot be set up with these credentials: {0}")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Peer(#[from] PeerError),
}

impl Error {
    pub(super) fn signing(error: rcgen::Error) -> Self {
        Self::Signing { reason: error.to_string() }
    }

    pub(super) fn certificate(what: &'static str, reason: impl ToString) -> Self {
        Self::Certificate { what, reason: reason.to_string() }
    }
}

/// Why a peer's certificate, although it may be sound, is not that of an acceptable peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("the peer presented no certificate")]
    Absent,
    #[error("the peer's certificate cannot be read: {0}")]
    Unreadable(String),
    #[error("the peer's certificate names no bearer (a URI like symphony://<cluster>/<role>/<id>)")]
    NoBearer,
    #[error("the peer's certificate holds {0} URIs where exactly one must name its bearer")]
    SeveralUris(usize),
    #[error(transparent)]
    Bearer(#[from] ParseBearerError),
    #[error("the peer is {bearer} of another cluster; this one is {ours}")]
    OtherCluster { bearer: Bearer, ours: ClusterId },
    #[error("the peer is a {presented}, expected was {}", roles(expected))]
    OtherRole { presented: Role, expected: Vec<Role> },
    #[error("the certificate of {0} was revoked: it is no longer a member of the cluster")]
    Revoked(Bearer),
    #[error("the peer's certificate does not say what it may be used for")]
    NoPurpose,
    #[error("no root certificate that the peer presented has the fingerprint {0} that the join token names")]
    OtherRoot(PublicKey),
    #[error("there are no credentials yet: this process is not a member of a cluster")]
    NoCredentials,
}

impl PeerError {
    /// The reason that this module gave for refusing a peer, if `error` is such a refusal. rustls' own text shows it
    /// in its Debug form only.
    pub fn within(error: &rustls::Error) -> Option<&Self> {
        match error {
            rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => other.0.downcast_ref(),
            _ => None,
        }
    }
}

/// The text is not a bearer's URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' names no bearer: a bearer looks like symphony://<cluster id>/<role>/<id>")]
pub struct ParseBearerError(pub(super) String);

fn roles(roles: &[Role]) -> String {
    roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(" or ")
}
