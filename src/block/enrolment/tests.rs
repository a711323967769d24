use super::super::fake::Fake;
use super::super::tls_dir::Holding;
use super::*;
use crate::runtime::ManualClock;
use std::fs;
use std::path::Path;

struct Stage {
    keep: tempfile::TempDir,
    fake: Fake,
}

impl Stage {
    async fn new() -> Self {
        Self { keep: tempfile::tempdir().unwrap(), fake: Fake::start(Arc::new(ManualClock::new())).await }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.keep.path().join(name)
    }

    fn tls(&self) -> TlsDir {
        TlsDir::new(self.path("tls"))
    }

    fn applicant(&self) -> Applicant {
        Applicant {
            identity: self.path("identity.json"),
            tls: self.tls(),
            host_name: "db-01".into(),
            addresses: Addresses { rpc: Some("127.0.0.1:1".into()), nbd: Some("127.0.0.1:2".into()) },
            clock: self.fake.clock.clone(),
            to_recovering: false,
        }
    }

    async fn join_here(&self) -> Result<Identity, Fault> {
        self.join_at(&self.fake.plain, None).await
    }

    async fn join_by(&self, token: &JoinToken) -> Result<Identity, Fault> {
        self.join_at(&self.fake.tls, Some(token)).await
    }

    async fn join_at(&self, address: &str, token: Option<&JoinToken>) -> Result<Identity, Fault> {
        let applicant = self.applicant();
        let door = applicant.open(address, token).await?;
        applicant.join(door, token).await
    }

    /// What is on disk is a whole membership.
    fn assert_member(&self, identity: &Identity) {
        assert_eq!(load_document::<Identity>(&self.path("identity.json")).unwrap().as_ref(), Some(identity));
        assert_eq!(identity.membership.as_ref().unwrap().cluster, self.fake.cluster);
        let bearer = Bearer::service(self.fake.cluster, Role::Block, identity.service);
        assert!(matches!(self.tls().load(bearer), Ok(Holding::Whole(_))));
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.keep.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[tokio::test]
async fn on_one_host_a_service_joins_without_ceremony_and_has_its_certificate() {
    let stage = Stage::new().await;
    let identity = stage.join_here().await.unwrap();
    stage.assert_member(&identity);
    assert_eq!(identity.membership.unwrap().managers, [stage.fake.plain.clone(), stage.fake.tls.clone()]);
}

#[tokio::test]
async fn from_another_host_a_token_is_what_it_takes() {
    let stage = Stage::new().await;
    stage.fake.state().local = false;
    let fault = stage.join_here().await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::Denied);
    for word in ["not on this host", "manager token create", "block init", "--token"] {
        assert!(fault.message.contains(word), "{}", fault.message);
    }
    let identity = stage.join_by(&stage.fake.token()).await.unwrap();
    stage.assert_member(&identity);
}

#[tokio::test]
async fn the_token_of_another_cluster_is_told_apart_and_its_secret_is_not_shown() {
    let (stage, other) = (Stage::new().await, Stage::new().await);
    let fault = stage.join_by(&other.fake.token()).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::Denied);
    assert!(fault.message.contains("not one of the cluster that the token is for"), "{}", fault.message);
    assert_eq!(stage.fake.state().shown, Vec::<String>::new());
    assert_eq!(stage.names(), Vec::<String>::new(), "and nothing was begun");
}

#[tokio::test]
async fn a_truncated_token_is_told_apart_and_not_repeated() {
    let stage = Stage::new().await;
    let text = stage.fake.token().reveal();
    let fault = parse_token(&text[..text.len() - 7]).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Invalid);
    assert!(fault.message.contains("cut short") && !fault.message.contains(&text[..40]), "{}", fault.message);
}

#[tokio::test]
async fn an_address_where_no_manager_speaks_tls_says_so() {
    let stage = Stage::new().await;
    let token = stage.fake.token();
    let fault = stage.join_at(&stage.fake.plain, Some(&token)).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::Unavailable, "{}", fault.message);
    assert_eq!(stage.fake.state().shown, Vec::<String>::new());
}

