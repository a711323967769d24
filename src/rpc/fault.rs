//! What went wrong, in the few kinds that a caller can act upon, and the one table that maps them to gRPC codes.

use super::Malformed;
use tonic::{Code, Status};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The request makes no sense, whatever the state.
    Invalid,
    NotFound,
    AlreadyExists,
    /// The state does not allow it; the message says what to do first.
    Precondition,
    /// Not enough space.
    Exhausted,
    /// This peer may not ask this.
    Denied,
    /// Cannot be had now; trying again later makes sense.
    Unavailable,
    /// Others were faster too often; trying again makes sense.
    Busy,
    /// This server does not serve this call.
    Unsupported,
    Internal,
}

impl FaultKind {
    pub const ALL: [Self; 10] = [
        Self::Invalid,
        Self::NotFound,
        Self::AlreadyExists,
        Self::Precondition,
        Self::Exhausted,
        Self::Denied,
        Self::Unavailable,
        Self::Busy,
        Self::Unsupported,
        Self::Internal,
    ];

    pub fn code(self) -> Code {
        match self {
            Self::Invalid => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::AlreadyExists => Code::AlreadyExists,
            Self::Precondition => Code::FailedPrecondition,
            Self::Exhausted => Code::ResourceExhausted,
            Self::Denied => Code::PermissionDenied,
            Self::Unavailable => Code::Unavailable,
            Self::Busy => Code::Aborted,
            Self::Unsupported => Code::Unimplemented,
            Self::Internal => Code::Internal,
        }
    }

    /// Whether the same request may succeed later without anybody changing anything.
    pub fn retryable(self) -> bool {
        match self {
            Self::Unavailable | Self::Busy => true,
            Self::Invalid
            | Self::NotFound
            | Self::AlreadyExists
            | Self::Precondition
            | Self::Exhausted
            | Self::Denied
            | Self::Unsupported
            | Self::Internal => false,
        }
    }
}

/// A failed call, as its user reads it: what was wrong, with which object, what to do next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    pub kind: FaultKind,
    pub message: String,
}

impl Fault {
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Status {
        Status::new(fault.kind.code(), fault.message)
    }
}

impl From<Status> for Fault {
    fn from(status: Status) -> Fault {
        let kind =
            FaultKind::ALL.into_iter().find(|kind| kind.code() == status.code()).unwrap_or(match status.code() {
                Code::DeadlineExceeded | Code::Cancelled => FaultKind::Unavailable,
                Code::OutOfRange => FaultKind::Invalid,
                Code::Unauthenticated => FaultKind::Denied,
                // tonic answers Unknown when the transport under a call breaks.
                Code::Unknown => FaultKind::Unavailable,
                _ => FaultKind::Internal,
            });
        Fault::new(kind, status.message())
    }
}

impl From<Malformed> for Fault {
    fn from(malformed: Malformed) -> Fault {
        Fault::new(FaultKind::Invalid, malformed.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        for kind in FaultKind::ALL {
            let fault = Fault::new(kind, "why");
            assert_eq!(Fault::from(Status::from(fault.clone())), fault);
        }
    }
}
