//! Connections that are up when their certificates lose their worth.

use super::*;
use crate::pki::Presented;
use crate::runtime::ManualClock;
use tonic_health::pb::HealthCheckResponse;

/// A stream that stays open, as sessions do.
async fn watch(channel: Channel) -> tonic::Streaming<HealthCheckResponse> {
    let mut stream = HealthClient::new(channel).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    stream
}

/// Waits until the server ends the stream; a test that hangs here has found a peer that stays.
async fn ends(stream: &mut tonic::Streaming<HealthCheckResponse>) {
    let ended = stream.message().await;
    assert!(ended.is_err(), "{ended:?}");
}

#[tokio::test]
async fn revoking_a_bearer_ends_its_open_sessions_and_nobody_else_s() {
    let cluster = Cluster::new();
    let manager = cluster.keyring(Role::Manager);
    let host = Host::serve(manager.clone(), Limits::default()).await;
    let (first, second) = (cluster.keyring(Role::Block), cluster.keyring(Role::Block));
    let mut doomed = watch(host.dial_as(&first).await.unwrap()).await;
    let spared = host.dial_as(&second).await.unwrap();
    manager.revoke([first.bearer().unwrap().id].into());
    ends(&mut doomed).await;
    is_well(spared).await.unwrap();
}

#[test]
fn a_call_right_after_a_revocation_is_refused_even_before_the_connection_ends() {
    let cluster = Cluster::new();
    let (manager, bearer) = (cluster.keyring(Role::Manager), cluster.bearer(Role::Admin));
    let peer = |expires_at| {
        let presented = Presented { bearer, expires_at };
        Peer::certified("10.0.0.1:1".into(), presented, manager.clone())
    };
    let now = SystemClock.wall().as_millis();
    let (yesterday, tomorrow) = (now - 86_400_000, now + 86_400_000);
    assert!(peer(Timestamp::from_millis(yesterday)).dismissed().unwrap().to_string().contains("expired"));
    let peer = peer(Timestamp::from_millis(tomorrow));
    assert_eq!(peer.dismissed(), None);
    manager.revoke([bearer.id].into());
    assert!(peer.dismissed().unwrap().to_string().contains("was revoked"));
}

#[tokio::test]
async fn a_certificate_that_expires_ends_the_connections_it_opened() {
    let clock = Arc::new(ManualClock::new());
    let now = clock.wall();
    let cluster = Cluster::made(now);
    let keyring =
        |role, lifetime| Keyring::new(cluster.credentials(cluster.bearer(role), now, lifetime), clock.clone()).unwrap();
    let host = Host::serve(keyring(Role::Manager, DAY * 10), Limits::default()).await;
    let mut session = watch(host.dial_as(&keyring(Role::Block, DAY)).await.unwrap()).await;
    clock.advance(DAY * 2);
    ends(&mut session).await;
}

#[tokio::test]
async fn who_is_thrown_out_of_the_cluster_itself_serves_no_members_any_more() {
    let cluster = Cluster::new();
    let manager = cluster.keyring(Role::Manager);
    let host = Host::serve(manager.clone(), Limits::default()).await;
    let mut session = watch(host.dial_as(&cluster.keyring(Role::Block)).await.unwrap()).await;
    manager.forget();
    ends(&mut session).await;
}
