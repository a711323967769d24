//! Ending a process in order: one signal for everybody, and an owner that waits for every task.

use std::future::Future;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long peers have to take their leave once the end is requested.
const GRACE: Duration = Duration::from_secs(2);

/// The tasks of one role and their common end. Clones belong to the same group.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    /// A group that ends with this one but can also end, and be waited for, by itself.
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token(), tasks: TaskTracker::new() }
    }

    /// Runs a task of this group. The task watches [`Self::requested`] itself.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task);
    }

    /// Runs a task that is simply dropped at its next await when the end is requested.
    pub fn spawn_until_end<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        self.tasks.spawn(async move {
            token.run_until_cancelled(task).await;
        });
    }

    /// Completes once the end is requested.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// Completes once the end was requested and peers have had their time: nobody can hold up the end by holding on.
    pub async fn overdue(&self) {
        self.requested().await;
        tokio::time::sleep(GRACE).await;
    }

    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    pub fn request(&self) {
        self.token.cancel();
    }

    /// Requests the end and waits for every task.
    pub async fn finish(&self) {
        self.token.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Every SIGUSR2 from now on: another executable is to go on in place of this one. Until this was called, it ends the
/// process.
pub fn upgrades() -> std::io::Result<Signal> {
    signal(SignalKind::user_defined2())
}

/// Completes at the first SIGTERM or SIGINT.
pub async fn termination() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
