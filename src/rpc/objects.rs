//! Objects between their model and their protobuf form. Into protobuf always works; out of it is where input is judged.

use super::{figures, proto};
use crate::model::*;

/// A message that cannot be what it claims to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct Malformed(pub String);

impl Malformed {
    pub(super) fn missing(what: &str) -> Self {
        Self(format!("{what} is missing"))
    }
}

macro_rules! malformed_from {
    ($($error:ty),*) => {$(
        impl From<$error> for Malformed {
            fn from(error: $error) -> Self {
                Self(error.to_string())
            }
        }
    )*};
}
malformed_from!(ParseIdError, NameError, UnknownKind, prost::UnknownEnumValue);

/// Enumerations whose names agree on both sides, except for protobuf's UNSPECIFIED.
macro_rules! enumeration {
    ($type:ident { $($variant:ident),* }) => {
        impl From<$type> for proto::$type {
            fn from(value: $type) -> Self {
                match value { $($type::$variant => proto::$type::$variant),* }
            }
        }

        impl TryFrom<proto::$type> for $type {
            type Error = Malformed;

            fn try_from(value: proto::$type) -> Result<Self, Malformed> {
                match value {
                    proto::$type::Unspecified => Err(Malformed::missing(stringify!($type))),
                    $(proto::$type::$variant => Ok($type::$variant)),*
                }
            }
        }
    };
}
enumeration!(ServiceType { Manager, Block });
enumeration!(ServiceState { Joined, Ready, Down, Removed });
enumeration!(Level { Ok, High, Full });
enumeration!(Phase { Pending, Ready, Failed, Removing });
enumeration!(Kind { Service, Pool, Volume, Snapshot, Image, Attachment, Client, Token });
enumeration!(ImageFormat { Raw, Qcow2 });
enumeration!(ClientRole { Admin, Viewer, Data });
enumeration!(Protocol { Nbd, NbdTls, NbdUnix });
enumeration!(Operation { Read, Write, Flush, Trim, Zero, Other });

pub(super) fn enumerated<P, M>(number: i32) -> Result<M, Malformed>
where
    P: TryFrom<i32>,
    Malformed: From<P::Error>,
    M: TryFrom<P, Error = Malformed>,
{
    M::try_from(P::try_from(number)?)
}

pub(super) fn number<P: Into<i32>>(value: impl Into<P>) -> i32 {
    value.into().into()
}

/// Texts from peers end up in the store: each has a limit, in bytes.
pub(super) fn bounded(text: String, limit: usize, what: &str) -> Result<String, Malformed> {
    if text.len() > limit {
        return Err(Malformed(format!("{what} of {} bytes, {limit} are the most", text.len())));
    }
    Ok(text)
}

pub(super) fn required<T>(value: Option<T>, what: &str) -> Result<T, Malformed> {
    value.ok_or_else(|| Malformed::missing(what))
}

impl<I: ToString> From<&Meta<I>> for proto::Meta {
    fn from(meta: &Meta<I>) -> Self {
        Self {
            id: meta.id.to_string(),
            name: meta.name.to_string(),
            generation: meta.generation.as_u64(),
            created_at: meta.created_at.as_millis(),
            updated_at: meta.updated_at.as_millis(),
            removed_at: meta.removed_at.map(Timestamp::as_millis),
        }
    }
}

impl<I> TryFrom<proto::Meta> for Meta<I>
where
    I: std::str::FromStr<Err = ParseIdError>,
{
    type Error = Malformed;

    fn try_from(meta: proto::Meta) -> Result<Self, Malformed> {
        Ok(Self {
            id: meta.id.parse()?,
            name: meta.name.parse()?,
            generation: Generation::new(meta.generation),
            created_at: Timestamp::from_millis(meta.created_at),
            updated_at: Timestamp::from_millis(meta.updated_at),
            removed_at: meta.removed_at.map(Timestamp::from_millis),
        })
    }
}

impl From<&Addresses> for proto::Addresses {
    fn from(addresses: &Addresses) -> Self {
        Self { rpc: addresses.rpc.clone(), nbd: addresses.nbd.clone() }
    }
}

impl TryFrom<proto::Addresses> for Addresses {
    type Error = Malformed;

