//! Join tokens: what an operator hands to a new service. A token names the cluster's root, so that the joiner knows
//! whom it tells the secret, and proves to a manager that the joiner was invited.
//!
//! ```text
//!   SYMPHONY-1-<root's fingerprint, 64>-<id, 32>-<secret, 64>-<checksum, 8>      all lower-case hex
//! ```
//!
//! The checksum tells a mistyped token from one that is merely unknown. Limits such as the time to live and the use
//! count are no part of the token; they stand beside its [`SecretHash`] in the store.

use super::key::{hex, unhex};
use super::{Error, ParseDigestError, PublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};
use subtle::ConstantTimeEq;
use uuid::Uuid;
use zeroize::Zeroizing;

const PREFIX: &str = "SYMPHONY-1-";
/// Digits of the checksum.
const CHECKSUM: usize = 8;
/// Characters of every token: the prefix, the four fields, the dashes between them.
const LENGTH: usize = PREFIX.len() + 64 + 1 + 32 + 1 + 64 + 1 + CHECKSUM;

/// The half of a token that proves the invitation. Debug does not show it; its memory is wiped.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    /// A new secret, with the operating system's randomness.
    pub fn generate() -> Result<Self, Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        super::provider().secure_random.fill(&mut bytes[..]).map_err(|_| Error::Randomness)?;
        Ok(Self(bytes))
    }

    /// The secret of these bytes as they came over the wire; none unless there are 32.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(Zeroizing::new(bytes)))
    }

    /// The bytes, for the call that presents them to a manager.
    pub fn reveal(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What the store keeps of a secret: its SHA-256, in hex. The secret has 256 random bits, so no salt or slow hash is
/// called for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    pub fn of(secret: &Secret) -> Self {
        Self(Sha256::digest(secret.reveal()).into())
    }

    /// Whether `secret` is the one; takes as long for any wrong one.
    pub fn matches(&self, secret: &Secret) -> bool {
        self.0.ct_eq(&Self::of(secret).0).into()
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex(&self.0))
    }
}

impl TryFrom<String> for SecretHash {
    type Error = ParseDigestError;

    fn try_from(text: String) -> Result<Self, ParseDigestError> {
        unhex(&text).map(Self).ok_or_else(|| ParseDigestError(text.chars().take(80).collect()))
    }
}

impl From<SecretHash> for String {
    fn from(hash: SecretHash) -> String {
        hex(&hash.0)
    }
}

/// An invitation. It has no Display, so that it is not printed by accident; [`JoinToken::reveal`] writes it.
#[derive(Clone, Debug)]
pub struct JoinToken {
    /// The root that the server's certificate must lead to.
    pub ca: PublicKey,
    /// Under which the cluster keeps the token's limits and [`SecretHash`].
    pub id: Uuid,
    pub secret: Secret,
}

/// Why a text is not a join token. The text itself is never repeated: it may hold most of a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseTokenError {
    #[error("this is no join token: a join token starts with {PREFIX}")]
    Start,
    #[error("the token is cut short: it has {given} of {LENGTH} characters; copy all of it")]
    CutShort { given: usize },
    #[error("the token is too long: it has {given} characters where {LENGTH} are right; copy nothing else with it")]
    TooLong { given: usize },
    #[error("the token is damaged at character {position}; copy it again")]
    Damaged { position: usize },
    #[error("the token is mistyped: its checksum does not fit; copy it again")]
    Checksum,
}

impl JoinToken {
    /// A new token with a fresh id and secret, for joiners who are to trust `ca`.
    pub fn generate(ca: PublicKey) -> Result<Self, Error> {
        Ok(Self { ca, id: Uuid::new_v4(), secret: Secret::generate()? })
    }

    /// The text to hand over, secret and all.
    pub fn reveal(&self) -> Zeroizing<String> {
        let secret = Zeroizing::new(hex(self.secret.reveal()));
        let mut text = Zeroizing::new(String::with_capacity(LENGTH));
        for part in [PREFIX, &self.ca.to_string(), "-", &self.id.as_simple().to_string(), "-", &secret] {
            text.push_str(part);
        }
        let sum = checksum(&text);
        text.push('-');
        text.push_str(&sum);
        text
    }
}

impl FromStr for JoinToken {
    type Err = ParseTokenError;

    /// Whitespace around the token is forgiven, nothing else is.
    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let text = text.trim();
        let given = text.chars().count();
        if !text.starts_with(PREFIX) && !PREFIX.starts_with(text) {
            return Err(ParseTokenError::Start);
        }
        if let Some(position) = first_damage(text) {
            return Err(ParseTokenError::Damaged { position });
        }
        if given < LENGTH {
            return Err(ParseTokenError::CutShort { given });
        }
        if given > LENGTH {
            return Err(ParseTokenError::TooLong { given });
        }
        read_fields(text)
    }
}

