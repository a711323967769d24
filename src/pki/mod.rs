//! Who is who: the cluster's certificate authority, its members' certificates, join tokens, and TLS by them.
//!
//! | file | what |
//! |---|---|
//! | `bearer` | whom a certificate speaks for: `symphony://<cluster>/<role>/<id>` |
//! | `key` | keys, their names, the requests in which they prove themselves |
//! | `certificate`, `trust` | the shapes of certificates; the roots that are believed |
//! | `authority` | the root with its key: issuing, and the exchange of roots |
//! | `token` | invitations to join |
//! | `credentials`, `keyring` | what a process presents and believes, exchanged while it runs; TLS configurations |
//! | `provenance` | who signed a certificate, and which hosts it names |
//! | `verify`, `joining`, `visiting` | what is asked in a handshake |
//! | `standing` | how long a peer stays welcome afterwards |
//!
//! Bytes and PEM texts go in and come out; there is no file, no store, no socket and no gRPC in here. Time is an argument
//! or the caller's clock. Randomness for keys, serial numbers and secrets is the operating system's.
//!
//! Path building and signatures are rustls' and webpki's alone; this module adds the questions that only the cluster can
//! answer. Certificates are never matched by host name between members: addresses change, ids do not.
//!
//! Known limits: revocation is a set of ids that every process is told of, there are no CRLs, so other tools (qemu,
//! libnbd) learn of a revocation only when the certificate expires.

mod authority;
mod bearer;
mod certificate;
mod credentials;
mod error;
mod joining;
mod key;
mod keyring;
mod provenance;
mod standing;
#[cfg(test)]
mod tests;
mod token;
mod trust;
mod verify;
mod visiting;

pub use authority::{Authority, Issued, RotationPhase, Step};
pub use bearer::{Bearer, Role, peer_bearer};
pub use credentials::{Credentials, Side, ToolFile, renew_at};
pub use error::{Error, ParseBearerError, PeerError};
pub use joining::{Recognised, Recognition, joining_client_config};
pub use key::{ParseDigestError, PublicKey, SigningKey, verify_request};
pub use keyring::{Clients, Keyring};
pub use standing::{Dismissed, Presented};
pub use token::{JoinToken, ParseTokenError, Secret, SecretHash};
pub use trust::{TrustBundle, TrustedRoot};
pub use visiting::visiting_client_config;

use rustls::crypto::CryptoProvider;
use std::sync::{Arc, LazyLock};

/// The one source of cryptography, handed to every builder, so that no process-wide default is set or needed.
fn provider() -> Arc<CryptoProvider> {
    static RING: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    RING.clone()
}