    fn try_from(addresses: proto::Addresses) -> Result<Self, Malformed> {
        let address = |text: Option<String>| text.map(|text| bounded(text, 300, "an address")).transpose();
        Ok(Self { rpc: address(addresses.rpc)?, nbd: address(addresses.nbd)? })
    }
}

impl From<&Service> for proto::Service {
    fn from(service: &Service) -> Self {
        let status = &service.status;
        Self {
            meta: Some((&service.meta).into()),
            spec: Some(proto::ServiceSpec {
                r#type: number::<proto::ServiceType>(service.spec.service_type),
                labels: service.spec.labels.clone().into_iter().collect(),
                draining: service.spec.draining.map(Timestamp::as_millis),
            }),
            status: Some(proto::ServiceStatus {
                state: number::<proto::ServiceState>(status.state),
                since: status.since.as_millis(),
                host_name: status.host_name.clone(),
                addresses: Some((&status.addresses).into()),
                version: status.version.clone(),
                manager: status.manager.map(|id| id.to_string()),
                certificate: status.certificate.as_ref().map(Into::into),
            }),
        }
    }
}

impl TryFrom<proto::Service> for Service {
    type Error = Malformed;

    fn try_from(service: proto::Service) -> Result<Self, Malformed> {
        let spec = required(service.spec, "a service's spec")?;
        let status = required(service.status, "a service's status")?;
        Ok(Self {
            meta: required(service.meta, "a service's meta")?.try_into()?,
            spec: ServiceSpec {
                service_type: enumerated::<proto::ServiceType, _>(spec.r#type)?,
                labels: spec.labels.into_iter().collect(),
                draining: spec.draining.map(Timestamp::from_millis),
            },
            status: ServiceStatus {
                state: enumerated::<proto::ServiceState, _>(status.state)?,
                since: Timestamp::from_millis(status.since),
                host_name: status.host_name,
                addresses: status.addresses.map(TryInto::try_into).transpose()?.unwrap_or_default(),
                version: status.version,
                manager: status.manager.map(|id| id.parse()).transpose()?,
                certificate: status.certificate.map(Into::into),
            },
        })
    }
}

impl From<&Pool> for proto::Pool {
    fn from(pool: &Pool) -> Self {
        let status = &pool.status;
        Self {
            meta: Some((&pool.meta).into()),
            spec: Some(proto::PoolSpec {
                service: pool.spec.service.to_string(),
                driver: Some((&pool.spec.driver).into()),
                rules: Some(pool.spec.rules.into()),
                formerly: pool.spec.formerly.map(|id| id.to_string()),
            }),
            status: Some(proto::PoolStatus {
                phase: number::<proto::Phase>(status.phase),
                observed_generation: status.observed_generation.as_u64(),
                capacity: status.capacity.map(ByteSize::as_u64),
                used: status.used.map(ByteSize::as_u64),
                reserved: status.reserved.as_u64(),
                copies: status.copies,
                metadata: status.metadata.map(Into::into),
                level: number::<proto::Level>(status.level),
                extent: status.extent.map(ByteSize::as_u64),
                size: status.size.map(ByteSize::as_u64),
                message: status.message.clone(),
            }),
        }
    }
}

impl TryFrom<proto::Pool> for Pool {
    type Error = Malformed;

    fn try_from(pool: proto::Pool) -> Result<Self, Malformed> {
        let spec = required(pool.spec, "a pool's spec")?;
        let status = required(pool.status, "a pool's status")?;
        Ok(Self {
            meta: required(pool.meta, "a pool's meta")?.try_into()?,
            spec: PoolSpec {
                service: spec.service.parse()?,
                driver: required(spec.driver, "a pool's driver")?.try_into()?,
                rules: spec.rules.map(Into::into).unwrap_or_default(),
                formerly: spec.formerly.map(|id| id.parse()).transpose()?,
            },
            status: PoolStatus {
                phase: enumerated::<proto::Phase, _>(status.phase)?,
                observed_generation: Generation::new(status.observed_generation),
                capacity: status.capacity.map(ByteSize::bytes),
                used: status.used.map(ByteSize::bytes),
                reserved: ByteSize::bytes(status.reserved),
                copies: status.copies,
                metadata: status.metadata.map(Into::into),
                level: enumerated::<proto::Level, _>(status.level)?,
                extent: status.extent.map(ByteSize::bytes),
                size: status.size.map(ByteSize::bytes),
                message: status.message,
            },
        })
    }
}

impl From<&Export> for proto::Export {
    fn from(export: &Export) -> Self {
        Self { protocol: number::<proto::Protocol>(export.protocol), uri: export.uri.clone() }
    }
}

impl TryFrom<proto::Export> for Export {
    type Error = Malformed;

