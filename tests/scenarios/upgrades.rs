//! Planned restarts: another executable goes on in place of the running one, and clients notice a pause at most.

mod manager_of_services;

use crate::stage::{Backing, Cluster, bundle, client, path_text, secure, until};
use crate::support::process::{mortal, spawn_for_life};
use nix::sys::signal::Signal;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// A client that never connects again, and checks every byte that it has written.
pub fn fio(directory: &Path, uri: &str) -> Child {
    let log = std::fs::File::create(directory.join("fio.log")).expect("a log");
    let mut command = mortal("fio");
    command.args(["--name=client", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=16", "--size=48M"]);
    command.args(["--verify=crc32c", "--verify_backlog=512", "--verify_fatal=1", "--rate_iops=2500,2500"]);
    command.arg(format!("--uri={uri}")).current_dir(directory);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
    spawn_for_life(command)
}

pub fn assert_clean(mut fio: Child, directory: &Path) {
    let ended = until("fio to end", || fio.try_wait().expect("look after fio"));
    let said = std::fs::read_to_string(directory.join("fio.log")).expect("fio's log");
    assert!(ended.success() && !said.contains("error"), "{said}");
}

fn is_running(child: &mut Child) -> bool {
    child.try_wait().expect("look after a child").is_none()
}

fn with_volume() -> (Cluster, String) {
    let cluster = Cluster::start(Backing::Embedded);
    cluster.ctl().ok("volume create db --size 64M");
    let uri = cluster.ctl().uri("db", "nbd");
    (cluster, uri)
}

fn instance(cluster: &Cluster) -> String {
    cluster.block_ctl().text("block status", "/instance")
}

#[test]
fn a_running_fio_notices_nothing_of_restarts_in_place() {
    let (cluster, uri) = with_volume();
    let pid = cluster.block.pid();
    let mut fio = fio(cluster.path(), &uri);
    let mut restarts = 0;
    while is_running(&mut fio) && restarts < 12 {
        let before = instance(&cluster);
        cluster.block_ctl().ok("block restart");
        assert_ne!(instance(&cluster), before);
        restarts += 1;
    }
    assert!(restarts >= 3, "only {restarts} restarts while fio ran");
    assert_clean(fio, cluster.path());
    assert_eq!(cluster.block.pid(), pid);
    cluster.ctl().check_when_settled();
}

#[test]
fn a_signal_does_the_same_and_clients_on_both_kinds_of_sockets_go_on() {
    let (mut cluster, uri) = with_volume();
    let mut over_tcp = client(&uri).expect("a client");
    let mut over_unix = client(&cluster.local_uri("db")).expect("a client");
    over_tcp.write(0, &[7; 4096], false).expect("a write");
    for round in 0..3 {
        let before = instance(&cluster);
        cluster.block.signal(Signal::SIGUSR2);
        until("another instance", || {
            // Who asks at the very moment is cut off.
            let outcome = cluster.block_ctl().run("block status -o json");
            let found: serde_json::Value = serde_json::from_slice(&outcome.stdout).ok()?;
            (found["instance"].as_str()? != before).then_some(())
        });
        let mut seen = [0; 4096];
        over_unix.read(0, &mut seen).expect("a read");
        assert_eq!(seen, [7 + round; 4096]);
        over_tcp.write(0, &[8 + round; 4096], true).expect("a write");
    }
    cluster.block.assert_alive();
    assert_eq!(cluster.ctl().uri("db", "nbd"), uri, "the same port");
    over_tcp.disconnect().expect("a farewell");
    cluster.ctl().check_when_settled();
}

#[test]
fn whoever_connects_meanwhile_is_served() {
    let (cluster, uri) = with_volume();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for uri in [uri.clone(), uri.clone(), cluster.local_uri("db")] {
            let over = &over;
            scope.spawn(move || {
                let mut served = 0;
                while !over.load(Ordering::Relaxed) || served == 0 {
                    let mut client = client(&uri).unwrap_or_else(|error| panic!("after {served}: {error}"));
                    client.read(0, &mut [0; 512]).unwrap_or_else(|error| panic!("after {served}: {error}"));
                    served += 1;
                }
            });
        }
        for _ in 0..5 {
            cluster.block_ctl().ok("block restart");
        }
        over.store(true, Ordering::Relaxed);
    });
    cluster.ctl().check_when_settled();
}

