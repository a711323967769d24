//! Clients: operators at a distance and users of volumes, each with a certificate of its own.

use super::{CertificateRecord, ClientId, Meta};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A client's record under `/client/<id>`. Its key never leaves the machine that made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    pub meta: Meta<ClientId>,
    pub spec: ClientSpec,
    pub status: ClientStatus,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientSpec {
    pub role: ClientRole,
}

/// The manager's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientStatus {
    /// The certificate that was issued last.
    pub certificate: CertificateRecord,
}

/// What a client may do. Every one of them may also use the volumes that are attached to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientRole {
    /// Everything that an operator on a manager's own host may do.
    Admin,
    /// Looks, and changes nothing.
    Viewer,
    /// Asks managers nothing: for machines that only use volumes.
    Data,
}

impl ClientRole {
    pub fn as_str(self) -> &'static str {
        match self {
            ClientRole::Admin => "admin",
            ClientRole::Viewer => "viewer",
            ClientRole::Data => "data",
        }
    }
}

impl fmt::Display for ClientRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for ClientRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "admin" => Ok(Self::Admin),
            "viewer" => Ok(Self::Viewer),
            "data" => Ok(Self::Data),
            other => Err(format!("'{other}' is not a client's role: it is admin, viewer or data")),
        }
    }
}

impl Client {
    pub fn new(meta: Meta<ClientId>, role: ClientRole, certificate: CertificateRecord) -> Self {
        Self { meta, spec: ClientSpec { role }, status: ClientStatus { certificate } }
    }
}
