//! `symphony dev`: everything for one machine in one process.

use crate::stage::{Control, Daemon, path_text, qemu_io, until};
use std::path::Path;

/// Prepares the all-in-one role on free ports below `directory`/dev.
pub fn daemon(directory: &Path) -> Daemon {
    let config = directory.join("dev");
    let ports = ["--listen-port", "0", "--block-port", "0", "--nbd-port", "0"];
    Daemon::new("dev", directory, &[&["dev", "--config-dir", path_text(&config)], &ports[..]].concat())
}

/// Starts it and waits until it says that it is ready.
pub fn start(dev: &mut Daemon, ctl: &Control) {
    let before = dev.log().matches("symphony is ready").count();
    dev.start_serving(&ctl.socket);
    until("symphony to be ready", || {
        dev.assert_alive();
        (dev.log().matches("symphony is ready").count() > before).then_some(())
    });
}

#[test]
fn a_fresh_directory_leads_to_the_first_volume_without_further_ceremony() {
    let scratch = tempfile::tempdir().expect("a directory");
    let (mut dev, ctl) = (daemon(scratch.path()), Control::of(&scratch.path().join("dev/manager")));
    start(&mut dev, &ctl);
    assert!(dev.log().contains(path_text(&ctl.socket)), "it says which socket to use: {}", dev.log());
    let block = Control::of(&scratch.path().join("dev/block"));
    assert_eq!(block.text("block status", "/state"), "connected");
    assert_eq!(ctl.names("pool"), ["default"]);
    ctl.ok("volume create first --size 1GiB");
    qemu_io(&ctl.uri("first", "nbd"), &["write -P 0x77 0 1M", "flush"]).succeeds();
    ctl.check();
}

#[test]
fn a_second_start_on_the_same_directory_goes_on_where_the_first_ended() {
    let scratch = tempfile::tempdir().expect("a directory");
    let (mut dev, ctl) = (daemon(scratch.path()), Control::of(&scratch.path().join("dev/manager")));
    start(&mut dev, &ctl);
    ctl.ok("volume create first --size 1MiB");
    qemu_io(&ctl.uri("first", "nbd"), &["write -P 0x77 0 1M", "flush"]).succeeds();
    let mut services = ctl.names("service");
    assert_eq!(dev.stop().code(), Some(0));
    start(&mut dev, &ctl);
    let mut again = ctl.names("service");
    services.sort();
    again.sort();
    assert_eq!(services, again);
    ctl.check_when_settled();
    qemu_io(&ctl.uri("first", "nbd"), &["read -P 0x77 0 1M"]).succeeds();
    ctl.check();
}

#[test]
fn the_end_is_in_order_and_leaves_nothing_behind_that_serves() {
    let scratch = tempfile::tempdir().expect("a directory");
    let (mut dev, ctl) = (daemon(scratch.path()), Control::of(&scratch.path().join("dev/manager")));
    start(&mut dev, &ctl);
    ctl.ok("volume create first --size 1MiB");
    ctl.check();
    let mut client = crate::stage::client(&ctl.uri("first", "nbd")).expect("a connection");
    client.write(0, &[1; 4096], false).expect("a write");
    assert_eq!(dev.stop().code(), Some(0), "{}", dev.log());
    client.write(0, &[2; 4096], false).expect_err("nobody serves any more");
    ctl.run("volume list").fails(5, &[path_text(&ctl.socket), "symphony dev"]);
}

#[test]
fn a_second_process_on_the_same_directory_is_told_who_holds_it() {
    let scratch = tempfile::tempdir().expect("a directory");
    let (mut dev, ctl) = (daemon(scratch.path()), Control::of(&scratch.path().join("dev/manager")));
    start(&mut dev, &ctl);
    let second = daemon(scratch.path());
    second.run_to_end().fails(1, &["dev/manager", "locked", &dev.pid().to_string()]);
    dev.assert_alive();
    ctl.check();
}

#[test]
fn a_port_that_is_taken_ends_the_start_and_is_named() {
    let scratch = tempfile::tempdir().expect("a directory");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    for option in ["--listen-port", "--block-port", "--nbd-port"] {
        let config = scratch.path().join("dev");
        let mut arguments = vec!["dev", "--config-dir", path_text(&config)];
        for port_option in ["--listen-port", "--block-port", "--nbd-port"] {
            arguments.extend([port_option, if port_option == option { &port } else { "0" }]);
        }
        Daemon::new("dev", scratch.path(), &arguments).run_to_end().fails(1, &["127.0.0.1", &port, "in use"]);
    }
    // Nothing of it stands in the way of a start that can be.
    let (mut dev, ctl) = (daemon(scratch.path()), Control::of(&scratch.path().join("dev/manager")));
    start(&mut dev, &ctl);
    ctl.check();
}
