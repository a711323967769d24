//! The members of one etcd cluster, and how requests find one that answers.
//!
//! Requests go to one member until it fails, then to the next: so a commit meets a member that answered a moment ago,
//! and a dead one costs a single detour. Spreading them over all members, as the client library would, meets the dead
//! one again and again.

use super::access::EtcdAccess;
use super::failure::Failure;
use crate::store::StoreError;
use etcd_client::{Client, ConnectOptions, KvClient, LeaseClient, WatchClient};
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

/// etcd takes more frequent pings than one in five seconds for an attack and hangs up.
const PING_EVERY: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two rounds over all endpoints.
const PAUSE: Duration = Duration::from_millis(100);

/// One member. Cloning shares its connection.
#[derive(Clone)]
pub(super) struct Endpoint {
    /// Its place among the endpoints, for [`Endpoints::leave`].
    pub place: usize,
    pub url: Arc<str>,
    pub kv: KvClient,
    pub watch: WatchClient,
    pub lease: LeaseClient,
    /// Shares its sign-in with the three above.
    client: Client,
    user: Option<(String, String)>,
    signed_in: Arc<AtomicBool>,
}

/// Whether a request whose outcome is not known may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// A second time does no harm.
    Harmless,
    Never,
}

pub(super) struct Endpoints {
    /// Never empty.
    all: Vec<Endpoint>,
    current: AtomicUsize,
    request_timeout: Duration,
}

impl Endpoint {
    async fn new(place: usize, url: &str, access: &EtcdAccess, connect_timeout: Duration) -> Result<Self, StoreError> {
        let options = ConnectOptions::new()
            .with_require_leader(true)
            .with_keep_alive(PING_EVERY, PING_TIMEOUT)
            .with_keep_alive_while_idle(false)
            .with_auto_token_refresh(true)
            .with_connect_timeout(connect_timeout);
        let client = Client::connect([url], Some(access.secure(url, options)?)).await;
        let client = client.map_err(|error| StoreError::Refused(format!("etcd endpoint '{url}': {error}")))?;
        Ok(Self {
            place,
            url: url.into(),
            // A page of large values and a watch that catches up exceed the default of 4 MiB, and a limit would make
            // them fail for good.
            kv: client.kv_client().max_decoding_message_size(usize::MAX),
            watch: client.watch_client().max_decoding_message_size(usize::MAX),
            lease: client.lease_client(),
            client,
            user: access.user.clone(),
            signed_in: Arc::default(),
        })
    }

