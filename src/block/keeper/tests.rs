use super::super::fake::{DAY, Fake, until};
use super::*;
use crate::model::ServiceId;
use crate::runtime::ManualClock;
use std::collections::BTreeSet;
use std::fs;

struct Stage {
    keep: tempfile::TempDir,
    clock: Arc<ManualClock>,
    fake: Fake,
    service: ServiceId,
    keyring: Keyring,
}

/// A keeper at work.
struct Work {
    certification: watch::Receiver<Certification>,
    words: mpsc::Sender<Word>,
    group: Shutdown,
}

impl Stage {
    /// A member with all its files.
    async fn new() -> Self {
        let clock = Arc::new(ManualClock::new());
        let fake = Fake::start(clock.clone()).await;
        let keyring = Keyring::empty(clock.clone());
        let stage = Self { keep: tempfile::tempdir().unwrap(), clock, fake, service: ServiceId::generate(), keyring };
        let key = stage.dir().ensure_key().unwrap();
        stage.dir().save(&stage.fake.issue(key, stage.service, &["127.0.0.1".into()])).unwrap();
        stage
    }

    fn dir(&self) -> TlsDir {
        TlsDir::new(self.keep.path().join("tls"))
    }

    fn bearer(&self) -> Bearer {
        Bearer::service(self.fake.cluster, Role::Block, self.service)
    }

    fn start(&self, managers: &[&str]) -> Work {
        let subject = Subject {
            bearer: self.bearer(),
            host_name: "127.0.0.1".into(),
            addresses: Addresses { rpc: Some("127.0.0.1:1".into()), nbd: None },
        };
        let (_, managers) = watch::channel(managers.iter().map(|manager| manager.to_string()).collect());
        let (keeper, certification) =
            Keeper::begin(subject, self.dir(), self.keyring.clone(), self.clock.clone(), managers);
        let (words, told) = mpsc::channel(4);
        let group = Shutdown::new();
        group.spawn(keeper.run(told, group.clone()));
        Work { certification, words, group }
    }

    fn work(&self) -> Work {
        self.start(&[&self.fake.tls])
    }

    fn expires_at(&self) -> Option<crate::model::Timestamp> {
        self.keyring.expires_at()
    }

    fn kept(&self) -> Holding {
        self.dir().load(self.bearer()).unwrap()
    }

    fn renewals(&self) -> Vec<Option<Bearer>> {
        self.fake.state().renewals.clone()
    }

    fn trust(&self) -> Word {
        let trust = self.fake.trust();
        Word::Believe(Trust {
            roots: trust.roots,
            revoked: trust.revoked.iter().map(|id| id.parse().unwrap()).collect::<BTreeSet<_>>(),
            signing: trust.signing,
        })
    }
}

impl Work {
    async fn becomes(&mut self, what: &str, wanted: impl FnMut(&Certification) -> bool) {
        let seen = tokio::time::timeout(Duration::from_secs(30), self.certification.wait_for(wanted)).await;
        assert!(seen.is_ok_and(|seen| seen.is_ok()), "never {what}");
    }

    async fn tell(&self, word: Word) {
        self.words.send(word).await.unwrap();
    }
}

fn is_good(certification: &Certification) -> bool {
    matches!(certification, Certification::Good(None))
}

#[tokio::test]
async fn a_certificate_is_renewed_in_its_time_on_disk_and_in_use() {
    let stage = Stage::new().await;
    let mut work = stage.work();
    work.becomes("good", is_good).await;
    let first = stage.expires_at();
    // The host's names are in it, so this only makes the keeper look at its clock.
    work.tell(Word::Connected).await;
    stage.clock.advance(10 * DAY);
    work.tell(Word::Connected).await;
    assert_eq!(stage.renewals(), []);
    stage.clock.advance(15 * DAY);
    work.tell(Word::Connected).await;
    until("another certificate is in use", || stage.expires_at() > first).await;
    assert_eq!(stage.renewals(), [Some(stage.bearer())]);
    let Holding::Whole(kept) = stage.kept() else { panic!("whole") };
    assert_eq!(Some(kept.expires_at()), stage.expires_at());
    work.group.finish().await;
}

#[tokio::test]
async fn a_service_that_slept_past_the_end_proves_itself_by_its_key() {
    let stage = Stage::new().await;
    stage.clock.advance(90 * DAY);
    let mut work = stage.work();
    work.becomes("good", is_good).await;
    assert_eq!(stage.renewals(), [None], "without its certificate");
}

#[tokio::test]
async fn an_expired_certificate_that_nobody_renews_says_why() {
    let stage = Stage::new().await;
    stage.clock.advance(90 * DAY);
    let other = Fake::start(stage.clock.clone()).await;
    let mut work = stage.start(&[&other.tls]);
    let mut words = String::new();
    work.becomes("wanting for a reason", |certification| match certification {
        Certification::Wanting(reason) if reason.contains("no manager") => {
            words.clone_from(reason);
            true
        }
        _ => false,
    })
    .await;
    for word in ["the certificate expired at", &other.tls, "another cluster"] {
        assert!(words.contains(word), "{words}");
    }
    assert_eq!(other.state().renewals, [], "a stranger is not even asked");
}

#[tokio::test]
async fn a_lost_certificate_is_renewed_through_whichever_manager_answers() {
    let stage = Stage::new().await;
    fs::remove_file(stage.keep.path().join("tls/cert.pem")).unwrap();
    let mut work = stage.start(&["127.0.0.1:1", &stage.fake.tls]);
    work.becomes("good", is_good).await;
    assert!(matches!(stage.kept(), Holding::Whole(_)));
    assert_eq!(stage.renewals(), [None]);
}

