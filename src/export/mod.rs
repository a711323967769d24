//! Exports: volumes as clients reach them. A table says what is served, a server serves it over NBD.
//!
//! The control plane changes the [`ExportTable`]; data threads look at an immutable snapshot of it and never wait for
//! anything else. Never here: which volumes should be exported, and to whom they are granted.
//!
//! | who | how | gets in where |
//! |---|---|---|
//! | a local guest: root or our own user, on this host | unix socket; TCP on loopback, by the kernel's record | no client was granted the export alone |
//! | a client | TLS with a certificate of the cluster for a client's role | it was granted the export |
//! | a service, or anybody else | | nowhere |
//!
//! Every export has an [`Account`]: what was asked of it is counted there, and what may be asked is limited there.
//!
//! Whoever shows a certificate is that client, on this host as well. A certificate that ends or is revoked ends no
//! connection: the control plane fences whom it no longer wants, and no new connection comes up.

mod account;
mod connection;
mod freeze;
mod grants;
mod histogram;
mod limits;
mod listener;
mod meter;
mod quota;
mod server;
mod table;
mod tls;
mod transmission;

pub use account::Account;
pub use freeze::{Freeze, FreezeError};
pub use grants::{AdmitError, AttachError, Grant, Guest};
pub use server::{
    Adopted, Adopter, Carried, Held, HoldError, InheritedListeners, NbdServer, PeerPolicy, RefusalRecord, ServerConfig,
    ServerError, SessionRecord,
};
pub use table::{Attached, Cut, ExportTable, Fenced, PublishError, Retired, ServedExport};
pub use transmission::{EngineChoice, EngineError, ParseEngineError};

#[cfg(test)]
mod tests;
