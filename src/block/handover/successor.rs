//! Leaving things to the next process, in place or by way of a service manager.

use super::document::{self, HandoverError, reads};
use super::{CONTROL, LOCK, NBD, NBD_UNIX, RPC, STATE};
use crate::block::agent::Notice;
use crate::block::worker::chain;
use crate::export::{Held, HoldError, NbdServer};
use crate::host::{Program, ProgramError, Supervisor};
use crate::rpc::{Fault, FaultKind};
use crate::runtime::Shutdown;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// How long an executable may take to say what it reads.
const PROBE: Duration = Duration::from_secs(10);

/// How long work on volumes and pools may take to end.
const REST: Duration = Duration::from_secs(10);

/// How long operations of clients may take to end. Clients wait meanwhile.
const HOLD: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    #[error("another restart, or the end, is under way")]
    UnderWay,
    #[error("other roles run in this process, or its executable is not known: end it and start it again")]
    NoProgram,
    #[error("'{}' is no absolute path", path.display())]
    Relative { path: PathBuf },
    #[error("it was not tried")]
    Probe(#[from] ProgramError),
    #[error("it was not tried: {} takes over from no version like this one", executable.display())]
    Foreign { executable: PathBuf },
    #[error("it was given up: work on volumes or pools did not end within {REST:?}")]
    Work,
    #[error("it was given up")]
    Hold(#[from] HoldError),
    #[error("it was given up")]
    State(#[from] HandoverError),
    #[error("descriptors are lacking")]
    Descriptors(#[source] io::Error),
    #[error("{} did not start", executable.display())]
    Exec { executable: PathBuf, source: io::Error },
}

impl From<RestartError> for Fault {
    fn from(error: RestartError) -> Self {
        let kind = match &error {
            RestartError::UnderWay | RestartError::Work | RestartError::Hold(_) => FaultKind::Busy,
            RestartError::Relative { .. } => FaultKind::Invalid,
            RestartError::NoProgram | RestartError::Probe(_) | RestartError::Foreign { .. } => FaultKind::Precondition,
            RestartError::State(_) | RestartError::Descriptors(_) | RestartError::Exec { .. } => FaultKind::Internal,
        };
        Fault::new(kind, format!("no restart, and this process goes on: {}", chain(&error)))
    }
}

/// What this process could leave to another one.
pub struct Holdings {
    pub instance: Uuid,
    nbd: Mutex<NbdServer>,
    /// The lock, and the listeners of gRPC; absent at the end.
    others: Mutex<Option<Others>>,
}

/// Second descriptors, so that those who serve need not be asked.
pub struct Others {
    pub lock: OwnedFd,
    pub rpc: OwnedFd,
    pub control: OwnedFd,
}

impl Others {
    fn named(&self) -> [(&'static str, &OwnedFd); 3] {
        [(LOCK, &self.lock), (RPC, &self.rpc), (CONTROL, &self.control)]
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Holdings {
    pub fn new(nbd: NbdServer, others: Others) -> Self {
        Self { instance: Uuid::new_v4(), nbd: Mutex::new(nbd), others: Mutex::new(Some(others)) }
    }

    pub fn nbd(&self) -> MutexGuard<'_, NbdServer> {
        lock(&self.nbd)
    }

    /// Becomes `program`. Blocks.
    ///
    /// # Errors
    /// Returns only to say why it did not come to that; then everything goes on.
    fn pass_on(&self, program: &Program, shutdown: &Shutdown) -> RestartError {
        let mut nbd = self.nbd();
        let held = match nbd.hold(HOLD) {
            Ok(held) => held,
            Err(error) => return error.into(),
        };
        let error = match self.gather(&nbd, &held) {
            Ok(_) if shutdown.is_requested() => RestartError::UnderWay,
            Ok(left) => {
                let executable = program.executable();
                tracing::info!(executable = %executable.display(), connections = held.connections(), "restarting");
                RestartError::Exec { executable: executable.to_owned(), source: program.take_over(&left) }
            }
            Err(error) => error,
        };
        if let Err(error) = nbd.resume(held) {
            tracing::error!(error = %chain(&error), "new NBD clients are not served");
        }
        error
    }

    /// Everything under its name.
    fn gather(&self, nbd: &NbdServer, held: &Held) -> Result<Vec<(String, OwnedFd)>, RestartError> {
        let carried = held.carry().map_err(RestartError::Descriptors)?;
        let sockets = nbd.listening().map_err(RestartError::Descriptors)?;
        let (state, mut left) = document::write(self.instance, carried)?;
        left.push((STATE.to_owned(), state));
        let listening = [(NBD, sockets.tcp), (NBD_UNIX, sockets.unix)];
        left.extend(listening.into_iter().filter_map(|(name, socket)| Some((name.to_owned(), socket?))));
        for (name, descriptor) in lock(&self.others).iter().flat_map(Others::named) {
            left.push((name.to_owned(), descriptor.try_clone().map_err(RestartError::Descriptors)?));
        }
        Ok(left)
    }

    /// Ends serving: what a service manager keeps for the next process goes on there, all else ends in order. Blocks.
    pub fn end(&self, supervisor: Option<&Supervisor>) {
        let left = supervisor.is_some_and(|supervisor| {
            self.leave_with(supervisor)
                .inspect_err(|error| tracing::warn!(error, "NBD clients have to connect again"))
                .is_ok()
        });
        // Who asks from here on is to hear that nobody is there.
        drop(lock(&self.others).take());
        self.nbd().shutdown();
        if left {
            tracing::info!("what is served was left with the service manager");
        }
    }

    fn leave_with(&self, supervisor: &Supervisor) -> Result<(), String> {
        let mut nbd = self.nbd();
        let held = nbd.hold(HOLD).map_err(|error| chain(&error))?;
        let kept = self.gather(&nbd, &held).map_err(|error| chain(&error)).and_then(|mut left| {
            // Whoever has it may write to the config directory: that is for the next process itself to take.
            left.retain(|(name, _)| name != LOCK);
            if let Some(room) = supervisor.room().filter(|room| *room < left.len()) {
                let needed = left.len();
                return Err(format!(
                    "the service manager keeps {room} descriptors (FileDescriptorStoreMax=), not {needed}"
                ));
            }
            let keep = |(name, descriptor): &(String, OwnedFd)| supervisor.keep(name, descriptor.as_fd());
            left.iter()
                .try_for_each(keep)
                .and_then(|()| supervisor.wait_until_heard())
                .map_err(|error| error.to_string())
        });
        match kept {
            Ok(()) => {
                nbd.leave(held);
                Ok(())
            }
            Err(error) => {
                if let Err(error) = nbd.resume(held) {
                    tracing::warn!(error = %chain(&error), "NBD clients that wait are not served");
                }
                Err(error)
            }
        }
    }
}

/// Carries out restarts in place, one at a time.
pub struct Restarter {
    program: Program,
    holdings: Arc<Holdings>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Restarter {
    pub fn new(program: Program, holdings: Arc<Holdings>) -> Self {
        Self { program, holdings, turn: Arc::default() }
    }

    /// Becomes another executable, or the one that is where this one was. Goes on whether or not anybody waits for it.
    ///
    /// # Errors
    /// It returns only to say why it did not come to that; then everything goes on as before, but for clients over TLS,
    /// which may have had to connect again.
    pub async fn restart(
        &self,
        executable: Option<&Path>,
        agent: Option<mpsc::Sender<Notice>>,
        shutdown: &Shutdown,
    ) -> RestartError {
        let Ok(turn) = self.turn.clone().try_lock_owned() else { return RestartError::UnderWay };
        let program = match executable {
            Some(path) if !path.is_absolute() => return RestartError::Relative { path: path.to_owned() },
            Some(path) => self.program.at(path),
            None => self.program.clone(),
        };
        let (holdings, group) = (self.holdings.clone(), shutdown.clone());
        let (reply, outcome) = oneshot::channel();
        shutdown.spawn(async move {
            let error = attempt(program, holdings, agent, &group).await;
            tracing::warn!(error = %chain(&error), "no restart: this process goes on");
            drop(turn);
            if reply.send(error).is_err() {
                tracing::debug!("nobody waits for the restart any more");
            }
        });
        outcome.await.unwrap_or(RestartError::UnderWay)
    }
}

async fn attempt(
    program: Program,
    holdings: Arc<Holdings>,
    agent: Option<mpsc::Sender<Notice>>,
    shutdown: &Shutdown,
) -> RestartError {
    let asked = program.clone();
    match blocking(move || asked.ask(&["block", "handover-version"], PROBE)).await {
        Some(Ok(answer)) if reads(&answer) => {}
        Some(Ok(_)) => return RestartError::Foreign { executable: program.executable().to_owned() },
        Some(Err(error)) => return error.into(),
        None => return RestartError::UnderWay,
    }
    if let Some(agent) = &agent {
        let (reply, rests) = oneshot::channel();
        let asked = agent.send(Notice::Rest(reply)).await;
        let rests = tokio::select! {
            rests = tokio::time::timeout(REST, rests) => asked.is_ok() && matches!(rests, Ok(Ok(()))),
            () = shutdown.requested() => false,
        };
        if !rests {
            wake(agent).await;
            return RestartError::Work;
        }
    }
    let group = shutdown.clone();
    let error = blocking(move || holdings.pass_on(&program, &group)).await.unwrap_or(RestartError::UnderWay);
    if let Some(agent) = &agent {
        wake(agent).await;
    }
    error
}

async fn wake(agent: &mpsc::Sender<Notice>) {
    if agent.send(Notice::Resume).await.is_err() {
        tracing::debug!("the agent has ended meanwhile");
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome.inspect_err(|error| tracing::error!(%error, "a part of a restart panicked")).ok()
}
