use super::*;

#[test]
fn a_joiner_recognises_the_cluster_by_its_token() {
    let stage = Stage::new();
    let manager = stage.keyring(Role::Manager);
    let token: JoinToken = JoinToken::generate(stage.authority.ca()).unwrap().reveal().parse().unwrap();
    let (config, recognition) = stage.joiner(token.ca);
    assert_eq!(recognition.get(), None);
    let (outcome, heard) = converse(config, server(&manager, Clients::Optional), token.secret.reveal());
    assert_eq!((outcome, &heard[..]), (Ok(Err(PeerError::Absent)), &token.secret.reveal()[..]));
    let recognised = recognition.get().unwrap();
    assert_eq!(Some(recognised.manager), manager.bearer());
    assert!(stage.authority.trust().contains(&recognised.root.public_key()));
}

/// The secret that the joiner wanted to send reaches nobody, and the reason is given.
fn refuses(stage: &Stage, ca: PublicKey, server: Arc<ServerConfig>) -> String {
    let (config, recognition) = stage.joiner(ca);
    let (outcome, heard) = converse(config, server, Secret::generate().unwrap().reveal());
    assert_eq!((heard, recognition.get()), (Vec::new(), None));
    reason(outcome)
}

#[test]
fn a_token_with_another_root_refuses_the_server_before_the_secret_is_sent() {
    let (stage, other) = (Stage::new(), Stage::new());
    let manager = stage.keyring(Role::Manager);
    let why = refuses(&stage, other.authority.ca(), server(&manager, Clients::Optional));
    assert!(why.contains(&other.authority.ca().to_string()), "{why}");
    // The fingerprint of the leaf's own key makes no root of it.
    let leaf = manager.credentials().unwrap().key().public_key();
    assert!(refuses(&stage, leaf, server(&manager, Clients::Optional)).contains("fingerprint"));
}

#[test]
fn a_stranger_who_shows_the_right_root_beside_its_own_leaf_is_refused() {
    let (stage, stranger) = (Stage::new(), Stage::new());
    let theirs = stranger.issue(stranger.bearer(Role::Manager));
    let chain = theirs.chain_pem() + &stage.authority.trust().to_pem();
    let posing = Credentials::new(theirs.key().clone(), &chain, stranger.authority.trust()).unwrap();
    let server = server(&stranger.keyring_of(posing), Clients::Optional);
    let why = refuses(&stage, stage.authority.ca(), server);
    assert!(why.contains("UnknownIssuer"), "{why}");
}

#[test]
fn a_joiner_tells_its_secret_to_managers_only() {
    let stage = Stage::new();
    let block = server(&stage.keyring(Role::Block), Clients::Optional);
    assert!(refuses(&stage, stage.authority.ca(), block).contains("the peer is a block, expected was manager"));
    let admin = server(&stage.keyring(Role::Admin), Clients::Optional);
    assert!(refuses(&stage, stage.authority.ca(), admin).contains("extended key usage"));
}

#[test]
fn a_joiner_refuses_what_has_expired_and_a_chain_without_its_root() {
    let stage = Stage::new();
    let manager = stage.issue(stage.bearer(Role::Manager));
    let rootless = Credentials::new(manager.key().clone(), &pem(&manager.chain()[0]), stage.authority.trust()).unwrap();
    let rootless = server(&stage.keyring_of(rootless), Clients::Optional);
    assert!(refuses(&stage, stage.authority.ca(), rootless).contains("fingerprint"));
    let manager = server(&stage.keyring_of(manager), Clients::Optional);
    stage.clock.advance(DAY * 2);
    assert!(refuses(&stage, stage.authority.ca(), manager.clone()).contains("expired"), "the leaf");
    stage.clock.advance(DAY * 4000);
    assert!(refuses(&stage, stage.authority.ca(), manager).contains("fingerprint"), "the root");
}
