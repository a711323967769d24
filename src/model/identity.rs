//! Who a service is, as it remembers itself.

use super::{ClusterId, Name, ServiceId, ServiceType};
use serde::{Deserialize, Serialize};

/// `identity.json` of a config directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub service: ServiceId,
    #[serde(rename = "type")]
    pub service_type: ServiceType,
    /// Absent while an init is under way: the id was chosen, and whether the cluster took it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub membership: Option<Membership>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    pub cluster: ClusterId,
    pub cluster_name: Name,
    /// `host:port` of the managers last heard of; empty for managers.
    #[serde(default)]
    pub managers: Vec<String>,
}

impl Identity {
    /// The identity of an init under way.
    pub fn candidate(service_type: ServiceType) -> Self {
        Self { service: ServiceId::generate(), service_type, membership: None }
    }
}
