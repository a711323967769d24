//! Bundles and contexts, as operators on other hosts use them.

use crate::stage::{Outcome, finish, path_text, symphony, words};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use symphony::ctl::bundle::Bundle;
use symphony::model::{ClientId, ClientRole, ClusterId, Timestamp};
use symphony::pki::{Authority, Bearer, Credentials, Role, SigningKey};

/// A home without contexts.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn ctl(&self, line: &str) -> Outcome {
        let mut command = symphony(["ctl"].into_iter().chain(words(line)));
        command.env("HOME", self.0.path()).env_remove("XDG_CONFIG_HOME").current_dir(self.0.path());
        finish(command)
    }

    fn config(&self) -> PathBuf {
        self.0.path().join(".config/symphony/config.json")
    }

    /// The bundle of an operator of a cluster that does not run, issued so long ago.
    fn bundle(&self, name: &str, managers: &[&str], age: Duration) -> PathBuf {
        let issued_at = Timestamp::from_system(SystemTime::now() - age);
        let (cluster, client) = (ClusterId::generate(), ClientId::generate());
        let authority = Authority::create(cluster, &"prod".parse().expect("a name"), issued_at).expect("an authority");
        let bearer = Bearer { cluster, role: Role::Admin, id: uuid::Uuid::from_bytes(client.to_bytes()) };
        let key = SigningKey::generate().expect("a key");
        let request = key.request().expect("a request");
        let issued =
            authority.issue(&request, &bearer, &[], issued_at, Duration::from_secs(3600)).expect("a certificate");
        let bundle = Bundle {
            cluster,
            cluster_name: "prod".parse().expect("a name"),
            client,
            name: "ops".parse().expect("a name"),
            role: ClientRole::Admin,
            managers: managers.iter().map(ToString::to_string).collect(),
            credentials: Credentials::new(key, &issued.chain_pem, authority.trust()).expect("credentials"),
        };
        let path = self.0.path().join(name);
        bundle.write_directory(&path).expect("a bundle");
        path
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("a file").permissions().mode() & 0o777
}

#[test]
fn contexts_are_added_used_shown_and_removed() {
    let home = Home::new();
    assert_eq!(home.ctl("context list").succeeds().lines().count(), 1);
    home.ctl("context show").fails(2, &["no context is in use"]);
    home.ctl("context add prod").fails(2, &["--bundle"]);
    home.bundle("prod", &["127.0.0.1:1"], Duration::ZERO);
    home.bundle("lab", &["127.0.0.1:1"], Duration::ZERO);
    assert!(home.ctl("context add prod --bundle prod").succeeds().contains("in use now"));
    assert!(!home.ctl("context add lab --bundle lab --manager 127.0.0.1:2").succeeds().contains("in use"));
    assert_eq!(mode(&home.config()), 0o600);
    let shown: serde_json::Value = serde_json::from_str(&home.ctl("context show -o json").succeeds()).expect("JSON");
    assert_eq!((&shown["name"], &shown["client"]["role"]), (&"prod".into(), &"admin".into()));
    assert_eq!(shown["bundle"], path_text(&home.0.path().join("prod")), "kept as an absolute path");
    home.ctl("volume list").fails(5, &["127.0.0.1:1"]);
    home.ctl("--context lab volume list").fails(5, &["127.0.0.1:2"]);
    home.ctl("context use lab").succeeds();
    assert_eq!(home.ctl("context list -o name").succeeds(), "lab\nprod\n");
    home.ctl("volume list").fails(5, &["127.0.0.1:2"]);
    home.ctl("--socket /x volume list").fails(5, &["/x"]);
    home.ctl("context remove lab").succeeds();
    home.ctl("context use lab").fails(2, &["'lab'", "prod"]);
    assert!(home.0.path().join("lab/client-key.pem").exists(), "the bundle stays");
}

#[test]
fn every_manager_of_a_bundle_is_tried() {
    let home = Home::new();
    home.bundle("prod", &["127.0.0.1:1", "127.0.0.1:2"], Duration::ZERO);
    home.ctl("--bundle prod volume list").fails(5, &["no manager could be reached", "127.0.0.1:1", "127.0.0.1:2"]);
    home.ctl("--bundle prod/symphony.json --manager 127.0.0.1:3 volume list").fails(5, &["127.0.0.1:3"]);
}

#[test]
fn a_bundle_that_cannot_be_used_says_what_to_do() {
    let home = Home::new();
    home.ctl("--bundle nowhere volume list").fails(1, &["nowhere", "client create"]);
    home.bundle("old", &["127.0.0.1:1"], Duration::from_secs(7200));
    home.ctl("--bundle old volume list").fails(1, &["expired", "--renew"]);
    let open = home.bundle("open", &["127.0.0.1:1"], Duration::ZERO);
    std::fs::set_permissions(open.join("client-key.pem"), PermissionsExt::from_mode(0o644)).expect("an open key");
    home.ctl("--bundle open volume list").fails(1, &["chmod 600", "client-key.pem"]);
}
