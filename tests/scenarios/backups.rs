//! `manager backup` and `manager restore`: the state out of one store and into another, whole or not at all.

use crate::rewinds::{after, assert_carried_over, before};
use crate::stage::{Backing, Cluster, Control, client, on_each_store, path_text, until, wait};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

on_each_store!(
    a_state_that_was_lost_is_restored_by_its_own_manager_while_clients_go_on,
    a_backup_tells_what_it_is_and_what_it_holds,
    what_must_not_be_restored_over_is_named,
    a_damaged_backup_is_refused_before_anything_is_written,
);

/// Takes everything out of the cluster's store, as a disk that breaks would; the manager is started again.
fn lose_the_store(cluster: &mut Cluster) {
    cluster.manager.stop();
    match &cluster.etcd {
        Some(etcd) => wait(etcd.wipe()),
        None => std::fs::remove_file(cluster.manager_dir().join("store.redb")).expect("the store"),
    }
    cluster.manager.start_serving(&cluster.ctl().socket);
    until("the manager to have looked at its store", || {
        (cluster.ctl().text("manager status", "/state") == "stranded").then_some(())
    });
}

fn backup(ctl: &Control, file: &Path) {
    let said = ctl.ok(&format!("manager backup {}", path_text(file)));
    assert!(said.contains("private key"), "{said}");
}

fn a_state_that_was_lost_is_restored_by_its_own_manager_while_clients_go_on(backing: Backing) {
    let mut cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    before(&cluster);
    let id = ctl.text("manager status", "/service/id");
    let file = cluster.path().join("backup");
    backup(&ctl, &file);
    after(&cluster);
    let mut connected = client(&cluster.local_uri("kept")).expect("a connection");
    lose_the_store(&mut cluster);
    ctl.run("volume list").fails(4, &["holds no cluster"]);
    connected.write(0, &[1; 4096], true).expect("a write without any cluster");
    let said = ctl.ok(&format!("manager restore {}", path_text(&file)));
    assert!(said.contains("as the member that it was"), "{said}");
    assert_eq!(ctl.text("manager status", "/service/id"), id);
    assert_carried_over(&cluster, &ctl);
    connected.write(4096, &[2; 4096], true).expect("the same connection");
    ctl.run(&format!("manager restore {}", path_text(&file))).fails(4, &["is service", "no member"]);
    cluster.restart_manager();
    until("the manager to serve", || (ctl.text("manager status", "/state") == "member").then_some(()));
    ctl.check_when_settled();
}

fn a_backup_tells_what_it_is_and_what_it_holds(backing: Backing) {
    let cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 1M");
    let file = cluster.path().join("backup");
    backup(&ctl, &file);
    let mode = std::fs::metadata(&file).expect("a backup").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = std::fs::read_to_string(&file).expect("a text");
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let (first, last) = (&lines[0], &lines[lines.len() - 1]);
    assert_eq!((&first["format"], &first["version"]), (&"symphony backup".into(), &1.into()), "{first}");
    assert_eq!(first["cluster"]["name"], "symphony");
    assert_eq!(last["entries"], lines.len() as u64 - 2, "{last}");
    let keys: Vec<&str> = lines.iter().filter_map(|line| line["key"].as_str()).collect();
    assert!(keys.contains(&"/cluster") && keys.iter().any(|key| key.starts_with("/authority/")), "{keys:?}");
    assert!(!keys.iter().any(|key| key.starts_with("/session/") || *key == "/leader"), "{keys:?}");
    let volume = lines.iter().find(|line| line["value"]["meta"]["name"] == "a").expect("the volume");
    assert_eq!(volume["value"]["spec"]["size"], 1 << 20);
    let piped = ctl.run("manager backup -");
    assert!(piped.stderr.contains("private key"), "{}", piped.stderr);
    assert!(piped.succeeds().starts_with("{\"format\":\"symphony backup\""));
    ctl.check();
}

