//! The one task that keeps this service's certificate good: it renews it in time, takes over whom the cluster believes,
//! writes both to disk and lets the running listeners and diallers have them through the keyring. Nothing restarts.
//!
//! ```text
//!   link ──what managers say──▶ keeper ──▶ tls/*.pem
//!                                │  ▲
//!                      keyring ◀─┘  └── errand: Renew, through any manager
//! ```
//!
//! What cannot be written is used all the same: the next start finds the older certificate, or renews it by the key.
//!
//! Known limits: which bearers are revoked is not kept on disk; after a restart it is known with the first session.

mod errand;
mod renewal;
#[cfg(test)]
mod tests;

use super::tls_dir::{Holding, TlsDir, TlsError};
use super::worker::chain;
use crate::model::{Addresses, Trust};
use crate::pki::{Bearer, Keyring, PublicKey, Role, SigningKey, TrustBundle, visiting_client_config};
use crate::rpc::{ALPN, Transport};
use crate::runtime::{Clock, Shutdown};
use errand::{Answer, Errand};
use renewal::{Life, Reason, Renewal};
use rustls::pki_types::ServerName;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How often files that are missing are looked for again.
const RELOAD: Duration = Duration::from_secs(5);

/// What the keeper is told by the link.
#[derive(Clone, Debug)]
pub enum Word {
    /// A session is open.
    Connected,
    /// Whom to believe from now on.
    Believe(Trust),
    /// A manager does not take the certificate.
    Refused,
}

/// How things stand with the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certification {
    /// It is good; and why it could not be renewed, if that was tried.
    Good(Option<String>),
    /// There is none that is good, and why; it is being asked for.
    Wanting(String),
    /// There is no key: this service cannot prove who it is.
    Keyless(String),
    /// Taken out of the cluster, as a manager says.
    Removed,
}

/// Whose certificate it is, and for what.
pub struct Subject {
    pub bearer: Bearer,
    pub host_name: String,
    pub addresses: Addresses,
}

pub struct Keeper {
    subject: Subject,
    dir: TlsDir,
    keyring: Keyring,
    clock: Arc<dyn Clock>,
    holding: Result<Holding, TlsError>,
    renewal: Renewal,
    /// Why the last attempt failed.
    failure: Option<String>,
    /// Whom to believe, said while an attempt was under way: its answer may be older.
    overtaking: Option<Trust>,
    managers: watch::Receiver<Vec<String>>,
    state: watch::Sender<Certification>,
}

type Attempt = Pin<Box<dyn Future<Output = Result<Answer, String>> + Send>>;

enum Step {
    Told(Word),
    Answered(Result<Answer, String>),
    Waited,
    Stop,
}

impl Keeper {
    /// Reads the files and fills the keyring from them.
    pub fn begin(
        subject: Subject,
        dir: TlsDir,
        keyring: Keyring,
        clock: Arc<dyn Clock>,
        managers: watch::Receiver<Vec<String>>,
    ) -> (Self, watch::Receiver<Certification>) {
        let (state, certification) = watch::channel(Certification::Wanting("it was not looked for yet".into()));
        let holding = dir.load(subject.bearer);
        let renewal = Renewal::new(fastrand::f64());
        let mut keeper =
            Self { subject, dir, keyring, clock, holding, renewal, failure: None, overtaking: None, managers, state };
        keeper.take_holding();
        (keeper, certification)
    }

    /// Runs until the end is requested or a manager says that the service was removed.
    pub async fn run(mut self, mut words: mpsc::Receiver<Word>, group: Shutdown) {
        let mut attempt: Option<Attempt> = None;
        loop {
            let wait = self.wait();
            let step = tokio::select! {
                Some(word) = words.recv() => Step::Told(word),
                answer = under_way(&mut attempt) => Step::Answered(answer),
                () = tokio::time::sleep(wait), if attempt.is_none() => Step::Waited,
                () = group.requested() => Step::Stop,
            };
            match step {
                Step::Told(word) => {
                    if let (Word::Believe(trust), Some(_)) = (&word, &attempt) {
                        self.overtaking = Some(trust.clone());
                    }
                    self.take_word(word).await;
                }
                Step::Answered(answer) => {
                    attempt = None;
                    if self.take_answer(answer).await {
                        return;
                    }
                }
                Step::Waited => attempt = self.next_attempt(),
                Step::Stop => return,
            }
            self.publish();
        }
    }

