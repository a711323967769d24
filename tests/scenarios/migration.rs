//! `manager migrate`: from the embedded store to etcd, in one command, without anybody on the data path noticing.

use crate::stage::{Backing, Cluster, Control, client, path_text, symphony, until, wait};
use crate::support::etcd::{Etcd, EtcdSetup};
use std::process::Stdio;

fn etcd() -> Etcd {
    wait(Etcd::start_with(1, EtcdSetup { unsafe_no_fsync: true, ..EtcdSetup::default() }))
}

fn migrate(etcd: &Etcd) -> String {
    format!("manager migrate --etcd-endpoints {}", etcd.endpoints().join(","))
}

fn wait_for_member(ctl: &Control) {
    until("the manager to serve", || (ctl.text("manager status", "/state") == "member").then_some(()));
}

fn store(ctl: &Control) -> String {
    ctl.text("manager status", "/store")
}

#[test]
fn a_cluster_grows_into_etcd_while_its_clients_go_on() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let (ctl, etcd) = (cluster.ctl(), etcd());
    for number in 0..150 {
        ctl.ok(&format!("volume create v{number} --size 1M --no-wait"));
    }
    ctl.check_when_settled();
    let (services, volumes) = (ctl.names("service"), ctl.json("volume list"));
    let mut connected = client(&cluster.local_uri("v0")).expect("a connection");
    let said = ctl.ok(&migrate(&etcd));
    assert!(said.contains("etcd at"), "{said}");
    connected.write(0, &[1; 4096], true).expect("the same connection");
    ctl.check_when_settled();
    assert_eq!(ctl.names("service"), services);
    let ids = |list: &serde_json::Value| {
        let list = list.as_array().expect("a list").iter();
        list.map(|volume| (volume["meta"]["id"].to_string(), volume["meta"]["generation"].to_string()))
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&ctl.json("volume list")), ids(&volumes));
    assert!(store(&ctl).starts_with("etcd at"));
    assert!(ctl.json("manager status")["history"]["rewound"].is_null(), "nothing was put back");
    ctl.run(&migrate(&etcd)).fails(4, &["already"]);

    // The next start finds it by itself, and the old file is nobody's any more.
    cluster.restart_manager();
    wait_for_member(&ctl);
    assert!(store(&ctl).starts_with("etcd at"));
    ctl.ok("volume create after --size 1M");
    connected.write(0, &[2; 4096], true).expect("the same connection");
    cluster.manager.stop();
    let note = cluster.manager_dir().join("store.json");
    let aside = cluster.path().join("store.json");
    std::fs::rename(&note, &aside).expect("its note");
    cluster.manager.run_to_end().fails(1, &["was moved to etcd at", "not served any more"]);
    std::fs::rename(&aside, &note).expect("its note");
    cluster.manager.start_serving(&ctl.socket);
    wait_for_member(&ctl);
    assert_eq!(ctl.names("volume").len(), 151);
    ctl.check_when_settled();
    // And a second manager may join there.
    let (mut second, control) = {
        let endpoints = etcd.endpoints().join(",");
        let config = cluster.path().join("manager-02");
        let arguments =
            ["manager", "run", "--listen-port", "0", "--config-dir", path_text(&config), "--etcd-endpoints"];
        let mut daemon = crate::stage::Daemon::new("manager-02", cluster.path(), &arguments);
        daemon.add_arguments(&[&endpoints]);
        (daemon, Control::of(&config))
    };
    second.start_serving(&control.socket);
    until("a second manager that knows its store", || {
        (control.text("manager status", "/state") == "uninitialised").then_some(())
    });
    control.ok("manager init");
    assert_eq!(control.names("volume").len(), 151);
}

#[test]
fn what_cannot_be_moved_serves_on_where_it_was() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 1M");
    ctl.run("manager migrate --etcd-endpoints http://127.0.0.1:1").fails(5, &["127.0.0.1:1"]);
    ctl.run("manager migrate").fails(2, &["--etcd-endpoints"]);
    let other = Cluster::join(Backing::Etcd, "");
    let taken = other.etcd.as_ref().expect("an etcd");
    ctl.run(&migrate(taken)).fails(4, &["the store holds cluster 'symphony'", "nothing was moved"]);
    other.ctl().run(&migrate(taken)).fails(4, &["already"]);
    assert_eq!(store(&ctl), "embedded");
    ctl.ok("volume create b --size 1M");
    ctl.check();
    other.ctl().check();
}

#[test]
fn a_move_that_is_killed_at_any_instant_leaves_one_truth_and_a_repeat_finishes_it() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let (ctl, etcd) = (cluster.ctl(), etcd());
    for number in 0..40 {
        ctl.ok(&format!("volume create v{number} --size 1M --no-wait"));
    }
    let mut connected = client(&cluster.local_uri("v0")).expect("a connection");
    let mut volumes = 40;
    for round in 0..25u64 {
        wait_for_member(&ctl);
        // Whatever was acknowledged before is there, wherever the state is.
        assert_eq!(ctl.names("volume").len(), volumes);
        if store(&ctl).starts_with("etcd") {
            break;
        }
        ctl.ok(&format!("volume create more{round} --size 1M --no-wait"));
        volumes += 1;
        let mut moving = symphony(["ctl", "--socket", path_text(&ctl.socket)]);
        moving.args(migrate(&etcd).split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut moving = crate::support::process::spawn_for_life(moving);
        std::thread::sleep(std::time::Duration::from_millis(8 * round));
        cluster.restart_manager();
        until("the command to end", || moving.try_wait().expect("look after ctl"));
    }
    wait_for_member(&ctl);
    if store(&ctl) == "embedded" {
        ctl.ok(&migrate(&etcd));
    }
    assert_eq!(ctl.names("volume").len(), volumes);
    assert!(store(&ctl).starts_with("etcd"));
    connected.write(0, &[1; 4096], true).expect("the same connection");
    ctl.check_when_settled();
}

#[test]
fn a_moved_state_whose_etcd_is_away_is_waited_for_and_never_replaced_by_the_old_one() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let (ctl, etcd) = (cluster.ctl(), etcd());
    ctl.ok("volume create a --size 1M");
    ctl.ok(&migrate(&etcd));
    ctl.ok("volume create b --size 1M");
    cluster.manager.stop();
    etcd.kill(0);
    cluster.manager.start_serving(&ctl.socket);
    until("a first vain attempt", || (ctl.json("manager status")["message"].is_string()).then_some(()));
    assert_eq!(ctl.text("manager status", "/state"), "starting");
    ctl.run("volume list").fails(5, &["not serving yet"]);
    etcd.restart(0);
    wait_for_member(&ctl);
    assert_eq!(ctl.names("volume").len(), 2);
    ctl.check_when_settled();
}
