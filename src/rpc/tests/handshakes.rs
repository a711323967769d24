//! Who gets in over TLS and who does not, and what those who do not are told.

use super::*;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

#[tokio::test]
async fn one_port_serves_local_peers_members_and_joiners_and_knows_them_apart() {
    let cluster = Cluster::new();
    let host = Host::serve(cluster.keyring(Role::Manager), Limits::default()).await;
    let local = join(host.dial(&Transport::Plain).await.unwrap()).await.unwrap();
    assert!(local.starts_with("local "), "{local}");

    let joiner = host.dial(&anonymous(&cluster)).await.unwrap();
    assert_eq!(join(joiner).await.unwrap(), "anonymous");

    let member = host.dial_as(&cluster.keyring(Role::Block)).await.unwrap();
    is_well(member.clone()).await.unwrap();
    let refused = join(member).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("Join is for local peers"), "{refused}");
}

#[tokio::test]
async fn a_plain_peer_that_is_not_local_is_told_why_on_every_call() {
    let host = Host::admitting(strangers(), Cluster::new().keyring(Role::Manager), Limits::default()).await;
    let channel = host.dial(&Transport::Plain).await.unwrap();
    let refused = is_well(channel.clone()).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "not from here"));
    assert_eq!(code(join(channel).await), Code::PermissionDenied);
}

