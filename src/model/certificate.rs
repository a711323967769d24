//! What the state holds of certificates: enough to renew them and to know their end; each is with its bearer.

use super::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use uuid::Uuid;

/// The certificate that was issued last to a service or a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRecord {
    /// SHA-256 of the public key, in hexadecimal: whoever proves to hold the key may renew.
    pub public_key: String,
    pub expires_at: Timestamp,
    /// Fingerprint of the root that signed it, in hexadecimal.
    pub root: String,
    /// Hosts that it names, by which tools that know no bearers check it. Of block services only.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub names: BTreeSet<String>,
}

/// Whose certificates to believe, as block services are told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// Every trusted root, PEM.
    pub roots: Vec<String>,
    /// Services and clients whose certificates are void though they have not expired.
    pub revoked: BTreeSet<Uuid>,
    /// Fingerprint of the root that signs now: whoever has a certificate of another one renews.
    pub signing: String,
}
