use super::*;
use crate::model::{ClusterId, ServiceId, Timestamp};
use crate::pki::{Authority, Role};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

struct Stage {
    keep: tempfile::TempDir,
    authority: Authority,
    bearer: Bearer,
    dir: TlsDir,
}

const KEY: &str = "key.pem";
const CERT: &str = "cert.pem";
const CA: &str = "ca.pem";

impl Stage {
    fn bare() -> Self {
        let keep = tempfile::tempdir().unwrap();
        let authority = Authority::create(ClusterId::generate(), &"prod".parse().unwrap(), now()).unwrap();
        let bearer = Bearer::service(authority.cluster(), Role::Block, ServiceId::generate());
        let dir = TlsDir::new(keep.path().join("tls"));
        Self { keep, authority, bearer, dir }
    }

    /// With all files of a member.
    fn whole() -> Self {
        let stage = Self::bare();
        let key = stage.dir.ensure_key().unwrap();
        stage.dir.save(&stage.issue(key, stage.bearer)).unwrap();
        stage
    }

    fn issue(&self, key: SigningKey, bearer: Bearer) -> Credentials {
        let request = key.request().unwrap();
        let issued = self.authority.issue(&request, &bearer, &[], now(), Duration::from_secs(3600)).unwrap();
        Credentials::new(key, &issued.chain_pem, self.authority.trust()).unwrap()
    }

    fn load(&self) -> Result<Holding, TlsError> {
        self.dir.load(self.bearer)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.keep.path().join("tls").join(name)
    }

    fn lose(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    fn damage(&self, name: &str) {
        let text = fs::read_to_string(self.path(name)).unwrap();
        fs::write(self.path(name), &text[..text.len() / 2]).unwrap();
    }
}

fn now() -> Timestamp {
    Timestamp::from_millis(1_700_000_000_000)
}

fn is_whole(holding: &Holding) -> bool {
    matches!(holding, Holding::Whole(_))
}

#[test]
fn what_was_saved_is_found_again_and_is_its_owner_s_alone() {
    let stage = Stage::whole();
    let Holding::Whole(credentials) = stage.load().unwrap() else { panic!("whole") };
    assert_eq!(credentials.bearer(), stage.bearer);
    assert_eq!(credentials.trust(), &stage.authority.trust());
    assert_eq!(credentials.key().public_key(), stage.dir.ensure_key().unwrap().public_key());
    for name in [KEY, CERT, CA] {
        assert_eq!(fs::metadata(stage.path(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    assert_eq!(fs::metadata(stage.path("")).unwrap().permissions().mode() & 0o777, 0o700);
}

/// Every way in which the three files can be there (`+`), missing (`-`) or damaged (`x`), in the order key,
/// certificate, roots; and what it amounts to.
#[test]
fn each_missing_or_damaged_file_has_its_consequence() {
    for key in ['+', '-', 'x'] {
        for cert in ['+', '-', 'x'] {
            for ca in ['+', '-', 'x'] {
                let stage = Stage::whole();
                for (name, state) in [(KEY, key), (CERT, cert), (CA, ca)] {
                    match state {
                        '-' => stage.lose(name),
                        'x' => stage.damage(name),
                        _ => {}
                    }
                }
                let case = format!("{key}{cert}{ca}");
                let key_before = fs::read(stage.path(KEY)).ok();
                let loaded = stage.load();
                match (key, cert, ca) {
                    ('-', ..) => assert!(matches!(loaded, Err(TlsError::KeyMissing { .. })), "{case}: {loaded:?}"),
                    ('x', ..) => assert!(matches!(loaded, Err(TlsError::KeyDamaged { .. })), "{case}: {loaded:?}"),
                    (_, '+', _) => assert!(loaded.is_ok_and(|holding| is_whole(&holding)), "{case}"),
                    (_, _, '+') => assert!(matches!(loaded, Ok(Holding::Bare { .. })), "{case}: {loaded:?}"),
                    _ => assert!(matches!(loaded, Err(TlsError::NoRoots { .. })), "{case}: {loaded:?}"),
                }
                assert_eq!(fs::read(stage.path(KEY)).ok(), key_before, "{case}: a key is never touched");
                let aside = stage.path("cert.damaged.pem").exists();
                assert_eq!(aside, key == '+' && cert == 'x', "{case}: a damaged certificate is kept aside");
            }
        }
    }
}

#[test]
fn the_words_on_a_lost_key_say_what_to_do() {
    let stage = Stage::whole();
    stage.damage(KEY);
    let damaged = stage.load().unwrap_err();
    stage.lose(KEY);
    let missing = stage.load().unwrap_err();
    for error in [damaged, missing] {
        assert!(error.is_loss_of_key());
        let text = error.to_string();
        for word in ["tls/key.pem", "manager remove", "block init"] {
            assert!(text.contains(word), "{text}");
        }
    }
    assert!(stage.dir.ensure_key().is_ok(), "an init makes a new one where none is");
}

#[test]
fn a_damaged_key_is_not_replaced_by_an_init_either() {
    let stage = Stage::whole();
    stage.damage(KEY);
    assert!(matches!(stage.dir.ensure_key(), Err(TlsError::KeyDamaged { .. })));
}

#[test]
fn a_certificate_of_another_key_or_of_another_service_is_renewed_by_the_key() {
    let foreign = Stage::whole();
    let stage = Stage::whole();
    fs::copy(foreign.path(CERT), stage.path(CERT)).unwrap();
    assert!(matches!(stage.load(), Ok(Holding::Bare { .. })));
    assert!(stage.path("cert.damaged.pem").exists());

    let other = Bearer { id: ServiceId::generate().as_uuid(), ..stage.bearer };
    stage.dir.save(&stage.issue(stage.dir.ensure_key().unwrap(), other)).unwrap();
    assert!(matches!(stage.load(), Ok(Holding::Bare { .. })));
    assert!(stage.path("cert.damaged.2.pem").exists());
}

#[test]
fn secrets_that_others_may_reach_are_refused_till_that_is_mended() {
    let stage = Stage::whole();
    fs::set_permissions(stage.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    let error = stage.load().unwrap_err();
    assert!(matches!(&error, TlsError::File(error) if error.source.to_string().contains("chmod 700")), "{error}");
    assert!(!error.is_loss_of_key());
    fs::set_permissions(stage.path(""), PermissionsExt::from_mode(0o700)).unwrap();
    assert!(is_whole(&stage.load().unwrap()));
}

#[test]
fn a_renewal_cut_off_between_its_two_writes_leaves_the_old_certificate_and_the_new_roots() {
    let mut stage = Stage::whole();
    stage.authority.begin_rotation(now()).unwrap();
    stage.dir.save_roots(&stage.authority.trust()).unwrap();
    let Holding::Whole(credentials) = stage.load().unwrap() else { panic!("whole") };
    assert_eq!(credentials.trust().roots().len(), 2);
}

#[test]
fn what_is_put_aside_is_kept_and_leaves_room_for_a_new_key() {
    let stage = Stage::whole();
    let old = stage.dir.ensure_key().unwrap().public_key();
    stage.dir.put_aside("removed").unwrap();
    stage.dir.put_aside("removed").unwrap();
    assert_ne!(stage.dir.ensure_key().unwrap().public_key(), old);
    let kept = TlsDir::new(stage.keep.path().join("tls.removed"));
    assert_eq!(kept.ensure_key().unwrap().public_key(), old);
}
