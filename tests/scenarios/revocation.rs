//! What a removed service can still do with everything that it had: nothing.

use crate::stage::{Hosts, secure, until};
use std::path::Path;

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

#[test]
fn a_removed_block_service_is_out_at_once_and_its_certificate_opens_nothing() {
    let Some(hosts) = Hosts::start(["block", "operator"], "") else { return };
    let ctl = hosts.ctl();
    let mut block = hosts.block("block");
    block.control.ok(&format!("block init {} --token {}", hosts.address("manager"), hosts.token("")));
    let id = block.id();
    ctl.wait_for_service(&id, "ready");
    // All that it takes to be this service, put aside.
    let aside = hosts.path().join("aside");
    copy_directory(&block.directory.join("tls"), &aside.join("tls"));
    std::fs::copy(block.directory.join("identity.json"), aside.join("identity.json")).expect("a copy");

    ctl.ok(&format!("manager remove {id}"));
    until("the service to know", || (block.control.text("block status", "/state") == "uninitialised").then_some(()));
    assert_eq!(ctl.service_state(&id), "removed");
    assert!(!block.directory.join("tls/cert.pem").exists(), "its certificate is put aside");

    // The thief: the same files on the same host.
    block.daemon.kill();
    let kept = hosts.path().join("kept");
    std::fs::rename(&block.directory, &kept).expect("another name");
    copy_directory(&aside.join("tls"), &block.directory.join("tls"));
    std::fs::copy(aside.join("identity.json"), block.directory.join("identity.json")).expect("a copy");
    for private in [block.directory.clone(), block.directory.join("tls")] {
        std::fs::set_permissions(private, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("a mode");
    }
    block.daemon.start_serving(&block.control.socket);
    until("the thief to be turned away", || {
        (block.control.text("block status", "/state") == "uninitialised").then_some(())
    });
    assert_eq!(ctl.service_state(&id), "removed");
    assert!(hosts.manager.log().contains("invalid peer certificate: Revoked"), "{}", hosts.manager.log());
    assert!(block.daemon.log().contains("its bearer was removed from the cluster"), "{}", block.daemon.log());
    assert_eq!(hosts.manager.log().matches("a block service is connected").count(), 1, "no second session");

    // It may join again as somebody else.
    block.daemon.kill();
    std::fs::remove_dir_all(&block.directory).expect("gone");
    std::fs::rename(&kept, &block.directory).expect("its old name");
    block.daemon.start_serving(&block.control.socket);
    block.control.ok(&format!("block init {} --token {}", hosts.address("manager"), hosts.token("")));
    assert_ne!(block.id(), id);
    ctl.wait_for_service(&block.id(), "ready");
    ctl.check();
}

/// The certificate of a service, laid out as NBD clients look for one.
fn as_client(tls: &Path, place: &Path) {
    std::fs::create_dir_all(place).expect("a directory");
    for (from, to) in [("ca.pem", "ca-cert.pem"), ("cert.pem", "client-cert.pem"), ("key.pem", "client-key.pem")] {
        std::fs::copy(tls.join(from), place.join(to)).expect("a copy");
    }
}

#[test]
fn the_data_path_knows_no_services_and_no_removed_clients() {
    let Some(hosts) = Hosts::start(["block", "other"], "") else { return };
    let ctl = hosts.ctl();
    let (block, other) = (hosts.joined_block("block"), hosts.joined_block("other"));
    ctl.ok("volume create a --size 4M --pool block");
    let (vm, uri) = (hosts.bundle("vm", "data"), ctl.uri("a", "nbd-tls"));
    let stolen = hosts.path().join("stolen");
    as_client(&other.directory.join("tls"), &stolen);
    let info = |bundle: &Path| hosts.host("other").run("nbdinfo", &["--size", &secure(&uri, bundle)]);
    // Not attached, and no client at all.
    assert_ne!(info(&vm).code, Some(0));
    assert_ne!(info(&stolen).code, Some(0));
    ctl.ok("volume attach a --client vm");
    info(&vm).succeeds();
    assert_ne!(info(&stolen).code, Some(0));

    ctl.ok("manager client remove vm");
    assert!(ctl.names("attachment").is_empty(), "an attachment ends with its client");
    assert_ne!(info(&vm).code, Some(0), "a removed client");
    until("the log to say that the certificate was revoked", || {
        block.daemon.log().contains("invalid peer certificate: Revoked").then_some(())
    });
    let id = other.id();
    ctl.ok("pool remove other");
    ctl.ok(&format!("manager remove {id}"));
    assert_ne!(info(&stolen).code, Some(0), "a removed service");
    until("the removed service to know", || {
        (other.control.text("block status", "/state") == "uninitialised").then_some(())
    });
    ctl.check();
}
