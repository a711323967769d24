use super::*;
use std::collections::BTreeSet;

#[test]
fn members_meet_and_know_each_other() {
    let stage = Stage::new();
    let manager = stage.keyring(Role::Manager);
    for role in Role::ALL {
        let caller = stage.keyring(role);
        assert_eq!(meet(&caller, &manager), Ok(Ok(caller.bearer().unwrap())), "{role}");
    }
}

#[test]
fn an_anonymous_client_is_let_through_only_where_that_is_allowed() {
    let stage = Stage::new();
    let manager = stage.keyring(Role::Manager);
    let anonymous = || stage.joiner(stage.authority.ca()).0;
    assert_eq!(handshake(anonymous(), server(&manager, Clients::Optional)), Ok(Err(PeerError::Absent)));
    let refused = handshake(anonymous(), server(&manager, Clients::Required));
    assert_eq!(refused, Err(rustls::Error::NoCertificatesPresented));
}

#[test]
fn a_server_whose_certificate_has_expired_is_refused() {
    let stage = Stage::new();
    let manager = stage.keyring(Role::Manager);
    stage.clock.advance(DAY / 2);
    let block = stage.keyring(Role::Block);
    assert!(meet(&block, &manager).is_ok());
    stage.clock.advance(DAY / 2 + Duration::from_secs(1));
    assert!(reason(meet(&block, &manager)).contains("certificate expired"));
}

#[test]
fn a_client_whose_certificate_has_expired_is_refused_although_it_presents_it() {
    let stage = Stage::new();
    let manager = stage.keyring(Role::Manager);
    // The client's own clock stands still, so that it goes on presenting the certificate.
    let slow = Arc::new(ManualClock::new());
    let block = Keyring::new(stage.issue(stage.bearer(Role::Block)), slow).unwrap();
    let caller = presenting(&stage, block);
    assert!(handshake(caller.clone(), server(&manager, Clients::Optional)).is_ok());
    stage.clock.advance(DAY / 2);
    manager.replace(stage.issue(stage.bearer(Role::Manager))).unwrap();
    stage.clock.advance(DAY / 2 + Duration::from_secs(1));
    for clients in [Clients::Required, Clients::Optional] {
        let outcome = handshake(caller.clone(), server(&manager, clients));
        assert!(reason(outcome).contains("certificate expired"), "{clients:?}");
    }
}

/// A client that believes any manager of the stage, and presents what `keyring` holds.
fn presenting(stage: &Stage, keyring: Keyring) -> Arc<ClientConfig> {
    let mut config = (*stage.joiner(stage.authority.ca()).0).clone();
    config.client_auth_cert_resolver = Arc::new(verify::OwnCertificate(keyring));
    Arc::new(config)
}

#[test]
fn a_client_that_slept_past_expiry_comes_back_anonymous_and_proves_its_key() {
    let stage = Stage::new();
    let block = stage.keyring(Role::Block);
    stage.clock.advance(DAY * 30);
    let manager = stage.keyring(Role::Manager);
    let outcome = handshake(client(&block, &[Role::Manager]), server(&manager, Clients::Optional));
    assert_eq!(outcome, Ok(Err(PeerError::Absent)));
    let key = block.credentials().unwrap().key().clone();
    assert_eq!(verify_request(&key.request().unwrap()), Ok(key.public_key()));
}

#[test]
fn a_certificate_that_is_not_yet_valid_is_refused() {
    let stage = Stage::new();
    let early = Arc::new(ManualClock::new());
    let block = Keyring::new(stage.issue(stage.bearer(Role::Block)), early.clone()).unwrap();
    stage.clock.advance(Duration::from_secs(4 * 60));
    let soon = Keyring::new(stage.issue(stage.bearer(Role::Manager)), early.clone()).unwrap();
    assert!(meet(&block, &soon).is_ok(), "clocks may disagree by some minutes");
    stage.clock.advance(DAY);
    let later = Keyring::new(stage.issue(stage.bearer(Role::Manager)), early).unwrap();
    assert!(reason(meet(&block, &later)).contains("not valid yet"));
    assert!(reason(meet(&later, &block)).contains("not valid yet"));
}

#[test]
fn members_of_another_cluster_are_strangers() {
    let (ours, theirs) = (Stage::new(), Stage::new());
    let manager = ours.keyring(Role::Manager);
    let stranger = theirs.keyring(Role::Block);
    assert!(reason(meet(&stranger, &manager)).contains("UnknownIssuer"));
    // One who believes our roots as well gets as far as showing its own certificate.
    stranger.trust(ours.authority.trust()).unwrap();
    assert!(reason(meet(&stranger, &manager)).contains("another cluster"), "the client refuses our manager");
}

