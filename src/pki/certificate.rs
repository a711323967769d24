//! How this cluster's certificates look (X.509, RFC 5280), written with rcgen and read with x509-parser.
//!
//! Issuance knows three shapes: the self-signed root, the cross certificate (the next root's key under the present
//! root) and the leaf. Both roots of a rotation bear the same name; key identifiers tell them apart.
//! The one name makes the cross certificate self-issued, so that the roots' path length of 0 admits it (RFC 5280 section
//! 4.2.1.9).

use super::key::{PublicKey, encode};
use super::{Bearer, Error};
use crate::model::{Name, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, ServerName};
use std::time::Duration;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

const LABEL: &str = "CERTIFICATE";
/// The key usage `digitalSignature`, as an object identifier and a DER bit string (RFC 5280 section 4.2.1.3).
const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const DIGITAL_SIGNATURE: [u8; 4] = [3, 2, 7, 0x80];
/// How far clocks may disagree: certificates are valid from this long before they are issued.
const SKEW: Duration = Duration::from_secs(5 * 60);
/// Hosts and addresses that a certificate names, at most.
const MOST_NAMES: usize = 64;

/// From when until when, both inclusive, in whole seconds as X.509 counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl Validity {
    /// `lifetime` from `now`, and some time back for peers whose clocks are slow.
    pub fn starting(now: Timestamp, lifetime: Duration) -> Self {
        let not_before = Timestamp::from_millis(now.as_millis().saturating_sub(millis(SKEW)));
        Self { not_before: whole(not_before), not_after: whole(after(now, lifetime)) }
    }

    /// The part of this that lies within `outer` too.
    pub fn within(self, outer: Self) -> Self {
        Self { not_before: self.not_before.max(outer.not_before), not_after: self.not_after.min(outer.not_after) }
    }
}

pub(super) fn after(time: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_millis(time.as_millis().saturating_add(millis(by)))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn whole(time: Timestamp) -> Timestamp {
    Timestamp::from_millis(time.as_millis() / 1000 * 1000)
}

/// A certificate that signs leaves and nothing else.
pub(super) fn root_params(name: &Name, validity: Validity) -> Result<CertificateParams, Error> {
    let mut params = params(name.as_str(), validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// The certificate of `bearer`, reachable under `names`.
pub(super) fn leaf_params(bearer: &Bearer, names: &[String], validity: Validity) -> Result<CertificateParams, Error> {
    let mut params = params(&format!("{} {}", bearer.role, bearer.id), validity)?;
    params.is_ca = IsCa::ExplicitNoCa;
    // Not critical, as rcgen would have it: qemu before 10.0.7 then insists on `keyEncipherment`, which a key of ECDSA must not
    // have (RFC 8813).
    params.custom_extensions.push(CustomExtension::from_oid_content(KEY_USAGE, DIGITAL_SIGNATURE.to_vec()));
    params.extended_key_usages = match bearer.role.is_service() {
        true => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        false => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.subject_alt_names = vec![SanType::URI(bearer.to_string().try_into().map_err(Error::signing)?)];
    params.subject_alt_names.extend(host_names(names)?);
    Ok(params)
}

fn params(common_name: &str, validity: Validity) -> Result<CertificateParams, Error> {
    let at = |time: Timestamp| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(time.as_millis());
    let mut params = CertificateParams::default();
    params.not_before = at(validity.not_before);
    params.not_after = at(validity.not_after);
    params.serial_number = Some(serial()?);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A positive random number of at most twenty octets (RFC 5280 section 4.1.2.2).
fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0; 16];
    super::provider().secure_random.fill(&mut bytes).map_err(|_| Error::Randomness)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn host_names(names: &[String]) -> Result<Vec<SanType>, Error> {
    if names.len() > MOST_NAMES {
        return Err(Error::TooManyNames { given: names.len(), most: MOST_NAMES });
    }
    let mut sans = Vec::new();
    for name in names {
        let refused = || Error::HostName { name: name.chars().take(80).collect() };
        // A trailing dot is right in a lookup, and wrong in a certificate.
        let san = match ServerName::try_from(name.strip_suffix('.').unwrap_or(name)).map_err(|_| refused())? {
            ServerName::DnsName(name) => SanType::DnsName(name.as_ref().try_into().map_err(|_| refused())?),
            ServerName::IpAddress(address) => SanType::IpAddress(address.into()),
            _ => return Err(refused()),
        };
        if !sans.contains(&san) {
            sans.push(san);
        }
    }
    Ok(sans)
}

/// What the rest of this module wants to know of a certificate.
pub(super) struct Facts {
    pub public_key: PublicKey,
    pub validity: Validity,
    /// It may sign certificates.
    pub authority: bool,
    /// Its own key signed it.
    pub self_signed: bool,
}

/// Reads one DER certificate; `what` names it in the error.
pub(super) fn read(der: &CertificateDer<'_>, what: &'static str) -> Result<Facts, Error> {
    let (rest, parsed) = X509Certificate::from_der(der).map_err(|error| Error::certificate(what, error))?;
    if !rest.is_empty() {
        return Err(Error::certificate(what, "bytes follow its end"));
    }
    let time = |time: x509_parser::time::ASN1Time| {
        Timestamp::from_millis(u64::try_from(time.timestamp()).unwrap_or(0).saturating_mul(1000))
    };
    Ok(Facts {
        public_key: PublicKey::of_spki(parsed.public_key().raw),
        validity: Validity {
            not_before: time(parsed.validity().not_before),
            not_after: time(parsed.validity().not_after),
        },
        authority: parsed.is_ca(),
        self_signed: parsed.subject() == parsed.issuer() && parsed.verify_signature(None).is_ok(),
    })
}

/// All certificates of a PEM text, in their order; at least one, and nothing but certificates.
pub(super) fn from_pem(text: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let blocks = pem::parse_many(text).map_err(|error| Error::certificate(what, error))?;
    if blocks.is_empty() {
        return Err(Error::certificate(what, "it holds no certificate in PEM"));
    }
    let certificate = |block: pem::Pem| match block.tag() == LABEL {
        true => Ok(CertificateDer::from(block.into_contents())),
        false => Err(Error::certificate(what, "it holds something else than certificates")),
    };
    blocks.into_iter().map(certificate).collect()
}

pub(super) fn to_pem(der: &CertificateDer<'_>) -> String {
    encode(LABEL, der)
}
