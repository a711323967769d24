//! Members of the cluster: managers and block services.

use super::{CertificateRecord, Meta, ServiceId, SessionId, Timestamp};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceType {
    Manager,
    Block,
}

impl ServiceType {
    pub fn as_str(self) -> &'static str {
        match self {
            ServiceType::Manager => "manager",
            ServiceType::Block => "block",
        }
    }
}

impl fmt::Display for ServiceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for ServiceType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "manager" => Ok(Self::Manager),
            "block" => Ok(Self::Block),
            other => Err(format!("'{other}' is not a service type: it is manager or block")),
        }
    }
}

/// A member's record under `/service/<id>`. Its name is its host's at the time it joined; services are told apart by id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub meta: Meta<ServiceId>,
    pub spec: ServiceSpec,
    pub status: ServiceStatus,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub service_type: ServiceType,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Since when it is to be emptied: nothing new is placed on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<Timestamp>,
}

/// What the service said of itself when it last opened a session, and what its lease says since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub state: ServiceState,
    /// Since when it is in this state.
    pub since: Timestamp,
    pub host_name: String,
    pub addresses: Addresses,
    pub version: String,
    /// The manager that holds, or last held, its session; a manager's own id for managers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manager: Option<ServiceId>,
    /// The certificate that was issued to it last; a manager's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateRecord>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceState {
    /// Joined, and never seen since.
    Joined,
    /// Holds a lease.
    Ready,
    /// Its lease ran out.
    Down,
    /// Taken out by an operator; the record stays for a while so that the service can be told.
    Removed,
}

impl ServiceState {
    pub fn as_str(self) -> &'static str {
        match self {
            ServiceState::Joined => "joined",
            ServiceState::Ready => "ready",
            ServiceState::Down => "down",
            ServiceState::Removed => "removed",
        }
    }
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where a service can be reached, as `host:port`; absent where it does not listen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpc: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd: Option<String>,
}

/// `/session/<service id>`, held by a lease: this service is alive, through that manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub id: SessionId,
    pub service: ServiceId,
    pub manager: ServiceId,
    pub since: Timestamp,
}
