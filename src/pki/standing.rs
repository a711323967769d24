//! How long a peer stays welcome that was let in once: till its certificate ends, or is revoked, whichever comes first.

use super::bearer::peer_bearer;
use super::certificate;
use super::{Bearer, Error, Keyring, PeerError};
use crate::model::Timestamp;
use rustls::pki_types::CertificateDer;

/// What the peer of a finished handshake showed of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presented {
    pub bearer: Bearer,
    pub expires_at: Timestamp,
}

/// Why a peer that was let in is to be let in no longer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dismissed {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("the certificate of {bearer} expired at {expired}: connect again with a new one")]
    Expired { bearer: Bearer, expired: Timestamp },
}

impl Presented {
    /// Reads what the peer presented (its own certificate first); none if it presented nothing.
    ///
    /// # Errors
    /// If that names no bearer. That it is to be believed was settled in the handshake.
    pub fn read(certificates: &[CertificateDer<'_>]) -> Result<Option<Self>, Error> {
        let Some(own) = certificates.first() else { return Ok(None) };
        let bearer = peer_bearer(certificates)?;
        let facts = certificate::read(own, "peer's certificate")?;
        Ok(Some(Self { bearer, expires_at: facts.validity.not_after }))
    }
}

impl Keyring {
    /// Why the peer is to be let in no longer, if so. X.509 counts whole seconds and includes the last.
    pub fn dismisses(&self, peer: &Presented) -> Option<Dismissed> {
        if self.now().as_millis() / 1000 > peer.expires_at.as_millis() / 1000 {
            return Some(Dismissed::Expired { bearer: peer.bearer, expired: peer.expires_at });
        }
        self.refuses(&peer.bearer).map(Dismissed::Peer)
    }
}
