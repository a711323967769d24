//! Who asks: what every request carries of the connection it came over.

use crate::pki::{Dismissed, Keyring, Presented};
use std::fmt;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Whom a request comes from, as far as that was proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Somebody on this very host, shown by the kernel.
    Local {
        /// "root", or "user 1000".
        who: String,
    },
    /// The bearer of a certificate of the cluster.
    Certified(crate::pki::Bearer),
    /// TLS without a certificate: a joiner, or a service whose certificate has expired.
    Anonymous,
    /// Nobody who may ask anything, and why.
    Refused(String),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { who } => write!(f, "local {who}"),
            Self::Certified(bearer) => write!(f, "{bearer}"),
            Self::Anonymous => f.write_str("anonymous"),
            Self::Refused(_) => f.write_str("refused"),
        }
    }
}

/// Calls that run at once on one connection of a peer who has proven nothing.
const ANONYMOUS_CALLS: usize = 4;

/// Where a request comes from. In the extensions of every request that came through a listener of this module.
#[derive(Clone, Debug)]
pub struct Peer {
    /// For logs: an address, or the control socket.
    pub peer: String,
    caller: Caller,
    /// For certified callers: what they showed, and who says whether that still holds.
    standing: Option<(Keyring, Presented)>,
    /// Cancelled by the first request: till then the connection counts as half open.
    heard: CancellationToken,
    anonymous_calls: Arc<Semaphore>,
}

impl Peer {
    pub(super) fn new(peer: String, caller: Caller) -> Self {
        let anonymous_calls = Arc::new(Semaphore::new(ANONYMOUS_CALLS));
        Self { peer, caller, standing: None, heard: CancellationToken::new(), anonymous_calls }
    }

    pub(super) fn certified(peer: String, presented: Presented, keyring: Keyring) -> Self {
        let new = Self::new(peer, Caller::Certified(presented.bearer));
        Self { standing: Some((keyring, presented)), ..new }
    }

    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Why a caller that was let in is to be let in no longer, if so.
    pub(super) fn dismissed(&self) -> Option<Dismissed> {
        self.standing.as_ref().and_then(|(keyring, presented)| keyring.dismisses(presented))
    }

    pub(super) fn heard(&self) -> &CancellationToken {
        &self.heard
    }

    pub(super) fn anonymous_calls(&self) -> &Arc<Semaphore> {
        &self.anonymous_calls
    }
}
