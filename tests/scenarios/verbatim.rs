//! The user's own lines, word for word, on the ports they name. The only test with fixed ports; `.config/nextest.toml`
//! keeps it alone.

use crate::stage::{Daemon, finish, symphony, tool, until, wait, words};
use crate::support::etcd::{Etcd, EtcdSetup};
use serde_json::Value;
use std::path::Path;

const ENDPOINTS: &str = "http://127.0.0.1:12379,http://127.0.0.1:22379,http://127.0.0.1:32379";

/// A line that starts with `symphony`, as a process that runs on.
fn daemon(name: &str, directory: &Path, line: &str) -> Daemon {
    let arguments: Vec<&str> = words(line).skip(1).collect();
    Daemon::new(name, directory, &arguments)
}

/// A line that starts with `symphony`, run to its end; its standard output.
#[track_caller]
fn run(directory: &Path, line: &str) -> String {
    let mut command = symphony(words(line).skip(1));
    command.current_dir(directory);
    finish(command).succeeds()
}

#[test]
fn the_user_s_own_lines_work_word_for_word() {
    let etcd = wait(Etcd::start_with(3, EtcdSetup { client_ports: vec![12379, 22379, 32379], ..EtcdSetup::default() }));
    assert_eq!(etcd.endpoints().join(","), ENDPOINTS);
    let scratch = tempfile::tempdir().expect("a directory");
    let here = scratch.path();

    // As a shell would pass them, which takes the quotes off.
    let line = format!("symphony manager run --config-dir=.config/manager-01 --etcd-endpoints={ENDPOINTS}");
    let mut manager = daemon("manager", here, &line);
    manager.start_serving(&here.join(".config/manager-01/control.sock"));
    until("a manager that has seen its store", || {
        let text = run(here, "symphony ctl --socket=.config/manager-01/control.sock manager status -o json");
        text.contains("uninitialised").then_some(())
    });
    let said = run(here, "symphony ctl --socket=.config/manager-01/control.sock manager init");
    assert!(said.contains("created cluster"), "{said}");

    let mut block = daemon("block", here, "symphony block run --config-dir=.config/block-01 --listen-port 15761");
    block.start_serving(&here.join(".config/block-01/control.sock"));
    let said = run(here, "symphony ctl --socket=.config/block-01/control.sock block init 127.0.0.1:15760");
    assert!(said.contains("joined cluster"), "{said}");

    let manager_id = run(here, "symphony ctl --socket=.config/manager-01/control.sock manager status -o name");
    let block_id = run(here, "symphony ctl --socket=.config/block-01/control.sock block status -o name");
    let records = services_in_etcd();
    for (id, kind) in [(manager_id.trim(), "manager"), (block_id.trim(), "block")] {
        let record = records.iter().find(|record| record["meta"]["id"] == id);
        let record = record.unwrap_or_else(|| panic!("{kind} {id} is missing in {records:?}"));
        assert_eq!(record["spec"]["type"], kind);
        assert_eq!(record["status"]["state"], "ready");
    }

    run(here, "symphony ctl --socket=.config/manager-01/control.sock check");
    let line = format!("symphony ctl --socket=.config/manager-01/control.sock manager remove {}", block_id.trim());
    assert!(run(here, &line).contains("removed service"));
    let removed = services_in_etcd().into_iter().find(|record| record["meta"]["id"] == block_id.trim());
    assert_eq!(removed.expect("a record")["status"]["state"], "removed");
    run(here, "symphony ctl --socket=.config/manager-01/control.sock check");
}

/// What `etcdctl get /service --prefix` shows: keys and, between them, values that are JSON for people.
fn services_in_etcd() -> Vec<Value> {
    let shown = tool("etcdctl", &["--endpoints", ENDPOINTS, "get", "/service", "--prefix"]).succeeds();
    let lines: Vec<&str> = shown.lines().collect();
    let is_key = |line: &&str| line.starts_with("/service/");
    assert_eq!(lines.iter().copied().filter(|line| is_key(line)).count(), 2, "{shown}");
    let values = lines.split(|line| is_key(line)).filter(|value| !value.is_empty());
    values.map(|value| serde_json::from_str(&value.join("\n")).expect("a value that is JSON")).collect()
}
