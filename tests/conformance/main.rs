//! One suite per trait, run against every implementation, and our engines against what the world measures them by.

mod backend;
mod file_pool;
mod imports;
mod kill_points;
mod lvm_faults;
mod lvm_pools;
mod lvm_stage;
mod lvm_volumes;
mod nbd;
mod nbd_tls;
mod snapshots;
mod store;
#[path = "../support/mod.rs"]
mod support;
mod torture;