    fn try_from(export: proto::Export) -> Result<Self, Malformed> {
        Ok(Self {
            protocol: enumerated::<proto::Protocol, _>(export.protocol)?,
            uri: bounded(export.uri, 1024, "a URI")?,
        })
    }
}

impl From<&Replica> for proto::Replica {
    fn from(replica: &Replica) -> Self {
        Self { pool: replica.pool.to_string(), service: replica.service.to_string() }
    }
}

impl TryFrom<proto::Replica> for Replica {
    type Error = Malformed;

    fn try_from(replica: proto::Replica) -> Result<Self, Malformed> {
        Ok(Self { pool: replica.pool.parse()?, service: replica.service.parse()? })
    }
}

impl From<&Volume> for proto::Volume {
    fn from(volume: &Volume) -> Self {
        let status = &volume.status;
        Self {
            meta: Some((&volume.meta).into()),
            spec: Some(proto::VolumeSpec {
                size: volume.spec.size.as_u64(),
                pool: volume.spec.pool.map(|id| id.to_string()),
                limits: figures::limits_into(&volume.spec.limits),
                source: volume.spec.source.map(Into::into),
                revert: volume.spec.revert.map(Into::into),
                shrunk: volume.spec.shrunk.map(Generation::as_u64),
                image: volume.spec.image.as_deref().map(|tie| Box::new(tie.into())),
                wipe: volume.spec.wipe,
                moving: volume.spec.moving.as_deref().map(|moving| Box::new(moving.into())),
            }),
            status: Some(proto::VolumeStatus {
                phase: number::<proto::Phase>(status.phase),
                observed_generation: status.observed_generation.as_u64(),
                placement: status.placement.iter().map(Into::into).collect(),
                size: status.size.map(ByteSize::as_u64),
                exports: status.exports.iter().map(Into::into).collect(),
                progress: status.progress.map(Into::into),
                promised: status.promised.map(ByteSize::as_u64),
                left: status.left.map(|id| id.to_string()),
                message: status.message.clone(),
            }),
        }
    }
}

impl TryFrom<proto::Volume> for Volume {
    type Error = Malformed;

    fn try_from(volume: proto::Volume) -> Result<Self, Malformed> {
        let spec = required(volume.spec, "a volume's spec")?;
        let status = required(volume.status, "a volume's status")?;
        Ok(Self {
            meta: required(volume.meta, "a volume's meta")?.try_into()?,
            spec: VolumeSpec {
                size: ByteSize::bytes(spec.size),
                pool: spec.pool.map(|id| id.parse()).transpose()?,
                limits: figures::limits_from(spec.limits)?,
                source: spec.source.map(TryInto::try_into).transpose()?,
                revert: spec.revert.map(TryInto::try_into).transpose()?,
                shrunk: spec.shrunk.map(Generation::new),
                image: spec.image.map(|tie| (*tie).try_into().map(Box::new)).transpose()?,
                moving: spec.moving.map(|moving| (*moving).try_into().map(Box::new)).transpose()?,
                wipe: spec.wipe,
            },
            status: VolumeStatus {
                phase: enumerated::<proto::Phase, _>(status.phase)?,
                observed_generation: Generation::new(status.observed_generation),
                placement: status.placement.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
                size: status.size.map(ByteSize::bytes),
                exports: status.exports.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
                progress: status.progress.map(Into::into),
                promised: status.promised.map(ByteSize::bytes),
                left: status.left.map(|id| id.parse()).transpose()?,
                message: status.message,
            },
        })
    }
}

impl From<&Object> for proto::Object {
    fn from(object: &Object) -> Self {
        let object = match object {
            Object::Service(service) => proto::object::Object::Service(service.into()),
            Object::Pool(pool) => proto::object::Object::Pool(pool.into()),
            Object::Volume(volume) => proto::object::Object::Volume(volume.into()),
            Object::Snapshot(snapshot) => proto::object::Object::Snapshot(snapshot.into()),
            Object::Image(image) => proto::object::Object::Image(image.into()),
            Object::Attachment(attachment) => proto::object::Object::Attachment(attachment.into()),
            Object::Client(client) => proto::object::Object::Client(client.into()),
            Object::Token(token) => proto::object::Object::Token(token.into()),
        };
        Self { object: Some(object) }
    }
}

impl TryFrom<proto::Object> for Object {
    type Error = Malformed;

