//! Who a certificate speaks for, and how that is written into it.

use super::{ParseBearerError, PeerError};
use crate::model::{ClusterId, ServiceId};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

const SCHEME: &str = "symphony://";

/// What the bearer of a certificate is to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A service that owns state.
    Manager,
    /// A service that owns devices.
    Block,
    /// An operator who may change everything.
    Admin,
    /// An operator who may look.
    Viewer,
    /// A client of exports (NBD), and of nothing else.
    Data,
}

impl Role {
    pub const ALL: [Role; 5] = [Role::Manager, Role::Block, Role::Admin, Role::Viewer, Role::Data];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Manager => "manager",
            Role::Block => "block",
            Role::Admin => "admin",
            Role::Viewer => "viewer",
            Role::Data => "data",
        }
    }

    /// Services answer calls as well as making them; the others only call.
    pub fn is_service(self) -> bool {
        match self {
            Role::Manager | Role::Block => true,
            Role::Admin | Role::Viewer | Role::Data => false,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whom a certificate names: `symphony://<cluster id>/<role>/<id>`, its one URI (RFC 5280 section 4.2.1.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bearer {
    pub cluster: ClusterId,
    pub role: Role,
    /// The service's id, or the id under which a client's certificate was issued.
    pub id: Uuid,
}

impl Bearer {
    pub fn service(cluster: ClusterId, role: Role, service: ServiceId) -> Self {
        Self { cluster, role, id: Uuid::from_bytes(service.to_bytes()) }
    }

    /// The service that this is; none for clients.
    pub fn service_id(&self) -> Option<ServiceId> {
        self.role.is_service().then(|| ServiceId::from_bytes(self.id.into_bytes()))
    }
}

impl fmt::Display for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.cluster, self.role.as_str(), self.id.as_hyphenated())
    }
}

impl FromStr for Bearer {
    type Err = ParseBearerError;

    fn from_str(text: &str) -> Result<Self, ParseBearerError> {
        let read = || {
            let mut parts = text.strip_prefix(SCHEME)?.split('/');
            let cluster = parts.next()?.parse().ok()?;
            let name = parts.next()?;
            let role = Role::ALL.into_iter().find(|role| role.as_str() == name)?;
            let id = Uuid::try_parse(parts.next()?).ok()?;
            Some(Self { cluster, role, id })
        };
        // A bearer has one spelling: what does not come out as it went in, is none. This covers a fourth part, too.
        let error = || ParseBearerError(text.chars().take(160).collect());
        read().filter(|bearer| bearer.to_string() == text).ok_or_else(error)
    }
}

impl TryFrom<String> for Bearer {
    type Error = ParseBearerError;

    fn try_from(text: String) -> Result<Self, ParseBearerError> {
        text.parse()
    }
}

impl From<Bearer> for String {
    fn from(bearer: Bearer) -> String {
        bearer.to_string()
    }
}

/// Whom the peer of a finished handshake is, by the certificates that it presented (its own first). It reads only;
/// that they are to be believed was settled in the handshake.
pub fn peer_bearer(certificates: &[CertificateDer<'_>]) -> Result<Bearer, PeerError> {
    let own = certificates.first().ok_or(PeerError::Absent)?;
    let unreadable = |reason: &dyn fmt::Display| PeerError::Unreadable(reason.to_string());
    let (rest, parsed) = X509Certificate::from_der(own).map_err(|error| unreadable(&error))?;
    if !rest.is_empty() {
        return Err(unreadable(&"bytes follow its end"));
    }
    bearer_of(&parsed)
}

pub(super) fn bearer_of(certificate: &X509Certificate<'_>) -> Result<Bearer, PeerError> {
    let names = certificate.subject_alternative_name().map_err(|error| PeerError::Unreadable(error.to_string()))?;
    let names = names.map_or(&[][..], |extension| &extension.value.general_names);
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(PeerError::Unreadable("one of its names is malformed".into()));
    }
    let uris: Vec<&str> =
        names.iter().filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None }).collect();
    match uris[..] {
        [] => Err(PeerError::NoBearer),
        [uri] => Ok(uri.parse()?),
        _ => Err(PeerError::SeveralUris(uris.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "symphony://0198c1f2-6c3e-7d1a-9b1f-3f0f5d0a7c11/block/0198c1f2-6c3e-7d1a-9b1f-3f0f5d0a7c12";

    #[test]
    fn a_bearer_survives_its_text() {
        for role in Role::ALL {
            let bearer = Bearer { role, ..GOOD.parse().unwrap() };
            assert_eq!(bearer.to_string().parse(), Ok(bearer));
            assert_eq!(bearer.service_id().is_some(), matches!(role, Role::Manager | Role::Block));
        }
        let bearer: Bearer = GOOD.parse().unwrap();
        assert_eq!(bearer.to_string(), GOOD);
        assert_eq!(Bearer::service(bearer.cluster, Role::Block, bearer.service_id().unwrap()), bearer);
    }

    #[test]
    fn a_bearer_has_one_spelling() {
        let others = [
            GOOD.to_uppercase(),
            GOOD.replace("0198c1f2-", "0198C1F2-"),
            GOOD.replace("symphony:", "Symphony:"),
            GOOD.replace("/block/", "/Block/"),
            GOOD.replace("/block/", "/root/"),
            GOOD.replace("/block/", "//block/"),
            GOOD.replace("7c12", "7c1"),
            GOOD.replace("0198c1f2-6c3e-7d1a-9b1f-3f0f5d0a7c12", "0198c1f26c3e7d1a9b1f3f0f5d0a7c12"),
            format!("{GOOD}/"),
            format!("{GOOD}?x=1"),
            format!("{GOOD}#x"),
            format!(" {GOOD}"),
            format!("{GOOD}\0"),
            "symphony://".into(),
            "".into(),
        ];
        for text in others {
            assert_eq!(text.parse::<Bearer>(), Err(ParseBearerError(text.clone())), "{text}");
        }
    }
}
