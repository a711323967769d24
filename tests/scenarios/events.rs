//! The record of changes, as an operator reads it.

use crate::stage::{Backing, Cluster, Control, on_each_store, path_text, symphony, until};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

on_each_store!(
    every_change_is_listed_with_who_what_and_from_where,
    a_follower_misses_nothing_and_hears_nothing_twice,
    the_record_outlives_its_manager,
);

/// What was asked for, in order; a lease that ran out on a busy machine is not among it.
fn record(ctl: &Control, options: &str) -> Vec<Value> {
    let document = ctl.json(&format!("events {options}"));
    document.as_array().expect("a list").iter().filter(|event| is_asked_for(event)).cloned().collect()
}

fn is_asked_for(event: &Value) -> bool {
    event["action"] != "service.down" && event["action"] != "service.ready"
}

fn actions(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["action"].as_str().expect("an action")).collect()
}

fn every_change_is_listed_with_who_what_and_from_where(backing: Backing) {
    let cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 1M");
    ctl.ok("volume resize db --size 2M");
    ctl.ok("volume resize db --size 2M");
    ctl.run("volume create db --size 1M").fails(4, &["'db'"]);
    ctl.ok("volume remove db");
    ctl.ok("pool remove main");
    let events = record(&ctl, "");
    let expected = ["service.join", "service.join", "pool.create", "volume.create", "volume.resize", "volume.remove"];
    assert_eq!(actions(&events), [&expected[..], &["pool.remove"]].concat(), "{events:?}");
    let resized = &events[4];
    assert_eq!((&resized["kind"], &resized["name"]), (&"volume".into(), &"db".into()), "{resized}");
    assert!(resized["author"]["who"].as_str().expect("who").contains("local"), "{resized}");
    assert!(resized["author"]["origin"].as_str().expect("from").contains("control socket"), "{resized}");
    assert!(resized["detail"].as_str().expect("a detail").contains("2MiB"), "{resized}");
    // The block service joined over TCP.
    assert!(events[1]["author"]["origin"].as_str().expect("from").contains("127.0.0.1"), "{}", events[1]);

    let table = ctl.ok("events");
    for word in ["WHEN", "WHO", "ACTION", "OBJECT", "FROM", "volume.resize", "volume db", "control socket"] {
        assert!(table.contains(word), "'{word}' is missing in: {table}");
    }
    let last = events[6]["at"].as_str().expect("a time");
    assert_eq!(actions(&record(&ctl, &format!("--since {last}"))).last(), Some(&"pool.remove"));
    assert_eq!(record(&ctl, "--since 1h").len(), 7);
    assert!(record(&ctl, "--since 2999-01-01T00:00:00Z").is_empty());
    ctl.run("events --since yesterday").fails(2, &["yesterday"]);
    ctl.check();
}

fn a_follower_misses_nothing_and_hears_nothing_twice(backing: Backing) {
    let cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    let mut command = symphony(["ctl", "--socket", path_text(&ctl.socket), "events", "--follow", "-o", "json"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut follower = command.spawn().expect("a follower");
    let mut lines = BufReader::new(follower.stdout.take().expect("a pipe")).lines();
    for number in 0..20 {
        ctl.ok(&format!("volume create v{number} --size 1M --no-wait"));
    }
    let mut heard = Vec::new();
    while heard.len() < 23 {
        let line = lines.next().expect("it goes on").expect("a line");
        let event: Value = serde_json::from_str(&line).expect("one document a line");
        heard.extend(Some(event).filter(is_asked_for));
    }
    follower.kill().expect("kill a follower");
    follower.wait().expect("bury a follower");
    assert_eq!(heard, record(&ctl, ""));
    ctl.check_when_settled();
}

fn the_record_outlives_its_manager(backing: Backing) {
    let mut cluster = Cluster::start(backing);
    cluster.ctl().ok("volume create db --size 1M");
    let before = record(&cluster.ctl(), "");
    cluster.restart_manager();
    let ctl = cluster.ctl();
    ctl.check_when_settled();
    let after = record(&ctl, "");
    assert_eq!(after[..before.len()], before[..]);
}

#[test]
fn a_service_that_is_down_and_back_is_in_the_record() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let (ctl, id) = (cluster.ctl(), cluster.service_id());
    cluster.block.kill();
    ctl.wait_for_service(&id, "down");
    cluster.block.start_serving(&cluster.block_ctl().socket);
    ctl.wait_for_service(&id, "ready");
    let events = ctl.json("events");
    let liveness: Vec<&Value> =
        events.as_array().expect("a list").iter().filter(|event| event["object"] == id.as_str()).collect();
    let said: Vec<&str> = liveness.iter().map(|event| event["action"].as_str().expect("an action")).collect();
    // A lease that runs out on a busy machine adds more of the same.
    assert_eq!(said[..3], ["service.join", "service.down", "service.ready"], "{said:?}");
    assert!(said[3..].chunks(2).all(|more| more == ["service.down", "service.ready"]), "{said:?}");
    assert_eq!(liveness[1]["author"]["who"], "the leader");
    assert_eq!(liveness[2]["author"]["who"], format!("block service {id}"));
}

#[test]
fn two_managers_tell_the_same_record_in_the_same_order() {
    let cluster = Cluster::start(Backing::Etcd);
    let (_second, second) = cluster.another_manager("manager-02");
    until("a second manager that knows its store", || {
        (second.text("manager status", "/state") == "uninitialised").then_some(())
    });
    second.ok("manager init");
    for number in 0..10 {
        let ctl = if number % 2 == 0 { &second } else { &cluster.ctl() };
        ctl.ok(&format!("volume create v{number} --size 1M"));
    }
    let one = record(&cluster.ctl(), "");
    until("the second manager to know as much", || (record(&second, "") == one).then_some(()));
    assert_eq!(actions(&one).iter().filter(|action| **action == "volume.create").count(), 10);
}
