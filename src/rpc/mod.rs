//! gRPC: the generated protocol, its conversions to and from the model, dialling, listening, one table of faults, and
//! one of who may call what.
//!
//! A message becomes a model type here or is refused here; behind this module nothing on the wire is trusted blindly
//! and nothing knows protobuf.

mod access;
mod admission;
mod assignments;
mod caller;
mod connection;
mod dial;
mod drivers;
mod fault;
mod figures;
mod images;
mod inventories;
mod limits;
mod listen;
mod messages;
mod objects;
mod orphans;
mod reports;
mod rules;
mod seats;
mod sentences;
mod snapshots;
#[cfg(test)]
mod tests;

/// Generated from `proto/symphony/v1`.
pub mod proto {
    tonic::include_proto!("symphony.v1");
}

pub use caller::{Caller, Peer};
pub use connection::Connection;
pub use dial::{DialError, Transport, dial_address, dial_socket, with_default_port};
pub use fault::{Fault, FaultKind};
pub use limits::server;
pub use listen::{ALPN, Admission, ListenError, Listener, advertised, local_peers};
pub use messages::{Joiner, Renewer, TokenProof};
pub use objects::Malformed;

/// On a manager's answers while it cannot reach its store: since when, in milliseconds since 1970.
pub const STALE_SINCE: &str = "symphony-stale-since";
/// Where managers listen unless told otherwise.
pub const MANAGER_PORT: u16 = 15760;
/// Where block services listen unless told otherwise.
pub const BLOCK_PORT: u16 = 15761;
/// The largest message either side takes, in bytes: a COMPLETE set of some 20,000 volumes.
pub const MAX_MESSAGE: usize = 16 << 20;
/// The largest request that a manager takes from operators and joiners, in bytes.
pub const MAX_REQUEST: usize = 64 << 10;
/// The longest text that says why something failed, in bytes; many fit into a transaction.
pub const MAX_FAILURE: usize = 4096;
