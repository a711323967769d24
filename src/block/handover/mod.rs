//! Restarts that clients on plain connections do not notice: what a process leaves to the one after it.
//!
//! ```text
//!   restart in place   probe ─▶ agent rests ─▶ exports held ─▶ exec, same process, same lock
//!   service manager    everything ends ─▶ exports held ─▶ descriptors in its store ─▶ exit ─▶ started again
//! ```
//! One thing is left behind either way: listening sockets, connections, and a document that says what they are. At no
//! time two processes serve a volume: the media are closed with the process that held them, and the locks on the config
//! directory and on the pools say so. Whatever is not as it should be leads to a start as after a kill.
//!
//! Limitations: connections over TLS end and come again, as do all where threads serve NBD. A signal to end that comes
//! in the last instant before a restart in place is lost.

mod document;
mod predecessor;
mod successor;

pub use document::sort_of_documents;
pub(super) use predecessor::{Passage, Predecessor};
pub(super) use successor::{Holdings, Others, RestartError, Restarter};

use crate::host::{Inheritance, Program, Supervisor};

/// Where this process comes from, and what may come after it. By default nobody, and nothing.
#[derive(Debug, Default)]
pub struct Lineage {
    pub inheritance: Inheritance,
    pub supervisor: Option<Supervisor>,
    /// What a restart in place runs; absent where there is none.
    pub program: Option<Program>,
}

/// What things are called on their way.
const STATE: &str = "symphony-state";
const LOCK: &str = "symphony-lock";
const RPC: &str = "symphony-rpc";
const CONTROL: &str = "symphony-control";
const NBD: &str = "symphony-nbd";
const NBD_UNIX: &str = "symphony-nbd-unix";
/// All of them begin like this.
const OURS: &str = "symphony-";