    /// Signs in, where etcd asks for a user and this has not been done since it last forgot us.
    async fn sign_in(&mut self) -> Result<(), Failure> {
        if self.user.is_some() && !self.signed_in.load(Ordering::SeqCst) {
            self.client.update_user(self.user.clone()).await.map_err(|error| match Failure::from(error) {
                // Whatever was asked for has not been sent.
                Failure::Unknown(text) => Failure::NotDone(text),
                other => other,
            })?;
            self.signed_in.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Signs in first if need be.
    async fn ask<T, R>(mut self, request: impl FnOnce(Endpoint) -> R) -> Result<T, Failure>
    where
        R: Future<Output = Result<T, Failure>>,
    {
        self.sign_in().await?;
        let signed_in = self.signed_in.clone();
        let answer = request(self).await;
        if matches!(answer, Err(Failure::SignedOut(_))) {
            signed_in.store(false, Ordering::SeqCst);
        }
        answer
    }
}

impl Endpoints {
    /// Connects to whichever of `urls` answers `probe` first, within `connect_timeout`.
    pub async fn connect<F, R>(
        urls: &[String],
        access: &EtcdAccess,
        connect_timeout: Duration,
        request_timeout: Duration,
        probe: F,
    ) -> Result<Self, StoreError>
    where
        F: Fn(Endpoint) -> R + Clone + Send + 'static,
        R: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        if urls.is_empty() {
            return Err(StoreError::Refused("no etcd endpoint was given".into()));
        }
        let mut all = Vec::new();
        for (place, url) in urls.iter().enumerate() {
            all.push(Endpoint::new(place, url, access, connect_timeout).await?);
        }
        let deadline = Instant::now() + connect_timeout;
        let mut probes = JoinSet::new();
        for endpoint in all.iter().cloned() {
            let (place, probe) = (endpoint.place, probe.clone());
            probes.spawn(async move { (place, ask_until(deadline, endpoint, probe).await) });
        }
        let mut silent = BTreeMap::new();
        while let Some(joined) = probes.join_next().await {
            match joined {
                Ok((place, Ok(()))) => return Ok(Self { all, current: AtomicUsize::new(place), request_timeout }),
                Ok((place, Err(reason))) => drop(silent.insert(place, reason)),
                Err(error) => tracing::warn!(%error, "the probe of an etcd endpoint ended early"),
            }
        }
        let reason = |place| silent.get(&place).map_or("no answer", String::as_str);
        let list: Vec<_> =
            all.iter().map(|endpoint| format!("{} ({})", endpoint.url, reason(endpoint.place))).collect();
        Err(StoreError::Unavailable(format!("no etcd endpoint answers: {}", list.join(", "))))
    }

    /// The member at `place` failed: let the next requests go to another, unless they do already.
    pub fn leave(&self, place: usize) {
        let next = (place + 1) % self.all.len();
        let left = self.current.compare_exchange(place, next, Ordering::Relaxed, Ordering::Relaxed);
        if left.is_ok() && next != place {
            tracing::debug!(from = %self.all[place].url, to = %self.all[next].url, "leaving an etcd endpoint");
        }
    }

    /// Sends a request until it is answered, or until the request timeout. It is sent again only if it certainly did
    /// not happen, or if `repeat` says that this does no harm.
    pub async fn call<T, F, R>(&self, repeat: Repeat, request: F) -> Result<T, Failure>
    where
        F: Fn(Endpoint) -> R,
        R: Future<Output = Result<T, Failure>>,
    {
        let deadline = Instant::now() + self.request_timeout;
        let mut tries_left_in_round = self.all.len();
        loop {
            let endpoint = self.all[self.current.load(Ordering::Relaxed)].clone();
            let (place, url) = (endpoint.place, endpoint.url.clone());
            let left = deadline.saturating_duration_since(Instant::now());
            // A member that hangs must leave time for the others, where others may be asked.
            let share = match repeat {
                Repeat::Harmless => left / u32::try_from(tries_left_in_round).unwrap_or(u32::MAX),
                Repeat::Never => left,
            };
            let failure = match timeout(share, endpoint.ask(&request)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::Unknown("no answer in time".into()),
            };
            let failure = match failure {
                Failure::NotDone(text) => Failure::NotDone(format!("{url}: {text}")),
                Failure::Unknown(text) => Failure::Unknown(format!("{url}: {text}")),
                // Refused on arrival; the next try signs in again.
                Failure::SignedOut(text) => Failure::NotDone(format!("{url}: {text}")),
                answer => return Err(answer),
            };
            self.leave(place);
            if repeat == Repeat::Never && matches!(failure, Failure::Unknown(_)) {
                return Err(failure);
            }
            tries_left_in_round -= 1;
            if tries_left_in_round == 0 {
                tries_left_in_round = self.all.len();
                if timeout_at(deadline, sleep(PAUSE)).await.is_err() {
                    return Err(failure);
                }
            }
        }
    }
}

/// Asks one endpoint until it answers; at the deadline, says what was wrong last.
async fn ask_until<F, R>(deadline: Instant, endpoint: Endpoint, probe: F) -> Result<(), String>
where
    F: Fn(Endpoint) -> R + Clone,
    R: Future<Output = Result<(), Failure>>,
{
    let mut reason = "no answer".to_owned();
    loop {
        match timeout_at(deadline, endpoint.clone().ask(probe.clone())).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Failure::NotDone(text) | Failure::Unknown(text) | Failure::SignedOut(text))) => reason = text,
            Ok(Err(failure)) => return Err(failure.into_store_error().to_string()),
            Err(_) => return Err(reason),
        }
        if timeout_at(deadline, sleep(PAUSE)).await.is_err() {
            return Err(reason);
        }
    }
}
