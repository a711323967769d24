//! symphony turns Linux hosts into a block-storage cloud. One executable plays every role; all roles share this library.
//!
//! # The map
//!
//! ```text
//!   ctl ──control.sock──▶ manager ◀──watch, txn, lease──▶ store (etcd | embedded)
//!                            ▲   │
//!     join, session (dial out)│   │ assignments
//!                            │   ▼
//!                         block service ──▶ backend (file, lvm) ──▶ export (NBD) ◀── qemu, libnbd, fio, the kernel
//! ```
//!
//! | layer | modules | imports from |
//! |---|---|---|
//! | words | [`model`] | nothing here |
//! | ground | [`runtime`], [`host`] | words |
//! | engines | [`store`], [`discovery`], [`session`], [`reconcile`], [`pki`], [`rpc`], [`io`], [`image`], [`nbd`], [`backend`], [`export`] | above, and each other where the tests of `tests/tidy` say so |
//! | roles | [`manager`] (never backend, export, io, nbd), [`block`] (never store, discovery), [`ctl`] (model, runtime, host, pki, rpc, image, nbd) | above |
//! | shell | [`cli`], `main` | everything |
//!
//! The way of a volume: `ctl` asks a manager; a [`manager`] planner turns the request into a transaction on its view;
//! the [`store`] commits it; the watch brings it into the view and from there, over the [`session`], to the block
//! service that the volume is placed on; [`reconcile`] plans the tasks, a worker carries them out on a [`backend`] and
//! publishes the result in the [`export`] table; a report goes up, is committed, and ends the wait of `ctl`.
//!
//! # Invariants
//!
//! 1. Only managers touch the store. A block service never speaks to etcd and cannot change state outside its own
//!    discovery and status; a manager checks every report against the reporter's identity.
//! 2. A manager never dials a block service and never touches a device. Block services dial out, so they work behind
//!    NAT and may change address, host name or port at any restart: identity is the service id.
//! 3. Desired state is committed to the store before anything acts on it; devices are touched only by the block
//!    service's reconciler; every step is idempotent and can be killed at any instruction and resumed.
//! 4. Success means done. `ctl` waits for the final state by default, and `--no-wait` opts out.
//! 5. The data path does not depend on the control path: exports go on with every manager gone, and come back after a
//!    reboot from the ledger before any manager answers.
//! 6. Absence of an assignment is never permission to destroy data. Deletion needs a tombstone (id and generation).
//!    What is on disk but not assigned is an orphan: reported, never deleted by itself.
//! 7. Everything on disk describes itself, so that the cluster's state can be rebuilt from the disks.
//! 8. Losing a service never blocks the others: its objects can always be closed from a manager.

pub mod backend;
pub mod block;
pub mod cli;
pub mod ctl;
pub mod discovery;
pub mod export;
pub mod host;
pub mod image;
pub mod io;
pub mod manager;
pub mod model;
pub mod nbd;
pub mod pki;
pub mod reconcile;
pub mod rpc;
pub mod runtime;
pub mod session;
#[cfg(test)]
mod simulation;
pub mod store;