    fn try_from(object: proto::Object) -> Result<Self, Malformed> {
        Ok(match required(object.object, "an object's body")? {
            proto::object::Object::Service(service) => Object::Service(service.try_into()?),
            proto::object::Object::Pool(pool) => Object::Pool(pool.try_into()?),
            proto::object::Object::Volume(volume) => Object::Volume(volume.try_into()?),
            proto::object::Object::Snapshot(snapshot) => Object::Snapshot(snapshot.try_into()?),
            proto::object::Object::Image(image) => Object::Image(image.try_into()?),
            proto::object::Object::Attachment(attachment) => Object::Attachment(attachment.try_into()?),
            proto::object::Object::Client(client) => Object::Client(client.try_into()?),
            proto::object::Object::Token(token) => Object::Token(token.try_into()?),
        })
    }
}

impl From<ClusterSpec> for proto::ClusterSpec {
    fn from(spec: ClusterSpec) -> Self {
        let certificate_lifetime_ms = spec.certificate_lifetime_ms;
        Self { heartbeat_ms: spec.heartbeat_ms, lease_ms: spec.lease_ms, certificate_lifetime_ms }
    }
}

impl From<proto::ClusterSpec> for ClusterSpec {
    fn from(spec: proto::ClusterSpec) -> Self {
        let certificate_lifetime_ms = match spec.certificate_lifetime_ms {
            0 => Self::default().certificate_lifetime_ms,
            given => given,
        };
        Self { heartbeat_ms: spec.heartbeat_ms, lease_ms: spec.lease_ms, certificate_lifetime_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_survive_the_wire() {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let (pool, service) = (PoolId::from_bytes([1; 16]), ServiceId::from_bytes([2; 16]));
        let meta = Meta::new(VolumeId::from_bytes([3; 16]), "v".parse().unwrap(), now);
        let limits = Limits { iops: Some(7), bandwidth: Some(ByteSize::mib(1)), burst_ms: Some(500) };
        let spec = VolumeSpec {
            size: ByteSize::mib(8),
            pool: Some(pool),
            limits,
            source: None,
            revert: None,
            shrunk: None,
            image: None,
            moving: None,
            wipe: false,
        };
        let mut volume = Volume::new(meta, spec, vec![Replica { pool, service }]);
        volume.status.exports.push(Export { protocol: Protocol::Nbd, uri: "nbd://127.0.0.1/v".into() });
        volume.bury(now);
        let object = Object::Volume(volume);
        assert_eq!(Object::try_from(proto::Object::from(&object)), Ok(object));

        let driver = Driver::File { path: "/srv/pool".into(), limit: Some(ByteSize::mib(5)) };
        let rules = PoolRules { overcommit_percent: 150, warn_percent: 70, refuse_percent: 90 };
        let spec = PoolSpec { service, driver, rules, formerly: Some(ClusterId::from_bytes([6; 16])) };
        let mut pool = Pool::new(Meta::new(pool, "p".parse().unwrap(), now), spec);
        pool.status.level = Level::High;
        let metadata = [5, 3, 1].map(ByteSize::mib);
        pool.status.metadata = Some(PoolMetadata { capacity: metadata[0], used: metadata[1], chunk: metadata[2] });
        let object = Object::Pool(pool);
        assert_eq!(Object::try_from(proto::Object::from(&object)), Ok(object));
    }

    #[test]
    fn empty_messages_name_what_is_missing() {
        let error = Object::try_from(proto::Object::default()).unwrap_err();
        assert_eq!(error.to_string(), "malformed message: an object's body is missing");
        assert!(Volume::try_from(proto::Volume::default()).is_err());
        assert!(enumerated::<proto::Phase, Phase>(77).is_err());
    }
}