    fn wait(&self) -> Duration {
        match &self.holding {
            Ok(holding) => self.renewal.wait(life_of(holding), self.clock.wall(), self.clock.now()),
            // Whoever puts the missing file back need not restart anything.
            Err(_) => RELOAD,
        }
    }

    /// What is due, if anything is: a look for the files, or an attempt.
    fn next_attempt(&mut self) -> Option<Attempt> {
        if let Err(before) = &self.holding {
            let before = chain(before);
            self.holding = self.dir.load(self.subject.bearer);
            // What is as it was needs no second word.
            if self.holding.as_ref().err().is_none_or(|error| chain(error) != before) {
                self.take_holding();
            }
        }
        let holding = self.holding.as_ref().ok()?;
        if !self.renewal.is_due(life_of(holding), self.clock.wall(), self.clock.now()) {
            return None;
        }
        tracing::info!(reason = ?self.renewal.reason(), "renewing the certificate");
        match self.transport(holding) {
            Ok(transport) => {
                let errand = Errand {
                    managers: self.managers.borrow().clone(),
                    transport,
                    bearer: self.subject.bearer,
                    key: key_of(holding).clone(),
                    addresses: self.subject.addresses.clone(),
                };
                Some(Box::pin(errand.run()))
            }
            Err(error) => {
                self.fail(chain(&error));
                None
            }
        }
    }

    /// With the certificate while there is one that may please, else without.
    fn transport(&self, holding: &Holding) -> Result<Transport, crate::pki::Error> {
        let config = match holding {
            Holding::Whole(credentials) if !self.renewal.is_visiting() && !credentials.expired(self.clock.wall()) => {
                self.keyring.client_config(&[Role::Manager], ALPN)
            }
            holding => {
                let cluster = self.subject.bearer.cluster;
                visiting_client_config(cluster, trust_of(holding), ALPN, self.clock.clone())
            }
        };
        config.map(Transport::Tls)
    }

    /// What was loaded or issued is what handshakes use from now on.
    fn take_holding(&mut self) {
        match &self.holding {
            Ok(Holding::Whole(credentials)) => {
                if let Err(error) = self.keyring.replace(credentials.clone()) {
                    tracing::error!(error = %chain(&error), "the certificate cannot be used");
                }
            }
            Ok(Holding::Bare { .. }) => self.renewal.ask(Reason::Lost, self.clock.wall()),
            Err(error) => tracing::error!(error = %chain(error), "this service cannot prove who it is"),
        }
        self.publish();
    }

    /// True if that was the last: the service was removed.
    async fn take_answer(&mut self, answer: Result<Answer, String>) -> bool {
        match answer {
            Ok(Answer::Certified(credentials)) => {
                tracing::info!(expires_at = %credentials.expires_at(), "the certificate was renewed");
                let (dir, written) = (self.dir.clone(), credentials.clone());
                write("the certificate", move || dir.save(&written)).await;
                self.holding = Ok(Holding::Whole(credentials));
                self.renewal.succeeded(self.clock.wall(), fastrand::f64());
                self.failure = None;
                self.take_holding();
                if let Some(trust) = self.overtaking.take() {
                    self.believe(trust).await;
                }
                false
            }
            Ok(Answer::Removed) => {
                self.state.send_replace(Certification::Removed);
                true
            }
            Err(reason) => {
                self.overtaking = None;
                self.fail(reason);
                false
            }
        }
    }

    fn fail(&mut self, reason: String) {
        tracing::warn!(%reason, "the certificate could not be renewed");
        self.failure = Some(reason);
        self.renewal.failed(self.clock.now(), fastrand::f64());
    }

    async fn take_word(&mut self, word: Word) {
        let wall = self.clock.wall();
        match word {
            Word::Refused => self.renewal.ask(Reason::Refused, wall),
            Word::Connected => {
                if let Ok(Holding::Whole(credentials)) = &self.holding
                    && let Some(name) = self.subject.name_missing_in(&credentials.host_names())
                {
                    tracing::info!(%name, "the certificate does not have a name of this host");
                    self.renewal.ask(Reason::Names, wall);
                }
            }
            Word::Believe(trust) => self.believe(trust).await,
        }
    }

