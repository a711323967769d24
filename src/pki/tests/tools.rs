//! openssl as the judge of what is issued.

use super::*;
use std::path::Path;
use std::process::Command;

/// What `openssl verify` says of the server certificate in these files, at the stage's time, reached as `host`.
fn openssl(stage: &Stage, files: &[ToolFile; 3], host: &[&str]) -> (bool, String) {
    let directory = tempfile::tempdir().unwrap();
    for (name, contents) in files {
        std::fs::write(directory.path().join(name), contents.as_bytes()).unwrap();
    }
    let file = |name: &str| Path::join(directory.path(), name).into_os_string();
    let output = Command::new("openssl")
        .args(["verify", "-x509_strict", "-purpose", "sslserver", "-attime"])
        .arg((stage.now().as_millis() / 1000).to_string())
        .args(host)
        .args(["-CAfile".into(), file("ca-cert.pem"), "-untrusted".into(), file("server-cert.pem")])
        .arg(file("server-cert.pem"))
        .output()
        .expect("openssl runs (make test-tools installs it)");
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn a_certificate_says_that_it_signs_and_that_this_may_be_overlooked() {
    let stage = Stage::new();
    let [_, (_, certificate), _] = stage.issue(stage.bearer(Role::Data)).tool_files(Side::Client).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), certificate.as_bytes()).unwrap();
    let arguments = ["x509", "-noout", "-ext", "keyUsage,extendedKeyUsage", "-in"];
    let output = Command::new("openssl").args(arguments).arg(file.path()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    assert!(lines.contains(&"X509v3 Key Usage:") && lines.contains(&"Digital Signature"), "{said}");
    assert!(lines.contains(&"TLS Web Client Authentication"), "{said}");
}

#[test]
fn openssl_accepts_what_is_issued_and_sees_its_limits() {
    let mut stage = Stage::new();
    let files = stage.issue(stage.bearer(Role::Block)).tool_files(Side::Server).unwrap();
    assert_eq!(files.each_ref().map(|file| file.0), ["ca-cert.pem", "server-cert.pem", "server-key.pem"]);
    for good in [["-verify_hostname", "host-1.example"], ["-verify_ip", "10.0.0.1"]] {
        let (accepted, text) = openssl(&stage, &files, &good);
        assert!(accepted, "{text}");
    }
    let (accepted, text) = openssl(&stage, &files, &["-verify_hostname", "other.example"]);
    assert!(!accepted && text.contains("hostname mismatch"), "{text}");
    let admin = stage.issue(stage.bearer(Role::Admin)).tool_files(Side::Server).unwrap();
    let (accepted, text) = openssl(&stage, &admin, &[]);
    assert!(!accepted && text.contains("purpose"), "{text}");

    let old = stage.authority.trust();
    stage.authority.begin_rotation(stage.now()).unwrap();
    stage.authority.promote().unwrap();
    let rotated = stage.issue(stage.bearer(Role::Block));
    for trust in [old, stage.authority.trust()] {
        let (accepted, text) = openssl(&stage, &rotated.believing(trust).tool_files(Side::Server).unwrap(), &[]);
        assert!(accepted, "{text}");
    }
    stage.authority.finish_rotation().unwrap();
    let (accepted, text) =
        openssl(&stage, &rotated.believing(stage.authority.trust()).tool_files(Side::Server).unwrap(), &[]);
    assert!(accepted, "{text}");
    stage.clock.advance(DAY * 2);
    let (accepted, text) = openssl(&stage, &files, &[]);
    assert!(!accepted && text.contains("expired"), "{text}");
}