#[test]
fn a_client_over_tls_connects_again() {
    let (cluster, _) = with_volume();
    let ctl = cluster.ctl();
    let web = bundle(&ctl, cluster.path(), "web", "data");
    ctl.ok("volume attach db --client web --shared");
    let uri = secure(&ctl.uri("db", "nbd-tls"), &web);
    let mut before = client(&uri).expect("a client");
    before.write(0, &[7; 512], true).expect("a write");
    cluster.block_ctl().ok("block restart");
    assert!(before.flush().is_err(), "its secrets were the former program's");
    let mut after = client(&uri).expect("a client");
    let mut seen = [0; 512];
    after.read(0, &mut seen).expect("a read");
    assert_eq!(seen, [7; 512]);
    ctl.check_when_settled();
}

fn script(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("a script");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("a mode");
    path
}

#[test]
fn an_executable_that_cannot_take_over_is_refused_and_clients_are_not_touched() {
    let (cluster, uri) = with_volume();
    let (block, before) = (cluster.block_ctl(), instance(&cluster));
    let mut client = client(&uri).expect("a client");
    let other =
        script(cluster.path(), "other", "#!/bin/sh\necho '{\"format\":\"symphony hand-over\",\"reads\":[99]}'\n");
    let broken = script(cluster.path(), "broken", "#!/bin/sh\necho 'no such library' >&2\nexit 127\n");
    let no_program = cluster.path().join("no-program");
    std::fs::write(&no_program, "text").expect("a file");
    for (path, words) in [
        (Path::new("/bin/true"), "takes over from no version like this one"),
        (&other, "takes over from no version like this one"),
        (&broken, "no such library"),
        (&no_program, "Permission denied"),
        (Path::new("/nonexistent/symphony"), "No such file"),
    ] {
        let line = format!("block restart --executable {}", path_text(path));
        block.run(&line).fails(4, &["no restart, and this process goes on", words]);
        assert_eq!(instance(&cluster), before);
        client.flush().expect("the same connection");
    }
    // The same executable by another path is as good as a newer one.
    let copy = cluster.path().join("symphony-copy");
    std::fs::copy(env!("CARGO_BIN_EXE_symphony"), &copy).expect("a copy");
    let done = block.json(&format!("block restart --executable {}", path_text(&copy)));
    assert_eq!(done["connections"], serde_json::json!({ "went_on": 1, "ended": 0 }));
    let running = std::fs::read_link(format!("/proc/{}/exe", cluster.block.pid())).expect("its executable");
    assert_eq!(running, copy);
    client.flush().expect("the same connection");
    cluster.ctl().check_when_settled();
}

#[test]
fn everything_in_one_process_is_not_restarted_in_part() {
    let scratch = tempfile::tempdir().expect("a directory");
    let mut dev = crate::dev::daemon(scratch.path());
    let ctl = crate::stage::Control::of(&scratch.path().join("dev/manager"));
    crate::dev::start(&mut dev, &ctl);
    let block = crate::stage::Control::of(&scratch.path().join("dev/block"));
    block.run("block restart").fails(4, &["other roles run in this process"]);
    ctl.check();
}

#[test]
fn what_a_stranger_left_in_the_environment_hurts_nobody() {
    let scratch = tempfile::tempdir().expect("a directory");
    for words in ["symphony-state=0", "symphony-state=999999", "garbage", "symphony-state=2 symphony-lock=2"] {
        let line = format!("SYMPHONY_INHERITED=\"$$ {words}\" exec \"$@\"");
        let arguments = ["block", "run", "--listen-port", "0", "--nbd-port", "0", "--config-dir", "block"];
        let program = move || {
            let mut command = mortal("bash");
            command.args(["-c", &line, "bash", env!("CARGO_BIN_EXE_symphony")]);
            command
        };
        let mut daemon = crate::stage::Daemon::of("block", scratch.path(), program, &arguments);
        daemon.start_serving(&scratch.path().join("block/control.sock"));
        assert!(daemon.stop().success());
    }
}
