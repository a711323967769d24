//! Which block services' sessions this manager holds, and questions to them.

use crate::model::{Inventory, ServiceId, SessionId};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// A question for a service's inventory.
pub struct Ask {
    pub reply: oneshot::Sender<Inventory>,
}

/// The sessions that this manager holds.
#[derive(Default)]
pub struct Sessions {
    ports: Mutex<HashMap<ServiceId, (SessionId, mpsc::Sender<Ask>)>>,
}

impl Sessions {
    fn ports(&self) -> MutexGuard<'_, HashMap<ServiceId, (SessionId, mpsc::Sender<Ask>)>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `service` finds on its devices; none if this manager does not hold its session, or it does not answer.
    pub async fn inventory(&self, service: ServiceId, patience: Duration) -> Option<Inventory> {
        let port = self.ports().get(&service).map(|(_, port)| port.clone())?;
        let (reply, answer) = oneshot::channel();
        port.send(Ask { reply }).await.ok()?;
        tokio::time::timeout(patience, answer).await.ok()?.ok()
    }

    /// The sessions that are open here.
    pub fn all(&self) -> Vec<(ServiceId, SessionId)> {
        self.ports().iter().map(|(service, (session, _))| (*service, *session)).collect()
    }

    /// Takes questions to the service from now on.
    pub fn open(&self, service: ServiceId, session: SessionId) -> mpsc::Receiver<Ask> {
        let (port, asks) = mpsc::channel(4);
        // An older session of the same service loses its port, and ends.
        self.ports().insert(service, (session, port));
        asks
    }

    /// Takes none any more, unless a later session does.
    pub fn close(&self, service: ServiceId, session: SessionId) {
        let mut ports = self.ports();
        if ports.get(&service).is_some_and(|(held, _)| *held == session) {
            ports.remove(&service);
        }
    }
}