#[test]
fn a_bearer_of_another_cluster_is_refused_even_under_our_root() {
    let stage = Stage::new();
    let manager = stage.keyring(Role::Manager);
    let foreign = Bearer { cluster: ClusterId::generate(), ..stage.bearer(Role::Block) };
    let forged = Stage { clock: stage.clock.clone(), authority: claiming(&stage.authority, foreign.cluster) };
    let block = forged.keyring_of(forged.issue(foreign));
    let to_block = handshake(client(&manager, &[Role::Block]), server(&block, Clients::Required));
    assert!(reason(to_block).contains("of another cluster"), "as a server");
    let to_manager = handshake(presenting(&stage, block), server(&manager, Clients::Optional));
    assert!(reason(to_manager).contains("of another cluster"), "as a client");
}

/// The same root, said to be that of another cluster.
fn claiming(authority: &Authority, cluster: ClusterId) -> Authority {
    let mut json = serde_json::to_value(authority).unwrap();
    json["cluster"] = cluster.to_string().into();
    serde_json::from_value(json).unwrap()
}

#[test]
fn a_server_in_another_role_is_refused() {
    let stage = Stage::new();
    let (manager, block) = (stage.keyring(Role::Manager), stage.keyring(Role::Block));
    let outcome = handshake(client(&block, &[Role::Manager]), server(&block, Clients::Required));
    assert!(reason(outcome).contains("the peer is a block, expected was manager"));
    assert!(handshake(client(&block, &[Role::Manager]), server(&manager, Clients::Required)).is_ok());
}

#[test]
fn a_client_certificate_serves_nobody() {
    let stage = Stage::new();
    let manager = stage.keyring(Role::Manager);
    for role in [Role::Admin, Role::Viewer, Role::Data] {
        let server = server(&stage.keyring(role), Clients::Required);
        assert!(reason(handshake(client(&manager, &Role::ALL), server)).contains("extended key usage"), "{role}");
    }
}

#[test]
fn who_is_revoked_is_refused_on_either_side_and_learns_it() {
    let stage = Stage::new();
    let (manager, block) = (stage.keyring(Role::Manager), stage.keyring(Role::Block));
    let bearer = block.bearer().unwrap();
    assert_eq!(manager.refuses(&bearer), None);
    manager.revoke(BTreeSet::from([bearer.id]));
    assert_eq!(manager.refuses(&bearer), Some(PeerError::Revoked(bearer)));
    let revoked = rustls::Error::InvalidCertificate(rustls::CertificateError::Revoked);
    assert_eq!(meet(&block, &manager), Err(revoked.clone()));
    let serving = handshake(client(&manager, &[Role::Block]), server(&block, Clients::Required));
    assert_eq!(serving, Err(revoked));
    manager.revoke(BTreeSet::new());
    assert_eq!(meet(&block, &manager), Ok(Ok(bearer)));
}

#[test]
fn the_next_handshake_sees_credentials_that_were_replaced() {
    let stage = Stage::new();
    let (manager, block) = (stage.keyring(Role::Manager), stage.keyring(Role::Block));
    let (dial, listen) = (client(&block, &[Role::Manager]), server(&manager, Clients::Required));
    let first = block.bearer().unwrap();
    assert_eq!(handshake(dial.clone(), listen.clone()), Ok(Ok(first)));
    let second = stage.bearer(Role::Block);
    block.replace(stage.issue(second)).unwrap();
    assert_eq!(handshake(dial.clone(), listen.clone()), Ok(Ok(second)));
    stage.clock.advance(DAY * 2);
    assert!(handshake(dial.clone(), listen.clone()).is_err(), "both have expired");
    block.replace(stage.issue(second)).unwrap();
    manager.replace(stage.issue(stage.bearer(Role::Manager))).unwrap();
    assert_eq!(handshake(dial, listen), Ok(Ok(second)));
}

#[test]
fn a_process_without_credentials_meets_nobody_until_it_has_some() {
    let stage = Stage::new();
    let (manager, block) = (Keyring::empty(stage.clock.clone()), stage.keyring(Role::Block));
    let (dial, listen) = (client(&block, &[Role::Manager]), server(&manager, Clients::Optional));
    assert!(handshake(dial.clone(), listen.clone()).is_err());
    assert!(reason(meet(&manager, &block)).contains("no credentials"));
    assert_eq!(manager.trust(stage.authority.trust()), Err(PeerError::NoCredentials.into()));
    manager.replace(stage.issue(stage.bearer(Role::Manager))).unwrap();
    assert!(handshake(dial.clone(), listen.clone()).is_ok());
    manager.forget();
    assert!(handshake(dial, listen).is_err());
}
