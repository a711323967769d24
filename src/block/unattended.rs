//! Joining without an operator at the prompt, as containers and unit files want it: `block run --join`.

use super::serve::{Block, Stage};
use super::worker::chain;
use crate::host::files::read_optional;
use crate::runtime::{Backoff, Shutdown};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What a block service that is no member yet does about it by itself.
#[derive(Clone, Debug)]
pub struct Join {
    /// `host:port` each, tried in turn.
    pub managers: Vec<String>,
    /// Read before each try, so that a token that ran out can be replaced.
    pub token_file: Option<PathBuf>,
}

impl Join {
    /// The token as its file holds it now.
    ///
    /// # Errors
    /// In words, if there is none where one should be.
    pub fn token(&self) -> Result<Option<String>, String> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let read = read_optional(path).map_err(|error| chain(&error))?;
        let bytes = read.ok_or_else(|| format!("there is no token in {} yet", path.display()))?;
        let text = String::from_utf8(bytes).map_err(|_| format!("{} holds no token", path.display()))?;
        Ok(Some(text.trim().to_owned()))
    }
}

/// Tries until the service is a member. One that was removed later stays out: that was an operator's word.
pub async fn join(block: Arc<Block>, join: Join, shutdown: Shutdown) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
    loop {
        for manager in &join.managers {
            if let Stage::Member(_) = block.stage() {
                return;
            }
            match attempt(&block, manager, &join).await {
                Ok(()) => return,
                Err(reason) => tracing::warn!(%manager, %reason, "cannot join yet"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next(fastrand::f64())) => {}
            () = shutdown.requested() => return,
        }
    }
}

async fn attempt(block: &Arc<Block>, manager: &str, join: &Join) -> Result<(), String> {
    let token = join.token()?;
    block.init(manager, token.as_deref(), false).await.map(drop).map_err(|fault| fault.message)
}
