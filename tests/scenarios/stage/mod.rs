//! What scenarios are played on: real processes, a cluster of them, `ctl`, the programs that users bring, and patience.

mod cluster;
mod command;
mod daemon;
mod hosts;
mod image;
mod network;
mod patience;
mod tools;

pub(crate) use cluster::on_each_store;
pub use cluster::{Backing, Cluster, Control};
pub use command::{Outcome, finish, finish_with, nobody, path_text, symphony, words};
pub use daemon::Daemon;
pub use hosts::{FarBlock, Hosts, bundle, secure, symphony_on};
pub use image::{Image, sha256};
pub use network::{Host, Network};
pub use patience::{until, wait};
pub use tools::{client, compare, nbd_size, qemu_io, tool};
