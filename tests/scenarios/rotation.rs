//! The exchange of the cluster's root while everything runs.

use crate::stage::{Backing, Cluster, Control, bundle, client, on_each_store, secure, until};
use serde_json::Value;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

on_each_store!(
    everybody_moves_to_a_new_root_while_volumes_are_written,
    a_client_of_the_old_root_holds_the_exchange_up_until_it_is_renewed,
    an_exchange_that_is_finished_by_hand_shuts_out_who_has_not_moved,
);

fn authority(control: &Control) -> Value {
    control.json("manager ca show")
}

fn roots(control: &Control) -> Vec<String> {
    let authority = authority(control);
    let roots = authority["roots"].as_array().expect("a list").clone();
    roots.iter().map(|root| root["fingerprint"].as_str().expect("a fingerprint").to_owned()).collect()
}

fn root_of(control: &Control, service: &str) -> String {
    control.text(&format!("service get {service}"), "/status/certificate/root")
}

/// A second manager, where managers can share a store.
fn second_manager(cluster: &Cluster, backing: Backing) -> Option<(crate::stage::Daemon, Control)> {
    if backing == Backing::Embedded {
        return None;
    }
    let (daemon, second) = cluster.another_manager("manager-02");
    until("a second manager that knows its store", || {
        (second.text("manager status", "/state") == "uninitialised").then_some(())
    });
    second.ok("manager init");
    Some((daemon, second))
}

fn everybody_moves_to_a_new_root_while_volumes_are_written(backing: Backing) {
    let cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    let second = second_manager(&cluster, backing);
    ctl.ok("volume create a --size 4M");
    let before = roots(&ctl);
    assert_eq!((before.len(), &authority(&ctl)["state"]), (1, &"stable".into()));
    let uri = ctl.uri("a", "nbd-unix");
    let (done, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = client(&uri).expect("a connection");
            while !done.load(Ordering::SeqCst) {
                let number = written.fetch_add(1, Ordering::SeqCst) + 1;
                writer.write(0, &number.to_le_bytes().repeat(64), true).expect("a write that goes on");
            }
            writer.disconnect().expect("a leave");
        });
        let rotated = ctl.json("manager ca rotate");
        assert_eq!((&rotated["state"], &rotated["waiting_for"]), (&"stable".into(), &serde_json::json!([])));
        assert_eq!(rotated["moved"], rotated["total"], "{rotated}");
        let so_far = written.load(Ordering::SeqCst);
        until("writes behind the exchange", || (written.load(Ordering::SeqCst) > so_far).then_some(()));
        done.store(true, Ordering::SeqCst);
    });
    let after = roots(&ctl);
    assert_eq!(after.len(), 1, "the old root is gone");
    assert_ne!(after, before);
    for service in ctl.names("service") {
        assert_eq!(root_of(&ctl, &service), after[0], "{service}");
    }
    let mut reader = client(&uri).expect("a connection");
    let mut bytes = [0; 512];
    reader.read(0, &mut bytes).expect("a read");
    assert_eq!(bytes[..8], written.load(Ordering::SeqCst).to_le_bytes(), "the last acknowledged write");
    reader.disconnect().expect("a leave");
    ctl.ok("volume create b --size 4M");
    if let Some((_, second)) = &second {
        assert_eq!(roots(second), after);
        second.ok("volume create c --size 4M");
    }
    let events = ctl.json("events");
    let said: Vec<&Value> = events.as_array().expect("a list").iter().map(|event| &event["action"]).collect();
    for action in ["authority.rotate", "authority.promote", "authority.finish"] {
        assert!(said.iter().any(|it| *it == action), "'{action}' is missing in {said:?}");
    }
    ctl.check_when_settled();
}

fn a_client_of_the_old_root_holds_the_exchange_up_until_it_is_renewed(backing: Backing) {
    let cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 4M");
    let vm = bundle(&ctl, cluster.path(), "vm", "data");
    ctl.ok("volume attach a --client vm");
    let uri = secure(&ctl.uri("a", "nbd-tls"), &vm);
    client(&uri).expect("a connection").disconnect().expect("a leave");
    let old = roots(&ctl);
    // It returns, for only a person can help now.
    let shown = ctl.json("manager ca rotate");
    assert_eq!(shown["state"], "reissuing", "{shown}");
    let waiting = shown["waiting_for"].as_array().expect("a list");
    assert!(waiting.len() == 1 && waiting[0].as_str().expect("a sentence").contains("client create vm --renew"));
    assert!(ctl.ok("manager ca show").contains("Still to move"));
    assert_eq!(roots(&ctl).len(), 2);
    client(&uri).expect("the old certificate is still good").disconnect().expect("a leave");
    // Asked again, it is the same exchange.
    ctl.ok("manager ca rotate");
    assert_eq!(roots(&ctl).len(), 2);

    let renew = format!("manager client create vm --renew --output-dir {}", vm.display());
    ctl.ok(&renew);
    until("the old root to be gone", || (authority(&ctl)["state"] == "stable").then_some(()));
    let now = roots(&ctl);
    assert!(now.len() == 1 && now != old, "{now:?}");
    until("the block service to know", || client(&uri).ok()?.disconnect().ok());
    ctl.ok("volume detach a --client vm");
    ctl.check_when_settled();
}

fn an_exchange_that_is_finished_by_hand_shuts_out_who_has_not_moved(backing: Backing) {
    let cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    ctl.run("manager ca rotate --finish").fails(4, &["no exchange of roots is under way"]);
    ctl.ok("volume create a --size 4M");
    let ops = bundle(&ctl, cluster.path(), "ops", "admin");
    ctl.ok("volume attach a --client ops --shared");
    let uri = secure(&ctl.uri("a", "nbd-tls"), &ops);
    client(&uri).expect("a connection").disconnect().expect("a leave");
    ctl.ok("manager ca rotate");
    let finished = ctl.json("manager ca rotate --finish");
    assert_eq!((&finished["state"], roots(&ctl).len()), (&"stable".into(), 1));
    until("the old certificate to be worth nothing to the block service", || client(&uri).err());
    let asked = crate::stage::symphony(["ctl", "--bundle", ops.to_str().expect("a path"), "volume", "list"]);
    crate::stage::finish(asked).fails(4, &["another cluster"]);
    assert_eq!(ctl.service_state(&cluster.service_id()), "ready");
    ctl.check_when_settled();
}
