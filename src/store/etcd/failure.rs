//! What a failed request says: whether it happened, whether it may be sent again, and what to tell the caller.

use crate::store::{LeaseId, StoreError};
use etcd_client::Error;
use std::error::Error as _;
use tonic::{Code, ConnectError, Status};

/// Why a request to one endpoint came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It did not happen, and another endpoint or a later try may do better.
    NotDone(String),
    /// Nobody knows whether it happened.
    Unknown(String),
    /// It did not happen: etcd does not know our sign-in (any more).
    SignedOut(String),
    /// It did not happen, and trying at once will not help.
    Unavailable(String),
    LeaseGone,
    Compacted,
    Damaged(String),
    Refused(String),
}

impl Failure {
    /// For requests about no lease.
    pub fn into_store_error(self) -> StoreError {
        match self {
            Failure::NotDone(text) | Failure::Unknown(text) | Failure::SignedOut(text) | Failure::Unavailable(text) => {
                StoreError::Unavailable(text)
            }
            Failure::LeaseGone => StoreError::Refused("etcd knows no such lease".into()),
            Failure::Compacted => StoreError::Unavailable("etcd compacted the revision that was being read".into()),
            Failure::Damaged(text) => StoreError::Damaged(text),
            Failure::Refused(text) => StoreError::Refused(text),
        }
    }

    /// For requests about one lease.
    pub fn about(self, lease: LeaseId) -> StoreError {
        match self {
            Failure::LeaseGone => StoreError::LeaseGone(lease),
            other => other.into_store_error(),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => judge(&status),
            Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
                Failure::Refused(error.to_string())
            }
            // The client says this, and only this, when etcd answers a keep-alive with no time left.
            Error::LeaseKeepAliveError(_) => Failure::LeaseGone,
            Error::IoError(_)
            | Error::TransportError(_)
            | Error::WatchError(_)
            | Error::Utf8Error(_)
            | Error::ElectError(_)
            | Error::EndpointError(_)
            | Error::EndpointsNotManaged
            | Error::Internal(_) => Failure::Unknown(error.to_string()),
        }
    }
}

/// Follows etcd's own table of errors (`api/v3rpc/rpctypes`), by code, and by text where codes are shared.
fn judge(status: &Status) -> Failure {
    let text = if status.message().is_empty() { status.code().to_string() } else { status.message().to_owned() };
    match status.code() {
        Code::Unavailable if was_never_sent(status) => Failure::NotDone(cause(status)),
        // Refused on arrival by a member that has lost its leader, as every request asks for.
        Code::Unavailable if text.ends_with("etcdserver: no leader") => Failure::NotDone(text),
        Code::Unavailable => Failure::Unknown(text),
        // Not capable of it (a learner, an older version in an upgrade): another member may be.
        Code::FailedPrecondition => Failure::NotDone(text),
        // The token ran out, or etcd restarted and forgot it.
        Code::Unauthenticated => Failure::SignedOut(text),
        // No space, or too many requests.
        Code::ResourceExhausted => Failure::Unavailable(text),
        Code::NotFound => Failure::LeaseGone,
        Code::OutOfRange if text.contains("compacted") => Failure::Compacted,
        Code::DataLoss => Failure::Damaged(text),
        // A token from before users or roles were changed.
        Code::InvalidArgument if text.contains("revision of auth store is old") => Failure::SignedOut(text),
        Code::OutOfRange
        | Code::InvalidArgument
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unimplemented => Failure::Refused(text),
        Code::Ok | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Aborted | Code::Internal => {
            Failure::Unknown(text)
        }
    }
}

fn sources(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(status.source(), |error| (*error).source())
}

/// No connection came about, so that nothing was sent.
fn was_never_sent(status: &Status) -> bool {
    sources(status).any(|error| error.is::<ConnectError>())
}

/// The innermost reason: `Connection refused`, rather than `transport error`.
fn cause(status: &Status) -> String {
    sources(status).last().map_or_else(|| status.message().to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_certainly_did_not_happen_may_be_sent_again() {
        let failure = |code, text: &str| Failure::from(Error::GRpcStatus(Status::new(code, text)));
        let not_done = |failure| matches!(failure, Failure::NotDone(_));
        assert!(not_done(failure(Code::Unavailable, "etcdserver: no leader")));
        assert!(not_done(failure(Code::FailedPrecondition, "etcdserver: not capable")));
        for (code, text) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "error reading a body from connection"),
            (Code::Cancelled, "operation was canceled"),
            (Code::Unknown, "h2 protocol error"),
            (Code::DeadlineExceeded, ""),
        ] {
            assert!(matches!(failure(code, text), Failure::Unknown(_)), "{code}: {text}");
        }
        let refused = Status::from_error(Box::new(ConnectError("Connection refused".into())));
        assert_eq!(judge(&refused), Failure::NotDone("Connection refused".into()));
    }

    #[test]
    fn etcd_s_words_become_the_store_s() {
        let failure = |code, text: &str| Failure::from(Error::GRpcStatus(Status::new(code, text)));
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        assert_eq!(failure(Code::OutOfRange, compacted), Failure::Compacted);
        assert!(matches!(failure(Code::OutOfRange, "etcdserver: too large lease TTL"), Failure::Refused(_)));
        let gone = failure(Code::NotFound, "etcdserver: requested lease not found").about(LeaseId(7));
        assert_eq!(gone, StoreError::LeaseGone(LeaseId(7)));
        let full = failure(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded").into_store_error();
        assert!(full.retryable() && full.to_string().contains("space exceeded"));
    }
}
