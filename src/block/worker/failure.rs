//! Why a task could not be carried out, in the words that managers and operators are told.

use crate::backend::BackendError;
use crate::export::{AdmitError, FreezeError, PublishError};
use crate::host::DocumentError;
use crate::model::{Digest, Kind, Name, PoolId, ServiceId};

#[derive(Debug, thiserror::Error)]
pub(super) enum TaskError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("pool {0} is not open")]
    PoolClosed(PoolId),
    #[error("volume '{volume}' is in use by {users} connections: it is put back, shrunk or moved once they are closed")]
    InUse { volume: Name, users: usize },
    #[error("the content is not what was sent: its sha256 is {found}, and should be {wanted}; import it again")]
    Differs { found: Digest, wanted: Digest },
    #[error(
        "what was copied from block service {service} has sha256 {found} here, and should have {wanted}; it is copied again"
    )]
    Torn { service: ServiceId, found: Digest, wanted: Digest },
    #[error("fetching the content from block service {service}: {reason}")]
    Supply { service: ServiceId, reason: String },
    #[error("reading or writing the content")]
    Medium(#[source] std::io::Error),
    #[error("the block service is stopping")]
    Ending,
    #[error("it is to be removed")]
    Abandoned,
    #[error("cannot remember where the host's pools are")]
    Places(#[source] DocumentError),
    #[error("its bytes are to be overwritten first; `symphony ctl {kind} remove {name} --no-wipe` gives up on that")]
    Wipe { kind: Kind, name: Name, source: BackendError },
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Admit(#[from] AdmitError),
}

impl TaskError {
    /// Whether it says no more than that somebody here has ended what takes long.
    pub fn is_interruption(&self) -> bool {
        match self {
            TaskError::Backend(BackendError::Io { source, .. })
            | TaskError::Wipe { source: BackendError::Io { source, .. }, .. } => {
                source.kind() == std::io::ErrorKind::Interrupted
            }
            _ => false,
        }
    }
}
