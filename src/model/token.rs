//! Join tokens: invitations that end by themselves.

use super::{Meta, ServiceType, Timestamp, TokenId};
use serde::{Deserialize, Serialize};

/// A token's record under `/token/<id>`. Only a hash of its secret is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub meta: Meta<TokenId>,
    pub spec: TokenSpec,
    pub status: TokenStatus,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSpec {
    /// What may join with it.
    #[serde(rename = "type")]
    pub service_type: ServiceType,
    pub expires_at: Timestamp,
    /// How many services may join with it.
    pub uses: u32,
}

/// The manager's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    /// How many have joined with it.
    pub used: u32,
    /// SHA-256 of the secret, in hexadecimal; absent outside the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_hash: Option<String>,
}

impl Token {
    /// Says why nobody can join with it any more, if that is so.
    pub fn fault(&self, now: Timestamp) -> Option<&'static str> {
        if self.meta.is_removed() {
            Some("was revoked")
        } else if now >= self.spec.expires_at {
            Some("has expired")
        } else if self.status.used >= self.spec.uses {
            Some("is used up")
        } else {
            None
        }
    }
}
