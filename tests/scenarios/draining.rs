//! Emptying a host: nothing new comes to it, what nobody uses leaves it, the rest is named, and the command ends when it is
//! empty.

use crate::stage::{Backing, Cluster, client, path_text, qemu_io, until};

#[test]
fn a_service_that_is_drained_takes_nothing_new_gives_away_what_nobody_uses_and_names_the_rest() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let (ctl, first) = (cluster.ctl(), cluster.service_id());
    let (_second, second) = cluster.another_block("block-02");
    second.ok(&format!("block init 127.0.0.1:{}", cluster.manager_port));
    let other = second.text("block status", "/service/id");
    ctl.ok("volume create old --size 1M");
    ctl.ok(&format!("pool create spare --service {other} --path {}", path_text(&cluster.path().join("spare"))));
    let manager = ctl.text("manager status", "/service/id");
    ctl.run(&format!("service drain {manager}")).fails(2, &["is a manager"]);
    let place = |volume: &str| ctl.text(&format!("volume get {volume}"), "/status/placement/0/service");

    let mut user = client(&ctl.uri("old", "nbd")).expect("a connection");
    let left = ctl.json(&format!("service drain {first} --no-wait"));
    let names: Vec<&str> =
        left["remnants"].as_array().expect("a list").iter().filter_map(|it| it["name"].as_str()).collect();
    assert_eq!(names, ["old", "main"], "{left}");
    assert!(ctl.ok("service list").contains("ready, draining"));
    ctl.run("volume create new --size 1M --pool main").fails(4, &["is being drained", "undrain"]);
    ctl.run(&format!("pool create third --service {first} --path {}", path_text(&cluster.path().join("third"))))
        .fails(4, &["is being drained"]);
    ctl.ok("volume create new --size 1M");
    assert_eq!(place("new"), other);
    until("the drain to find that the volume is in use", || {
        let left = ctl.json(&format!("service drain {first} --no-wait"));
        left.to_string().contains("in use by 1 connections").then_some(())
    });
    user.write(0, &[7; 4096], true).expect("whoever uses it goes on");
    ctl.ok(&format!("service undrain {first}"));
    assert_eq!(ctl.json("volume get old")["spec"].get("moving"), None, "its move is called off");
    ctl.ok("volume create more --size 1M --pool main");

    // What is in use stays in use; the command ends when the last of it is gone.
    std::thread::scope(|scope| {
        let drained = scope.spawn(|| ctl.run(&format!("service drain {first}")));
        until("what nobody uses to leave", || (place("more") == other).then_some(()));
        assert_eq!(place("old"), first);
        user.write(4096, &[8; 4096], true).expect("it is in use still");
        assert!(!drained.is_finished());
        drop(user);
        until("the last volume to leave", || (place("old") == other).then_some(()));
        until("the pool to be empty", || (ctl.run("pool remove main").code == Some(0)).then_some(()));
        let said = drained.join().expect("a drain").succeeds();
        assert!(said.contains("is empty") && said.contains("manager remove"), "{said}");
    });
    ctl.check_when_settled();
    qemu_io(&ctl.uri("old", "nbd"), &["read -P 7 0 4k", "read -P 8 4k 4k"]).succeeds();
    ctl.ok(&format!("service undrain {first}"));
    cluster.block.kill();
    ctl.wait_for_service(&first, "down");
    ctl.run(&format!("service drain {first}")).fails(4, &["is down", "--lost"]);
    ctl.ok(&format!("manager remove {first} --lost"));
    ctl.check();
}
