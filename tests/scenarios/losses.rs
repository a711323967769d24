//! `--lost` on whatever a silent host has, through any manager; what is asked first; who could not be asked.

use crate::orphans::orphan;
use crate::stage::{Backing, Cluster, Control, Image, bundle, finish_with, path_text, until};
use crate::support::mounted::Mounted;
use crate::support::process::mortal;
use serde_json::Value;

/// The texts in a list of a document.
fn texts<'v>(document: &'v Value, list: &str) -> Vec<&'v str> {
    let all = document.get(list).and_then(Value::as_array).into_iter().flatten();
    all.filter_map(Value::as_str).collect()
}

#[test]
fn whatever_a_silent_host_has_is_closed_one_by_one_through_a_manager_that_does_not_lead() {
    let Ok(mounted) = Mounted::xfs().inspect_err(|why| eprintln!("skipped: no XFS here: {why}")) else { return };
    let mut cluster = Cluster::join(Backing::Etcd, "");
    let first = cluster.ctl();
    let (_second, ctl) = cluster.another_manager("manager-02");
    until("a manager that knows its store", || (ctl.text("manager status", "/state") == "uninitialised").then_some(()));
    ctl.ok("manager init");
    let service = cluster.service_id();
    first.ok(&format!("pool create shares --path {}", path_text(&mounted.path().join("pool"))));
    first.ok("volume create db --size 8M");
    first.ok("snapshot create db monday");
    let image = Image::new(16, 3);
    first.ok(&format!("image import {} --name base", path_text(&image.path())));
    bundle(&first, cluster.path(), "web", "data");
    first.ok("volume attach db --client web");
    for line in ["volume detach db --client web", "snapshot remove monday", "image remove base", "pool remove shares"] {
        ctl.run(&format!("{line} --lost")).fails(4, &["is not lost"]);
    }
    let leader = first.text("manager status", "/leader");
    let asked = if first.text("manager status", "/service/id") == leader { &ctl } else { &first };

    cluster.block.kill();
    asked.wait_for_service(&service, "down");
    let closed = asked.json("volume detach db --client web --lost");
    assert_eq!(texts(&closed, "attachments"), ["db/web"], "{closed}");
    assert_eq!(asked.names("attachment"), Vec::<String>::new());
    let closed = asked.json("snapshot remove monday --lost");
    assert_eq!((texts(&closed, "snapshots"), texts(&closed, "volumes")), (vec!["monday"], vec![]), "{closed}");
    let closed = asked.json("image remove base --lost");
    assert_eq!(texts(&closed, "images_gone"), ["base"], "{closed}");
    assert_eq!(asked.names("image"), Vec::<String>::new());
    let closed = asked.json("pool remove shares --lost");
    assert_eq!((texts(&closed, "pools"), texts(&closed, "volumes")), (vec!["shares"], vec!["db"]), "{closed}");
    until("both managers to see it", || {
        (first.names("pool").is_empty() && first.names("volume").is_empty()).then_some(())
    });
    asked.run("pool remove shares --lost").fails(3, &["no pool 'shares'"]);

    // All of it is on the disks still, and each manager says of whom it cannot tell.
    cluster.block.start_serving(&cluster.block_ctl().socket);
    first.wait_for_service(&service, "ready");
    let holder = first.text(&format!("service get {service}"), "/status/manager");
    let holds = |ctl: &&&Control| ctl.text("manager status", "/service/id") == holder;
    let (near, far): (Vec<&Control>, Vec<&Control>) = [&first, &ctl].into_iter().partition(|ctl| holds(&ctl));
    orphan(near[0], "pool", "shares");
    let said = far[0].run("orphans list");
    assert!(said.stderr.contains("is connected to manager") && said.stderr.contains(&holder), "{}", said.stderr);
    near[0].ok(&format!("orphans adopt {} --all", orphan(near[0], "pool", "shares")["id"].as_str().expect("an id")));
    assert!(near[0].names("volume").contains(&"db".to_owned()) && near[0].names("snapshot") == ["monday"]);
    near[0].check();
}

/// Runs `ctl` at a terminal, on which somebody types.
fn at_a_terminal(control: &Control, line: &str, typed: &str) -> (Option<i32>, String) {
    let program = env!("CARGO_BIN_EXE_symphony");
    let line = format!("{program} ctl --socket {} {line}", path_text(&control.socket));
    let mut command = mortal("script");
    command.args(["-qec", &line, "/dev/null"]);
    let outcome = finish_with(command, typed.as_bytes().to_vec());
    (outcome.code, String::from_utf8_lossy(&outcome.stdout).into_owned())
}

#[test]
fn at_a_terminal_a_loss_is_asked_about_and_anything_but_yes_does_nothing() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let (ctl, service) = (cluster.ctl(), cluster.service_id());
    ctl.ok("volume create db --size 1M");
    cluster.block.kill();
    ctl.wait_for_service(&service, "down");
    for typed in ["no\n", "y\n", "\n", "YES\n"] {
        let (code, said) = at_a_terminal(&ctl, "volume remove db --lost", typed);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("Close them?") && said.contains("nothing was done"), "{said}");
        assert_eq!(ctl.names("volume"), ["db"]);
    }
    let (code, said) = at_a_terminal(&ctl, &format!("manager remove {service} --lost"), "no\n");
    assert_eq!((code, ctl.service_state(&service)), (Some(1), "down".to_owned()), "{said}");
    let (code, said) = at_a_terminal(&ctl, "volume remove db --lost", "yes\n");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(ctl.names("volume"), Vec::<String>::new());
    // What destroys for ever is not done where nobody can be asked.
    cluster.block.start_serving(&cluster.block_ctl().socket);
    let found = orphan(&ctl, "volume", "db");
    let purge = format!("orphans purge {}", found["id"].as_str().expect("an id"));
    ctl.run(&purge).fails(2, &["--yes"]);
    let (code, said) = at_a_terminal(&ctl, &purge, "no\n");
    assert!(code == Some(1) && said.contains("nothing was done"), "{said}");
    orphan(&ctl, "volume", "db");
    let (code, said) = at_a_terminal(&ctl, &purge, "yes\n");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(ctl.names("orphans"), Vec::<String>::new());
    ctl.check();
}
