//! The cluster's authority as this manager uses it: made where there is none, followed while it changes, and this
//! manager's own certificate by it.
//!
//! A manager's key lives in memory only: whoever reads the store can have a certificate at any time, so there is nothing
//! to keep. What other services get is in [`super::enrollment`].

use super::member::Member;
use super::plan;
use super::view::View;
use crate::model::{Addresses, CertificateRecord, Cluster, Service, ServiceId, Timestamp, Trust};
use crate::pki::{self, Authority, Bearer, Credentials, Keyring, PublicKey, Role, SigningKey, TrustedRoot};
use crate::runtime::Backoff;
use crate::store::{Compare, Key, Op, Revision, SharedStore, StoreError, Txn, encode};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How long to sleep at the most, for clocks that are set.
const PERIOD: Duration = Duration::from_secs(60);
/// A certificate is used for so long at least, however little of its root's life is left.
const SHORTEST_USE: Duration = Duration::from_secs(10);

/// The authority of a new cluster, as the operation that brings it into the store.
///
/// # Errors
/// If no key can be made, or it cannot be written.
pub fn found(cluster: &Cluster, now: Timestamp) -> Result<Op, super::refusal::Refusal> {
    let authority = Authority::create(cluster.meta.id, &cluster.meta.name, now)?;
    Ok(Op::Put { key: Key::authority(cluster.meta.id), value: encode(&authority)?, lease: None })
}

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum NoAuthority {
    #[error(transparent)]
    Pki(#[from] pki::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Gives a cluster that an older version made its authority; of several managers that do so at once one succeeds. The
/// view as it is then.
///
/// # Errors
/// If the store cannot be read or written, or no key can be made.
pub async fn ensure(store: &SharedStore, view: View, now: Timestamp) -> Result<View, NoAuthority> {
    let Some(cluster) = &view.cluster else { return Ok(view) };
    let key = Key::authority(cluster.meta.id);
    // One that cannot be read is not replaced: others may read it.
    if view.authority.is_some() || view.unreadable.contains_key(&key) {
        return Ok(view);
    }
    let authority = Authority::create(cluster.meta.id, &cluster.meta.name, now)?;
    let put = Op::Put { key: key.clone(), value: encode(&authority)?, lease: None };
    let compares = vec![Compare::Absent(key), Compare::Present(Key::cluster())];
    store.commit(Txn { compares, ops: vec![put] }).await?;
    Ok(View::load(store.list(&Key::root()).await?))
}

impl View {
    /// Whose certificates to believe now; none while there is no authority.
    pub fn trust(&self) -> Option<Trust> {
        let authority = &self.authority.as_ref()?.value;
        Some(Trust {
            roots: authority.trust().roots().iter().map(TrustedRoot::to_pem).collect(),
            revoked: self.revoked().clone(),
            signing: authority.ca().to_string(),
        })
    }
}

/// What this manager presents, and what follows from that.
pub struct Own {
    keyring: Keyring,
    service: ServiceId,
    names: BTreeSet<String>,
    issued: Option<Issued>,
    revoked: BTreeSet<Uuid>,
}

struct Issued {
    /// Of the authority that it was issued by or that was looked at since.
    revision: Revision,
    root: PublicKey,
    not_before: Timestamp,
    renew_at: Timestamp,
    /// Until it is in the store.
    unrecorded: Option<CertificateRecord>,
}

fn later(now: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_millis(now.as_millis().saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
}

impl Own {
    pub fn new(keyring: Keyring, service: ServiceId, address: &str) -> Self {
        let host_name = crate::host::host_name().unwrap_or_default();
        let names = plan::hosts(&Addresses { rpc: Some(address.into()), nbd: None }, &host_name);
        Self { keyring, service, names, issued: None, revoked: BTreeSet::new() }
    }

    /// Brings the keyring to what the view says.
    ///
    /// # Errors
    /// If no certificate can be issued.
    pub fn follow(&mut self, view: &View, now: Timestamp) -> Result<(), pki::Error> {
        if *view.revoked() != self.revoked {
            self.revoked.clone_from(view.revoked());
            self.keyring.revoke(self.revoked.clone());
        }
        let Some(held) = &view.authority else { return Ok(()) };
        // What it had is taken from it, and it gets nothing more.
        if view.get::<Service>(self.service).is_some_and(|own| own.meta.is_removed()) {
            return Ok(());
        }
        match &mut self.issued {
            // A clock that was ahead when it was issued made it worthless till then.
            Some(issued) if issued.root == held.value.ca() && (issued.not_before..issued.renew_at).contains(&now) => {
                if issued.revision != held.revision {
                    self.keyring.trust(held.value.trust())?;
                    issued.revision = held.revision;
                }
            }
            _ => self.issued = Some(self.issue(view, &held.value, held.revision, now)?),
        }
        Ok(())
    }

    fn issue(
        &self,
        view: &View,
        authority: &Authority,
        revision: Revision,
        now: Timestamp,
    ) -> Result<Issued, pki::Error> {
        let key = SigningKey::generate()?;
        let bearer = Bearer::service(authority.cluster(), Role::Manager, self.service);
        let names: Vec<String> = self.names.iter().cloned().collect();
        let issued = authority.issue(&key.request()?, &bearer, &names, now, plan::lifetime(view))?;
        let credentials = Credentials::new(key, &issued.chain_pem, authority.trust())?;
        // From now on: its life begins some minutes back, and a short one would be renewed for ever.
        let renew_at = pki::renew_at(now, issued.expires_at, fastrand::f64()).max(later(now, SHORTEST_USE));
        self.keyring.replace(credentials)?;
        tracing::info!(expires = %issued.expires_at, root = %authority.ca(), "this manager has a new certificate");
        let record = plan::record_of(authority, &issued, self.names.clone());
        Ok(Issued { revision, root: authority.ca(), not_before: issued.not_before, renew_at, unrecorded: Some(record) })
    }

    fn unrecorded(&self) -> Option<&CertificateRecord> {
        self.issued.as_ref()?.unrecorded.as_ref()
    }

    fn pause(&self, now: Timestamp) -> Duration {
        self.issued.as_ref().map_or(PERIOD, |issued| now.age(issued.renew_at).min(PERIOD))
    }
}

/// Follows authority and revocations, and keeps this manager's certificate fresh, for ever.
pub async fn serve(member: Arc<Member>, mut own: Own) {
    let mut changes = member.view.changes();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    loop {
        changes.mark_unchanged();
        let followed = own.follow(&member.view.read(), member.clock.wall());
        let pause = match followed {
            Err(error) => {
                tracing::error!(%error, "this manager cannot have a new certificate");
                backoff.next(fastrand::f64())
            }
            Ok(()) => match record(&member, &mut own).await {
                Err(error) => {
                    tracing::warn!(%error, "this manager's certificate is not on record yet");
                    backoff.next(fastrand::f64())
                }
                Ok(()) => {
                    backoff.reset();
                    own.pause(member.clock.wall()).max(Duration::from_millis(10))
                }
            },
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn record(member: &Member, own: &mut Own) -> Result<(), super::refusal::Refusal> {
    let Some(record) = own.unrecorded().cloned() else { return Ok(()) };
    let service = member.service;
    member.writer.write(move |draft| plan::record_certificate(draft, service, &record)).await?;
    if let Some(issued) = &mut own.issued {
        issued.unrecorded = None;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Client, ClientId, ClientRole, ClusterId, ClusterSpec, Meta};
    use crate::runtime::ManualClock;
    use crate::store::{Batch, Commit, EmbeddedStore, Entry, Event};

    fn cluster(now: Timestamp) -> Cluster {
        let meta = Meta::new(ClusterId::generate(), "old".parse().unwrap(), now);
        Cluster { meta, spec: ClusterSpec::default(), history: Default::default(), recovering: None }
    }

    #[tokio::test]
    async fn managers_that_find_a_cluster_without_an_authority_make_one_between_them() {
        let scratch = tempfile::tempdir().unwrap();
        let store: SharedStore = Arc::new(EmbeddedStore::open(&scratch.path().join("store")).unwrap());
        let now = Timestamp::from_millis(1_700_000_000_000);
        let put = Op::Put { key: Key::cluster(), value: encode(&cluster(now)).unwrap(), lease: None };
        let made = store.commit(Txn { compares: Vec::new(), ops: vec![put] }).await.unwrap();
        assert!(matches!(made, Commit::Done(_)));
        let look = async || View::load(store.list(&Key::root()).await.unwrap());
        let (first, second) = (look().await, look().await);
        let (first, second) = tokio::join!(ensure(&store, first, now), ensure(&store, second, now));
        let ca = |view: View| view.authority.unwrap().value.ca();
        assert_eq!(ca(first.unwrap()), ca(second.unwrap()));
    }

    #[tokio::test]
    async fn an_authority_that_cannot_be_read_is_not_replaced() {
        let scratch = tempfile::tempdir().unwrap();
        let store: SharedStore = Arc::new(EmbeddedStore::open(&scratch.path().join("store")).unwrap());
        let now = Timestamp::from_millis(1_700_000_000_000);
        let cluster = cluster(now);
        let key = Key::authority(cluster.meta.id);
        let ops = vec![
            Op::Put { key: Key::cluster(), value: encode(&cluster).unwrap(), lease: None },
            Op::Put { key: key.clone(), value: b"{}".to_vec(), lease: None },
        ];
        store.commit(Txn { compares: Vec::new(), ops }).await.unwrap();
        let view = View::load(store.list(&Key::root()).await.unwrap());
        assert!(ensure(&store, view, now).await.unwrap().authority.is_none());
        assert_eq!(store.get(&key).await.unwrap().unwrap().value, b"{}");
    }

    #[test]
    fn a_manager_renews_in_time_and_moves_to_the_root_that_signs() {
        let clock = Arc::new(ManualClock::new());
        let wall = || crate::runtime::Clock::wall(&*clock);
        let keyring = Keyring::empty(clock.clone());
        let mut own = Own::new(keyring.clone(), ServiceId::generate(), "127.0.0.1:1");
        let mut authority = Authority::create(ClusterId::generate(), &"c".parse().unwrap(), wall()).unwrap();
        let follow = |own: &mut Own, authority: &Authority, revision: i64| {
            let held =
                super::super::view::Versioned { value: Arc::new(authority.clone()), revision: Revision(revision) };
            let mut view = View::default();
            view.authority = Some(held);
            own.follow(&view, wall()).unwrap();
            keyring.credentials().unwrap()
        };
        let first = follow(&mut own, &authority, 1);
        assert_eq!(follow(&mut own, &authority, 1).expires_at(), first.expires_at(), "it is fresh");
        clock.advance(ClusterSpec::default().certificate_lifetime().mul_f64(0.81));
        let second = follow(&mut own, &authority, 1);
        assert!(second.expires_at() > first.expires_at());
        authority.begin_rotation(wall()).unwrap();
        let told = follow(&mut own, &authority, 2);
        assert_eq!((told.trust().roots().len(), told.chain_pem()), (2, second.chain_pem()), "the same certificate");
        authority.promote().unwrap();
        assert_ne!(follow(&mut own, &authority, 3).chain_pem(), second.chain_pem());
        let record = own.unrecorded().unwrap();
        assert_eq!(record.root, authority.ca().to_string());
    }

    #[test]
    fn a_certificate_of_the_shortest_life_is_fresh_for_half_of_it() {
        let clock = Arc::new(ManualClock::new());
        let wall = || crate::runtime::Clock::wall(&*clock);
        let keyring = Keyring::empty(clock.clone());
        let mut own = Own::new(keyring.clone(), ServiceId::generate(), "127.0.0.1:1");
        let mut cluster = cluster(wall());
        cluster.spec.certificate_lifetime_ms = 60_000;
        let authority = Authority::create(cluster.meta.id, &cluster.meta.name, wall()).unwrap();
        let mut view = View::default();
        let put = |key, value| Event::Put(Entry { key, value, revision: Revision(1), lease: None });
        let events = vec![
            put(Key::cluster(), encode(&cluster).unwrap()),
            put(Key::authority(cluster.meta.id), encode(&authority).unwrap()),
        ];
        view.apply(Batch { revision: Revision(1), events });
        let mut follow = || {
            own.follow(&view, wall()).unwrap();
            assert!(own.pause(wall()) > Duration::ZERO);
            keyring.credentials().unwrap().chain_pem()
        };
        let first = follow();
        clock.advance(Duration::from_secs(29));
        assert_eq!(follow(), first);
        clock.advance(Duration::from_secs(20));
        assert_ne!(follow(), first);
    }

    fn put(client: &Client, revision: i64) -> Event {
        let value = encode(client).unwrap();
        Event::Put(Entry { key: Key::client(client.meta.id), value, revision: Revision(revision), lease: None })
    }

    #[test]
    fn a_removed_client_is_revoked_for_as_long_as_its_record_stays() {
        let meta = Meta::new(ClientId::from_bytes([1; 16]), "c".parse().unwrap(), Timestamp::EPOCH);
        let certificate = CertificateRecord {
            public_key: String::new(),
            expires_at: Timestamp::EPOCH,
            root: String::new(),
            names: BTreeSet::new(),
        };
        let mut client = Client::new(meta, ClientRole::Data, certificate);
        let mut view = View::default();
        view.apply(Batch { revision: Revision(1), events: vec![put(&client, 1)] });
        assert!(view.revoked().is_empty());
        client.meta.bury(Timestamp::EPOCH);
        let touched = view.apply(Batch { revision: Revision(2), events: vec![put(&client, 2)] });
        assert!(touched.everybody && view.revoked().contains(&client.meta.id.as_uuid()));
        let gone = Event::Delete(Key::client(client.meta.id));
        view.apply(Batch { revision: Revision(3), events: vec![gone] });
        assert!(view.revoked().is_empty());
    }

    #[test]
    fn an_authority_that_cannot_be_read_is_named_without_its_text() {
        let mut view = View::default();
        let key = Key::authority(ClusterId::from_bytes([1; 16]));
        let value = br#"{"cluster":"secret-key-bytes"}"#.to_vec();
        let put = Entry { key: key.clone(), value, revision: Revision(1), lease: None };
        view.apply(Batch { revision: Revision(1), events: vec![Event::Put(put)] });
        assert!(view.unreadable.get(&key).is_some_and(|reason| !reason.contains("secret")));
        assert!(view.authority.is_none() && view.trust().is_none());
    }
}
