//! Becoming a member: from a manager's address, and a token where the manager is not on this host, to an identity and
//! its certificate on disk. The order of what is written stands in [`tls_dir`](super::tls_dir).

use super::tls_dir::{TlsDir, TlsError};
use super::worker::chain;
use crate::host::{load_document, put_aside, save_document, take_back};
use crate::model::{Addresses, Identity, Membership, ServiceId, ServiceType};
use crate::pki::{
    Bearer, Credentials, JoinToken, Recognition, Role, SigningKey, TrustBundle, TrustedRoot, joining_client_config,
};
use crate::rpc::{ALPN, DialError, Fault, FaultKind, MANAGER_PORT, Transport, dial_address, proto, with_default_port};
use crate::runtime::{Clock, VERSION};
use proto::enrollment_client::EnrollmentClient;
use std::path::PathBuf;
use std::sync::Arc;
use tonic::transport::Channel;

/// How to come by what is missing.
const NEEDS_TOKEN: &str = "A manager on another host asks for a token: make one on a manager's host with \
    `symphony ctl --socket=<its control.sock> manager token create`, and give it to `symphony ctl … block init \
    HOST:PORT --token TOKEN`";

/// Who asks to become a member.
pub struct Applicant {
    /// Where the identity is kept.
    pub identity: PathBuf,
    pub tls: TlsDir,
    pub host_name: String,
    pub addresses: Addresses,
    pub clock: Arc<dyn Clock>,
    /// Join a cluster only that is being made of what is on disks.
    pub to_recovering: bool,
}

/// Under what an applicant asks: on disk before it is used.
struct Candidacy {
    identity: Identity,
    key: SigningKey,
    /// From an init that was cut off.
    found: bool,
}

/// A manager that answers, and what a token's handshake recognised it by.
pub struct Door {
    address: String,
    client: EnrollmentClient<Channel>,
    recognition: Option<Recognition>,
}

/// Reads a join token.
///
/// # Errors
/// INVALID, with what is wrong with it; no part of it is repeated.
pub fn parse_token(text: &str) -> Result<JoinToken, Fault> {
    text.parse().map_err(|error: crate::pki::ParseTokenError| Fault::new(FaultKind::Invalid, error.to_string()))
}

impl Applicant {
    /// Joins the cluster of the manager behind the door; the identity as it now stands on disk, a member's.
    ///
    /// # Errors
    /// In words for the operator. What was begun can be begun again.
    pub async fn join(&self, mut door: Door, token: Option<&JoinToken>) -> Result<Identity, Fault> {
        let candidacy = self.candidacy()?;
        match self.ask(&mut door, &candidacy, token).await {
            Ok(answer) => self.settle(candidacy, &door, answer),
            // The id of an init that was cut off may have been removed since: it has had its life.
            Err(fault) if fault.kind == FaultKind::Denied && candidacy.found => {
                self.join_anew(&mut door, candidacy.identity.service, token).await
            }
            Err(fault) => Err(fault),
        }
    }

    /// Once more under a new id and key. If that is refused as well, it was not the id: the old one is taken up again.
    async fn join_anew(&self, door: &mut Door, old: ServiceId, token: Option<&JoinToken>) -> Result<Identity, Fault> {
        let identity = put_aside(&self.identity, "refused").map_err(|error| internal(&error))?;
        let tls = self.tls.put_aside("refused").map_err(|error| internal(&error))?;
        tracing::info!(service = %old, "asking again under a new id");
        let fresh = self.candidacy()?;
        match self.ask(door, &fresh, token).await {
            Ok(answer) => self.settle(fresh, door, answer),
            Err(fault) => {
                // The key before the id: cut off in between, the new id goes on with a key that it may well have.
                tls.map_or(Ok(()), |tls| self.tls.take_back(&tls)).map_err(|error| internal(&error))?;
                take_back(&identity, &self.identity).map_err(|error| internal(&error))?;
                Err(fault)
            }
        }
    }

    /// Finds the manager at `address`, by the root that the token names if there is one. Nothing is told or written yet.
    ///
    /// # Errors
    /// If nobody answers there, or not the cluster that the token is for.
    pub async fn open(&self, address: &str, token: Option<&JoinToken>) -> Result<Door, Fault> {
        let address = with_default_port(address, MANAGER_PORT);
        let unavailable = |error: DialError| Fault::new(FaultKind::Unavailable, chain(&error));
        let Some(token) = token else {
            let channel = dial_address(&address, &Transport::Plain).await.map_err(|error| match error {
                DialError::Stranger { .. } => {
                    Fault::new(FaultKind::Denied, format!("{}. {NEEDS_TOKEN}", chain(&error)))
                }
                other => unavailable(other),
            })?;
            return Ok(Door { address, client: EnrollmentClient::new(channel), recognition: None });
        };
        let config = joining_client_config(token.ca, ALPN, self.clock.clone());
        let (config, recognition) = config.map_err(|error| internal(&error))?;
        let channel = dial_address(&address, &Transport::Tls(config)).await.map_err(|error| match error {
            DialError::Server { address, reason } => {
                let text = format!(
                    "the manager at {address} is not one of the cluster that the token is for, so the token was not \
                     shown to it: take a token of its own cluster, or the address of another manager ({reason})"
                );
                Fault::new(FaultKind::Denied, text)
            }
            other => unavailable(other),
        })?;
        Ok(Door { address, client: EnrollmentClient::new(channel), recognition: Some(recognition) })
    }

