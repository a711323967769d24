//! Emptying a host: nothing new comes to it, what is on it is named, and the command ends when it is empty.

use crate::stage::{Backing, Cluster, path_text, until};

#[test]
fn a_service_that_is_drained_takes_nothing_new_and_names_what_is_left() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let (ctl, first) = (cluster.ctl(), cluster.service_id());
    let (_second, second) = cluster.another_block("block-02");
    second.ok(&format!("block init 127.0.0.1:{}", cluster.manager_port));
    let other = second.text("block status", "/service/id");
    ctl.ok("volume create old --size 1M");
    ctl.ok(&format!("pool create spare --service {other} --path {}", path_text(&cluster.path().join("spare"))));
    let manager = ctl.text("manager status", "/service/id");
    ctl.run(&format!("service drain {manager}")).fails(2, &["is a manager"]);

    let left = ctl.json(&format!("service drain {first} --no-wait"));
    let names: Vec<&str> =
        left["remnants"].as_array().expect("a list").iter().filter_map(|it| it["name"].as_str()).collect();
    assert_eq!(names, ["old", "main"], "{left}");
    assert!(ctl.ok("service list").contains("ready, draining"));
    ctl.run("volume create new --size 1M --pool main").fails(4, &["is being drained", "undrain"]);
    let place = cluster.path().join("third");
    ctl.run(&format!("pool create third --service {first} --path {}", path_text(&place)))
        .fails(4, &["is being drained"]);
    ctl.ok("volume create new --size 1M");
    assert_eq!(ctl.text("volume get new", "/status/placement/0/service"), other);
    ctl.ok(&format!("service undrain {first}"));
    ctl.ok("volume create more --size 1M --pool main");

    // What is in use stays in use; the command ends when the last of it is gone.
    std::thread::scope(|scope| {
        let drained = scope.spawn(|| ctl.run(&format!("service drain {first}")));
        until("the service to be drained", || ctl.ok("service list").contains("draining").then_some(()));
        for line in ["volume remove old", "volume remove more", "pool remove main"] {
            assert!(!drained.is_finished());
            ctl.ok(line);
        }
        let said = drained.join().expect("a drain").succeeds();
        assert!(said.contains("is empty") && said.contains("manager remove"), "{said}");
    });
    ctl.ok(&format!("service undrain {first}"));
    cluster.block.kill();
    ctl.wait_for_service(&first, "down");
    ctl.run(&format!("service drain {first}")).fails(4, &["is down", "--lost"]);
    ctl.ok(&format!("manager remove {first} --lost"));
    ctl.check();
}
