//! The session protocol between a block service and a manager, without I/O: messages and time in, actions out.
//!
//! One session, one fate: whatever goes wrong ends it, and the block service's one reconnect loop starts the next.
//! The transport ([`crate::rpc`]) carries [`Upward`] and [`Downward`] messages; it never interprets them.
//!
//! ```text
//!   service side:  Greeting ──Welcome──▶ Open ──any error, silence, Removed──▶ (ended)
//!   manager side:  Waiting ──Hello──▶ Admitting ──admitted──▶ Open ──any error, silence, Goodbye──▶ (ended)
//! ```

mod manager_side;
mod message;
mod service_side;
#[cfg(test)]
mod tests;

pub use manager_side::{ManagerAction, ManagerEvent, ManagerSide};
pub use message::{Downward, Greeting, Step, Upward, Welcome};
pub use service_side::{ServiceAction, ServiceEvent, ServiceSide};

/// Why a session ended; written for the log of the other end's operator too.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    #[error("nothing was heard from the peer for {}ms", .0.as_millis())]
    Silence(std::time::Duration),
    #[error("the service was removed from the cluster")]
    Removed,
    #[error("the peer said goodbye")]
    Goodbye,
    /// The manager's cluster has no such member.
    #[error("{0}")]
    Unknown(String),
    #[error("{0}")]
    Refused(String),
}
