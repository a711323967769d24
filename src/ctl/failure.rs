//! How a command ends when it does not succeed.

use crate::rpc::{DialError, Fault, FaultKind};

/// Failures that are not a server's answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("not done within {}: {what}; it goes on, and `symphony ctl {look}` shows how far it is", humantime::format_duration(*.limit))]
    TimedOut { limit: std::time::Duration, what: String, look: String },
    /// None of several managers.
    #[error("no manager could be reached: {0}")]
    Unreachable(String),
    /// The request was accepted and could not be fulfilled.
    #[error("{0}")]
    Unfulfilled(String),
}

/// The exit code for an error, as `symphony ctl --help` lists them.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if let Some(fault) = cause.downcast_ref::<Fault>() {
            return match fault.kind {
                FaultKind::Invalid => 2,
                FaultKind::NotFound => 3,
                FaultKind::AlreadyExists | FaultKind::Precondition | FaultKind::Exhausted | FaultKind::Denied => 4,
                FaultKind::Unavailable | FaultKind::Busy => 5,
                FaultKind::Unsupported | FaultKind::Internal => 1,
            };
        }
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return match failure {
                Failure::Usage(_) => 2,
                Failure::TimedOut { .. } => 6,
                Failure::Unreachable(_) => 5,
                Failure::Unfulfilled(_) => 1,
            };
        }
        if let Some(error) = cause.downcast_ref::<DialError>() {
            return if error.is_refusal() { 4 } else { 5 };
        }
    }
    1
}
