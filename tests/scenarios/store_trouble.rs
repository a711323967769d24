//! An etcd in trouble beneath managers that go on: what they show then, and that nothing comes of it afterwards.

use crate::stage::{Backing, Cluster, Control, client, until, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

/// What was recorded of services and volumes that nobody asked for.
fn flaps(ctl: &Control) -> Vec<Value> {
    let record = ctl.json("events");
    let record = record.as_array().expect("a list").iter();
    let unasked = ["service.down", "service.ready", "service.carry", "cluster.rewind"];
    record.filter(|event| unasked.iter().any(|action| event["action"] == *action)).cloned().collect()
}

fn phases(ctl: &Control) -> Vec<(String, String, String)> {
    let volumes = ctl.json("volume list");
    let volumes = volumes.as_array().expect("a list").iter();
    let text = |value: &Value| value.to_string();
    volumes.map(|it| (text(&it["meta"]), text(&it["spec"]), text(&it["status"]["phase"]))).collect()
}

fn wait_for_changes(ctl: &Control, volume: &str) {
    until("changes to be possible again", || {
        let made = ctl.run(&format!("volume create {volume} --size 1M"));
        (made.code == Some(0) || made.stderr.contains("exists already")).then_some(())
    });
    until("the manager to say no more that it is behind", || {
        ctl.json("manager status")["stale_since"].is_null().then_some(())
    });
}

#[test]
fn without_a_quorum_reads_go_on_and_say_so_and_no_state_flaps_when_it_is_back() {
    let mut cluster = Cluster::join(Backing::ThreeEtcds, "--heartbeat 500ms --lease 2s");
    let ctl = cluster.ctl();
    ctl.ok(&format!("pool create main --path {}", cluster.pool().display()));
    ctl.ok("volume create a --size 1M");
    ctl.check_when_settled();
    let (before, flapped) = (phases(&ctl), flaps(&ctl));
    let mut connected = client(&ctl.uri("a", "nbd")).expect("a connection");
    let etcd = cluster.etcd.as_ref().expect("an etcd");
    let leader = wait(etcd.leader());
    etcd.kill(leader);
    etcd.kill((leader + 1) % 3);
    let said = until("the manager to say that it is behind", || {
        let outcome = ctl.run("volume list -o json");
        assert_eq!(outcome.code, Some(0), "reads go on: {}", outcome.stderr);
        outcome.stderr.contains("has not reached its store since").then_some(outcome)
    });
    assert!(serde_json::from_slice::<Value>(&said.stdout).is_ok(), "the note is beside the result");
    assert!(ctl.json("manager status")["stale_since"].is_string());
    assert!(ctl.ok("manager status").contains("Stale"));
    for change in ["volume create b --size 1M", "volume remove a", "volume resize a --size 2M"] {
        let failed = ctl.run(&format!("{change} --timeout 5s"));
        assert!(failed.code == Some(5), "{change}: {}", failed.stderr);
    }
    assert_eq!(phases(&ctl), before);
    connected.write(0, &[1; 4096], true).expect("a write meanwhile");
    // Longer than any lease: every one of them runs out.
    until("the session to have been given up", || cluster.manager.log().contains("a session ended").then_some(()));
    let etcd = cluster.etcd.as_ref().expect("an etcd");
    etcd.restart(leader);
    etcd.restart((leader + 1) % 3);
    wait_for_changes(&ctl, "c");
    ctl.check_when_settled();
    connected.write(0, &[2; 4096], true).expect("the same connection");
    assert_eq!(flaps(&ctl), flapped, "nobody was called down");
    let settled = phases(&ctl);
    assert!(settled.iter().all(|(.., phase)| phase == "\"ready\""), "{settled:?}");
    cluster.manager.assert_alive();
    cluster.block.assert_alive();
}

#[test]
fn a_watch_that_etcd_cancels_is_begun_again_and_nothing_is_missed() {
    let cluster = Cluster::start(Backing::ThreeEtcds);
    let (ctl, etcd) = (cluster.ctl(), cluster.etcd.as_ref().expect("an etcd"));
    ctl.ok("volume create a --size 1M");
    // A member that loses its leader cancels every watch that asked for one.
    let leader = wait(etcd.leader());
    for (round, other) in (0..3).filter(|place| *place != leader).enumerate() {
        etcd.pause(leader);
        etcd.pause(other);
        until("the watch to be cancelled", || {
            (cluster.manager.log().matches("the watch on the store is interrupted").count() > round).then_some(())
        });
        etcd.resume(leader);
        etcd.resume(other);
        (0..3).for_each(|member| wait(etcd.wait_until_healthy(member)));
        wait_for_changes(&ctl, &format!("b{round}"));
        ctl.check_when_settled();
    }
    assert_eq!(ctl.names("volume").len(), 3);
}

#[test]
fn a_compaction_beneath_a_watch_makes_the_view_start_over_and_nothing_is_missed() {
    let cluster = Cluster::start(Backing::Etcd);
    let (ctl, etcd) = (cluster.ctl(), cluster.etcd.as_ref().expect("an etcd"));
    let (_second, second) = cluster.another_manager("manager-02");
    until("a second manager that knows its store", || {
        (second.text("manager status", "/state") == "uninitialised").then_some(())
    });
    second.ok("manager init");
    ctl.ok("volume create a --size 1M");
    let id = ctl.text("manager status", "/service/id");
    // It reads nothing while more is written than all buffers between etcd and it can hold, and forgotten.
    cluster.manager.signal(Signal::SIGSTOP);
    second.wait_for_service(&id, "down");
    wait(etcd.crowd(16, 1 << 20));
    wait(etcd.crowd(1500, 16));
    second.wait_for_service(&cluster.service_id(), "ready");
    second.ok("volume create b --size 1M");
    wait(etcd.compact());
    cluster.manager.signal(Signal::SIGCONT);
    until("the view to start over", || {
        cluster.manager.log().contains("the view starts over from a listing").then_some(())
    });
    ctl.wait_for_service(&id, "ready");
    assert_eq!(ctl.names("volume"), second.names("volume"));
    assert!(ctl.json("manager status")["history"]["rewound"].is_null(), "nothing was put back");
    second.check_when_settled();
}

#[test]
fn one_member_of_three_is_not_missed_by_any_of_three_managers() {
    let cluster = Cluster::start(Backing::ThreeEtcds);
    let (ctl, etcd) = (cluster.ctl(), cluster.etcd.as_ref().expect("an etcd"));
    let others = ["manager-02", "manager-03"].map(|name| cluster.another_manager(name));
    for (_, control) in &others {
        until("a manager that knows its store", || {
            (control.text("manager status", "/state") == "uninitialised").then_some(())
        });
        control.ok("manager init");
    }
    ctl.ok("volume create a --size 1M");
    let flapped = flaps(&ctl);
    for member in 0..3 {
        etcd.kill(member);
        for (place, control) in [&ctl, &others[0].1, &others[1].1].into_iter().enumerate() {
            until("a volume to be made", || {
                let made = control.run(&format!("volume create v{member}-{place} --size 1M"));
                (made.code == Some(0) || made.stderr.contains("exists already")).then_some(())
            });
        }
        etcd.restart(member);
        wait(etcd.wait_until_healthy(member));
    }
    assert_eq!(ctl.names("volume").len(), 10);
    ctl.check_when_settled();
    assert_eq!(flaps(&ctl), flapped, "nobody was called down");
}
