//! The one reconnect loop: finds a manager, opens a session, drives its sans-io core, and starts over when it ends.

use super::agent::Notice;
use super::worker::chain;
use crate::model::{Inventory, Report};
use crate::rpc::{Fault, dial_address, proto};
use crate::runtime::{Backoff, Shutdown};
use crate::session::{Downward, Ended, Greeting, ServiceAction, ServiceEvent, ServiceSide, Upward};
use proto::dispatcher_client::DispatcherClient;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Where the link stands, for `ctl` and for whoever waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Trying, and why the last try failed.
    Connecting(Option<String>),
    /// Through this manager.
    Connected(String),
    /// Taken out of the cluster; the link has ended for good.
    Removed,
}

/// What a link needs to know and whom it tells.
pub struct Link {
    pub greeting: Greeting,
    pub managers: Vec<String>,
    pub notices: mpsc::Sender<Notice>,
    pub state: watch::Sender<LinkState>,
    /// Told whenever the list of managers changes, so that it survives a restart.
    pub learned: mpsc::Sender<Vec<String>>,
}

impl Link {
    /// Runs until the end is requested or the service is removed.
    pub async fn run(mut self, group: Shutdown) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut next = 0usize;
        while !group.is_requested() {
            let Some(manager) = self.managers.get(next % self.managers.len().max(1)).cloned() else {
                tracing::error!("no manager is known");
                return;
            };
            next = next.wrapping_add(1);
            let began = Instant::now();
            match self.session(&manager, &group).await {
                Ended::Removed => {
                    self.state.send_replace(LinkState::Removed);
                    return;
                }
                ended => {
                    if matches!(*self.state.borrow(), LinkState::Connected(_)) {
                        tracing::warn!(%manager, reason = %ended, "the session ended");
                        // The list may have changed order: the manager that held the session comes first in it.
                        next = usize::from(began.elapsed() < Duration::from_secs(1));
                        backoff.reset();
                    } else {
                        tracing::info!(%manager, reason = %ended, "no session yet");
                    }
                    self.state.send_replace(LinkState::Connecting(Some(format!("{manager}: {ended}"))));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next(fastrand::f64())) => {}
                () = group.requested() => {}
            }
        }
    }

    /// One session with one manager, from dialling to its end.
    async fn session(&mut self, manager: &str, group: &Shutdown) -> Ended {
        let (outbound, messages) = mpsc::channel(64);
        let opened = async {
            let channel = dial_address(manager).await.map_err(|error| chain(&error))?;
            let mut client = DispatcherClient::new(channel).max_decoding_message_size(crate::rpc::MAX_MESSAGE);
            let stream = client.session(ReceiverStream::new(messages)).await;
            stream.map(tonic::Response::into_inner).map_err(|status| Fault::from(status).message)
        };
        let inbound = tokio::select! {
            opened = opened => match opened {
                Ok(inbound) => inbound,
                Err(reason) => return Ended::Refused(reason),
            },
            () = group.requested() => return Ended::Goodbye,
        };
        let (uplink, reports) = mpsc::unbounded_channel();
        let (core, first) = ServiceSide::begin(self.greeting.clone(), Instant::now());
        let mut driver =
            Driver { link: self, core, outbound, uplink: Some(uplink), manager, inventory: None, leaving: false };
        driver.run(first, inbound, reports, group).await
    }
}

struct Driver<'l> {
    link: &'l mut Link,
    core: ServiceSide,
    outbound: mpsc::Sender<proto::ServiceMessage>,
    /// Handed to the agent once the session is open.
    uplink: Option<mpsc::UnboundedSender<Vec<Report>>>,
    manager: &'l str,
    inventory: Option<(u64, oneshot::Receiver<Inventory>)>,
    leaving: bool,
}

async fn taken(inventory: &mut Option<(u64, oneshot::Receiver<Inventory>)>) -> (u64, Option<Inventory>) {
    match inventory {
        Some((nonce, receiver)) => {
            let (nonce, found) = (*nonce, receiver.await.ok());
            *inventory = None;
            (nonce, found)
        }
        None => std::future::pending().await,
    }
}

impl Driver<'_> {
    async fn run(
        &mut self,
        first: Vec<ServiceAction>,
        mut inbound: Streaming<proto::ManagerMessage>,
        mut reports: mpsc::UnboundedReceiver<Vec<Report>>,
        group: &Shutdown,
    ) -> Ended {
        if let Err(ended) = self.perform(first).await {
            return ended;
        }
        loop {
            let deadline = self.core.deadline();
            let event = tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(message)) => match Downward::try_from(message) {
                        Ok(message) => ServiceEvent::Received(message),
                        Err(malformed) => return Ended::Protocol(malformed.to_string()),
                    },
                    Ok(None) => return Ended::Refused("the manager closed the session".into()),
                    Err(status) => return Ended::Refused(Fault::from(status).message),
                },
                Some(fresh) = reports.recv() => ServiceEvent::Report(fresh),
                (nonce, found) = taken(&mut self.inventory) => match found {
                    Some(inventory) => ServiceEvent::Inventory { nonce, inventory },
                    None => continue,
                },
                () = tokio::time::sleep_until(deadline.into()) => ServiceEvent::Tick,
                () = group.requested(), if !self.leaving => {
                    self.leaving = true;
                    ServiceEvent::Leave
                }
            };
            let actions = self.core.handle(event, Instant::now());
            if let Err(ended) = self.perform(actions).await {
                return ended;
            }
        }
    }

    async fn perform(&mut self, actions: Vec<ServiceAction>) -> Result<(), Ended> {
        for action in actions {
            match action {
                ServiceAction::Send(message) => self.send(message).await?,
                ServiceAction::Opened { managers } => self.opened(managers).await?,
                ServiceAction::Replace(set) => {
                    self.notify(Notice::Replace(set)).await?;
                    if let Some(uplink) = self.uplink.take() {
                        self.notify(Notice::Connected(uplink)).await?;
                    }
                }
                ServiceAction::Apply(changes) => self.notify(Notice::Apply(changes)).await?,
                ServiceAction::TakeInventory { nonce } => {
                    let (reply, answer) = oneshot::channel();
                    self.inventory = Some((nonce, answer));
                    self.notify(Notice::TakeInventory(reply)).await?;
                }
                ServiceAction::End(ended) => return Err(ended),
            }
        }
        Ok(())
    }

    async fn send(&self, message: Upward) -> Result<(), Ended> {
        let closed = || Ended::Refused("the manager closed the session".into());
        self.outbound.send(message.into()).await.map_err(|_| closed())
    }

    async fn notify(&self, notice: Notice) -> Result<(), Ended> {
        self.link.notices.send(notice).await.map_err(|_| Ended::Refused("this service stops".into()))
    }

    async fn opened(&mut self, managers: Vec<String>) -> Result<(), Ended> {
        tracing::info!(manager = %self.manager, "connected");
        self.link.state.send_replace(LinkState::Connected(self.manager.to_owned()));
        if !managers.is_empty() && managers != self.link.managers {
            self.link.managers.clone_from(&managers);
            self.link.learned.send(managers).await.map_err(|_| Ended::Refused("this service stops".into()))?;
        }
        Ok(())
    }
}
