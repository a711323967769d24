//! Any object, for the places that treat all kinds alike: lists, lookups, watches, output.

use super::{Phase, Pool, Service, ServiceState, Timestamp, Volume};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Service,
    Pool,
    Volume,
}

/// The text names no kind of object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a kind of object: it is service, pool or volume")]
pub struct UnknownKind(String);

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Service, Kind::Pool, Kind::Volume];

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Service => "service",
            Kind::Pool => "pool",
            Kind::Volume => "volume",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| UnknownKind(text.chars().take(40).collect()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Object {
    Service(Service),
    Pool(Pool),
    Volume(Volume),
}

impl Object {
    pub fn kind(&self) -> Kind {
        match self {
            Object::Service(_) => Kind::Service,
            Object::Pool(_) => Kind::Pool,
            Object::Volume(_) => Kind::Volume,
        }
    }

    pub fn id(&self) -> String {
        match self {
            Object::Service(service) => service.meta.id.to_string(),
            Object::Pool(pool) => pool.meta.id.to_string(),
            Object::Volume(volume) => volume.meta.id.to_string(),
        }
    }

    pub fn name(&self) -> &str {
        match self {
            Object::Service(service) => service.meta.name.as_str(),
            Object::Pool(pool) => pool.meta.name.as_str(),
            Object::Volume(volume) => volume.meta.name.as_str(),
        }
    }

    pub fn created_at(&self) -> Timestamp {
        match self {
            Object::Service(service) => service.meta.created_at,
            Object::Pool(pool) => pool.meta.created_at,
            Object::Volume(volume) => volume.meta.created_at,
        }
    }

    /// Where the object stands, and why if it is in trouble. Services map their state onto the same words.
    pub fn phase(&self) -> (Phase, Option<&str>) {
        match self {
            Object::Service(service) => match service.status.state {
                ServiceState::Ready => (Phase::Ready, None),
                ServiceState::Joined => (Phase::Pending, None),
                ServiceState::Down => (Phase::Failed, Some("the service is down")),
                ServiceState::Removed => (Phase::Removing, None),
            },
            Object::Pool(pool) => (pool.status.phase, pool.status.message.as_deref()),
            Object::Volume(volume) => (volume.status.phase, volume.status.message.as_deref()),
        }
    }

    /// Whether the status speaks of the present spec, and not of one before it.
    pub fn is_observed(&self) -> bool {
        match self {
            Object::Service(_) => true,
            Object::Pool(pool) => pool.status.observed_generation == pool.meta.generation,
            Object::Volume(volume) => volume.status.observed_generation == volume.meta.generation,
        }
    }
}
