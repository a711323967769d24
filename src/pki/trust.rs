//! What a service believes: the roots of its cluster.

use super::certificate::{self, Validity};
use super::{Error, PublicKey};
use crate::model::Timestamp;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

/// One root certificate, without its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenRoot", into = "WrittenRoot")]
pub struct TrustedRoot {
    public_key: PublicKey,
    validity: Validity,
    der: CertificateDer<'static>,
}

/// The JSON form; what stands beside the certificate is for people, and checked against it.
#[derive(Serialize, Deserialize)]
struct WrittenRoot {
    fingerprint: PublicKey,
    expires_at: Timestamp,
    certificate: String,
}

impl TrustedRoot {
    /// Reads one root; what is not a self-signed authority is refused, for whatever stands in a bundle is believed.
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let mut certificates = certificate::from_pem(text, WHAT)?;
        match (certificates.pop(), certificates.is_empty()) {
            (Some(der), true) => Self::from_der(der),
            _ => Err(Error::certificate(WHAT, "it is more than one certificate")),
        }
    }

    pub(super) fn from_der(der: CertificateDer<'static>) -> Result<Self, Error> {
        let facts = certificate::read(&der, WHAT)?;
        if !facts.authority || !facts.self_signed {
            return Err(Error::certificate(WHAT, "it is not a self-signed authority"));
        }
        Ok(Self { public_key: facts.public_key, validity: facts.validity, der })
    }

    /// The root's fingerprint, as join tokens carry it.
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    pub fn expires_at(&self) -> Timestamp {
        self.validity.not_after
    }

    pub fn to_pem(&self) -> String {
        certificate::to_pem(&self.der)
    }

    pub(super) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    pub(super) fn validity(&self) -> Validity {
        self.validity
    }
}

const WHAT: &str = "root certificate";

impl TryFrom<WrittenRoot> for TrustedRoot {
    type Error = Error;

    fn try_from(written: WrittenRoot) -> Result<Self, Error> {
        let root = Self::from_pem(&written.certificate)?;
        if root.public_key != written.fingerprint {
            return Err(Error::certificate(WHAT, "its fingerprint is another than the one beside it"));
        }
        Ok(root)
    }
}

impl From<TrustedRoot> for WrittenRoot {
    fn from(root: TrustedRoot) -> Self {
        Self { fingerprint: root.public_key(), expires_at: root.expires_at(), certificate: root.to_pem() }
    }
}

/// The roots of one cluster: one, or two while roots are being exchanged. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<TrustedRoot>", into = "Vec<TrustedRoot>")]
pub struct TrustBundle(Vec<TrustedRoot>);

impl TrustBundle {
    pub fn new(roots: Vec<TrustedRoot>) -> Result<Self, Error> {
        match roots.is_empty() {
            true => Err(Error::certificate("trust bundle", "it holds no root")),
            false => Ok(Self(roots)),
        }
    }

    pub(super) fn of(first: TrustedRoot, second: Option<TrustedRoot>) -> Self {
        Self(std::iter::once(first).chain(second).collect())
    }

    pub fn roots(&self) -> &[TrustedRoot] {
        &self.0
    }

    /// Whether the root with this fingerprint is believed.
    pub fn contains(&self, root: &PublicKey) -> bool {
        self.0.iter().any(|it| it.public_key == *root)
    }

    /// All roots in one PEM text, as other tools take them.
    pub fn to_pem(&self) -> String {
        self.0.iter().map(TrustedRoot::to_pem).collect()
    }

    /// Reads what [`TrustBundle::to_pem`] wrote.
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let roots =
            certificate::from_pem(text, WHAT)?.into_iter().map(TrustedRoot::from_der).collect::<Result<_, _>>()?;
        Self::new(roots)
    }

    pub(super) fn anchors(&self) -> Result<RootCertStore, Error> {
        let mut anchors = RootCertStore::empty();
        for root in &self.0 {
            anchors.add(root.der.clone())?;
        }
        Ok(anchors)
    }
}

impl TryFrom<Vec<TrustedRoot>> for TrustBundle {
    type Error = Error;

    fn try_from(roots: Vec<TrustedRoot>) -> Result<Self, Error> {
        Self::new(roots)
    }
}

impl From<TrustBundle> for Vec<TrustedRoot> {
    fn from(bundle: TrustBundle) -> Self {
        bundle.0
    }
}
