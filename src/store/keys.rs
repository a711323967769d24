//! The keys, all of them. Nobody else spells one.

use crate::model::{Kind, Name, PoolId, ServiceId, VolumeId};
use std::fmt;

/// A key, or a prefix that ends in `/`, relative to the cluster's own prefix in the store.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<str>);

impl Key {
    /// Everything.
    pub fn root() -> Self {
        Self("/".into())
    }

    pub fn cluster() -> Self {
        Self("/cluster".into())
    }

    pub fn leader() -> Self {
        Self("/leader".into())
    }

    pub fn service(id: ServiceId) -> Self {
        Self(format!("/service/{id}").into())
    }

    pub fn session(id: ServiceId) -> Self {
        Self(format!("/session/{id}").into())
    }

    pub fn pool(id: PoolId) -> Self {
        Self(format!("/pool/{id}").into())
    }

    pub fn volume(id: VolumeId) -> Self {
        Self(format!("/volume/{id}").into())
    }

    /// Holds the id of the object of this kind and name; its absence is what makes a name free.
    pub fn name(kind: Kind, name: &Name) -> Self {
        Self(format!("/name/{kind}/{name}").into())
    }

    /// Any key, for tests and for what comes back from a store.
    pub fn raw(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
