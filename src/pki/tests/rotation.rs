use super::*;
use Step::{Done, Unchanged};

/// Does `step` twice: the repetition changes nothing.
fn step(stage: &mut Stage, step: impl Fn(&mut Authority, Timestamp) -> Result<Step, Error>) {
    let now = stage.now();
    assert_eq!(step(&mut stage.authority, now), Ok(Done));
    let after = serde_json::to_value(&stage.authority).unwrap();
    assert_eq!(step(&mut stage.authority, now), Ok(Unchanged));
    // Every step is taken through the store's form.
    stage.authority = serde_json::from_value(after.clone()).unwrap();
    assert_eq!(serde_json::to_value(&stage.authority).unwrap(), after);
}

fn promote(authority: &mut Authority, _now: Timestamp) -> Result<Step, Error> {
    authority.promote()
}

fn finish(authority: &mut Authority, _now: Timestamp) -> Result<Step, Error> {
    authority.finish_rotation()
}

#[test]
fn roots_are_exchanged_without_anybody_being_left_out() {
    let mut stage = Stage::new();
    let old_root = stage.authority.ca();
    let (manager, block) = (stage.keyring(Role::Manager), stage.keyring(Role::Block));
    let sleeper = stage.keyring(Role::Block);

    step(&mut stage, Authority::begin_rotation);
    assert_eq!(stage.authority.rotation(), Some(RotationPhase::Distributing));
    assert_eq!(stage.authority.ca(), old_root, "leaves come from root 1 still");
    assert_eq!(stage.authority.trust().roots().len(), 2);
    for keyring in [&manager, &block] {
        keyring.trust(stage.authority.trust()).unwrap();
    }
    assert!(meet(&block, &manager).is_ok() && meet(&sleeper, &manager).is_ok());

    step(&mut stage, promote);
    let new_root = stage.authority.ca();
    assert_ne!(new_root, old_root);
    manager.replace(stage.issue(manager.bearer().unwrap())).unwrap();
    let by_old_leaf = meet(&block, &manager);
    assert_eq!(by_old_leaf, Ok(Ok(block.bearer().unwrap())), "a leaf of root 1 is still believed");
    assert!(meet(&sleeper, &manager).is_ok(), "who believes root 1 only verifies through the cross certificate");
    let to_sleeper = handshake(client(&manager, &[Role::Block]), server(&sleeper, Clients::Required));
    assert!(to_sleeper.is_ok(), "in both directions");
    block.replace(stage.issue(block.bearer().unwrap())).unwrap();

    step(&mut stage, finish);
    assert_eq!((stage.authority.ca(), stage.authority.rotation()), (new_root, None));
    assert_eq!(stage.authority.trust().roots().len(), 1);
    for keyring in [&manager, &block] {
        keyring.trust(stage.authority.trust()).unwrap();
    }
    assert!(meet(&block, &manager).is_ok());
    let old_leaf = handshake(client(&sleeper, &[Role::Manager]), server(&manager, Clients::Required));
    assert!(reason(old_leaf).contains("UnknownIssuer"), "the leaf of root 1 is refused");
    manager.replace(stage.issue(manager.bearer().unwrap())).unwrap();
    assert!(reason(meet(&sleeper, &manager)).contains("UnknownIssuer"), "and stays so");
    assert!(meet(&block, &manager).is_ok());
}

#[test]
fn who_missed_the_whole_exchange_still_verifies_managers_through_the_cross_certificate() {
    let mut stage = Stage::new();
    let (old, token) = (stage.authority.trust(), stage.authority.ca());
    step(&mut stage, Authority::begin_rotation);
    step(&mut stage, promote);
    step(&mut stage, finish);
    let manager = stage.keyring(Role::Manager);
    let clock: Arc<dyn Clock> = stage.clock.clone();
    let visitor = visiting_client_config(stage.authority.cluster(), &old, ALPN, clock).unwrap();
    assert!(handshake(visitor, server(&manager, Clients::Optional)).is_ok(), "a service that slept through it");
    let (joiner, recognition) = stage.joiner(token);
    assert!(handshake(joiner, server(&manager, Clients::Optional)).is_ok(), "a token from before it");
    assert!(recognition.get().is_some());
}

#[test]
fn a_client_that_believes_the_old_root_only_needs_the_cross_certificate() {
    let mut stage = Stage::new();
    let old = stage.authority.trust();
    step(&mut stage, Authority::begin_rotation);
    step(&mut stage, promote);
    let full = stage.issue(stage.bearer(Role::Manager));
    let leaf_only = Credentials::new(full.key().clone(), &pem(&full.chain()[0]), old.clone()).unwrap();
    let block = stage.keyring_of(stage.issue(stage.bearer(Role::Block)).believing(old));
    assert!(meet(&block, &stage.keyring_of(full)).is_ok());
    assert!(reason(meet(&block, &stage.keyring_of(leaf_only))).contains("UnknownIssuer"));
}

#[test]
fn steps_out_of_turn_are_refused_and_change_nothing() {
    let mut stage = Stage::new();
    let now = stage.now();
    let message = |outcome: Result<Step, Error>| outcome.unwrap_err().to_string();
    assert!(message(stage.authority.promote()).contains("begin a rotation first"));
    assert_eq!(stage.authority.finish_rotation(), Ok(Unchanged));
    step(&mut stage, Authority::begin_rotation);
    assert!(message(stage.authority.finish_rotation()).contains("promote the new one first"));
    assert_eq!(stage.authority.rotation(), Some(RotationPhase::Distributing));
    step(&mut stage, promote);
    assert!(message(stage.authority.begin_rotation(now)).contains("finish it first"));
    assert_eq!(stage.authority.rotation(), Some(RotationPhase::Reissuing));
}

#[test]
fn joiners_with_a_token_of_either_root_come_in_while_roots_are_exchanged() {
    let mut stage = Stage::new();
    let before = JoinToken::generate(stage.authority.ca()).unwrap();
    step(&mut stage, Authority::begin_rotation);
    let during = JoinToken::generate(stage.authority.ca()).unwrap();
    assert_eq!(before.ca, during.ca);
    step(&mut stage, promote);
    let after = JoinToken::generate(stage.authority.ca()).unwrap();
    let manager = stage.keyring(Role::Manager);
    for token in [before, after] {
        let (config, recognition) = stage.joiner(token.ca);
        assert_eq!(handshake(config, server(&manager, Clients::Optional)), Ok(Err(PeerError::Absent)));
        let recognised = recognition.get().unwrap();
        assert_eq!((recognised.root.public_key(), Some(recognised.manager)), (token.ca, manager.bearer()));
    }
}

#[test]
fn a_leaf_never_outlives_its_root() {
    let stage = Stage::new();
    let root_end = stage.authority.trust().roots()[0].expires_at();
    stage.clock.advance(DAY * 3651);
    let key = SigningKey::generate().unwrap();
    let issue = |lifetime| {
        let request = key.request().unwrap();
        stage.authority.issue(&request, &stage.bearer(Role::Block), &[], stage.now(), lifetime)
    };
    assert_eq!(issue(DAY * 30).unwrap().expires_at, root_end);
    assert!(issue(DAY / 2).unwrap().expires_at < root_end);
    stage.clock.advance(DAY * 2);
    assert_eq!(issue_late(&stage, &key), Err(Error::RootExpired { expired: root_end }));
}

fn issue_late(stage: &Stage, key: &SigningKey) -> Result<Timestamp, Error> {
    let bearer = stage.bearer(Role::Block);
    stage.authority.issue(&key.request()?, &bearer, &[], stage.now(), DAY).map(|issued| issued.expires_at)
}
