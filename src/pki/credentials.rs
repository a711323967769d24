//! What a member presents and believes: its key, its certificate chain, the roots of its cluster.

use super::certificate::{self, Validity};
use super::{Bearer, Error, SigningKey, TrustBundle, peer_bearer};
use crate::model::Timestamp;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use zeroize::Zeroizing;

const CHAIN: &str = "certificate chain";

/// A key and the chain that certifies it, checked to belong together. Serialises as three PEM texts; Debug shows no key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Credentials {
    key: SigningKey,
    chain: Vec<CertificateDer<'static>>,
    trust: TrustBundle,
    bearer: Bearer,
    validity: Validity,
}

#[derive(Serialize, Deserialize)]
struct Written {
    key: SigningKey,
    chain: String,
    trust: TrustBundle,
}

/// Which end of a TLS connection another tool plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// A file that another tool reads: its name, its contents. What a name ending in `-key.pem` holds is secret.
pub type ToolFile = (&'static str, Zeroizing<String>);

impl Credentials {
    /// Puts together what was issued. The chain's leaf must be for `key` and name a bearer; whether it leads to `trust`
    /// is for the peers to say.
    pub fn new(key: SigningKey, chain_pem: &str, trust: TrustBundle) -> Result<Self, Error> {
        let chain = certificate::from_pem(chain_pem, CHAIN)?;
        let leaf = chain.first().ok_or_else(|| Error::certificate(CHAIN, "it is empty"))?;
        let facts = certificate::read(leaf, CHAIN)?;
        if facts.public_key != key.public_key() {
            return Err(Error::KeyMismatch { what: "certificate" });
        }
        let bearer = peer_bearer(&chain)?;
        Ok(Self { key, chain, trust, bearer, validity: facts.validity })
    }

    /// The same key and chain, believing other roots.
    pub fn believing(&self, trust: TrustBundle) -> Self {
        Self { trust, ..self.clone() }
    }

    pub fn bearer(&self) -> Bearer {
        self.bearer
    }

    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    pub fn trust(&self) -> &TrustBundle {
        &self.trust
    }

    pub fn not_before(&self) -> Timestamp {
        self.validity.not_before
    }

    pub fn expires_at(&self) -> Timestamp {
        self.validity.not_after
    }

    /// Whether the certificate's end has passed at `now`. X.509 counts whole seconds and includes the last.
    pub fn expired(&self, now: Timestamp) -> bool {
        now.as_millis() / 1000 > self.validity.not_after.as_millis() / 1000
    }

    /// The chain as it is presented, leaf first.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(certificate::to_pem).collect()
    }

    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The files in which libnbd, qemu and nbdkit look for TLS credentials. The certificate's file holds no roots: tools
    /// take those from `ca-cert.pem` and want the rest to be one path.
    pub fn tool_files(&self, side: Side) -> Result<[ToolFile; 3], Error> {
        let (certificate, key) = match side {
            Side::Client => ("client-cert.pem", "client-key.pem"),
            Side::Server => ("server-cert.pem", "server-key.pem"),
        };
        let mut path = String::new();
        for der in &self.chain {
            if !certificate::read(der, CHAIN)?.self_signed {
                path += &certificate::to_pem(der);
            }
        }
        Ok([
            ("ca-cert.pem", Zeroizing::new(self.trust.to_pem())),
            (certificate, Zeroizing::new(path)),
            (key, self.key.to_pem()),
        ])
    }
}

impl TryFrom<Written> for Credentials {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self, Error> {
        Self::new(written.key, &written.chain, written.trust)
    }
}

impl From<Credentials> for Written {
    fn from(credentials: Credentials) -> Self {
        let chain = credentials.chain_pem();
        Self { key: credentials.key, chain, trust: credentials.trust }
    }
}

/// When to renew a certificate: between one half and four fifths of its life, at the point that `random` (0 to 1)
/// chooses, so that the members of a cluster do not all come at once and a failed attempt leaves time for others.
pub fn renew_at(not_before: Timestamp, not_after: Timestamp, random: f64) -> Timestamp {
    let life: Duration = not_before.age(not_after);
    let random = if random.is_finite() { random.clamp(0.0, 1.0) } else { 0.0 };
    certificate::after(not_before, life.mul_f64(0.5 + 0.3 * random))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn renewal_falls_between_a_half_and_four_fifths_of_the_life(
            start in 0..2_000_000_000_000_u64, life in 0..400_000_000_000_u64, random in 0.0..=1.0,
        ) {
            let (start, end) = (Timestamp::from_millis(start), Timestamp::from_millis(start + life));
            let at = renew_at(start, end, random).as_millis() - start.as_millis();
            prop_assert!(at + 1 >= life / 2 && at <= life / 5 * 4 + 4, "{at} of {life}");
        }
    }

    #[test]
    fn renewal_makes_do_with_any_number() {
        let (start, end) = (Timestamp::from_millis(0), Timestamp::from_millis(1000));
        for (random, at) in [(0.0, 500), (1.0, 800), (-1.0, 500), (7.0, 800), (f64::NAN, 500), (f64::INFINITY, 500)] {
            assert_eq!(renew_at(start, end, random).as_millis(), at, "{random}");
        }
        assert_eq!(renew_at(end, start, 0.7), end, "a life that never was");
    }
}
