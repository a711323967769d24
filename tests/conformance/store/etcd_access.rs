//! Getting in to an etcd that asks who is there: TLS, client certificates, users.

use crate::support::etcd::{Etcd, EtcdSetup, EtcdTls};
use std::path::PathBuf;
use std::time::Duration;
use symphony::model::{ClusterId, ServiceId};
use symphony::pki::{Authority, Bearer, Role, SigningKey};
use symphony::runtime::{Clock, SystemClock};
use symphony::store::{Commit, EtcdAccess, EtcdOptions, EtcdStore, Key, Op, Store, StoreError, Txn};
use tempfile::TempDir;

/// An authority of our own, as somebody who runs etcd would have one.
struct Office {
    directory: TempDir,
    authority: Authority,
}

impl Office {
    fn open() -> Self {
        let now = SystemClock.wall();
        let authority = Authority::create(ClusterId::generate(), &"etcd".parse().unwrap(), now).expect("an authority");
        let office = Self { directory: TempDir::new().expect("a directory"), authority };
        office.file("ca.pem", office.authority.trust().to_pem().as_bytes());
        office
    }

    fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, contents).expect("a file");
        path
    }

    /// A certificate for this host, and its key.
    fn issue(&self) -> (Vec<u8>, Vec<u8>) {
        let key = SigningKey::generate().expect("a key");
        let bearer = Bearer::service(self.authority.cluster(), Role::Manager, ServiceId::generate());
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let request = key.request().expect("a request");
        let lifetime = Duration::from_secs(3600);
        let issued =
            self.authority.issue(&request, &bearer, &names, SystemClock.wall(), lifetime).expect("a certificate");
        (issued.chain_pem.into_bytes(), key.to_pem().as_bytes().to_vec())
    }

    fn ca(&self) -> Vec<u8> {
        std::fs::read(self.directory.path().join("ca.pem")).expect("the authority's certificate")
    }

    fn tls(&self, client_ca: Option<PathBuf>) -> EtcdTls {
        let (cert, key) = self.issue();
        let access = EtcdAccess { ca: Some(self.ca()), identity: Some(self.issue()), user: None };
        EtcdTls { cert: self.file("etcd.pem", &cert), key: self.file("etcd.key", &key), client_ca, access }
    }
}

async fn connect(etcd: &Etcd, access: EtcdAccess) -> Result<EtcdStore, StoreError> {
    let options = EtcdOptions { access, connect_timeout: Duration::from_secs(2), ..EtcdOptions::default() };
    EtcdStore::connect(&etcd.endpoints(), options).await
}

fn write(key: &str) -> Txn {
    Txn { compares: vec![], ops: vec![Op::Put { key: Key::raw(key), value: b"x".to_vec(), lease: None }] }
}

#[tokio::test]
async fn etcd_over_tls_lets_in_whom_its_authority_signed_and_is_known_by_its_own() {
    let (office, stranger) = (Office::open(), Office::open());
    let client_ca = office.directory.path().join("ca.pem");
    let tls = office.tls(Some(client_ca));
    let access = tls.access.clone();
    let etcd = Etcd::start_with(1, EtcdSetup { tls: Some(tls), ..EtcdSetup::default() }).await;

    let store = connect(&etcd, access.clone()).await.expect("a certificate gets in");
    assert!(matches!(store.commit(write("/a")).await, Ok(Commit::Done(_))));
    let mut watch = store.watch(&Key::raw("/"), symphony::store::Revision(1)).await.expect("a watch");
    assert!(tokio_stream::StreamExt::next(&mut watch).await.expect("an event").is_ok());

    let without = EtcdAccess { identity: None, ..access.clone() };
    assert!(connect(&etcd, without).await.is_err(), "a client without a certificate is kept out");
    let foreign = EtcdAccess { identity: Some(stranger.issue()), ..access.clone() };
    assert!(connect(&etcd, foreign).await.is_err(), "another authority's certificate is worth nothing");
    let deceived = EtcdAccess { ca: Some(stranger.ca()), ..access };
    let error = connect(&etcd, deceived).await.err().expect("an etcd that another authority signed is not believed");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
}

/// Users, and their one role that may do everything.
async fn ask_for_users(etcd: &Etcd, password: &str) {
    let mut client = etcd_client::Client::connect(etcd.endpoints(), None).await.expect("connect");
    client.user_add("root", password, None).await.expect("a user");
    client.role_add("root").await.expect("a role");
    client.user_grant_role("root", "root").await.expect("a grant");
    client.auth_enable().await.expect("users are asked for from here on");
}

fn user(password: &str) -> EtcdAccess {
    EtcdAccess { user: Some(("root".into(), password.into())), ..EtcdAccess::default() }
}

#[tokio::test]
async fn a_user_signs_in_and_signs_in_again_when_etcd_has_forgotten() {
    let etcd = Etcd::start(3).await;
    ask_for_users(&etcd, "hunter2").await;
    let error = connect(&etcd, user("wrong")).await.err().expect("a wrong password keeps out");
    assert!(error.to_string().contains("authentication failed"), "{error}");
    assert!(connect(&etcd, EtcdAccess::default()).await.is_err(), "nobody gets in without a name");

    // A member that is down is no obstacle to signing in at the others, once these have a leader again.
    etcd.kill(0);
    let store = EtcdStore::connect(&etcd.endpoints(), patient()).await.expect("the password gets in");
    assert!(matches!(store.commit(write("/a")).await, Ok(Commit::Done(_))));
    etcd.restart(0);
    wait_for_member(&etcd, 0).await;

    // Tokens live in the members' memory.
    for place in 0..3 {
        etcd.kill(place);
        etcd.restart(place);
        wait_for_member(&etcd, place).await;
    }
    let lease = store.grant(Duration::from_secs(60)).await.expect("a lease, signed in anew");
    store.keep_alive(lease).await.expect("keep alive");
    loop {
        match store.commit(write("/b")).await {
            Ok(Commit::Done(_)) => break,
            other => assert!(other.as_ref().is_err_and(StoreError::retryable), "{other:?}"),
        }
    }
    assert!(store.get(&Key::raw("/b")).await.expect("get").is_some());
}

/// Until the member answers those who sign in.
async fn wait_for_member(etcd: &Etcd, place: usize) {
    let endpoint = etcd.endpoints().swap_remove(place);
    EtcdStore::connect(&[endpoint], patient()).await.expect("the member comes back");
}

/// For one who may sign in, if he waits long enough.
fn patient() -> EtcdOptions {
    EtcdOptions { access: user("hunter2"), connect_timeout: Duration::from_secs(60), ..EtcdOptions::default() }
}
