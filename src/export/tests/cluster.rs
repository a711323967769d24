//! A cluster's authority for tests, and certificates of all kinds from it.

use crate::model::{ClusterId, Timestamp};
use crate::pki::{Authority, Bearer, Credentials, Keyring, Role, SigningKey, TrustBundle};
use crate::runtime::{Clock, ManualClock, SystemClock};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

pub const DAY: Duration = Duration::from_secs(24 * 3600);

pub struct Cluster {
    pub id: ClusterId,
    pub authority: Authority,
}

impl Cluster {
    pub fn new() -> Self {
        Self::of(ClusterId::generate(), SystemClock.wall())
    }

    pub fn of(id: ClusterId, now: Timestamp) -> Self {
        let authority = Authority::create(id, &"prod".parse().expect("a name"), now).expect("an authority");
        Self { id, authority }
    }

    pub fn issue_at(&self, role: Role, id: Uuid, now: Timestamp, lifetime: Duration) -> Credentials {
        let key = SigningKey::generate().expect("a key");
        let bearer = Bearer { cluster: self.id, role, id };
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let issued = self.authority.issue(&key.request().expect("a request"), &bearer, &names, now, lifetime);
        let chain = issued.expect("a certificate").chain_pem;
        Credentials::new(key, &chain, self.authority.trust()).expect("credentials")
    }

    pub fn issue(&self, role: Role, id: Uuid) -> Credentials {
        self.issue_at(role, id, SystemClock.wall(), DAY)
    }

    pub fn keyring(&self, role: Role, id: Uuid) -> Keyring {
        Keyring::new(self.issue(role, id), Arc::new(SystemClock)).expect("a keyring")
    }

    /// A client that was let in long ago, and whose clock has stood still since.
    pub fn sleeper(&self, id: Uuid) -> Keyring {
        let clock = Arc::new(ManualClock::new());
        let credentials = self.issue_at(Role::Data, id, clock.wall(), Duration::from_secs(3600));
        Keyring::new(credentials, clock).expect("a keyring")
    }

    /// A client who signed its certificate itself.
    pub fn impostor(&self, id: Uuid) -> Keyring {
        let key = SigningKey::generate().expect("a key");
        let pair = rcgen::KeyPair::from_pem(&key.to_pem()).expect("the same key");
        let bearer = Bearer { cluster: self.id, role: Role::Data, id };
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(bearer.to_string().try_into().expect("an URI"))];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let chain = params.self_signed(&pair).expect("a certificate").pem();
        Self::holding(Credentials::new(key, &chain, self.authority.trust()).expect("credentials"))
    }

    /// Who believes `trust`, and shows what another authority for a cluster of the same id issued.
    pub fn stranger(&self, trust: TrustBundle, id: Uuid) -> Keyring {
        Self::holding(self.issue(Role::Data, id).believing(trust))
    }

    fn holding(credentials: Credentials) -> Keyring {
        Keyring::new(credentials, Arc::new(SystemClock)).expect("a keyring")
    }
}
