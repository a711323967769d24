//! Why a manager does not do what it was asked: what was wrong, with which object, and what to do next.

use crate::model::{ByteSize, Kind, Name, ServiceId};
use crate::rpc::{Fault, FaultKind};
use crate::store::StoreError;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no {kind} '{reference}': see `symphony ctl {noun} list`", noun = noun(*.kind))]
    NoSuch { kind: Kind, reference: String },
    #[error("'{reference}' is the host name of several services: name one by its id")]
    Ambiguous { reference: String },
    #[error("a {kind} named '{name}' exists already: choose another name, or see `symphony ctl {noun} list`", noun = noun(*.kind))]
    NameTaken { kind: Kind, name: Name },
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Precondition(String),
    #[error("pool '{pool}' has {free} left to promise, not {wanted}: free some, choose another pool, or ask for less")]
    NoRoom { pool: Name, free: ByteSize, wanted: ByteSize },
    #[error(
        "pool '{pool}' is all but full and promises nothing new, as it is to from {percent}% on: free some, add to it, or choose another pool"
    )]
    PoolFull { pool: Name, percent: u32 },
    #[error(
        "the metadata of pool '{pool}' are all but full ({used} of {capacity} are used), and LVM makes nothing new in such a \
         pool: remove snapshots or copies, add a device with `symphony ctl pool extend`, or choose another pool"
    )]
    PoolMetadataFull { pool: Name, used: ByteSize, capacity: ByteSize },
    #[error("no pool has {wanted} left to promise{largest}: add one with `symphony ctl pool create`, or ask for less", largest = most(.largest))]
    NoRoomAnywhere { wanted: ByteSize, largest: Option<(Name, ByteSize)> },
    #[error("{kind} '{name}' is being removed")]
    Removing { kind: Kind, name: Name },
    #[error(
        "service {0} is not a member of this cluster; it was removed or never joined: run `symphony ctl … block init`"
    )]
    NotMember(ServiceId),
    #[error("{0}")]
    Denied(String),
    #[error("service {service} may not speak of {kind} {id}")]
    NotYours { service: ServiceId, kind: Kind, id: String },
    #[error("the session of service {0} is over: a newer one took over, or its lease ran out")]
    Superseded(ServiceId),
    #[error("too many others changed the same objects at the same time: try again")]
    Busy,
    #[error("{0}")]
    Store(String),
    #[error("{0}; whether the change happened is not known: look before you try again")]
    InDoubt(String),
    #[error("this manager is stopping")]
    Stopping,
}

/// What `ctl` calls objects of this kind.
fn noun(kind: Kind) -> String {
    match kind {
        Kind::Client | Kind::Token => format!("manager {kind}"),
        Kind::Service | Kind::Pool | Kind::Volume | Kind::Snapshot | Kind::Image | Kind::Attachment => kind.to_string(),
    }
}

fn most(largest: &Option<(Name, ByteSize)>) -> String {
    match largest {
        Some((pool, free)) => format!(" (the most is {free} in '{pool}')"),
        None => " (no pool is ready)".into(),
    }
}

impl Refusal {
    fn kind(&self) -> FaultKind {
        match self {
            Self::NoSuch { .. } => FaultKind::NotFound,
            Self::NameTaken { .. } => FaultKind::AlreadyExists,
            Self::Ambiguous { .. } | Self::Invalid(_) => FaultKind::Invalid,
            Self::Precondition(_) | Self::Superseded(_) | Self::Removing { .. } => FaultKind::Precondition,
            Self::NoRoom { .. }
            | Self::PoolFull { .. }
            | Self::PoolMetadataFull { .. }
            | Self::NoRoomAnywhere { .. } => FaultKind::Exhausted,
            Self::NotMember(_) | Self::NotYours { .. } | Self::Denied(_) => FaultKind::Denied,
            Self::Busy => FaultKind::Busy,
            Self::Store(_) | Self::InDoubt(_) | Self::Stopping => FaultKind::Unavailable,
        }
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Fault {
        Fault::new(refusal.kind(), refusal.to_string())
    }
}

impl From<Refusal> for tonic::Status {
    fn from(refusal: Refusal) -> tonic::Status {
        Fault::from(refusal).into()
    }
}

/// What a certificate request or an authority is refused for.
impl From<crate::pki::Error> for Refusal {
    fn from(error: crate::pki::Error) -> Refusal {
        use crate::pki::Error;
        match error {
            Error::RequestForm | Error::RequestKey | Error::RequestSignature => Refusal::Invalid(error.to_string()),
            Error::HostName { .. } | Error::TooManyNames { .. } | Error::Lifetime => {
                Refusal::Invalid(error.to_string())
            }
            error => Refusal::Precondition(error.to_string()),
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Refusal {
        Refusal::Store(error.to_string())
    }
}
