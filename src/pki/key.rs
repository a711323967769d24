//! Keys: what signs, how a key is named, and the request in which a key proves itself.
//!
//! Every key is ECDSA on P-256. A [`PublicKey`] is a key's name, the digest of its SubjectPublicKeyInfo, and stays the
//! same over any number of certificates.

use super::Error;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SubjectPublicKeyInfo};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

/// The PEM label of a certificate request (RFC 7468 section 7).
const REQUEST_LABEL: &str = "CERTIFICATE REQUEST";
/// The PEM label of a PKCS#8 private key (RFC 7468 section 10).
const KEY_LABEL: &str = "PRIVATE KEY";
/// The longest certificate request that is looked at, in bytes of PEM; an honest one has some 400.
const LONGEST_REQUEST: usize = 16 * 1024;

/// A public key's name: the SHA-256 of its DER SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7), in hex as text and JSON.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

/// The text is not 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a key's fingerprint: 64 hexadecimal digits are needed")]
pub struct ParseDigestError(pub(super) String);

impl PublicKey {
    /// Names the key of this DER SubjectPublicKeyInfo.
    pub fn of_spki(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }

    pub const fn from_bytes(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key:{self}")
    }
}

impl FromStr for PublicKey {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, ParseDigestError> {
        unhex(text).map(Self).ok_or_else(|| ParseDigestError(text.chars().take(80).collect()))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = ParseDigestError;

    fn try_from(text: String) -> Result<Self, ParseDigestError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}

/// A private key. Its JSON form is its PEM text, its Debug form only names the public half.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SigningKey {
    pkcs8: Zeroizing<Vec<u8>>,
    public: PublicKey,
}

impl SigningKey {
    /// A new key, with the operating system's randomness.
    pub fn generate() -> Result<Self, Error> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::signing)?;
        Ok(Self::of_pair(&pair))
    }

    /// Reads a PKCS#8 key in PEM; anything but ECDSA on P-256 is refused.
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let block = pem::parse(text).map_err(|_| Error::Key)?;
        if block.tag() != KEY_LABEL {
            return Err(Error::Key);
        }
        pair_of(&Zeroizing::new(block.into_contents())).map(|pair| Self::of_pair(&pair))
    }

    /// The key as PKCS#8 in PEM, for a file that only its owner may read.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(encode(KEY_LABEL, &self.pkcs8))
    }

    pub fn public_key(&self) -> PublicKey {
        self.public
    }

    /// A certificate request (PKCS#10, RFC 2986) in PEM. It asks for nothing; its signature proves possession of the key.
    pub fn request(&self) -> Result<String, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(&self.pair()?).map_err(Error::signing)?;
        Ok(encode(REQUEST_LABEL, request.der()))
    }

    pub(super) fn pair(&self) -> Result<KeyPair, Error> {
        pair_of(&self.pkcs8)
    }

    pub(super) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    fn of_pair(pair: &KeyPair) -> Self {
        use rcgen::PublicKeyData;
        Self {
            pkcs8: Zeroizing::new(pair.serialize_der()),
            public: PublicKey::of_spki(&pair.subject_public_key_info()),
        }
    }
}

fn pair_of(pkcs8: &[u8]) -> Result<KeyPair, Error> {
    KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8.into(), &PKCS_ECDSA_P256_SHA256).map_err(|_| Error::Key)
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {:?})", self.public)
    }
}

impl TryFrom<String> for SigningKey {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        Self::from_pem(&Zeroizing::new(text))
    }
}

impl From<SigningKey> for String {
    fn from(key: SigningKey) -> String {
        String::clone(&key.to_pem())
    }
}

/// What is taken of a certificate request: the key that it proves. Every wish in it stays unread.
pub(super) struct ProvenKey {
    pub name: PublicKey,
    pub spki: SubjectPublicKeyInfo,
}

/// Whose request this is: the key that it names and whose valid signature it bears. Whoever knows the key of a service
/// recognises it by this, whether or not its certificate has expired.
///
/// The signature covers the request alone, so a request that was overheard proves the key again; it must travel inside
/// TLS, and a certificate that is issued for it is of use to the holder of the key only.
pub fn verify_request(request: &str) -> Result<PublicKey, Error> {
    prove(request).map(|proven| proven.name)
}

pub(super) fn prove(request: &str) -> Result<ProvenKey, Error> {
    if request.len() > LONGEST_REQUEST {
        return Err(Error::RequestForm);
    }
    let block = pem::parse(request).map_err(|_| Error::RequestForm)?;
    if block.tag() != REQUEST_LABEL {
        return Err(Error::RequestForm);
    }
    let (rest, parsed) = X509CertificationRequest::from_der(block.contents()).map_err(|_| Error::RequestForm)?;
    if !rest.is_empty() {
        return Err(Error::RequestForm);
    }
    let spki = SubjectPublicKeyInfo::from_der(parsed.certification_request_info.subject_pki.raw)
        .map_err(|_| Error::RequestKey)?;
    if rcgen::PublicKeyData::algorithm(&spki) != &PKCS_ECDSA_P256_SHA256 {
        return Err(Error::RequestKey);
    }
    parsed.verify_signature().map_err(|_| Error::RequestSignature)?;
    // Named by the encoding that a certificate will carry, so that one key has one name.
    let name = PublicKey::of_spki(&rcgen::PublicKeyData::subject_public_key_info(&spki));
    Ok(ProvenKey { name, spki })
}

pub(super) fn encode(label: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(label, der), config)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads exactly `N` bytes of lower-case hex.
pub(super) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = (digit(*high)? << 4) | digit(*low)?;
    }
    Some(bytes)
}
