//! Three managers over an etcd of three: any of them serves any request, and any of them may die.

use crate::stage::{Backing, Cluster, Control, Daemon, client, until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Fast enough that a test can see a lease end.
const FAST: &str = "--heartbeat 500ms --lease 2s";

/// The managers' processes beside the cluster's own, and the controls of all three.
struct Three {
    cluster: Cluster,
    others: Vec<(Daemon, Control)>,
}

impl Three {
    fn start() -> Self {
        Self::with(FAST)
    }

    fn with(options: &str) -> Self {
        let cluster = Cluster::join(Backing::ThreeEtcds, options);
        let others: Vec<_> = ["manager-02", "manager-03"].map(|name| cluster.another_manager(name)).into();
        for (_, control) in &others {
            until("a manager that knows its store", || {
                (control.text("manager status", "/state") == "uninitialised").then_some(())
            });
            control.ok("manager init");
        }
        Self { cluster, others }
    }

    fn controls(&self) -> Vec<Control> {
        std::iter::once(self.cluster.ctl()).chain(self.others.iter().map(|(_, control)| control.clone())).collect()
    }

    fn daemon(&mut self, place: usize) -> &mut Daemon {
        match place {
            0 => &mut self.cluster.manager,
            place => &mut self.others[place - 1].0,
        }
    }

    fn id(&self, place: usize) -> String {
        self.controls()[place].text("manager status", "/service/id")
    }

    /// The place of the manager that leads.
    fn leader(&self) -> usize {
        let controls = self.controls();
        let ids: Vec<String> = (0..3).map(|place| self.id(place)).collect();
        until("a leader", || {
            let leader = controls[0].json("manager status")["leader"].as_str()?.to_owned();
            ids.iter().position(|id| *id == leader)
        })
    }
}

fn entries(ctl: &Control, action: &str, name: &str) -> usize {
    let record = ctl.json("events");
    let is_it = |event: &&Value| event["action"] == action && (event["object"] == name || event["name"] == name);
    record.as_array().expect("a list").iter().filter(is_it).count()
}

#[test]
fn any_manager_serves_any_request_and_block_services_move_to_those_that_are_left() {
    let mut three = Three::start();
    let controls = three.controls();
    let port = three.cluster.manager_port;
    let mut blocks = Vec::new();
    for number in 2..=7 {
        let (daemon, control) = three.cluster.another_block(&format!("block-{number:02}"));
        control.ok(&format!("block init 127.0.0.1:{port}"));
        blocks.push((daemon, control));
    }
    let ids: Vec<String> = blocks.iter().map(|(_, control)| control.text("block status", "/service/id")).collect();
    controls[1].ok(&format!(
        "pool create main --path {} --service {}",
        three.cluster.pool().display(),
        three.cluster.service_id()
    ));
    // Each manager's view comes after in its own time.
    let shown = |control: &Control, line: &str, is_so: &dyn Fn(&Value) -> bool| {
        until(line, || serde_json::from_slice(&control.run(line).stdout).ok().filter(is_so))
    };
    shown(&controls[2], "pool get main -o json", &|pool| pool["status"]["phase"] == "ready");
    controls[2].ok("volume create a --size 1M");
    controls[0].ok("volume resize a --size 2M");
    let before = shown(&controls[1], "volume get a -o json", &|volume| {
        volume["status"]["phase"] == "ready" && volume["status"]["size"] == 2 << 20
    });
    let mut connected = client(&controls[1].uri("a", "nbd")).expect("a connection");
    let first = three.id(0);
    let holder = |id: &String| controls[1].text(&format!("service get {id}"), "/status/manager");
    assert!(ids.iter().all(|id| holder(id) == first), "all came through the first one");
    // They have heard of every manager.
    for (_, control) in &blocks {
        let identity = control.socket.with_file_name("identity.json");
        until("three managers to be remembered", || {
            let text = std::fs::read_to_string(&identity).ok()?;
            let found: Value = serde_json::from_str(&text).ok()?;
            (found["content"]["membership"]["managers"].as_array()?.len() == 3).then_some(())
        });
    }
    three.daemon(0).kill();
    until("every session to be somewhere else", || ids.iter().all(|id| holder(id) != first).then_some(()));
    controls[1].wait_for_service(&first, "down");
    let left = [three.id(1), three.id(2)];
    assert!(ids.iter().all(|id| left.contains(&holder(id))), "the managers that are left hold every session");
    connected.write(0, &[1; 4096], true).expect("the same connection");
    let after = controls[2].json("volume get a");
    assert_eq!((&after["meta"], &after["status"]), (&before["meta"], &before["status"]), "no state flapped");
    for id in &ids {
        assert_eq!(entries(&controls[1], "service.down", id), 0, "a block service was called down");
    }
    three.daemon(0).start_serving(&controls[0].socket);
    controls[1].wait_for_service(&first, "ready");
    controls[2].ok("volume create b --size 1M");
    controls[1].check_when_settled_somewhere();
}

#[test]
fn a_manager_that_hangs_is_left_while_the_lease_lives_and_nothing_flaps() {
    // A lease that would run out is seen by the leader, which calls the service down.
    let mut three = Three::with("--heartbeat 300ms --lease 10s");
    let controls = three.controls();
    controls[1].ok(&format!("pool create main --path {}", three.cluster.pool().display()));
    controls[1].ok("volume create a --size 1M");
    let mut connected = client(&controls[1].uri("a", "nbd")).expect("a connection");
    let (first, block) = (three.id(0), three.cluster.service_id());
    let holder = || controls[1].text(&format!("service get {block}"), "/status/manager");
    assert_eq!(holder(), first);
    let before = controls[1].json("volume get a");
    three.daemon(0).signal(Signal::SIGSTOP);
    until("the block service to be with another manager", || (holder() != first).then_some(()));
    assert_eq!(controls[1].service_state(&first), "ready", "even its own lease lives still");
    connected.write(0, &[1; 4096], true).expect("the same connection");
    controls[2].ok("volume create b --size 1M");
    let after = controls[2].json("volume get a");
    assert_eq!((&after["meta"], &after["status"]), (&before["meta"], &before["status"]), "no state flapped");
    three.daemon(0).signal(Signal::SIGCONT);
    until("the first manager to see that", || (controls[0].names("volume").len() == 2).then_some(()));
    assert_ne!(holder(), first, "it comes back by itself as little as others take it away");
    assert_eq!(entries(&controls[1], "service.down", &block), 0, "the block service was called down");
    connected.write(0, &[2; 4096], true).expect("the same connection");
    controls[0].check_when_settled_somewhere();
}

#[test]
fn a_leader_that_was_stopped_for_longer_than_its_lease_does_no_harm_when_it_goes_on() {
    let mut three = Three::start();
    let controls = three.controls();
    controls[0].ok(&format!("pool create main --path {}", three.cluster.pool().display()));
    controls[0].ok("volume create a --size 1M");
    for _ in 0..2 {
        let old = three.leader();
        let (old_id, witness) = (three.id(old), &controls[(old + 1) % 3]);
        three.daemon(old).signal(Signal::SIGSTOP);
        let new = until("another leader", || {
            let leader = witness.json("manager status")["leader"].as_str()?.to_owned();
            (leader != old_id).then_some(leader)
        });
        witness.wait_for_service(&old_id, "down");
        witness.wait_for_service(&three.cluster.service_id(), "ready");
        // A member that the old leader still thinks alive, and one that it still thinks dead.
        witness.ok("volume resize a --size 2M");
        let down = entries(witness, "service.down", &three.cluster.service_id());
        three.daemon(old).signal(Signal::SIGCONT);
        witness.wait_for_service(&old_id, "ready");
        assert_eq!(witness.text("manager status", "/leader"), new, "the office is another one's");
        let seen = &controls[old];
        until("the old leader to see that", || (seen.text("manager status", "/leader") == new).then_some(()));
        assert_eq!(entries(witness, "service.down", &three.cluster.service_id()), down, "it called nobody down");
        assert_eq!(witness.service_state(&three.cluster.service_id()), "ready");
        seen.ok("volume resize a --size 1M --allow-shrink");
        witness.check_when_settled_somewhere();
    }
}
