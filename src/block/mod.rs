//! The block role: owns devices on its host, keeps what managers assign, serves volumes over NBD.
//!
//! It dials managers and is never dialled by them. What it must hold comes as assignments over its session, is kept in
//! a ledger on disk, and is closed in upon by one task, the [`agent`]; exports go on with every manager gone and come
//! back from the ledger after a reboot. It never speaks to the store.
//!
//! ```text
//!   link ──assignments──▶ agent ──tasks──▶ worker ──▶ backend, export table
//!    ▲                     │  ▲               │
//!    └──────reports────────┘  └───outcomes────┘
//! ```
//!
//! What one process of a block service leaves to the next, so that restarts go unnoticed, is the business of [`handover`].
//!
//! Managers are dialled over TLS alone, by the key and certificate that `enrolment` brings and the `keeper` renews.

mod agent;
mod devices;
mod enrolment;
mod face;
#[cfg(test)]
mod fake;
mod figures;
pub mod handover;
mod keeper;
mod ledger;
mod link;
mod metrics;
mod places;
mod serve;
mod simulated;
mod supply;
mod ties;
mod tls_dir;
mod unattended;
mod worker;

pub use crate::export::EngineChoice;
pub use crate::io::FaultFile;
pub use handover::Lineage;
pub use serve::{BlockConfig, BlockError, run};
pub use simulated::{SimulationConfig, simulate};
pub use unattended::Join;
