//! Exports: volumes as clients reach them. A table says what is served, a server serves it over NBD.
//!
//! The control plane changes the [`ExportTable`]; data threads look at an immutable snapshot of it and never wait for
//! anything else. Never here: which volumes should be exported, and to whom.

mod connection;
mod listener;
mod server;
mod table;

pub use server::{NbdServer, PeerPolicy, ServerConfig, ServerError};
pub use table::{Attached, Cut, ExportTable, PublishError, Retired, ServedExport};

#[cfg(test)]
mod tests;