/// The first character, counted from one, that cannot stand where it stands; what is missing or too much is no damage.
fn first_damage(text: &str) -> Option<usize> {
    let dash = |at: usize| matches!(at, 75 | 108 | 173);
    let fits = |(at, c): (usize, char)| match at {
        _ if at < PREFIX.len() || at >= LENGTH => true,
        _ if dash(at) => c == '-',
        _ => matches!(c, '0'..='9' | 'a'..='f'),
    };
    text.chars().enumerate().position(|place| !fits(place)).map(|at| at.saturating_add(1))
}

fn read_fields(text: &str) -> Result<JoinToken, ParseTokenError> {
    let (body, sum) = text.rsplit_once('-').ok_or(ParseTokenError::Checksum)?;
    if *checksum(body) != *sum {
        return Err(ParseTokenError::Checksum);
    }
    let mut fields = body.strip_prefix(PREFIX).ok_or(ParseTokenError::Start)?.split('-');
    let mut field = || fields.next().ok_or(ParseTokenError::Checksum);
    let ca = unhex(field()?).map(PublicKey::from_bytes);
    let id = unhex(field()?).map(Uuid::from_bytes);
    let secret = unhex(field()?).map(|bytes| Secret(Zeroizing::new(bytes)));
    match (ca, id, secret) {
        (Some(ca), Some(id), Some(secret)) => Ok(JoinToken { ca, id, secret }),
        _ => Err(ParseTokenError::Checksum),
    }
}

/// Guards against typing errors only, so a few bytes do.
fn checksum(body: &str) -> Zeroizing<String> {
    let digest: [u8; 32] = Sha256::digest(body).into();
    let mut text = hex(&digest);
    text.truncate(CHECKSUM);
    Zeroizing::new(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(ca: [u8; 32], id: [u8; 16], secret: [u8; 32]) -> JoinToken {
        JoinToken { ca: PublicKey::from_bytes(ca), id: Uuid::from_bytes(id), secret: Secret(Zeroizing::new(secret)) }
    }

    fn parse(text: &str) -> Result<(PublicKey, Uuid, [u8; 32]), ParseTokenError> {
        text.parse().map(|token: JoinToken| (token.ca, token.id, *token.secret.reveal()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_token_survives_its_text_and_no_part_of_it_is_taken_for_the_whole(
            ca: [u8; 32], id: [u8; 16], secret: [u8; 32], wrong in 0..LENGTH, with in "[0-9a-fg-]",
        ) {
            let text = token(ca, id, secret).reveal();
            prop_assert_eq!(text.len(), LENGTH);
            let same = (PublicKey::from_bytes(ca), Uuid::from_bytes(id), secret);
            prop_assert_eq!(parse(&format!(" {}\n", *text)), Ok(same));
            for length in 0..LENGTH {
                prop_assert_eq!(parse(&text[..length]), Err(ParseTokenError::CutShort { given: length }));
            }
            let mut mistyped = text.to_string();
            mistyped.replace_range(wrong..=wrong, &with);
            prop_assert_eq!(parse(&mistyped).is_ok(), mistyped == *text);
        }

        #[test]
        fn any_text_is_a_token_or_a_sentence(text in "(SYMPHONY-1-)?.{0,200}") {
            if let Err(error) = parse(&text) {
                prop_assert!(error.to_string().contains("token"));
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_token_is_told_apart() {
        let text = token([1; 32], [2; 16], [3; 32]).reveal();
        assert_eq!(parse("SWMTKN-1-abc"), Err(ParseTokenError::Start));
        assert_eq!(parse(&text.to_lowercase()), Err(ParseTokenError::Start));
        assert_eq!(parse(&format!("{}0", *text)), Err(ParseTokenError::TooLong { given: LENGTH + 1 }));
        assert_eq!(parse(&text.replace("-0101", "-01x1")), Err(ParseTokenError::Damaged { position: 14 }));
        assert_eq!(parse(&text.replace("-0101", "-0111")), Err(ParseTokenError::Checksum));
        assert_eq!(parse("SYMPHONY-1-é"), Err(ParseTokenError::Damaged { position: 12 }));
    }

    #[test]
    fn a_secret_is_shown_by_reveal_only_and_kept_as_its_hash() {
        let token = JoinToken::generate(PublicKey::of_spki(b"root")).unwrap();
        let shown = hex(token.secret.reveal());
        assert!(token.reveal().contains(&shown));
        assert!(format!("{token:?}").contains("Secret(..)") && !format!("{token:?}").contains(&shown));
        let hash = SecretHash::of(&token.secret);
        assert!(hash.matches(&token.secret) && !hash.matches(&Secret::generate().unwrap()));
        let json = serde_json::to_string(&hash).unwrap();
        assert_eq!((json.len(), serde_json::from_str::<SecretHash>(&json).unwrap()), (66, hash));
        assert!(!json.contains(&shown));
    }

    #[test]
    fn a_secret_from_the_wire_has_its_full_length() {
        assert!(Secret::from_slice(&[7; 32]).is_some_and(|secret| secret.reveal() == &[7; 32]));
        assert!(Secret::from_slice(&[7; 31]).is_none() && Secret::from_slice(&[7; 33]).is_none());
    }
}
