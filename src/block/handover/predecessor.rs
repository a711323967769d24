//! Coming after another process: what it has left is taken, checked, and gone on with.

use super::{CONTROL, LOCK, Lineage, NBD, NBD_UNIX, OURS, RPC, STATE, document};
use crate::export::{Carried, InheritedListeners};
use crate::host::{Inheritance, Supervisor};
use std::os::fd::OwnedFd;
use uuid::Uuid;

/// What there is of a former process. Nothing, where there was none or it cannot be trusted.
#[derive(Debug, Default)]
pub struct Predecessor {
    /// Its instance; absent where nothing was handed over.
    pub instance: Option<Uuid>,
    /// On the config directory.
    pub lock: Option<OwnedFd>,
    pub rpc: Option<OwnedFd>,
    pub control: Option<OwnedFd>,
    pub nbd: InheritedListeners,
    pub connections: Vec<Carried>,
}

/// How it went with the clients of a former process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage {
    /// The former process's.
    pub from: Uuid,
    pub went_on: usize,
    pub ended: usize,
    /// Nobody is waited for any more, and new clients are served.
    pub settled: bool,
}

impl Passage {
    pub fn begun(from: Uuid) -> Self {
        Self { from, went_on: 0, ended: 0, settled: false }
    }
}

impl Predecessor {
    /// Takes what was left. All descriptors that are not taken are closed.
    pub fn meet(lineage: &mut Lineage) -> Self {
        let mut inheritance = std::mem::take(&mut lineage.inheritance);
        if inheritance.is_from_supervisor()
            && let Some(supervisor) = &lineage.supervisor
            && let Err(error) = empty_the_store(supervisor, &inheritance)
        {
            // It would hand the same out again, when clients are somewhere else entirely.
            tracing::error!(%error, "starting afresh: the service manager does not forget what it has handed out");
            return Self::default();
        }
        let Some(state) = inheritance.take(STATE) else {
            if !inheritance.names().is_empty() {
                tracing::warn!(names = ?inheritance.names(), "descriptors of others were left here; they are closed");
            }
            return Self::default();
        };
        match document::read(state, |name| inheritance.take(name)) {
            Ok((instance, connections)) => Self {
                instance: Some(instance),
                lock: inheritance.take(LOCK),
                rpc: inheritance.take(RPC),
                control: inheritance.take(CONTROL),
                nbd: InheritedListeners { tcp: inheritance.take(NBD), unix: inheritance.take(NBD_UNIX) },
                connections,
            },
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "starting afresh: what the former process left cannot be used");
                Self::default()
            }
        }
    }
}

fn empty_the_store(supervisor: &Supervisor, inheritance: &Inheritance) -> std::io::Result<()> {
    let ours: Vec<_> = inheritance.names().iter().filter(|name| name.starts_with(OURS)).collect();
    ours.iter().try_for_each(|name| supervisor.forget(name))?;
    if ours.is_empty() { Ok(()) } else { supervisor.wait_until_heard() }
}
