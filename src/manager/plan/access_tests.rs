//! Tokens, joins, renewals, clients and the exchange of roots, against a naive store.

use super::*;
use crate::manager::authority;
use crate::manager::draft::Draft;
use crate::manager::enrollment::new_service;
use crate::model::*;
use crate::pki::{JoinToken, PublicKey, RotationPhase, Secret, SecretHash, SigningKey};
use crate::rpc::TokenProof;
use crate::store::{Batch, Compare, Entry, Event, Key, Op, Revision, Txn};
use std::collections::BTreeMap;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

fn somebody() -> Author {
    Author { who: "local root".into(), origin: "a test".into() }
}

/// How long a service's certificate lasts.
fn lifetime_of() -> Duration {
    ClusterSpec::default().certificate_lifetime()
}

/// A view, and commits that reach it as a store's would.
struct World {
    view: View,
    now: Timestamp,
}

impl World {
    /// A cluster, as `manager init` makes it.
    fn new() -> Self {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let meta = Meta::new(ClusterId::from_bytes([9; 16]), "cluster".parse().unwrap(), now);
        let spec = ClusterSpec::default();
        let cluster = Cluster { meta, spec, history: Default::default(), recovering: None };
        let mut world = Self { view: View::default(), now };
        let put = Op::Put { key: Key::cluster(), value: serde_json::to_vec(&cluster).unwrap(), lease: None };
        let ops = vec![put, authority::found(&cluster, now).unwrap()];
        assert!(world.commit(Txn { compares: Vec::new(), ops }));
        world
    }

    fn pass(&mut self, by: Duration) {
        self.now = Timestamp::from_millis(self.now.as_millis() + by.as_millis() as u64);
    }

