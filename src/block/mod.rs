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

mod agent;
mod face;
mod ledger;
mod link;
mod serve;
mod worker;

pub use serve::{BlockConfig, BlockError, run};
