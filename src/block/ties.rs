//! What ties a member to its cluster: the link to a manager, and the keeper of the certificate that it shows there.

use super::agent::Notice;
use super::keeper::{Certification, Keeper, Subject};
use super::link::{Link, LinkState};
use super::tls_dir::TlsDir;
use crate::model::{Addresses, Mark, Membership, ServiceId};
use crate::pki::{Bearer, Keyring, Role};
use crate::rpc::Transport;
use crate::runtime::{Clock, Shutdown, VERSION};
use crate::session::Greeting;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// A member, and by what it proves that it is one.
pub struct Member<'m> {
    pub service: ServiceId,
    pub membership: &'m Membership,
    pub host_name: String,
    pub addresses: Addresses,
    /// How far the state had come when it was last told of it.
    pub mark: Mark,
    /// Managers to try first, whatever was learned.
    pub seeds: Vec<String>,
    pub tls: TlsDir,
    pub keyring: Keyring,
    /// TLS to managers by the keyring.
    pub client: Arc<rustls::ClientConfig>,
    pub clock: Arc<dyn Clock>,
    /// To whoever holds what is assigned.
    pub notices: mpsc::Sender<Notice>,
}

/// The member's ends of its ties.
pub struct Ties {
    /// Managers, whenever the list has changed.
    pub learned: mpsc::Receiver<Vec<String>>,
    pub link: watch::Receiver<LinkState>,
    pub certification: watch::Receiver<Certification>,
}

impl Member<'_> {
    /// Starts link and keeper in `group`.
    pub fn tie(self, group: &Shutdown) -> Ties {
        let cluster = self.membership.cluster;
        let (tell, learned) = mpsc::channel(4);
        let state = watch::Sender::new(LinkState::Connecting(None));
        let link = state.subscribe();
        let managers: Vec<String> = self.seeds.iter().chain(&self.membership.managers).cloned().collect();
        let (known, to_ask) = watch::channel(managers.clone());
        let subject = Subject {
            bearer: Bearer::service(cluster, Role::Block, self.service),
            host_name: self.host_name.clone(),
            addresses: self.addresses.clone(),
        };
        let (keeper, certification) = Keeper::begin(subject, self.tls, self.keyring, self.clock, to_ask);
        let (words, overheard) = mpsc::channel(16);
        let runs = Link {
            transport: Transport::Tls(self.client),
            certification: certification.clone(),
            keeper: words,
            known,
            greeting: Greeting {
                service: self.service,
                cluster,
                host_name: self.host_name,
                addresses: self.addresses,
                version: VERSION.into(),
                mark: self.mark,
            },
            managers,
            seeds: self.seeds,
            notices: self.notices,
            state,
            learned: tell,
        };
        let ends = group.clone();
        group.spawn(async move { runs.run(ends).await });
        group.spawn(keeper.run(overheard, group.clone()));
        Ties { learned, link, certification }
    }
}