    async fn believe(&mut self, trust: Trust) {
        self.keyring.revoke(trust.revoked);
        let roots = match TrustBundle::from_pem(&trust.roots.concat()) {
            Ok(roots) => roots,
            Err(error) => {
                tracing::error!(error = %chain(&error), "a manager names roots that make no sense; the old ones stay");
                return;
            }
        };
        let Ok(holding) = &mut self.holding else { return };
        if *trust_of(holding) != roots {
            tracing::info!(roots = roots.roots().len(), "the cluster's roots have changed");
            let (dir, written) = (self.dir.clone(), roots.clone());
            write("the roots", move || dir.save_roots(&written)).await;
            match holding {
                Holding::Whole(credentials) => *credentials = credentials.believing(roots),
                Holding::Bare { trust, .. } => *trust = roots,
            }
            self.take_holding();
        }
        let signing = trust.signing.parse::<PublicKey>();
        if let Ok(Holding::Whole(credentials)) = &self.holding
            && signing.is_ok_and(|signing| credentials.signed_by() != Some(signing))
        {
            self.renewal.ask(Reason::OtherRoot, self.clock.wall());
        }
    }

    fn publish(&self) {
        let because = |what: String| match &self.failure {
            Some(failure) => format!("{what}; no manager has given a new one yet: {failure}"),
            None => format!("{what}; a new one is being asked for"),
        };
        let certification = match &self.holding {
            Err(error) if error.is_loss_of_key() => Certification::Keyless(chain(error)),
            Err(error) => Certification::Wanting(chain(error)),
            Ok(Holding::Bare { .. }) => Certification::Wanting(because("the certificate is lost".into())),
            Ok(Holding::Whole(credentials)) if credentials.expired(self.clock.wall()) => {
                Certification::Wanting(because(format!("the certificate expired at {}", credentials.expires_at())))
            }
            Ok(Holding::Whole(_)) => Certification::Good(self.failure.clone()),
        };
        self.state.send_if_modified(|state| {
            let changed = *state != certification && *state != Certification::Removed;
            if changed {
                *state = certification;
            }
            changed
        });
    }
}

impl Subject {
    /// A name of this host, or an address that others are told, that is not among `certified`, if there is one.
    fn name_missing_in(&self, certified: &[String]) -> Option<String> {
        let told = [&self.addresses.rpc, &self.addresses.nbd].into_iter().flatten().map(|address| host_of(address));
        let mut names = told.chain([self.host_name.as_str()]);
        // What can stand in no certificate is not missed in one.
        names
            .find(|name| ServerName::try_from(*name).is_ok() && !certified.iter().any(|it| same_host(it, name)))
            .map(str::to_owned)
    }
}

fn same_host(one: &str, other: &str) -> bool {
    match (one.parse::<IpAddr>(), other.parse::<IpAddr>()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one.eq_ignore_ascii_case(other.strip_suffix('.').unwrap_or(other)),
    }
}

/// The host of `host:port`, an IPv6 address without its brackets.
fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

async fn under_way(attempt: &mut Option<Attempt>) -> Result<Answer, String> {
    match attempt {
        Some(attempt) => attempt.await,
        None => std::future::pending().await,
    }
}

fn key_of(holding: &Holding) -> &SigningKey {
    match holding {
        Holding::Whole(credentials) => credentials.key(),
        Holding::Bare { key, .. } => key,
    }
}

fn trust_of(holding: &Holding) -> &TrustBundle {
    match holding {
        Holding::Whole(credentials) => credentials.trust(),
        Holding::Bare { trust, .. } => trust,
    }
}

fn life_of(holding: &Holding) -> Option<Life> {
    match holding {
        Holding::Whole(it) => Some(Life { not_before: it.not_before(), expires_at: it.expires_at() }),
        Holding::Bare { .. } => None,
    }
}

async fn write(what: &str, write: impl FnOnce() -> Result<(), TlsError> + Send + 'static) {
    match tokio::task::spawn_blocking(write).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(error = %chain(&error), "cannot keep {what}; in use it is all the same"),
        Err(error) => tracing::error!(%error, "keeping {what} panicked"),
    }
}
