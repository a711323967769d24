//! How a cluster comes to be: one init, a second one, a second manager, two at the same time.

use crate::stage::{Backing, Cluster, finish, on_each_store, path_text, symphony, until};
use serde_json::Value;

on_each_store!(
    a_second_init_of_a_manager_fails_and_names_the_service_it_already_is,
    a_second_init_of_a_block_service_fails_and_names_the_service_it_already_is,
    a_manager_that_is_not_initialised_says_so_to_every_call_but_init,
    two_inits_of_one_manager_at_the_same_time_create_one_cluster,
    both_services_are_ready_and_known_by_id_after_init,
);

fn a_second_init_of_a_manager_fails_and_names_the_service_it_already_is(backing: Backing) {
    let cluster = Cluster::join(backing, "");
    let id = cluster.ctl().text("manager status", "/service/id");
    cluster.ctl().run("manager init").fails(4, &["already service", &id]);
    assert_eq!(cluster.ctl().text("manager status", "/service/id"), id);
    cluster.ctl().check();
}

fn a_second_init_of_a_block_service_fails_and_names_the_service_it_already_is(backing: Backing) {
    let cluster = Cluster::join(backing, "");
    let id = cluster.service_id();
    let line = format!("block init 127.0.0.1:{}", cluster.manager_port);
    cluster.block_ctl().run(&line).fails(4, &["already service", &id]);
    assert_eq!(cluster.service_id(), id);
    cluster.ctl().check();
}

fn a_manager_that_is_not_initialised_says_so_to_every_call_but_init(backing: Backing) {
    let mut cluster = Cluster::bare(backing);
    let ctl = cluster.ctl();
    cluster.manager.start_serving(&ctl.socket);
    until("a manager that knows its store", || (ctl.text("manager status", "/state") == "uninitialised").then_some(()));
    let socket = path_text(&ctl.socket).to_owned();
    for line in [
        "volume list",
        "pool list",
        "service list",
        "volume create a --size 1M",
        "pool create p --path /srv/p",
        "manager remove x",
        "check",
    ] {
        ctl.run(line).fails(4, &["not initialised", "manager init", &socket]);
    }
    cluster.block.start_serving(&cluster.block_ctl().socket);
    let line = format!("block init 127.0.0.1:{}", cluster.manager_port);
    cluster.block_ctl().run(&line).fails(4, &["not initialised", "manager init"]);
    assert_eq!(cluster.block_ctl().text("block status", "/state"), "uninitialised");
    ctl.ok("manager init");
    cluster.init_block();
    ctl.check();
}

fn two_inits_of_one_manager_at_the_same_time_create_one_cluster(backing: Backing) {
    let mut cluster = Cluster::bare(backing);
    let ctl = cluster.ctl();
    cluster.manager.start_serving(&ctl.socket);
    until("a manager that knows its store", || (ctl.text("manager status", "/state") == "uninitialised").then_some(()));
    let inits: Vec<_> = (0..4).map(|_| in_parallel(&ctl, "manager init")).collect();
    let outcomes: Vec<_> = inits.into_iter().map(|init| init.join().expect("an init")).collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.code == Some(0)).count(), 1, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|outcome| outcome.code == Some(4)).count(), 3, "{outcomes:?}");
    ctl.check();
}

fn both_services_are_ready_and_known_by_id_after_init(backing: Backing) {
    let cluster = Cluster::join(backing, "--name lab");
    let ctl = cluster.ctl();
    assert_eq!(ctl.text("manager status", "/cluster/name"), "lab");
    assert_eq!(cluster.block_ctl().text("block status", "/state"), "connected");
    for id in [ctl.text("manager status", "/service/id"), cluster.service_id()] {
        assert_eq!(ctl.service_state(&id), "ready");
    }
    assert_eq!(ctl.names("service").len(), 2);
    ctl.check();
}

fn in_parallel(ctl: &crate::stage::Control, line: &str) -> std::thread::JoinHandle<crate::stage::Outcome> {
    let (ctl, line) = (ctl.clone(), line.to_owned());
    std::thread::spawn(move || ctl.run(&line))
}

