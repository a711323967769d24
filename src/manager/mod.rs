//! The manager role: owns the cluster's state, serves operators, holds the sessions of block services.
//!
//! It never dials a block service and never touches a device. A request becomes a plan on the [`view`], the [`writer`]
//! commits plans as transactions, the watch brings them back into the view, and from there into sessions and answers.
//!
//! ```text
//!   Starting ──store answers──▶ Uninitialised ──init──▶ Member ──removed──▶ Uninitialised
//!       └──────── identity on disk, store agrees ────────┘
//!       └──────── identity on disk, store disagrees ──▶ Stranded
//! ```

mod access;
mod audit;
mod authority;
mod check;
mod control;
mod dispatcher;
mod draft;
mod enrollment;
mod events;
mod images;
mod init;
mod leader;
mod member;
mod metrics;
mod plan;
mod refusal;
mod serve;
mod store_config;
#[cfg(test)]
mod tests;
mod view;
mod writer;

pub use init::Manager;
pub use serve::{ManagerConfig, ManagerError, run};
pub use store_config::{EtcdFiles, Password, StoreConfig};

use member::Member;
use std::sync::Arc;

/// See the module's picture.
#[derive(Clone)]
pub(crate) enum Stage {
    /// Why it is not further yet.
    Starting(String),
    /// What happened, if it was a member before.
    Uninitialised(Option<String>),
    /// Why its identity is worth nothing here.
    Stranded(String),
    Member(Arc<Member>),
}
