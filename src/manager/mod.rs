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
mod backup;
mod check;
mod control;
mod dispatcher;
mod draft;
mod enrollment;
mod events;
mod filling;
mod history;
mod images;
mod init;
mod leader;
mod lifeline;
mod member;
mod metrics;
mod migrate;
mod moves;
mod orphans;
mod plan;
mod recovering;
mod recovery;
mod refusal;
mod requests;
mod restore;
mod serve;
mod sessions;
mod standing;
mod store_config;
mod stores;
#[cfg(test)]
mod tests;
mod view;
mod watch;
mod writer;

pub use init::Manager;
pub use serve::{ManagerConfig, ManagerError, run};
pub use store_config::{EtcdFiles, Password, StoreConfig};

use member::Member;
use std::sync::Arc;

/// What `crate::simulation` drives by itself.
#[cfg(test)]
pub(crate) mod inside {
    pub use super::check::{Findings, check_state};
    pub use super::draft::Draft;
    pub use super::plan::{
        Access, LimitChanges, Origin, WantedImage, WantedSnapshot, WantedVolume, admit_session, advance_move,
        attach_volume, cancel_move, close_sessions, create_pool, create_snapshots, create_volume, detach_volume,
        drain_service, draining, due_moves, empty_one, has_next, import_image, join_service, limit_volume, mark_down,
        move_volume, remove_image, remove_service, remove_snapshot, remove_volume, resize_volume, revert_volume,
        seal_image, take_reports,
    };
    pub use super::refusal::Refusal;
    pub use super::sessions::{Ask, Sessions};
    pub use super::view::View;
}

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
