//! gRPC: the generated protocol, its conversions to and from the model, dialling, listening, and one table of faults.
//!
//! A message becomes a model type here or is refused here; behind this module nothing on the wire is trusted blindly
//! and nothing knows protobuf.

mod dial;
mod fault;
mod listen;
mod messages;
mod objects;

/// Generated from `proto/symphony/v1`.
pub mod proto {
    tonic::include_proto!("symphony.v1");
}

pub use dial::{DialError, dial_address, dial_socket, with_default_port};
pub use fault::{Fault, FaultKind};
pub use listen::{Admission, ListenError, Listener, Peer, advertised, gate, local_peers};
pub use messages::Joiner;
pub use objects::{Malformed, file_driver};

/// Where managers listen unless told otherwise.
pub const MANAGER_PORT: u16 = 15760;
/// Where block services listen unless told otherwise.
pub const BLOCK_PORT: u16 = 15761;
/// The largest message either side takes, in bytes: a COMPLETE set of some 20,000 volumes.
pub const MAX_MESSAGE: usize = 16 << 20;
/// The longest text that says why something failed, in bytes; many fit into a transaction.
pub const MAX_FAILURE: usize = 4096;