    async fn ask(
        &self,
        door: &mut Door,
        candidacy: &Candidacy,
        token: Option<&JoinToken>,
    ) -> Result<proto::JoinResponse, Fault> {
        let request = proto::JoinRequest {
            service_id: candidacy.identity.service.to_string(),
            r#type: proto::ServiceType::Block.into(),
            host_name: self.host_name.clone(),
            addresses: Some((&self.addresses).into()),
            version: VERSION.into(),
            token: token.map(|token| proto::TokenProof {
                id: token.id.to_string(),
                secret: token.secret.reveal().iter().map(|byte| format!("{byte:02x}")).collect(),
            }),
            certificate_request: candidacy.key.request().map_err(|error| internal(&error))?,
        };
        door.client.join(request).await.map(tonic::Response::into_inner).map_err(|status| {
            let mut fault = Fault::from(status);
            if fault.kind == FaultKind::Denied && token.is_none() {
                fault.message = format!("{}. {NEEDS_TOKEN}", fault.message.trim_end_matches('.'));
            }
            fault
        })
    }

    /// Takes the manager's answer over, certificate first.
    fn settle(&self, candidacy: Candidacy, door: &Door, answer: proto::JoinResponse) -> Result<Identity, Fault> {
        let Candidacy { mut identity, key, .. } = candidacy;
        if self.to_recovering && !answer.recovering {
            let text = format!(
                "cluster '{}' is not recovering, so it would not take over what this service has: begin with `symphony ctl … \
                 manager recover` on an empty store; nothing has changed here",
                answer.cluster_name
            );
            return Err(Fault::new(FaultKind::Precondition, text));
        }
        let cluster = answer.cluster_id.parse().map_err(|error: crate::model::ParseIdError| nonsense(error))?;
        let cluster_name = answer.cluster_name.parse().map_err(|error: crate::model::NameError| nonsense(error))?;
        let bearer = Bearer::service(cluster, Role::Block, identity.service);
        let credentials = credentials_of(key, answer.certificate, bearer)?;
        if let Some(recognised) = door.recognition.as_ref().map(Recognition::get) {
            let same = |root: &TrustedRoot| credentials.trust().contains(&root.public_key());
            if !recognised.is_some_and(|it| it.manager.cluster == cluster && same(&it.root)) {
                return Err(nonsense("it speaks for another cluster than the token"));
            }
        }
        let mut managers = answer.managers;
        if !managers.contains(&door.address) {
            managers.insert(0, door.address.clone());
        }
        self.tls.save(&credentials).map_err(|error| internal(&error))?;
        identity.membership = Some(Membership { cluster, cluster_name, managers });
        save_document(&self.identity, &identity).map_err(|error| internal(&error))?;
        Ok(identity)
    }

    /// What to ask with: that of an init that was cut off, else new.
    fn candidacy(&self) -> Result<Candidacy, Fault> {
        let kept = load_document::<Identity>(&self.identity).map_err(|error| internal(&error))?;
        let found = kept.is_some();
        let identity = match kept {
            Some(identity) => identity,
            None => {
                // Without an identity beside it, a key is what a removal left that was cut off.
                self.tls.put_aside("removed").map_err(|error| internal(&error))?;
                let identity = Identity::candidate(ServiceType::Block);
                save_document(&self.identity, &identity).map_err(|error| internal(&error))?;
                identity
            }
        };
        let key = match self.tls.ensure_key() {
            // As long as the service is no member, a new key costs at most a new id.
            Err(TlsError::KeyDamaged { .. }) => self.tls.put_aside("damaged").and_then(|_| self.tls.ensure_key()),
            made => made,
        };
        let key = key.map_err(|error| internal(&error))?;
        Ok(Candidacy { identity, key, found })
    }
}

/// What a manager issued to `bearer`, put together with its key.
///
/// # Errors
/// INTERNAL if it is not that.
pub fn credentials_of(
    key: SigningKey,
    issued: Option<proto::Certificate>,
    bearer: Bearer,
) -> Result<Credentials, Fault> {
    let issued = issued.ok_or_else(|| nonsense("it holds no certificate"))?;
    let trust = TrustBundle::from_pem(&issued.roots.concat()).map_err(nonsense)?;
    let credentials = Credentials::new(key, &issued.chain, trust).map_err(nonsense)?;
    match credentials.bearer() == bearer {
        true => Ok(credentials),
        false => Err(nonsense(format!("its certificate is for {}, not for {bearer}", credentials.bearer()))),
    }
}

fn nonsense(reason: impl std::fmt::Display) -> Fault {
    Fault::new(FaultKind::Internal, format!("the manager's answer makes no sense: {reason}"))
}

fn internal(error: &(dyn std::error::Error + 'static)) -> Fault {
    Fault::new(FaultKind::Internal, chain(error))
}

#[cfg(test)]
mod tests;
