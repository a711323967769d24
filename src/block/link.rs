//! The one reconnect loop: finds a manager, opens a session, drives its sans-io core, and starts over when it ends.

use super::agent::Notice;
use super::keeper::{Certification, Word};
use super::worker::chain;
use crate::model::{Inventory, Report, ServiceId};
use crate::rpc::{DialError, Fault, FaultKind, Transport, dial_address, proto};
use crate::runtime::{Backoff, Shutdown};
use crate::session::{Downward, Ended, Greeting, ServiceAction, ServiceEvent, ServiceSide, Upward};
use futures_util::stream::{FuturesUnordered, StreamExt};
use proto::dispatcher_client::DispatcherClient;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Where the link stands, for `ctl` and for whoever waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Trying, and why the last try failed.
    Connecting(Option<String>),
    /// Trying, though a manager of the cluster does not know this service.
    Unknown(String),
    /// Through this manager.
    Connected(String),
    /// Not trying: the key is lost, and why.
    Keyless(String),
    /// Taken out of the cluster; the link has ended for good.
    Removed,
}

/// What a link needs to know and whom it tells.
pub struct Link {
    pub greeting: Greeting,
    pub managers: Vec<String>,
    /// Managers that are tried whatever was learned.
    pub seeds: Vec<String>,
    pub notices: mpsc::Sender<Notice>,
    pub state: watch::Sender<LinkState>,
    /// Told whenever the list of managers changes, so that it survives a restart.
    pub learned: mpsc::Sender<Vec<String>>,
    /// TLS by this service's certificate.
    pub transport: Transport,
    /// How things stand with that certificate; nobody is dialled without a good one.
    pub certification: watch::Receiver<Certification>,
    /// To whoever keeps the certificate.
    pub keeper: mpsc::Sender<Word>,
    /// The managers, for whoever else dials them.
    pub known: watch::Sender<Vec<String>>,
}

/// A session that lasted this long was a good one.
const LASTED: Duration = Duration::from_secs(1);

impl Link {
    /// Runs until the end is requested or the service is removed.
    pub async fn run(mut self, group: Shutdown) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut next = 0usize;
        while !group.is_requested() {
            let wanting = without_certificate(&self.certification.borrow_and_update());
            if let Some(state) = wanting {
                let removed = state == LinkState::Removed;
                self.state.send_replace(state);
                if removed {
                    return;
                }
                tokio::select! {
                    changed = self.certification.changed() => if changed.is_err() { return },
                    () = group.requested() => {}
                }
                continue;
            }
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
                        // One that fell silent would keep us waiting again.
                        let silent = matches!(ended, Ended::Silence(_));
                        next = usize::from(silent || began.elapsed() < LASTED);
                        if began.elapsed() >= LASTED {
                            backoff.reset();
                        }
                    } else {
                        tracing::info!(%manager, reason = %ended, "no session yet");
                    }
                    let reason = format!("{manager}: {ended}");
                    self.state.send_replace(match ended {
                        Ended::Unknown(_) => LinkState::Unknown(reason),
                        _ => LinkState::Connecting(Some(reason)),
                    });
                }
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next(fastrand::f64())) => {}
                // Another certificate may be what it takes.
                Ok(()) = self.certification.changed() => {}
                () = group.requested() => {}
            }
        }
    }

    /// One session with one manager, from dialling to its end.
    async fn session(&mut self, manager: &str, group: &Shutdown) -> Ended {
        let (outbound, messages) = mpsc::channel(64);
        let opened = async {
            let channel = dial_address(manager, &self.transport).await.map_err(Broken::Dial)?;
            let mut client = DispatcherClient::new(channel).max_decoding_message_size(crate::rpc::MAX_MESSAGE);
            let stream = client.session(ReceiverStream::new(messages)).await;
            stream.map(tonic::Response::into_inner).map_err(|status| Broken::Call(status.into()))
        };
        let inbound = tokio::select! {
            opened = opened => match opened {
                Ok(inbound) => inbound,
                Err(broken) => return self.ended(broken).await,
            },
            () = group.requested() => return Ended::Goodbye,
        };
        let (uplink, reports) = mpsc::unbounded_channel();
        let (core, first) = ServiceSide::begin(self.greeting.clone(), Instant::now());
        let mut driver = Driver {
            link: self,
            core,
            outbound,
            uplink: Some(uplink),
            manager,
            inventories: FuturesUnordered::new(),
            leaving: false,
        };
        driver.run(first, inbound, reports, group).await
    }

    /// Why there is no session; the keeper hears of it if it is about the certificate.
    async fn ended(&self, broken: Broken) -> Ended {
        match broken {
            Broken::Dial(error) => {
                let refused = matches!(error, DialError::Refused { .. });
                if refused && self.keeper.send(Word::Refused).await.is_err() {
                    tracing::debug!("nobody keeps the certificate any more");
                }
                Ended::Refused(chain(&error))
            }
            Broken::Call(Fault { kind: FaultKind::NotFound, message }) => Ended::Unknown(message),
            Broken::Call(fault) => Ended::Refused(fault.message),
        }
    }
}