fn what_must_not_be_restored_over_is_named(backing: Backing) {
    let cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    let file = cluster.path().join("backup");
    backup(&ctl, &file);
    let restore = format!("manager restore {}", path_text(&file));
    ctl.run(&restore).fails(4, &["cluster 'symphony'", "no member"]);
    if backing == Backing::Etcd {
        let (_second, second) = cluster.another_manager("manager-02");
        until("a second manager that knows its store", || {
            (second.text("manager status", "/state") == "uninitialised").then_some(())
        });
        second.run(&restore).fails(4, &["the store holds cluster 'symphony'"]);
    }
    let (_block, block) = cluster.another_block("block-02");
    block.run(&restore).fails(1, &["does not belong to a manager"]);
    ctl.check();
}

fn a_damaged_backup_is_refused_before_anything_is_written(backing: Backing) {
    let mut cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    let file = cluster.path().join("backup");
    backup(&ctl, &file);
    lose_the_store(&mut cluster);
    let whole = std::fs::read_to_string(&file).expect("a text");
    let bad = cluster.path().join("bad");
    let refused = |content: &str, word: &str| {
        std::fs::write(&bad, content).expect("a file");
        ctl.run(&format!("manager restore {}", path_text(&bad))).fails(1, &["was not restored", word]);
    };
    refused("", "no symphony backup");
    refused(&whole.replacen("\"name\":\"symphony\"", "\"name\":\"simphony\"", 1), "checksum");
    refused(&whole[..whole.len() / 2], "cut short");
    refused(&whole.replacen("\"version\":1", "\"version\":9", 1), "newer symphony");
    refused(&"x".repeat(5 << 20), "no symphony backup");
    ctl.run("manager restore /nowhere/at/all").fails(1, &["/nowhere/at/all"]);
    ctl.ok(&format!("manager restore {}", path_text(&file)));
    ctl.check_when_settled();
}

#[test]
fn a_manager_that_the_backup_does_not_know_joins_what_it_restores() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 1M");
    let old = ctl.text("manager status", "/service/id");
    let file = cluster.path().join("backup");
    backup(&ctl, &file);
    let (_daemon, other) = cluster.another_manager("manager-02");
    until("an empty manager", || (other.text("manager status", "/state") == "uninitialised").then_some(()));
    let said = other.ok(&format!("manager restore {}", path_text(&file)));
    assert!(said.contains("as a new member"), "{said}");
    other.wait_for_service(&old, "down");
    assert_eq!(other.names("volume"), ["a"]);
    other.run("manager init").fails(4, &["already service"]);
    other.ok(&format!("manager remove {old}"));
}

#[test]
fn a_restore_that_is_killed_leaves_nothing_that_serves_and_is_gone_on_with() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    for number in 0..60 {
        ctl.ok(&format!("volume create v{number} --size 1M --no-wait"));
    }
    let file = cluster.path().join("backup");
    backup(&ctl, &file);
    let (mut daemon, other) = cluster.another_manager("manager-02");
    let mut finished = false;
    for round in 0..12u64 {
        until("a manager that answers", || (other.text("manager status", "/state") != "starting").then_some(()));
        if other.text("manager status", "/state") == "member" {
            finished = true;
            break;
        }
        let restoring = {
            let (control, line) = (other.clone(), format!("manager restore {}", path_text(&file)));
            std::thread::spawn(move || control.run(&line))
        };
        // A little later each time.
        std::thread::sleep(std::time::Duration::from_millis(3 * round));
        daemon.kill();
        restoring.join().expect("a command");
        daemon.start_serving(&other.socket);
        until("a manager that answers", || (other.text("manager status", "/state") != "starting").then_some(()));
        if other.text("manager status", "/state") == "uninitialised" {
            let init = other.run("manager init");
            match init.code {
                // All of it was there.
                Some(0) if other.names("volume").len() == 60 => finished = true,
                // Nothing was: this manager has made a cluster of its own.
                Some(0) => {
                    assert!(other.names("volume").is_empty());
                    daemon.kill();
                    std::fs::remove_dir_all(cluster.path().join("manager-02")).expect("its directory");
                    daemon.start_serving(&other.socket);
                }
                _ => drop(init.fails(4, &["manager restore", "repeat that"])),
            }
        }
        if finished {
            break;
        }
    }
    // The last round may have come to its end by itself.
    if !finished && other.text("manager status", "/state") != "member" {
        other.ok(&format!("manager restore {}", path_text(&file)));
    }
    assert_eq!(other.names("volume").len(), 60);
}