#[tokio::test]
async fn an_init_whose_answer_was_lost_is_repeated_with_the_same_id_and_key() {
    let stage = Stage::new().await;
    stage.fake.state().lose_answer = true;
    let token = stage.fake.token();
    stage.join_by(&token).await.unwrap_err();
    let (begun, key) = (stage.applicant().candidacy().unwrap(), stage.tls().ensure_key().unwrap().public_key());
    let identity = stage.join_by(&token).await.unwrap();
    stage.assert_member(&identity);
    assert_eq!(identity.service, begun.identity.service);
    assert_eq!(stage.fake.state().members.values().collect::<Vec<_>>(), [&key]);
}

/// A kill between any two writes of an init: what is on disk by then, and the init again.
#[tokio::test]
async fn an_init_killed_between_any_two_writes_is_repeated_to_its_end() {
    let whole = Stage::new().await;
    let identity = whole.join_here().await.unwrap();
    let begun = Identity { membership: None, ..identity.clone() };
    let written = ["key.pem", "ca.pem", "cert.pem"];
    for count in 0..=written.len() {
        let stage = Stage { keep: tempfile::tempdir().unwrap(), fake: whole.fake.clone() };
        save_document(&stage.path("identity.json"), &begun).unwrap();
        for name in &written[..count] {
            // The directory as an init makes it.
            stage.tls().ensure_key().unwrap();
            fs::copy(whole.path("tls").join(name), stage.path("tls").join(name)).unwrap();
        }
        if count == 0 {
            // The key was not told to anybody yet.
            whole.fake.state().members.clear();
        }
        let again = stage.join_here().await.unwrap();
        stage.assert_member(&again);
        assert_eq!(again.service, identity.service, "after {count} files");
        whole.fake.state().members.insert(identity.service.as_uuid(), whole.tls().ensure_key().unwrap().public_key());
    }
}

#[tokio::test]
async fn a_removal_that_was_cut_off_leaves_its_key_to_nobody() {
    let stage = Stage::new().await;
    let old = stage.join_here().await.unwrap();
    let key = stage.tls().ensure_key().unwrap().public_key();
    // What a removal does first; then it was killed.
    put_aside(&stage.path("identity.json"), "removed").unwrap();
    let new = stage.join_here().await.unwrap();
    stage.assert_member(&new);
    assert_ne!(new.service, old.service);
    assert_ne!(stage.tls().ensure_key().unwrap().public_key(), key);
    assert_eq!(stage.names(), ["identity.json", "identity.removed.json", "tls", "tls.removed"]);
}

#[tokio::test]
async fn an_id_that_was_removed_meanwhile_gives_way_to_a_new_one() {
    let stage = Stage::new().await;
    stage.fake.state().lose_answer = true;
    stage.join_here().await.unwrap_err();
    let old = stage.applicant().candidacy().unwrap().identity.service;
    stage.fake.state().removed.insert(old.as_uuid());
    let new = stage.join_here().await.unwrap();
    stage.assert_member(&new);
    assert_ne!(new.service, old);
    assert_eq!(stage.names(), ["identity.json", "identity.refused.json", "tls", "tls.refused"]);
}

#[tokio::test]
async fn a_refusal_that_is_not_for_the_id_leaves_the_id_and_the_key_as_they_were() {
    let stage = Stage::new().await;
    let token = stage.fake.token();
    stage.fake.state().lose_answer = true;
    stage.join_by(&token).await.unwrap_err();
    let files = |stage: &Stage| {
        let read = |path: &Path| fs::read(path).unwrap();
        (read(&stage.path("identity.json")), read(&stage.path("tls/key.pem")), stage.names())
    };
    let before = files(&stage);
    let wrong = JoinToken::generate(token.ca).unwrap();
    assert_eq!(stage.join_by(&wrong).await.unwrap_err().kind, FaultKind::Denied);
    assert_eq!(files(&stage), before);
    stage.assert_member(&stage.join_by(&token).await.unwrap());
}

#[tokio::test]
async fn a_damaged_key_of_an_init_that_was_cut_off_is_kept_aside_and_another_one_is_made() {
    let stage = Stage::new().await;
    stage.fake.state().lose_answer = true;
    stage.join_here().await.unwrap_err();
    let begun = stage.applicant().candidacy().unwrap().identity.service;
    fs::write(stage.path("tls/key.pem"), "half a k").unwrap();
    let identity = stage.join_here().await.unwrap();
    stage.assert_member(&identity);
    assert_ne!(identity.service, begun, "another key is on record for that id");
    assert_eq!(fs::read_to_string(stage.path("tls.damaged/key.pem")).unwrap(), "half a k");
}
