//! Any object, for the places that treat all kinds alike: lists, lookups, watches, output.

use super::{Attachment, Client, Image, Phase, Pool, Service, ServiceState, Snapshot, Timestamp, Token, Volume};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Service,
    Pool,
    Volume,
    Snapshot,
    Image,
    Attachment,
    Client,
    Token,
}

/// The text names no kind of object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a kind of object: it is service, pool, volume, snapshot, image, attachment, client or token")]
pub struct UnknownKind(String);

impl Kind {
    pub const ALL: [Kind; 8] = [
        Kind::Service,
        Kind::Pool,
        Kind::Volume,
        Kind::Snapshot,
        Kind::Image,
        Kind::Attachment,
        Kind::Client,
        Kind::Token,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Service => "service",
            Kind::Pool => "pool",
            Kind::Volume => "volume",
            Kind::Snapshot => "snapshot",
            Kind::Image => "image",
            Kind::Attachment => "attachment",
            Kind::Client => "client",
            Kind::Token => "token",
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
    Snapshot(Snapshot),
    Image(Image),
    Attachment(Attachment),
    Client(Client),
    Token(Token),
}

/// The same field of every kind's meta.
macro_rules! meta {
    ($object:expr, $meta:ident => $value:expr) => {
        match $object {
            Object::Service(Service { meta: $meta, .. }) => $value,
            Object::Pool(Pool { meta: $meta, .. }) => $value,
            Object::Volume(Volume { meta: $meta, .. }) => $value,
            Object::Snapshot(Snapshot { meta: $meta, .. }) => $value,
            Object::Image(Image { meta: $meta, .. }) => $value,
            Object::Attachment(Attachment { meta: $meta, .. }) => $value,
            Object::Client(Client { meta: $meta, .. }) => $value,
            Object::Token(Token { meta: $meta, .. }) => $value,
        }
    };
}

impl Object {
    pub fn kind(&self) -> Kind {
        match self {
            Object::Service(_) => Kind::Service,
            Object::Pool(_) => Kind::Pool,
            Object::Volume(_) => Kind::Volume,
            Object::Snapshot(_) => Kind::Snapshot,
            Object::Image(_) => Kind::Image,
            Object::Attachment(_) => Kind::Attachment,
            Object::Client(_) => Kind::Client,
            Object::Token(_) => Kind::Token,
        }
    }

    pub fn id(&self) -> String {
        meta!(self, meta => meta.id.to_string())
    }

    pub fn name(&self) -> &str {
        meta!(self, meta => meta.name.as_str())
    }

    /// What users call it: its name, but for attachments, which go by volume and client.
    pub fn label(&self) -> String {
        match self {
            Object::Attachment(attachment) => attachment.label(),
            other => other.name().to_owned(),
        }
    }

    pub fn created_at(&self) -> Timestamp {
        meta!(self, meta => meta.created_at)
    }

    pub fn is_removed(&self) -> bool {
        meta!(self, meta => meta.is_removed())
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
            Object::Snapshot(snapshot) => (snapshot.status.phase, snapshot.status.message.as_deref()),
            Object::Image(image) => (image.status.phase, image.status.message.as_deref()),
            Object::Attachment(attachment) => (attachment.status.phase, attachment.status.message.as_deref()),
            Object::Client(_) | Object::Token(_) if self.is_removed() => (Phase::Removing, None),
            Object::Client(_) | Object::Token(_) => (Phase::Ready, None),
        }
    }

    /// Whether the status speaks of the present spec, and not of one before it.
    pub fn is_observed(&self) -> bool {
        match self {
            // An image's status is reset with its spec.
            Object::Service(_) | Object::Image(_) | Object::Client(_) | Object::Token(_) => true,
            Object::Attachment(held) => held.status.observed_generation == held.meta.generation,
            Object::Pool(pool) => pool.status.observed_generation == pool.meta.generation,
            Object::Volume(volume) => volume.status.observed_generation == volume.meta.generation,
            Object::Snapshot(snapshot) => snapshot.status.observed_generation == snapshot.meta.generation,
        }
    }
}
