//! Coming after another process, and making way for the next one.

use super::{Block, Stage};
use crate::block::agent::Notice;
use crate::block::handover::{Passage, RestartError};
use crate::block::worker::chain;
use crate::export::Carried;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::Signal;
use tokio::sync::oneshot;
use uuid::Uuid;

/// How long clients of a former process wait for their exports to be served again, and new ones for those.
const RETURN: Duration = Duration::from_secs(10);

impl Block {
    /// This life of the process.
    pub(in crate::block) fn instance(&self) -> Uuid {
        self.holdings.instance
    }

    pub(in crate::block) fn passage(&self) -> Option<Passage> {
        *self.passage.borrow()
    }

    /// Has another executable, or the one that is where this one was, go on in place of this one.
    ///
    /// # Errors
    /// Returns only to say why it did not come to that.
    pub(in crate::block) async fn restart(&self, executable: Option<&Path>) -> RestartError {
        let Some(restarter) = &self.restarter else { return RestartError::NoProgram };
        if self.passage().is_some_and(|passage| !passage.settled) {
            return RestartError::UnderWay;
        }
        let agent = match self.stage() {
            Stage::Member(active) => Some(active.notices.clone()),
            Stage::Uninitialised(_) => None,
        };
        restarter.restart(executable, agent, &self.shutdown).await
    }

    /// Goes on with the clients of a former process as soon as their exports are served, and with new ones when all
    /// are that can be.
    pub(super) async fn go_on(self: Arc<Self>, from: Uuid, connections: Vec<Carried>) {
        let settled = async {
            let Stage::Member(active) = self.stage() else { return };
            let (reply, settled) = oneshot::channel();
            let told = active.notices.send(Notice::Settle(reply)).await.is_ok();
            if told && tokio::time::timeout(RETURN, settled).await.is_err() {
                tracing::warn!("work on volumes or pools takes long: some are not served yet");
            }
        };
        let adopter = self.holdings.nbd().adopter();
        let waits = if matches!(self.stage(), Stage::Member(_)) { RETURN } else { Duration::ZERO };
        let adopting = tokio::task::spawn_blocking(move || adopter.adopt(connections, waits));
        settled.await;
        if !self.shutdown.is_requested()
            && let Err(error) = self.holdings.nbd().open()
        {
            tracing::error!(error = %chain(&error), "new NBD clients are not served");
        }
        let (mut went_on, mut ended) = (0, 0);
        match adopting.await {
            Ok(adopted) => (went_on, ended) = (adopted.went_on, adopted.ended.len()),
            Err(error) => tracing::error!(%error, "going on with NBD clients panicked"),
        }
        tracing::info!(went_on, ended, "NBD clients of the former process");
        self.passage.send_replace(Some(Passage { from, went_on, ended, settled: true }));
    }

    pub(super) async fn restart_on_signal(self: Arc<Self>, mut upgrades: Signal) {
        while upgrades.recv().await.is_some() {
            let error = self.restart(None).await;
            tracing::warn!(error = %chain(&error), "asked for a restart by a signal");
        }
    }
}
