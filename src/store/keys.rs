//! The keys, all of them. Nobody else spells one.

use super::StoreError;
use crate::model::{
    AttachmentId, ClientId, ClusterId, EventId, ImageId, Kind, Name, PoolId, ServiceId, SnapshotId, TokenId, VolumeId,
};
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

    pub fn snapshot(id: SnapshotId) -> Self {
        Self(format!("/snapshot/{id}").into())
    }

    pub fn image(id: ImageId) -> Self {
        Self(format!("/image/{id}").into())
    }

    pub fn attachment(id: AttachmentId) -> Self {
        Self(format!("/attachment/{id}").into())
    }

    pub fn client(id: ClientId) -> Self {
        Self(format!("/client/{id}").into())
    }

    pub fn token(id: TokenId) -> Self {
        Self(format!("/token/{id}").into())
    }

    pub fn event(id: EventId) -> Self {
        Self(format!("/event/{id}").into())
    }

    /// The certificate authority with its private keys: whoever reads this key is the cluster.
    pub fn authority(id: ClusterId) -> Self {
        Self(format!("/authority/{id}").into())
    }

    /// There while a store is being filled with another one's state: what else is in it is not to be used.
    pub fn filling() -> Self {
        Self("/filling".into())
    }

    /// In an embedded store that was moved to etcd: where to, and that it is not to be served any more.
    pub fn moved() -> Self {
        Self("/moved".into())
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

    /// Whether this stands for everything under it, rather than for one key.
    pub fn is_prefix(&self) -> bool {
        self.0.ends_with('/')
    }

    /// Says why this cannot be the key of an entry, if it cannot.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        if self.is_prefix() { Err(self.refusal()) } else { self.check_prefix() }
    }

    /// Says why this can be neither a key nor a prefix, if it cannot.
    pub(super) fn check_prefix(&self) -> Result<(), StoreError> {
        if self.0.starts_with('/') { Ok(()) } else { Err(self.refusal()) }
    }

    fn refusal(&self) -> StoreError {
        StoreError::Refused(format!("'{self}' is not a key: one starts with a slash and does not end with one"))
    }

    /// Whether a listing or a watch of `self` shows `key`: what is under a prefix, or the very same key.
    pub fn covers(&self, key: &Key) -> bool {
        if self.is_prefix() { key.0.starts_with(&*self.0) } else { self == key }
    }
}

/// What a key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Cluster,
    Leader,
    Service(ServiceId),
    Session(ServiceId),
    Pool(PoolId),
    Volume(VolumeId),
    Snapshot(SnapshotId),
    Image(ImageId),
    Attachment(AttachmentId),
    Client(ClientId),
    Token(TokenId),
    Event(EventId),
    Authority(ClusterId),
    Name(Kind, Name),
    Filling,
    Moved,
    /// Not ours, or from a newer version.
    Foreign,
}

impl Place {
    pub fn of(key: &Key) -> Self {
        Self::parse(key.as_str()).unwrap_or(Self::Foreign)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix('/')?.splitn(3, '/');
        let (area, id, rest) = (parts.next()?, parts.next(), parts.next());
        Some(match (area, id, rest) {
            ("cluster", None, None) => Self::Cluster,
            ("leader", None, None) => Self::Leader,
            ("filling", None, None) => Self::Filling,
            ("moved", None, None) => Self::Moved,
            ("service", Some(id), None) => Self::Service(id.parse().ok()?),
            ("session", Some(id), None) => Self::Session(id.parse().ok()?),
            ("pool", Some(id), None) => Self::Pool(id.parse().ok()?),
            ("volume", Some(id), None) => Self::Volume(id.parse().ok()?),
            ("snapshot", Some(id), None) => Self::Snapshot(id.parse().ok()?),
            ("image", Some(id), None) => Self::Image(id.parse().ok()?),
            ("attachment", Some(id), None) => Self::Attachment(id.parse().ok()?),
            ("client", Some(id), None) => Self::Client(id.parse().ok()?),
            ("token", Some(id), None) => Self::Token(id.parse().ok()?),
            ("event", Some(id), None) => Self::Event(id.parse().ok()?),
            ("authority", Some(id), None) => Self::Authority(id.parse().ok()?),
            ("name", Some(kind), Some(name)) => Self::Name(kind.parse().ok()?, name.parse().ok()?),
            _ => return None,
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_covers_what_is_under_it_and_a_key_only_itself() {
        let pools = Key::raw("/pool/");
        assert!(pools.covers(&Key::raw("/pool/1")) && pools.covers(&Key::raw("/pool/a/b")));
        assert!(!pools.covers(&Key::raw("/poolx")) && !pools.covers(&Key::raw("/pool")));
        assert!(Key::leader().covers(&Key::leader()) && !Key::leader().covers(&Key::raw("/leader/1")));
        assert!(Key::root().covers(&Key::cluster()));
    }

    #[test]
    fn every_key_is_read_back_as_what_it_stands_for() {
        let (service, pool, volume) = (ServiceId::generate(), PoolId::generate(), VolumeId::generate());
        let (snapshot, attachment) = (SnapshotId::generate(), AttachmentId::generate());
        let (image, client, token) = (ImageId::generate(), ClientId::generate(), TokenId::generate());
        let (event, cluster) = (EventId::generate(), ClusterId::generate());
        let name: Name = "db-01".parse().unwrap();
        for (key, place) in [
            (Key::cluster(), Place::Cluster),
            (Key::leader(), Place::Leader),
            (Key::service(service), Place::Service(service)),
            (Key::session(service), Place::Session(service)),
            (Key::pool(pool), Place::Pool(pool)),
            (Key::volume(volume), Place::Volume(volume)),
            (Key::snapshot(snapshot), Place::Snapshot(snapshot)),
            (Key::image(image), Place::Image(image)),
            (Key::attachment(attachment), Place::Attachment(attachment)),
            (Key::client(client), Place::Client(client)),
            (Key::token(token), Place::Token(token)),
            (Key::event(event), Place::Event(event)),
            (Key::authority(cluster), Place::Authority(cluster)),
            (Key::name(Kind::Volume, &name), Place::Name(Kind::Volume, name.clone())),
        ] {
            assert_eq!(Place::of(&key), place);
        }
        for text in ["", "/", "cluster", "/cluster/", "/pool/x", "/name/pool", "/name/what/ever", "/volume/../x"] {
            assert_eq!(Place::of(&Key::raw(text)), Place::Foreign, "{text}");
        }
    }
}
