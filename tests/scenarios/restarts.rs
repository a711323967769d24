//! Everything is killed and comes back on the same directories: who belongs still belongs, and nobody is asked to join.

use crate::stage::{Hosts, path_text, secure, tool, until};

#[test]
fn a_cluster_on_several_hosts_is_itself_again_after_everything_was_killed() {
    let Some(mut hosts) = Hosts::start(["block", "client"], "") else { return };
    let ctl = hosts.ctl();
    let mut block = hosts.joined_block("block");
    ctl.ok("volume create db --size 4M");
    let (web, ops) = (hosts.bundle("web", "data"), hosts.bundle("ops", "viewer"));
    ctl.ok("volume attach db --client web");
    let (id, manager) = (block.id(), ctl.text("manager status", "/service/id"));
    let roots = ctl.json("manager ca show")["roots"].clone();
    let uri = secure(&ctl.uri("db", "nbd-tls"), &web);
    let reached = |hosts: &Hosts| hosts.host("client").run("nbdinfo", &["--size", &uri]).code == Some(0);
    assert!(reached(&hosts));

    block.daemon.kill();
    hosts.manager.kill();
    assert!(!reached(&hosts), "nobody serves");
    // The block service alone: from its ledger, with the certificate that it had.
    block.daemon.start_serving(&block.control.socket);
    until("the volume to be served without a manager", || reached(&hosts).then_some(()));
    assert_eq!(block.id(), id);
    let local = block.local_uri("db");
    tool("qemu-img", &["info", &local]).fails(1, &["attached to client 'web' alone"]);

    hosts.manager.start_serving(&ctl.socket);
    until("the manager to be a member", || (ctl.text("manager status", "/state") == "member").then_some(()));
    ctl.wait_for_service(&id, "ready");
    assert_eq!(ctl.text("manager status", "/service/id"), manager);
    assert_eq!(ctl.json("manager ca show")["roots"], roots);
    ctl.run("manager init").fails(4, &[&manager]);
    block.control.run(&format!("block init {}", hosts.address("manager"))).fails(4, &[&id]);
    let far = format!("--bundle {} service list -o name", path_text(&ops));
    assert_eq!(hosts.ctl_on("client", &far).succeeds().lines().count(), 2);
    until("the attachment to be ready", || {
        (ctl.text("attachment get db/web", "/status/phase") == "ready").then_some(())
    });
    assert!(reached(&hosts));
    ctl.ok("volume detach db --client web");
    assert!(!reached(&hosts));
    ctl.check();
}