#[tokio::test]
async fn a_server_that_is_no_member_yet_says_so_to_tls_peers_and_serves_plain_ones() {
    let cluster = Cluster::new();
    let keyring = Keyring::empty(Arc::new(SystemClock));
    let host = Host::serve(keyring.clone(), Limits::default()).await;
    let block = cluster.keyring(Role::Block);
    let error = host.dial_as(&block).await.unwrap_err();
    // Whoever is refused asks for another certificate, which a manager that only starts gives no reason for.
    assert!(matches!(error, DialError::Bare { .. }) && error.is_refusal(), "{error:?}");
    assert!(text(error).contains("manager init"), "the user learns what to do");
    is_well(host.dial(&Transport::Plain).await.unwrap()).await.unwrap();

    // Its certificate comes while it runs.
    let bearer = cluster.bearer(Role::Manager);
    keyring.replace(cluster.credentials(bearer, SystemClock.wall(), DAY)).unwrap();
    is_well(host.dial_as(&block).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_certificate_of_another_cluster_is_refused_on_both_sides() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let host = Host::serve(ours.keyring(Role::Manager), Limits::default()).await;
    let error = host.dial_as(&theirs.keyring(Role::Admin)).await.unwrap_err();
    assert!(matches!(error, DialError::Server { .. }), "{error:?}");
    assert!(text(error).contains("another cluster"));

    // Who accepts our server all the same, and shows it a certificate of another cluster.
    let foreign = theirs.keyring(Role::Admin).credentials().unwrap();
    let error = host.dial(&shameless(&ours, &foreign)).await.unwrap_err();
    assert!(matches!(error, DialError::Refused { .. }), "{error:?}");
    assert!(text(error).contains("another cluster"));
}

/// Accepts the managers of `cluster` and shows them these credentials, whatever an honest keyring would say to that.
fn shameless(cluster: &Cluster, credentials: &Credentials) -> Transport {
    let Transport::Tls(config) = anonymous(cluster) else { panic!("TLS was asked for") };
    let certificates = pem::parse_many(credentials.chain_pem()).unwrap();
    let chain = certificates.into_iter().map(|block| CertificateDer::from(block.into_contents())).collect();
    let key = pem::parse(credentials.key().to_pem().as_bytes()).unwrap().into_contents();
    let key = rustls::crypto::ring::sign::any_ecdsa_type(&PrivatePkcs8KeyDer::from(key).into()).unwrap();
    let mut config = (*config).clone();
    config.client_auth_cert_resolver = Arc::new(Shameless(Arc::new(CertifiedKey::new(chain, key))));
    Transport::Tls(Arc::new(config))
}

#[derive(Debug)]
struct Shameless(Arc<CertifiedKey>);

impl rustls::client::ResolvesClientCert for Shameless {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_self_signed_certificate_is_refused() {
    let ours = Cluster::new();
    let host = Host::serve(ours.keyring(Role::Manager), Limits::default()).await;
    // It names a bearer of our cluster, and signed itself.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    let bearer = ours.bearer(Role::Admin).to_string();
    params.subject_alt_names = vec![rcgen::SanType::URI(bearer.try_into().unwrap())];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let chain = params.self_signed(&key).unwrap().pem();
    let key = SigningKey::from_pem(&key.serialize_pem()).unwrap();
    let credentials = Credentials::new(key, &chain, ours.0.trust()).unwrap();
    let keyring = Keyring::new(credentials, Arc::new(SystemClock)).unwrap();
    let error = host.dial_as(&keyring).await.unwrap_err();
    assert!(matches!(error, DialError::Refused { .. }), "{error:?}");
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_and_its_bearer_learns_it() {
    let cluster = Cluster::new();
    let manager = cluster.keyring(Role::Manager);
    let host = Host::serve(manager.clone(), Limits::default()).await;
    let block = cluster.keyring(Role::Block);
    is_well(host.dial_as(&block).await.unwrap()).await.unwrap();
    manager.revoke([block.bearer().unwrap().id].into());
    let error = host.dial_as(&block).await.unwrap_err();
    assert!(error.is_refusal() && text(error).contains("was revoked"));
}

fn long_ago() -> Timestamp {
    Timestamp::from_millis(SystemClock.wall().as_millis() - 2 * DAY.as_millis() as u64)
}

#[tokio::test]
async fn an_expired_certificate_is_refused_and_without_it_its_bearer_is_nobody() {
    let cluster = Cluster::new();
    let host = Host::serve(cluster.keyring(Role::Manager), Limits::default()).await;
    let expired = cluster.credentials(cluster.bearer(Role::Block), long_ago(), DAY);
    let keyring = Keyring::new(expired.clone(), Arc::new(SystemClock)).unwrap();
    // Honest: shows nothing, and may renew.
    assert_eq!(join(host.dial_as(&keyring).await.unwrap()).await.unwrap(), "anonymous");

    let error = host.dial(&shameless(&cluster, &expired)).await.unwrap_err();
    assert!(matches!(error, DialError::Refused { .. }), "{error:?}");
    assert!(text(error).contains("expired"));
}

#[tokio::test]
async fn a_server_with_an_expired_certificate_is_not_trusted() {
    let cluster = Cluster::new();
    let expired = cluster.credentials(cluster.bearer(Role::Manager), long_ago(), DAY);
    let host = Host::serve(Keyring::new(expired, Arc::new(SystemClock)).unwrap(), Limits::default()).await;
    let error = host.dial_as(&cluster.keyring(Role::Block)).await.unwrap_err();
    assert!(matches!(error, DialError::Server { .. }), "{error:?}");
    assert!(text(error).contains("expired"));
}

#[tokio::test]
async fn a_server_in_another_role_is_not_trusted() {
    let cluster = Cluster::new();
    let host = Host::serve(cluster.keyring(Role::Block), Limits::default()).await;
    let error = host.dial_as(&cluster.keyring(Role::Admin)).await.unwrap_err();
    assert!(text(error).contains("expected was manager"));
}

#[tokio::test]
async fn something_that_speaks_no_tls_is_called_by_its_name() {
    use tokio::io::AsyncWriteExt;
    let listener = tokio::net::TcpListener::bind(LOOPBACK).await.unwrap();
    let host = Host { address: listener.local_addr().unwrap() };
    tokio::spawn(async move {
        let (mut peer, _) = listener.accept().await.unwrap();
        peer.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n").await.unwrap();
        std::future::pending::<()>().await;
    });
    let error = host.dial_as(&Cluster::new().keyring(Role::Admin)).await.unwrap_err();
    assert!(matches!(error, DialError::NotTls { .. }), "{error:?}");
}
