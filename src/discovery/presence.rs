//! One lease, held by this process for itself or for a service whose session it holds.

use crate::store::{LeaseId, SharedStore, StoreError};
use std::time::Duration;

/// A lease in the store. Dropping it lets it run out; [`Self::release`] ends it at once.
pub struct Presence {
    store: SharedStore,
    lease: LeaseId,
}

impl Presence {
    /// # Errors
    /// If the store cannot grant a lease now.
    pub async fn begin(store: SharedStore, ttl: Duration) -> Result<Self, StoreError> {
        let lease = store.grant(ttl).await?;
        Ok(Self { store, lease })
    }

    /// What keys that shall vanish with this presence are attached to.
    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    /// Starts the lease's time anew.
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`] if it ran out: whoever held it is already thought dead.
    pub async fn renew(&self) -> Result<(), StoreError> {
        self.store.keep_alive(self.lease).await
    }

    /// # Errors
    /// If the store cannot be reached; the lease then runs out by itself.
    pub async fn release(self) -> Result<(), StoreError> {
        self.store.revoke(self.lease).await
    }
}