#[tokio::test]
async fn roots_that_come_are_believed_and_a_certificate_of_a_root_that_goes_is_renewed() {
    let stage = Stage::new().await;
    let mut work = stage.work();
    work.becomes("good", is_good).await;
    stage.fake.state().authority.begin_rotation(stage.clock.wall()).unwrap();
    work.tell(stage.trust()).await;
    let roots = || stage.keyring.credentials().map_or(0, |credentials| credentials.trust().roots().len());
    until("both roots are believed", || roots() == 2).await;
    assert_eq!(stage.renewals(), []);
    stage.fake.state().authority.promote().unwrap();
    let signing = stage.fake.state().authority.ca();
    work.tell(stage.trust()).await;
    let signed_by = || stage.keyring.credentials().and_then(|credentials| credentials.signed_by());
    until("the new root has signed", || signed_by() == Some(signing)).await;
    assert_eq!(stage.renewals(), [Some(stage.bearer())]);
    stage.fake.state().authority.finish_rotation().unwrap();
    work.tell(stage.trust()).await;
    until("one root is left", || roots() == 1).await;
    let Holding::Whole(kept) = stage.kept() else { panic!("whole") };
    assert_eq!(kept.trust(), &stage.fake.state().authority.trust());
}

/// The answer to a renewal that began before a root was promoted does not undo what was said of it meanwhile.
#[tokio::test]
async fn what_is_said_during_a_renewal_outlives_its_answer() {
    let stage = Stage::new().await;
    let old = stage.fake.state().authority.clone();
    stage.clock.advance(29 * DAY);
    let (_, managers) = watch::channel(vec![stage.fake.tls.clone()]);
    let subject = Subject { bearer: stage.bearer(), host_name: "127.0.0.1".into(), addresses: Addresses::default() };
    let (mut keeper, _) = Keeper::begin(subject, stage.dir(), stage.keyring.clone(), stage.clock.clone(), managers);
    let attempt = keeper.next_attempt().expect("it is due");
    let answer = attempt.await;
    // Its answer was given under the old root; now the new one signs.
    let mut authority = old;
    authority.begin_rotation(stage.clock.wall()).unwrap();
    authority.promote().unwrap();
    stage.fake.state().authority = authority;
    let Word::Believe(trust) = stage.trust() else { panic!("trust") };
    keeper.overtaking = Some(trust.clone());
    keeper.believe(trust).await;
    assert!(!keeper.take_answer(answer).await);
    assert_eq!(stage.keyring.credentials().unwrap().trust().roots().len(), 2);
    assert_eq!(keeper.renewal.reason(), Some(Reason::OtherRoot));
}

#[tokio::test]
async fn roots_that_make_no_sense_change_nothing() {
    let stage = Stage::new().await;
    let mut work = stage.work();
    work.becomes("good", is_good).await;
    let (before, revoked) = (stage.keyring.credentials().unwrap(), uuid::Uuid::new_v4());
    let roots = vec!["-----BEGIN NONSENSE-----".into()];
    let trust = Trust { roots, revoked: BTreeSet::from([revoked]), signing: "x".into() };
    work.tell(Word::Believe(trust)).await;
    let bearer = Bearer { id: revoked, ..stage.bearer() };
    let admitted = crate::pki::Keyring::refuses;
    until("the revoked are refused all the same", || admitted(&stage.keyring, &bearer).is_some()).await;
    assert_eq!(stage.keyring.credentials().unwrap().trust(), before.trust());
    assert!(matches!(stage.kept(), Holding::Whole(_)));
}

#[tokio::test]
async fn a_service_that_was_removed_while_away_is_told_so_when_it_proves_itself() {
    let stage = Stage::new().await;
    let mut work = stage.work();
    work.becomes("good", is_good).await;
    stage.fake.state().removed.insert(stage.service.as_uuid());
    stage.fake.keyring.revoke(BTreeSet::from([stage.service.as_uuid()]));
    work.tell(Word::Refused).await;
    work.becomes("removed", |certification| *certification == Certification::Removed).await;
    assert_eq!(stage.renewals(), [None], "the revoked certificate is left out");
}

#[tokio::test]
async fn a_certificate_without_this_host_s_name_is_renewed_once() {
    let stage = Stage::new().await;
    let key = stage.dir().ensure_key().unwrap();
    stage.dir().save(&stage.fake.issue(key, stage.service, &["10.9.9.9".into()])).unwrap();
    let mut work = stage.work();
    work.becomes("good", is_good).await;
    work.tell(Word::Connected).await;
    let names = || stage.keyring.credentials().map(|credentials| credentials.host_names());
    until("the name is there", || names() == Some(vec!["127.0.0.1".into()])).await;
    assert_eq!(stage.renewals().len(), 1);
}

#[tokio::test]
async fn a_key_that_is_put_back_is_taken_up_without_a_restart() {
    let stage = Stage::new().await;
    let (key, away) = (stage.keep.path().join("tls/key.pem"), stage.keep.path().join("away.pem"));
    fs::rename(&key, &away).unwrap();
    let mut work = stage.work();
    work.becomes("keyless", |it| matches!(it, Certification::Keyless(why) if why.contains("key.pem is missing"))).await;
    assert!(stage.keyring.credentials().is_none());
    fs::rename(&away, &key).unwrap();
    work.becomes("good", is_good).await;
    assert!(stage.keyring.credentials().is_some());
}

#[test]
fn hosts_are_compared_as_hosts() {
    assert_eq!(["db:1", "[::1]:2", "10.0.0.1:3", "db"].map(host_of), ["db", "::1", "10.0.0.1", "db"]);
    assert!(same_host("::1", "0:0::1") && same_host("db-01", "DB-01.") && !same_host("db-01", "db-02"));
}
