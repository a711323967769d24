//! The data path without the control path: managers gone, exports there.

use crate::stage::{Backing, Cluster, client, nbd_size, on_each_store, qemu_io, until};

on_each_store!(writes_go_on_while_no_manager_is_there, exports_come_back_from_the_ledger_before_any_manager_answers,);

fn writes_go_on_while_no_manager_is_there(backing: Backing) {
    let mut cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 4M");
    let uri = ctl.uri("a", "nbd");
    let mut connected = client(&uri).expect("a connection");
    connected.write(0, &[1; 4096], true).expect("a write with a manager");
    cluster.manager.kill();
    connected.write(4096, &[2; 4096], true).expect("a write without a manager");
    qemu_io(&uri, &["read -P 1 0 4k", "read -P 2 4k 4k", "write -P 3 8k 4k", "flush"]).succeeds();
    until("the block service to notice", || {
        (cluster.block_ctl().text("block status", "/state") == "connecting").then_some(())
    });
    cluster.restart_manager();
    ctl.check_when_settled();
    let mut seen = vec![0; 4096];
    connected.read(8192, &mut seen).expect("the same connection");
    assert_eq!(seen, vec![3; 4096]);
    ctl.check();
}

fn exports_come_back_from_the_ledger_before_any_manager_answers(backing: Backing) {
    let mut cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    for volume in ["a", "b", "c"] {
        ctl.ok(&format!("volume create {volume} --size 1M"));
        qemu_io(&ctl.uri(volume, "nbd"), &["write -P 0x42 0 1M", "flush"]).succeeds();
    }
    ctl.ok("volume remove b");
    ctl.ok("volume resize c --size 2M");
    let id = cluster.service_id();
    cluster.manager.kill();
    cluster.restart_block();
    for (volume, size) in [("a", 1 << 20), ("c", 2 << 20)] {
        let uri = cluster.local_uri(volume);
        until("an export from the ledger", || client(&uri).ok());
        assert_eq!(nbd_size(&uri), size);
        qemu_io(&uri, &["read -P 0x42 0 1M", "write -P 0x43 0 4k", "flush"]).succeeds();
    }
    client(&cluster.local_uri("b")).expect_err("what was removed stays so");
    cluster.manager.start_serving(&ctl.socket);
    ctl.wait_for_service(&id, "ready");
    ctl.check_when_settled();
    qemu_io(&ctl.uri("a", "nbd"), &["read -P 0x43 0 4k"]).succeeds();
    ctl.check();
}

#[test]
fn a_manager_that_stops_in_order_does_not_disturb_the_exports() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 1M");
    let mut connected = client(&ctl.uri("a", "nbd")).expect("a connection");
    assert_eq!(cluster.manager.stop().code(), Some(0));
    connected.write(0, &[1; 4096], true).expect("a write without a manager");
    cluster.manager.start_serving(&ctl.socket);
    ctl.check_when_settled();
    connected.write(0, &[2; 4096], true).expect("a write with a manager again");
    ctl.check();
}

#[test]
fn a_block_service_that_stops_in_order_keeps_what_was_written_without_a_flush() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 1M");
    let mut connected = client(&ctl.uri("a", "nbd")).expect("a connection");
    connected.write(0, &[9; 4096], false).expect("a write");
    assert_eq!(cluster.block.stop().code(), Some(0));
    cluster.block.start_serving(&cluster.block_ctl().socket);
    ctl.check_when_settled();
    qemu_io(&ctl.uri("a", "nbd"), &["read -P 9 0 4k"]).succeeds();
    ctl.check();
}