#[test]
fn init_on_a_second_manager_of_the_same_etcd_joins_the_cluster() {
    let cluster = Cluster::start(Backing::Etcd);
    let (_second, second) = cluster.another_manager("manager-02");
    until("a second manager that knows its store", || {
        (second.text("manager status", "/state") == "uninitialised").then_some(())
    });
    let done = second.json("manager init");
    assert_eq!(done["created"], false, "{done}");
    assert_eq!(done["cluster"]["id"], cluster.ctl().json("manager status")["cluster"]["id"]);
    // Either serves what the other was told.
    cluster.ctl().ok("volume create one --size 1M");
    until("the second manager to know of it", || (second.names("volume") == ["one"]).then_some(()));
    second.ok("volume create two --size 1M");
    until("the first manager to know of it", || (cluster.ctl().names("volume").len() == 2).then_some(()));
    cluster.ctl().check();
}

#[test]
fn two_managers_that_init_at_the_same_time_end_up_in_one_cluster() {
    let cluster = Cluster::bare(Backing::ThreeEtcds);
    let managers: Vec<_> = (0..3).map(|number| cluster.another_manager(&format!("manager-{number}"))).collect();
    for (_, control) in &managers {
        until("a manager that knows its store", || {
            (control.text("manager status", "/state") == "uninitialised").then_some(())
        });
    }
    let inits: Vec<_> = managers.iter().map(|(_, control)| in_parallel(control, "manager init -o json")).collect();
    let done: Vec<Value> = inits
        .into_iter()
        .map(|init| serde_json::from_str(&init.join().expect("an init").succeeds()).expect("JSON"))
        .collect();
    assert_eq!(done.iter().filter(|done| done["created"] == true).count(), 1, "{done:?}");
    assert!(done.iter().all(|other| other["cluster"]["id"] == done[0]["cluster"]["id"]), "{done:?}");
    for (_, control) in &managers {
        until("every manager to know all three", || (control.names("service").len() == 3).then_some(()));
        control.check();
    }
}

#[test]
fn the_prefix_keeps_two_clusters_in_one_etcd_apart() {
    let mut cluster = Cluster::bare(Backing::Etcd);
    let endpoints = cluster.etcd.as_ref().expect("an etcd").endpoints().join(",");
    cluster.manager.add_arguments(&["--etcd-prefix", "/lab"]);
    cluster.manager.start_serving(&cluster.ctl().socket);
    cluster.init_manager("");
    let (_other, other) = cluster.another_manager("manager-02");
    until("a manager that knows its store", || {
        (other.text("manager status", "/state") == "uninitialised").then_some(())
    });
    assert_eq!(other.json("manager init")["created"], true);
    let keys = crate::stage::tool("etcdctl", &["--endpoints", &endpoints, "get", "", "--prefix", "--keys-only"]);
    let keys = keys.succeeds();
    assert!(["/lab/cluster", "/cluster"].iter().all(|key| keys.lines().any(|line| line == *key)), "{keys}");
    cluster.ctl().check();
    other.check();
}

#[test]
fn block_init_takes_a_host_name_as_well_as_an_address() {
    let mut cluster = Cluster::bare(Backing::Embedded);
    cluster.manager.start_serving(&cluster.ctl().socket);
    cluster.init_manager("");
    cluster.block.start_serving(&cluster.block_ctl().socket);
    cluster.block_ctl().ok(&format!("block init localhost:{}", cluster.manager_port));
    cluster.ctl().check();
}

#[test]
fn block_init_at_a_place_where_no_manager_is_says_so_and_can_be_repeated() {
    let mut cluster = Cluster::bare(Backing::Embedded);
    cluster.manager.start_serving(&cluster.ctl().socket);
    cluster.init_manager("");
    let block = cluster.block_ctl();
    cluster.block.start_serving(&block.socket);
    let port = crate::support::ports::free_ports(1)[0];
    block.run(&format!("block init 127.0.0.1:{port}")).fails(5, &["no manager answers", &port.to_string()]);
    block.run("block init 127.0.0.1:notaport").fails(5, &["127.0.0.1:notaport", "HOST:PORT"]);
    cluster.init_block();
    cluster.ctl().check();
}

#[test]
fn the_control_socket_is_found_by_its_environment_variable() {
    let cluster = Cluster::join(Backing::Embedded, "");
    let mut command = symphony(["ctl", "check"]);
    command.env("SYMPHONY_SOCKET", cluster.ctl().socket);
    assert!(finish(command).succeeds().starts_with("consistent"));
    let mut command = symphony(["ctl", "check"]);
    command.env("SYMPHONY_MANAGER", format!("127.0.0.1:{}", cluster.manager_port));
    assert!(finish(command).succeeds().starts_with("consistent"));
}