/// How a session came to nothing: on the way to the manager, or by its word.
enum Broken {
    Dial(DialError),
    Call(Fault),
}

/// Behind the manager that holds the session, the others in an order of this service's own: the services of a manager that
/// dies spread over those that are left.
fn spread(service: ServiceId, managers: &mut [String]) {
    let weight = |manager: &String| {
        let mut hasher = DefaultHasher::new();
        (service, manager).hash(&mut hasher);
        hasher.finish()
    };
    if let Some((_holder, others)) = managers.split_first_mut() {
        others.sort_by_cached_key(weight);
    }
}

/// The state of a link that has nothing to show, if so.
fn without_certificate(certification: &Certification) -> Option<LinkState> {
    match certification {
        Certification::Good(_) => None,
        Certification::Wanting(reason) => Some(LinkState::Connecting(Some(reason.clone()))),
        Certification::Keyless(reason) => Some(LinkState::Keyless(reason.clone())),
        Certification::Removed => Some(LinkState::Removed),
    }
}

struct Driver<'l> {
    link: &'l mut Link,
    core: ServiceSide,
    outbound: mpsc::Sender<proto::ServiceMessage>,
    /// Handed to the agent once the session is open.
    uplink: Option<mpsc::UnboundedSender<Vec<Report>>>,
    manager: &'l str,
    /// Looks at the devices that are under way.
    inventories: FuturesUnordered<Taking>,
    leaving: bool,
}

type Taking = Pin<Box<dyn Future<Output = (u64, Option<Inventory>)> + Send>>;

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
                    Err(status) => return self.link.ended(Broken::Call(status.into())).await,
                },
                Some(fresh) = reports.recv() => ServiceEvent::Report(fresh),
                Some((nonce, found)) = self.inventories.next() => match found {
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
                ServiceAction::Opened => {
                    tracing::info!(manager = %self.manager, "connected");
                    self.link.state.send_replace(LinkState::Connected(self.manager.to_owned()));
                    self.tell_keeper(Word::Connected).await?;
                }
                ServiceAction::Remember(mark) => {
                    self.link.greeting.mark = mark;
                    self.notify(Notice::Remember(mark)).await?;
                }
                ServiceAction::Learn { managers } => self.learn(managers).await?,
                ServiceAction::Believe(trust) => self.tell_keeper(Word::Believe(trust)).await?,
                ServiceAction::Replace(set) => self.assign(Notice::Replace(set)).await?,
                ServiceAction::Apply(changes) => self.assign(Notice::Apply(changes)).await?,
                ServiceAction::TakeInventory { nonce } => {
                    let (reply, answer) = oneshot::channel();
                    self.inventories.push(Box::pin(async move { (nonce, answer.await.ok()) }));
                    self.notify(Notice::TakeInventory(reply)).await?;
                }
                ServiceAction::End(ended) => return Err(ended),
            }
        }
        Ok(())
    }

    async fn send(&mut self, message: Upward) -> Result<(), Ended> {
        let closed = || Ended::Refused("the manager closed the session".into());
        self.outbound.send(message.into()).await.map_err(|_| closed())
    }

    async fn tell_keeper(&mut self, word: Word) -> Result<(), Ended> {
        self.link.keeper.send(word).await.map_err(|_| Ended::Refused("this service stops".into()))
    }

    async fn notify(&mut self, notice: Notice) -> Result<(), Ended> {
        self.link.notices.send(notice).await.map_err(|_| Ended::Refused("this service stops".into()))
    }

    /// Hands assignments over; after the first ones, the agent reports into this session.
    async fn assign(&mut self, notice: Notice) -> Result<(), Ended> {
        self.notify(notice).await?;
        match self.uplink.take() {
            Some(uplink) => self.notify(Notice::Connected(uplink)).await,
            None => Ok(()),
        }
    }

    async fn learn(&mut self, mut managers: Vec<String>) -> Result<(), Ended> {
        if managers.is_empty() {
            // The last one is leaving; it may come back where it was.
            return Ok(());
        }
        spread(self.link.greeting.service, &mut managers);
        for seed in &self.link.seeds {
            if !managers.contains(seed) {
                managers.push(seed.clone());
            }
        }
        if managers != self.link.managers {
            self.link.managers.clone_from(&managers);
            self.link.known.send_replace(managers.clone());
            self.link.learned.send(managers).await.map_err(|_| Ended::Refused("this service stops".into()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_services_of_a_manager_that_dies_spread_over_the_others() {
        let addresses: Vec<String> = (0..4).map(|number| format!("m{number}:1")).collect();
        let mut second = std::collections::BTreeMap::new();
        for id in 0..=255u8 {
            let mut managers = addresses.clone();
            spread(ServiceId::from_bytes([id; 16]), &mut managers);
            assert_eq!(managers[0], addresses[0], "who holds the session stays first");
            *second.entry(managers[1].clone()).or_insert(0) += 1;
            let mut again = addresses.clone();
            spread(ServiceId::from_bytes([id; 16]), &mut again);
            assert_eq!(again, managers);
        }
        assert!(second.len() == 3 && second.values().all(|count| *count > 40), "{second:?}");
    }
}
