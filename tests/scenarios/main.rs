//! The real executable, driven as users drive it: real processes, real etcd, real clients. Nothing here asserts on how
//! long something takes; every cluster ends in the consistency check.

mod attached_clients;
mod attachments;
mod backups;
mod command_line;
mod compose;
mod contexts;
mod crash_rounds;
mod damage;
mod data;
mod dev;
mod devices;
mod directories;
mod draining;
mod events;
#[path = "../faults/mod.rs"]
mod faults;
mod full_disk;
mod hostile_bytes;
mod images;
mod independence;
mod initialisation;
mod joining;
mod limits;
mod local_trust;
mod losses;
mod membership;
mod migration;
mod moving;
mod orphans;
mod placement;
mod pools;
mod reconnects;
mod recovery;
mod refusals;
mod remote_operators;
mod removal;
mod restarts;
mod revocation;
mod rewinds;
mod rotation;
mod simulated;
mod snapshots;
mod stage;
mod starting;
mod store_outages;
mod store_trouble;
#[path = "../support/mod.rs"]
mod support;
mod three_managers;
mod upgrades;
mod verbatim;
mod volumes;
