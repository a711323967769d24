//! Operators on other hosts, with the bundles that `manager client create` writes.

use crate::stage::{Hosts, Outcome, path_text, until};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

/// `symphony ctl` on the operator's host, with a bundle and the address of the manager.
fn asked(hosts: &Hosts, bundle: &Path, line: &str) -> Outcome {
    let address = hosts.address("manager");
    hosts.ctl_on("operator", &format!("--bundle {} --manager {address} {line}", path_text(bundle)))
}

#[test]
fn an_admin_changes_and_a_viewer_looks_from_another_host() {
    let Some(hosts) = Hosts::start(["block", "operator"], "") else { return };
    let ctl = hosts.ctl();
    let _block = hosts.joined_block("block");
    let (admin, viewer) = (hosts.bundle("ops", "admin"), hosts.bundle("eyes", "viewer"));
    asked(&hosts, &admin, "volume create a --size 4M").succeeds();
    assert_eq!(ctl.names("volume"), ["a"]);
    assert_eq!(asked(&hosts, &viewer, "volume list -o name").succeeds(), "a\n");
    assert!(asked(&hosts, &viewer, "events").succeeds().contains("admin client 'ops'"));
    let id = ctl.names("service").pop().expect("a service");
    for line in [
        "volume create b --size 4M",
        "volume remove a",
        "volume attach a --client ops",
        "manager token create",
        "manager client create mine --role admin",
        "manager ca rotate",
        &format!("manager remove {id} --lost"),
    ] {
        asked(&hosts, &viewer, line).fails(4, &["viewer"]);
    }
    let data = hosts.bundle("vm", "data");
    asked(&hosts, &data, "volume list").fails(4, &["data"]);
    assert_eq!(ctl.names("volume"), ["a"]);
    assert!(!hosts.path().join("mine").exists());
    // A bundle is as good with the managers that it names.
    let line = format!("--bundle {} volume list -o name", path_text(&admin));
    assert_eq!(hosts.ctl_on("operator", &line).succeeds(), "a\n");

    let events = ctl.json("events");
    let made = events.as_array().expect("a list").iter().find(|event| event["action"] == "volume.create");
    let author = &made.expect("an event")["author"];
    assert_eq!(author["who"], "admin client 'ops'");
    assert!(author["origin"].as_str().expect("from").contains(&hosts.host("operator").address), "{author}");
    ctl.check();
}

#[test]
fn a_removed_client_is_refused_at_its_next_call() {
    let Some(hosts) = Hosts::start(["operator"], "") else { return };
    let ctl = hosts.ctl();
    let (ops, other) = (hosts.bundle("ops", "admin"), hosts.bundle("other", "admin"));
    asked(&hosts, &ops, "service list").succeeds();
    ctl.ok("manager client remove ops");
    asked(&hosts, &ops, "service list").fails(4, &["revoked", "removed"]);
    asked(&hosts, &other, "service list").succeeds();
    // The name is free, and the old certificate stays worthless.
    std::fs::rename(&ops, hosts.path().join("old")).expect("another name");
    let again = hosts.bundle("ops", "admin");
    asked(&hosts, &again, "service list").succeeds();
    asked(&hosts, &hosts.path().join("old"), "service list").fails(4, &["revoked"]);
    ctl.check();
}

#[test]
fn a_follower_whose_client_is_removed_is_cut_off() {
    let Some(hosts) = Hosts::start(["operator"], "") else { return };
    let ops = hosts.bundle("ops", "admin");
    let mut command = hosts.host("operator").command(env!("CARGO_BIN_EXE_symphony"));
    command.args(["ctl", "--bundle", path_text(&ops), "events", "--follow", "-o", "json"]).env("HOME", hosts.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut follower = command.spawn().expect("a follower");
    let mut lines = BufReader::new(follower.stdout.take().expect("a pipe")).lines();
    // It is there once it has told the first event.
    lines.next().expect("an event").expect("a line");
    hosts.ctl().ok("manager client remove ops");
    let status = until("the follower to be cut off", || follower.try_wait().expect("look after a child"));
    assert!(!status.success(), "{status}");
    hosts.ctl().check();
}

#[test]
fn contexts_reach_the_cluster_and_a_bundle_is_checked_when_it_is_added() {
    let Some(hosts) = Hosts::start(["operator"], "") else { return };
    let ops = hosts.bundle("ops", "admin");
    let far = |line: &str| hosts.ctl_on("operator", line);
    far("context add lab --bundle nowhere").fails(1, &["nowhere"]);
    far(&format!("context add lab --bundle {}", path_text(&ops))).succeeds();
    assert_eq!(far("service list -o name").succeeds().lines().count(), 1);
    far(&format!("context add wrong --bundle {} --manager 127.0.0.1:1", path_text(&ops))).succeeds();
    far("context use wrong").succeeds();
    far("service list").fails(5, &["127.0.0.1:1"]);
    far("context use lab").succeeds();
    assert_eq!(far("service list -o name").succeeds().lines().count(), 1);
}

#[test]
fn an_operator_without_a_certificate_is_refused_and_told_what_to_bring() {
    let Some(hosts) = Hosts::start(["operator", "foreign"], "") else { return };
    let address = hosts.address("manager");
    let plain = hosts.ctl_on("operator", &format!("--manager {address} service list"));
    plain.fails(4, &["not on this host's loopback", "mutual TLS", "client create"]);
    let (_foreign, foreign) = hosts.foreign_manager("foreign");
    let directory = hosts.path().join("strange");
    foreign.ok(&format!("manager client create ops --role admin --output-dir {}", path_text(&directory)));
    asked(&hosts, &directory, "service list").fails(4, &["another cluster"]);
    // A service's certificate is worth nothing to an operator: a block service's was not made for that.
    let ops = hosts.bundle("ops", "admin");
    asked(&hosts, &ops, "service list").succeeds();
    hosts.ctl().check();
}