    fn plan<T>(&self, plan: impl FnOnce(&mut Draft<'_>) -> Result<T, Refusal>) -> Result<(T, Option<Txn>), Refusal> {
        let mut draft = Draft::new(&self.view, self.now, EventId::generate());
        let outcome = plan(&mut draft)?;
        Ok((outcome, draft.finish().unwrap()))
    }

    /// Commits unless a comparison fails.
    fn commit(&mut self, txn: Txn) -> bool {
        let revisions = self.revisions();
        let holds = |compare: &Compare| match compare {
            Compare::Absent(key) => !revisions.contains_key(key),
            Compare::Present(key) => revisions.contains_key(key),
            Compare::Unchanged(key, revision) => revisions.get(key) == Some(revision),
        };
        if !txn.compares.iter().all(holds) {
            return false;
        }
        let revision = Revision(self.view.revision.0 + 1);
        let events = txn.ops.into_iter().map(|op| match op {
            Op::Put { key, value, lease } => Event::Put(Entry { key, value, revision, lease }),
            Op::Delete { key } => Event::Delete(key),
        });
        self.view.apply(Batch { revision, events: events.collect() });
        true
    }

    fn revisions(&self) -> BTreeMap<Key, Revision> {
        let services = self.view.services.iter().map(|(id, held)| (Key::service(*id), held.revision));
        let tokens = self.view.tokens.iter().map(|(id, held)| (Key::token(*id), held.revision));
        let clients = self.view.clients.iter().map(|(id, held)| (Key::client(*id), held.revision));
        let names = self.view.names.iter().map(|((kind, name), held)| (Key::name(*kind, name), held.revision));
        let authority = self.view.authority.iter().map(|held| (Key::authority(held.value.cluster()), held.revision));
        let cluster = self.view.cluster_revision.map(|revision| (Key::cluster(), revision));
        services.chain(tokens).chain(clients).chain(names).chain(authority).chain(cluster).collect()
    }

    fn write<T>(&mut self, plan: impl FnOnce(&mut Draft<'_>) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let (outcome, txn) = self.plan(plan)?;
        assert!(txn.is_none_or(|txn| self.commit(txn)), "nobody else writes");
        Ok(outcome)
    }

    fn ca(&self) -> PublicKey {
        self.view.authority.as_ref().unwrap().value.ca()
    }

    fn rotation(&self) -> Option<RotationPhase> {
        self.view.authority.as_ref().unwrap().value.rotation()
    }

    fn token(&mut self, ttl: Duration, uses: u32) -> TokenProof {
        let token = JoinToken::generate(self.ca()).unwrap();
        let (id, hash) = (TokenId::from_bytes(token.id.into_bytes()), SecretHash::of(&token.secret));
        self.write(|draft| create_token(draft, &somebody(), id, ServiceType::Block, ttl, uses, &hash)).unwrap();
        TokenProof { id, secret: token.secret }
    }

    fn used(&self, proof: &TokenProof) -> u32 {
        self.view.get::<Token>(proof.id).unwrap().status.used
    }

    fn service(&self, number: u8) -> &Service {
        self.view.get::<Service>(id(number)).unwrap()
    }

    fn record(&self, number: u8) -> &CertificateRecord {
        self.service(number).status.certificate.as_ref().unwrap()
    }

    fn join(&mut self, application: &Application) -> Result<Option<Granted>, Refusal> {
        self.write(|draft| enroll(draft, &somebody(), application))
    }

    /// A service that joined from this host.
    fn member(&mut self, number: u8) -> SigningKey {
        let key = SigningKey::generate().unwrap();
        self.join(&Application { local: true, ..application(number, &key, None) }).unwrap().unwrap();
        key
    }

    fn remove(&mut self, number: u8) {
        self.write(|draft| remove_service(draft, &somebody(), id(number), false)).unwrap();
    }

    fn client(&mut self, name: &str, lifetime: Duration, renew: bool) -> Result<(Client, Granted), Refusal> {
        let key = SigningKey::generate().unwrap();
        let commission = Commission {
            id: ClientId::generate(),
            name: name.parse().unwrap(),
            role: ClientRole::Admin,
            request: prove(&key),
            lifetime,
            renew,
        };
        self.write(|draft| create_client(draft, &somebody(), &commission))
    }
}

fn id(number: u8) -> ServiceId {
    ServiceId::from_bytes([number; 16])
}

fn prove(key: &SigningKey) -> Request {
    Request::prove(key.request().unwrap()).unwrap()
}

/// From a distance, on a host of its own.
fn application(number: u8, key: &SigningKey, proof: Option<&TokenProof>) -> Application {
    let host = format!("host-{number}");
    Application {
        service: new_service(id(number), ServiceType::Block, host, "0".into(), Timestamp::EPOCH),
        addresses: Addresses { rpc: Some(format!("10.0.0.{number}:15761")), nbd: None },
        request: Some(prove(key)),
        proof: proof.cloned(),
        local: false,
    }
}

fn renewal(number: u8, key: &SigningKey, standing: Standing) -> Renewal {
    Renewal { service: id(number), addresses: Addresses::default(), request: prove(key), standing }
}

fn text<T>(outcome: Result<T, Refusal>) -> String {
    match outcome {
        Ok(_) => panic!("it was not refused"),
        Err(refusal) => refusal.to_string(),
    }
}

#[test]
fn a_token_lets_in_as_many_services_as_it_says_and_no_more() {
    let mut world = World::new();
    let proof = world.token(HOUR, 2);
    for number in 1..=2 {
        let key = SigningKey::generate().unwrap();
        let granted = world.join(&application(number, &key, Some(&proof))).unwrap().unwrap();
        assert!(granted.chain.starts_with("-----BEGIN CERTIFICATE") && granted.roots.len() == 1);
        assert_eq!(world.record(number).public_key, key.public_key().to_string());
        assert_eq!(world.record(number).root, world.ca().to_string());
    }
    let key = SigningKey::generate().unwrap();
    let refusal = text(world.join(&application(3, &key, Some(&proof))));
    assert!(refusal.contains("is used up") && refusal.contains("manager token create"), "{refusal}");
    assert!(world.view.get::<Service>(id(3)).is_none() && world.used(&proof) == 2);
}

#[test]
fn a_token_of_before_the_state_was_put_back_lets_nobody_in() {
    let mut world = World::new();
    let (proof, key) = (world.token(HOUR, 5), SigningKey::generate().unwrap());
    let old = world.view.cluster.clone().unwrap();
    let history = old.history.rewound(Default::default(), world.now, "because".into());
    let rewound = Cluster { history, ..old };
    let (_, planned) = world.plan(|draft| enroll(draft, &somebody(), &application(1, &key, Some(&proof)))).unwrap();
    let put = Op::Put { key: Key::cluster(), value: serde_json::to_vec(&rewound).unwrap(), lease: None };
    assert!(world.commit(Txn { compares: Vec::new(), ops: vec![put] }));
    assert!(!world.commit(planned.unwrap()), "a plan of the former history");
    let refusal = world.join(&application(1, &key, Some(&proof))).unwrap_err().to_string();
    assert!(refusal.contains("before the state was put back"), "{refusal}");
    let (fresh, key) = (world.token(HOUR, 1), SigningKey::generate().unwrap());
    world.join(&application(2, &key, Some(&fresh))).unwrap();
}

#[test]
fn a_wrong_secret_and_a_wrong_id_are_refused_in_the_same_words_whatever_the_token_is() {
    let mut world = World::new();
    let (good, short, once) = (world.token(HOUR, 1), world.token(Duration::from_secs(1), 1), world.token(HOUR, 1));
    world.write(|draft| revoke_token(draft, &somebody(), &once.id.to_string())).unwrap();
    world.pass(Duration::from_secs(2));
    let key = SigningKey::generate().unwrap();
    let secret = Secret::generate().unwrap();
    let unknown = TokenProof { id: TokenId::generate(), secret: secret.clone() };
    let zeros = TokenProof { id: TokenId::generate(), secret: Secret::from_slice(&[0; 32]).unwrap() };
    let expected = text(world.join(&application(1, &key, Some(&unknown))));
    let forged = [good.id, short.id, once.id].map(|id| TokenProof { id, secret: secret.clone() });
    for proof in forged.iter().chain([&zeros]) {
        assert_eq!(text(world.join(&application(1, &key, Some(proof)))), expected);
    }
    assert!(text(world.join(&application(1, &key, Some(&short)))).contains("has expired"));
    assert!(text(world.join(&application(1, &key, Some(&once)))).contains("was revoked"));
    assert!(world.view.services.is_empty() && world.used(&good) == 0);
}

#[test]
fn who_comes_from_a_distance_without_a_token_is_told_which_command_makes_one() {
    let mut world = World::new();
    let key = SigningKey::generate().unwrap();
    let refusal = text(world.join(&application(1, &key, None)));
    assert!(refusal.contains("symphony ctl … manager token create"), "{refusal}");
    let bare = Application { request: None, ..application(1, &key, None) };
    assert!(text(world.join(&bare)).contains("certificate request"));
    assert!(world.view.services.is_empty());
}

#[test]
fn of_two_joins_that_race_for_the_last_use_one_is_planned_anew_and_refused() {
    let mut world = World::new();
    let proof = world.token(HOUR, 1);
    let keys = [SigningKey::generate().unwrap(), SigningKey::generate().unwrap()];
    let applications = [application(1, &keys[0], Some(&proof)), application(2, &keys[1], Some(&proof))];
    let planned =
        applications.each_ref().map(|it| world.plan(|draft| enroll(draft, &somebody(), it)).unwrap().1.unwrap());
    let [first, second] = planned;
    assert!(world.commit(first));
    assert!(!world.commit(second), "its use of the token was counted already");
    assert!(text(world.join(&applications[1])).contains("is used up"));
    assert_eq!((world.view.services.len(), world.used(&proof)), (1, 1));
}

#[test]
fn a_join_whose_answer_was_lost_is_repeated_without_another_use_of_the_token() {
    let mut world = World::new();
    let proof = world.token(HOUR, 1);
    let key = SigningKey::generate().unwrap();
    world.join(&application(1, &key, Some(&proof))).unwrap();
    let before = world.service(1).meta.clone();
    world.join(&application(1, &key, Some(&proof))).unwrap().unwrap();
    assert_eq!((&world.service(1).meta, world.used(&proof)), (&before, 1));
}

#[test]
fn a_replayed_join_with_another_key_is_refused_from_near_and_far() {
    let mut world = World::new();
    let proof = world.token(HOUR, 5);
    let (key, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    world.join(&application(1, &key, Some(&proof))).unwrap();
    for local in [false, true] {
        let forged = Application { local, ..application(1, &other, Some(&proof)) };
        assert!(text(world.join(&forged)).contains("another key"));
    }
    assert_eq!(world.record(1).public_key, key.public_key().to_string());
    assert_eq!(world.used(&proof), 1);
}

#[test]
fn a_removed_service_neither_joins_nor_renews_again_and_is_revoked() {
    let mut world = World::new();
    let key = world.member(1);
    let proof = world.token(HOUR, 1);
    world.remove(1);
    assert!(world.view.revoked().contains(&id(1).as_uuid()));
    assert_eq!(text(world.join(&application(1, &key, Some(&proof)))), Refusal::NotMember(id(1)).to_string());
    for standing in [Standing::Local, Standing::Anonymous, Standing::Bearer(id(1))] {
        let outcome = world.write(|draft| renew_service(draft, &renewal(1, &key, standing)));
        assert!(matches!(outcome, Ok(None)), "who proves to be the removed one is told so: {standing:?}");
        let stranger = SigningKey::generate().unwrap();
        let outcome = world.write(|draft| renew_service(draft, &renewal(1, &stranger, standing)));
        assert!(matches!(outcome, Err(Refusal::NotMember(_))), "{standing:?}");
    }
    assert_eq!(world.used(&proof), 0);
}

#[test]
fn a_service_that_slept_past_expiry_renews_by_its_key_alone() {
    let mut world = World::new();
    let key = world.member(1);
    world.pass(lifetime_of() * 2);
    assert!(world.record(1).expires_at < world.now);
    world.write(|draft| renew_service(draft, &renewal(1, &key, Standing::Anonymous))).unwrap();
    assert!(world.record(1).expires_at > world.now);
}

#[test]
fn nobody_renews_in_the_name_of_another_service() {
    let mut world = World::new();
    let (_key, other) = (world.member(1), world.member(2));
    for standing in [Standing::Local, Standing::Anonymous, Standing::Bearer(id(2))] {
        let outcome = world.write(|draft| renew_service(draft, &renewal(1, &other, standing)));
        assert!(matches!(outcome, Err(Refusal::Denied(_))), "{standing:?}");
    }
    let unknown = world.write(|draft| renew_service(draft, &renewal(7, &other, Standing::Local)));
    assert!(matches!(unknown, Err(Refusal::NotMember(_))));
}

#[test]
fn a_member_without_a_key_on_record_gets_one_only_on_a_managers_host() {
    let mut world = World::new();
    let key = SigningKey::generate().unwrap();
    world.join(&Application { request: None, local: true, ..application(1, &key, None) }).unwrap();
    let proof = world.token(HOUR, 1);
    assert!(text(world.join(&application(1, &key, Some(&proof)))).contains("without a key on record"));
    let far = world.write(|draft| renew_service(draft, &renewal(1, &key, Standing::Anonymous)));
    assert!(matches!(far, Err(Refusal::Denied(_))));
    world.write(|draft| renew_service(draft, &renewal(1, &key, Standing::Local))).unwrap();
    assert_eq!((world.record(1).public_key.clone(), world.used(&proof)), (key.public_key().to_string(), 0));
}

#[test]
fn a_name_that_another_living_service_has_is_left_out_of_a_strangers_certificate() {
    let mut world = World::new();
    let proof = world.token(HOUR, 5);
    let keys = [1, 2].map(|_| SigningKey::generate().unwrap());
    world.join(&application(1, &keys[0], Some(&proof))).unwrap();
    let thief = |local| {
        let addresses = Addresses { rpc: Some("HOST-1.:1".into()), nbd: Some("10.0.0.1:2".into()) };
        Application { addresses, local, ..application(2, &keys[1], Some(&proof)) }
    };
    let granted = world.join(&thief(false)).unwrap().unwrap();
    assert_eq!(granted.left_out, ["10.0.0.1", "host-1"]);
    let names: Vec<&str> = world.record(2).names.iter().map(String::as_str).collect();
    assert_eq!(names, ["127.0.0.1", "::1", "host-2", "localhost"]);
    // On the managers' host services share names, and keep them when they renew from elsewhere.
    assert!(world.join(&thief(true)).unwrap().unwrap().left_out.is_empty());
    assert!(world.join(&thief(false)).unwrap().unwrap().left_out.is_empty());
    world.remove(1);
    assert!(world.join(&thief(false)).unwrap().unwrap().left_out.is_empty());
}

#[test]
fn a_token_for_managers_and_one_that_lets_nobody_in_are_refused() {
    let mut world = World::new();
    let hash = SecretHash::of(&Secret::generate().unwrap());
    let mut make = |service_type, ttl, uses| {
        let id = TokenId::generate();
        text(world.write(|draft| create_token(draft, &somebody(), id, service_type, ttl, uses, &hash)))
    };
    assert!(make(ServiceType::Manager, HOUR, 1).contains("--etcd-endpoints"));
    assert!(make(ServiceType::Block, Duration::ZERO, 1).contains("--ttl"));
    assert!(make(ServiceType::Block, HOUR * 24 * 31, 1).contains("--ttl"));
    assert!(make(ServiceType::Block, HOUR, 0).contains("--uses"));
}

#[test]
fn a_token_is_forgotten_only_when_it_was_good_for_nothing_for_a_while() {
    let mut world = World::new();
    let (fresh, short, used) = (world.token(HOUR * 48, 1), world.token(HOUR, 1), world.token(HOUR * 48, 1));
    let revoked = world.token(HOUR * 48, 1);
    let name = world.view.get::<Token>(revoked.id).unwrap().meta.name.to_string();
    world.write(|draft| revoke_token(draft, &somebody(), &name)).unwrap();
    let key = SigningKey::generate().unwrap();
    world.join(&application(1, &key, Some(&used))).unwrap();
    for (hours, left) in [(0, 4), (2, 1)] {
        world.pass(HOUR * hours);
        let limit = world.now;
        let (_, _, ended) = past(&world.view, Timestamp::EPOCH, limit);
        for id in ended {
            world.write(|draft| purge_token(draft, id, limit)).unwrap();
        }
        assert_eq!((world.view.tokens.len(), world.view.names.len()), (left, left));
    }
    assert!(world.view.get::<Token>(fresh.id).is_some() && world.view.get::<Token>(short.id).is_none());
}

#[test]
fn a_removed_service_is_remembered_until_its_certificate_has_expired() {
    let mut world = World::new();
    world.member(1);
    world.remove(1);
    world.pass(HOUR);
    let purge = |world: &mut World| {
        let limit = world.now;
        world.write(|draft| purge_service(draft, id(1), limit)).unwrap();
        world.view.get::<Service>(id(1)).is_some()
    };
    assert!(purge(&mut world), "its certificate is good for weeks");
    world.pass(lifetime_of());
    assert!(!purge(&mut world) && world.view.revoked().is_empty());
}

#[test]
fn a_clients_name_is_unique_among_the_living_and_free_when_it_is_removed() {
    let mut world = World::new();
    let (first, granted) = world.client("ops", HOUR, false).unwrap();
    assert!(granted.chain.contains("BEGIN CERTIFICATE"));
    assert!(matches!(world.client("ops", HOUR, false), Err(Refusal::NameTaken { .. })));
    world.write(|draft| remove_client(draft, &somebody(), "ops")).unwrap().unwrap();
    assert!(world.view.revoked().contains(&first.meta.id.as_uuid()));
    let (second, _) = world.client("ops", HOUR, false).unwrap();
    assert_ne!(first.meta.id, second.meta.id);
    assert!(!world.view.revoked().contains(&second.meta.id.as_uuid()));
    // Once more by its id: nothing happens, least of all to the client that has its name now.
    world.write(|draft| remove_client(draft, &somebody(), &first.meta.id.to_string())).unwrap().unwrap();
    assert!(world.client("ops", HOUR * 2, true).is_ok());
}

#[test]
fn a_client_is_renewed_under_its_id_and_never_for_less_long_than_it_has() {
    let mut world = World::new();
    assert!(matches!(world.client("ops", HOUR, true), Err(Refusal::NoSuch { .. })));
    let (client, _) = world.client("ops", HOUR * 10, false).unwrap();
    assert!(text(world.client("ops", HOUR, true)).contains("--ttl"), "the older one would outlive its record");
    world.pass(HOUR);
    let (renewed, _) = world.client("ops", HOUR * 10, true).unwrap();
    assert_eq!(renewed.meta.id, client.meta.id);
    assert!(renewed.status.certificate.expires_at > client.status.certificate.expires_at);
    for lifetime in [Duration::ZERO, Duration::from_secs(1), lifetime_of() * 13] {
        assert!(text(world.client("other", lifetime, false)).contains("--ttl"));
    }
}

#[test]
fn the_root_is_exchanged_when_everybody_has_moved_and_not_before() {
    let mut world = World::new();
    let key = world.member(1);
    world.client("ops", HOUR, false).unwrap();
    let old = world.ca();
    assert!(text(world.write(|draft| rotate_authority(draft, &somebody(), true))).contains("no exchange"));
    world.write(|draft| rotate_authority(draft, &somebody(), false)).unwrap();
    assert_eq!(world.rotation(), Some(RotationPhase::Distributing));
    assert!(text(world.write(|draft| rotate_authority(draft, &somebody(), true))).contains("in a moment"), "too early");
    assert_eq!(world.view.trust().unwrap().signing, old.to_string());
    world.write(|draft| advance_rotation(draft, &somebody())).unwrap();
    assert_eq!(world.rotation(), Some(RotationPhase::Reissuing));
    let trust = world.view.trust().unwrap();
    assert!(trust.roots.len() == 2 && trust.signing != old.to_string());
    // Asked again, it goes on as it is.
    world.write(|draft| rotate_authority(draft, &somebody(), false)).unwrap();
    world.write(|draft| advance_rotation(draft, &somebody())).unwrap();
    let how = progress(&world.view, world.now).unwrap();
    assert_eq!((how.moved, how.total, how.waiting_for.len()), (0, 2, 2));
    assert!(how.waiting_for[0].contains("host-1") && how.waiting_for[1].contains("'ops'"), "{how:?}");

    world.write(|draft| renew_service(draft, &renewal(1, &key, Standing::Bearer(id(1))))).unwrap();
    world.write(|draft| advance_rotation(draft, &somebody())).unwrap();
    assert_eq!(world.rotation(), Some(RotationPhase::Reissuing), "a client hangs on the old root");
    world.client("ops", HOUR * 2, true).unwrap();
    world.write(|draft| advance_rotation(draft, &somebody())).unwrap();
    assert_eq!((world.rotation(), world.view.trust().unwrap().roots.len()), (None, 1));
    assert_ne!(world.ca(), old);
}

#[test]
fn an_operator_may_drop_the_old_root_before_everybody_has_moved() {
    let mut world = World::new();
    world.member(1);
    world.write(|draft| rotate_authority(draft, &somebody(), false)).unwrap();
    world.write(|draft| advance_rotation(draft, &somebody())).unwrap();
    world.write(|draft| rotate_authority(draft, &somebody(), true)).unwrap();
    assert_eq!(world.rotation(), None);
}

#[test]
fn a_certificate_that_was_planned_under_an_older_authority_is_not_committed() {
    let mut world = World::new();
    let key = SigningKey::generate().unwrap();
    let near = Application { local: true, ..application(1, &key, None) };
    let (_, planned) = world.plan(|draft| enroll(draft, &somebody(), &near)).unwrap();
    world.write(|draft| rotate_authority(draft, &somebody(), false)).unwrap();
    assert!(!world.commit(planned.unwrap()));
}
