//! Joining from a distance: block services on other hosts than the manager, with tokens that are good and bad.

use crate::stage::{Control, FarBlock, Hosts, Outcome, finish, path_text, symphony, until};
use serde_json::Value;

fn init(block: &FarBlock, address: &str, token: &str) -> Outcome {
    block.control.run(&format!("block init {address} --token {token}"))
}

/// A block service that is nobody, and still is after each refusal.
fn assert_outside(block: &FarBlock, manager: &Control) {
    assert_eq!(block.control.text("block status", "/state"), "uninitialised");
    assert_eq!(manager.names("service").len(), 1, "only the manager itself");
}

fn tokens(control: &Control) -> Vec<Value> {
    control.json("manager token list").as_array().expect("a list").clone()
}

/// The name of the token that was made last.
fn newest(control: &Control) -> String {
    let mut tokens = tokens(control);
    tokens.sort_by_key(|token| token["meta"]["created_at"].as_str().expect("a time").to_owned());
    tokens.last().expect("a token")["meta"]["name"].as_str().expect("a name").to_owned()
}

#[test]
fn a_block_service_on_another_host_joins_by_token_and_only_once_with_each() {
    let Some(hosts) = Hosts::start(["block", "second"], "") else { return };
    let (ctl, address) = (hosts.ctl(), hosts.address("manager"));
    let block = hosts.block("block");
    let refused = block.control.run(&format!("block init {address}"));
    refused.fails(4, &["manager token create", "block init", "--token"]);
    assert_outside(&block, &ctl);

    let token = hosts.token("");
    assert!(init(&block, &address, &token).succeeds().contains("joined cluster"));
    let id = block.id();
    ctl.wait_for_service(&id, "ready");
    assert!(!hosts.manager.log().contains(&token) && !block.daemon.log().contains(&token), "a token is in a log");
    let wide = ctl.ok("service list -o wide");
    assert!(wide.contains("CERTIFICATE ENDS IN"), "{wide}");
    let rows: Vec<&str> = wide.lines().skip(1).collect();
    assert!(rows.len() == 2 && rows.iter().all(|row| row.contains("days")), "{wide}");

    let pool = hosts.path().join("pool");
    ctl.ok(&format!("pool create main --path {}", path_text(&pool)));
    ctl.ok("volume create a --size 4M");
    assert_eq!(ctl.text("volume get a", "/status/placement/0/service"), id);

    let second = hosts.block("second");
    init(&second, &address, &token).fails(4, &["the join token is used up", "manager token create"]);
    assert_eq!(second.control.text("block status", "/state"), "uninitialised");
    assert_eq!(ctl.names("service").len(), 2);
    // Who is a member already keeps its membership, and its token is not used.
    let other = hosts.token("");
    init(&block, &address, &other).fails(4, &[&id]);
    assert!(tokens(&ctl).iter().any(|token| token["status"]["used"] == 0));
    init(&second, &address, &other).succeeds();
    ctl.wait_for_service(&second.id(), "ready");
    ctl.check();
}

#[test]
fn a_token_for_two_lets_in_two_from_a_file_and_from_the_environment() {
    let Some(hosts) = Hosts::start(["one", "two", "three"], "") else { return };
    let (ctl, address) = (hosts.ctl(), hosts.address("manager"));
    let token = hosts.token("--uses 2");
    let file = hosts.path().join("token");
    std::fs::write(&file, format!("{token}\n")).expect("a file");
    let [one, two, three] = ["one", "two", "three"].map(|host| hosts.block(host));
    one.control.ok(&format!("block init {address} --token-file {}", path_text(&file)));
    let given = |block: &FarBlock| {
        let mut command = symphony(["ctl", "--socket", path_text(&block.control.socket), "block", "init", &address]);
        command.env("SYMPHONY_JOIN_TOKEN", &token);
        finish(command)
    };
    given(&two).succeeds();
    given(&three).fails(4, &["used up"]);
    for block in [&one, &two] {
        ctl.wait_for_service(&block.id(), "ready");
    }
    assert!(ctl.ok("manager token list").contains("2/2"));
    ctl.check();
}

#[test]
fn tokens_that_are_expired_revoked_or_cut_short_let_nobody_in() {
    let Some(hosts) = Hosts::start(["block"], "") else { return };
    let (ctl, address) = (hosts.ctl(), hosts.address("manager"));
    let block = hosts.block("block");
    let short = hosts.token("--ttl 1s");
    until("the manager to call the token expired", || ctl.ok("manager token list").contains("expired").then_some(()));
    init(&block, &address, &short).fails(4, &["the join token has expired", "manager token create"]);
    assert_outside(&block, &ctl);

    let revoked = hosts.token("");
    let name = newest(&ctl);
    ctl.ok(&format!("manager token revoke {name}"));
    init(&block, &address, &revoked).fails(4, &["the join token was revoked"]);
    assert_outside(&block, &ctl);

    let good = hosts.token("");
    init(&block, &address, &good[..good.len() - 7]).fails(2, &["cut short", "copy all of it"]);
    init(&block, &address, "hello").fails(2, &["no join token"]);
    let swapped = if good.ends_with('0') { "1" } else { "0" };
    init(&block, &address, &format!("{}{swapped}", &good[..good.len() - 1])).fails(2, &["mistyped"]);
    assert_outside(&block, &ctl);
    // None of it has used the good one.
    init(&block, &address, &good).succeeds();
    ctl.wait_for_service(&block.id(), "ready");
    ctl.check();
}

#[test]
fn a_token_of_another_cluster_is_not_shown_to_a_manager_that_is_not_of_it() {
    let Some(hosts) = Hosts::start(["foreign", "block"], "") else { return };
    let (foreign, foreign_ctl) = hosts.foreign_manager("foreign");
    let block = hosts.block("block");
    let token = hosts.token("");
    let refused = init(&block, &hosts.address("foreign"), &token);
    refused.fails(4, &["not one of the cluster that the token is for", "was not shown to it"]);
    assert_outside(&block, &foreign_ctl);
    let log = foreign.log();
    assert!(!log.contains("joined") && !log.contains("enrolment"), "no join has reached it: {log}");
    assert_eq!(tokens(&hosts.ctl())[0]["status"]["used"], 0);
    // The token is as good as before.
    init(&block, &hosts.address("manager"), &token).succeeds();
    hosts.ctl().wait_for_service(&block.id(), "ready");
    hosts.ctl().check();
}

#[test]
fn a_token_says_for_how_long_and_for_whom_it_may_be_made() {
    let Some(hosts) = Hosts::start([], "") else { return };
    let ctl = hosts.ctl();
    ctl.run("manager token create --ttl 1ms").fails(2, &["--ttl", "30 days"]);
    ctl.run("manager token create --ttl 31d").fails(2, &["--ttl", "30 days"]);
    ctl.run("manager token create --uses 0").fails(2, &["--uses"]);
    ctl.run("manager token create --type manager").fails(2, &["--etcd-endpoints", "manager init"]);
    assert!(ctl.names("manager token").is_empty());
    ctl.run("manager token revoke nothing").fails(3, &["'nothing'"]);
}
