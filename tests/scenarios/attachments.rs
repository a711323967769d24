//! Who may use a volume, as an operator says it and sees it.

use crate::stage::{Backing, Cluster, bundle, client, on_each_store, secure, tool, until};
use std::sync::atomic::{AtomicU64, Ordering};

on_each_store!(
    what_cannot_be_attached_is_refused_with_the_reason,
    a_client_is_attached_listed_and_detached,
    an_exclusive_client_waits_for_those_that_use_the_volume_and_they_are_counted,
    an_attachment_is_in_force_again_after_its_services_were_killed,
    detaching_waits_for_a_service_that_is_away_and_losing_the_service_ends_the_attachment,
    a_detach_that_was_asked_for_while_the_service_was_away_is_carried_out_when_it_is_back,
    what_was_acknowledged_is_there_and_later_writes_fail_when_a_writer_is_detached,
    a_client_that_is_removed_loses_its_volumes_at_once,
    removing_a_client_waits_for_a_service_that_is_away,
    a_block_service_without_any_manager_keeps_its_attachments_in_force,
);

fn what_cannot_be_attached_is_refused_with_the_reason(backing: Backing) {
    let cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 1M");
    ctl.run("volume attach db --client nobody").fails(3, &["client 'nobody'"]);
    ctl.run("volume attach nothing --client nobody").fails(3, &["volume 'nothing'"]);
    ctl.run("volume detach db --client nobody").fails(3, &["'db/nobody'", "attachment list"]);
    ctl.run("attachment get db/nobody").fails(3, &["'db/nobody'"]);
    ctl.run("volume attach db").fails(2, &["--client"]);
    assert!(ctl.names("attachment").is_empty());
    assert!(ctl.json("events").as_array().expect("a list").iter().all(|event| event["kind"] != "attachment"));
    ctl.check();
}

/// A cluster with the volume `db` and the clients `web` and `spare`.
fn with_clients(backing: Backing) -> Cluster {
    let cluster = Cluster::start(backing);
    cluster.ctl().ok("volume create db --size 1M");
    for name in ["web", "spare"] {
        bundle(&cluster.ctl(), cluster.path(), name, "data");
    }
    cluster
}

/// The volume as the client `web` reaches it.
fn as_web(cluster: &Cluster) -> String {
    secure(&cluster.ctl().uri("db", "nbd-tls"), &cluster.path().join("bundle-web"))
}

fn a_client_is_attached_listed_and_detached(backing: Backing) {
    let cluster = with_clients(backing);
    let ctl = cluster.ctl();
    let held = ctl.json("volume attach db --client web");
    assert_eq!((&held["status"]["phase"], &held["spec"]["client_name"]), (&"ready".into(), &"web".into()), "{held}");
    assert_eq!(ctl.json("volume attach db --client web")["meta"], held["meta"], "again is the same");
    ctl.run("volume attach db --client web --shared")
        .fails(4, &["'web'", "exclusive", "volume detach db --client web"]);
    ctl.run("volume attach db --client spare").fails(4, &["'web'", "for itself", "volume detach db --client web"]);
    assert_eq!(ctl.names("attachment"), ["db/web"]);
    let table = ctl.ok("attachment list --volume db");
    for word in
        ["VOLUME", "CLIENT", "ACCESS", "MODE", "PHASE", "MESSAGE", "db", "web", "read-write", "exclusive", "ready"]
    {
        assert!(table.contains(word), "'{word}' is missing in: {table}");
    }
    assert_eq!(ctl.json("attachment get db/web")["meta"]["id"], held["meta"]["id"]);
    assert!(ctl.ok("volume get db").contains("'web' (read-write, exclusive): ready"));
    ctl.run("volume remove db").fails(4, &["'web'", "volume detach db"]);
    ctl.check();

    assert!(ctl.ok("volume detach db --client web").contains("detached 'web' from volume 'db'"));
    assert!(ctl.names("attachment").is_empty());
    ctl.ok("volume attach db --client web --shared --read-only");
    ctl.ok("volume attach db --client spare --shared");
    assert_eq!(ctl.names("attachment").len(), 2);
    ctl.check();
    ctl.ok("volume detach db --client web");
    ctl.ok("volume detach db --client spare");
    ctl.ok("volume remove db");
    let events = ctl.json("events");
    let said: Vec<&str> =
        events.as_array().expect("a list").iter().filter_map(|event| event["action"].as_str()).collect();
    assert_eq!(said.iter().filter(|action| **action == "attachment.create").count(), 3, "{said:?}");
    assert_eq!(said.iter().filter(|action| **action == "attachment.remove").count(), 3, "{said:?}");
}

fn an_exclusive_client_waits_for_those_that_use_the_volume_and_they_are_counted(backing: Backing) {
    let cluster = with_clients(backing);
    let ctl = cluster.ctl();
    let connected = client(&cluster.local_uri("db")).expect("a local peer");
    ctl.run("volume attach db --client web").fails(1, &["'db/web'", "1", "attachment get db/web"]);
    assert_eq!(ctl.json("attachment get db/web")["status"]["phase"], "failed");
    connected.disconnect().expect("a leave");
    until("the client to be alone", || (ctl.text("attachment get db/web", "/status/phase") == "ready").then_some(()));
    ctl.check();
}

fn an_attachment_is_in_force_again_after_its_services_were_killed(backing: Backing) {
    let mut cluster = with_clients(backing);
    cluster.ctl().ok("volume attach db --client web");
    cluster.restart_block();
    cluster.restart_manager();
    let ctl = cluster.ctl();
    until("the attachment to be ready and the volume served", || {
        let held = ctl.run("attachment get db/web -o json");
        let volume = ctl.run("volume get db -o json");
        let ready = |bytes: &[u8]| {
            serde_json::from_slice::<serde_json::Value>(bytes).is_ok_and(|it| it["status"]["phase"] == "ready")
        };
        (ready(&held.stdout) && ready(&volume.stdout)).then_some(())
    });
    ctl.wait_for_service(&cluster.service_id(), "ready");
    until("every service to be asked", || {
        let outcome = ctl.run("check -o json");
        String::from_utf8_lossy(&outcome.stdout).contains("\"services_asked\": 1").then_some(())
    });
    // Nobody but the client gets in: it cannot be tried from here whether the volume is served again.
    ctl.check_when_settled_somewhere();
}

fn detaching_waits_for_a_service_that_is_away_and_losing_the_service_ends_the_attachment(backing: Backing) {
    let mut cluster = with_clients(backing);
    let (ctl, id) = (cluster.ctl(), cluster.service_id());
    ctl.ok("volume attach db --client web");
    cluster.block.kill();
    ctl.run("volume detach db --client web --timeout 1s").fails(6, &["'db/web'", "removing", "attachment get db/web"]);
    ctl.run("volume attach db --client spare").fails(4, &["'web'", "still being detached"]);
    ctl.wait_for_service(&id, "down");
    ctl.ok(&format!("manager remove {id} --lost"));
    assert!(ctl.names("attachment").is_empty() && ctl.names("volume").is_empty());
    ctl.check();
}

fn a_detach_that_was_asked_for_while_the_service_was_away_is_carried_out_when_it_is_back(backing: Backing) {
    let mut cluster = with_clients(backing);
    let ctl = cluster.ctl();
    ctl.ok("volume attach db --client web");
    cluster.block.kill();
    ctl.ok("volume detach db --client web --no-wait");
    cluster.block.start_serving(&cluster.block_ctl().socket);
    until("the attachment to be gone", || ctl.names("attachment").is_empty().then_some(()));
    ctl.ok("volume attach db --client spare");
    ctl.check();
}

fn what_was_acknowledged_is_there_and_later_writes_fail_when_a_writer_is_detached(backing: Backing) {
    let cluster = with_clients(backing);
    let ctl = cluster.ctl();
    ctl.ok("volume attach db --client web");
    let uri = as_web(&cluster);
    let mut writer = client(&uri).expect("a connection");
    let (began, written) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            loop {
                let number = began.fetch_add(1, Ordering::SeqCst) + 1;
                match writer.write(number % 16 * 4096, &number.to_le_bytes().repeat(512), false) {
                    Ok(()) => written.store(number, Ordering::SeqCst),
                    Err(error) => return error,
                }
            }
        });
        until("some writes to be acknowledged", || (written.load(Ordering::SeqCst) > 64).then_some(()));
        ctl.ok("volume detach db --client web");
        writing.join().expect("a writer that was cut off");
    });
    assert!(writer.write(0, &[9; 512], false).is_err(), "it is cut off for good");
    assert!(client(&uri).is_err(), "it cannot come back");
    let (began, written) = (began.into_inner(), written.into_inner());
    assert_eq!(began, written + 1, "one write was in flight");
    let mut reader = client(&cluster.local_uri("db")).expect("local users are let in again");
    for number in written - 14..=written {
        let mut bytes = [0; 4096];
        reader.read(number % 16 * 4096, &mut bytes).expect("a read");
        assert!(bytes == *number.to_le_bytes().repeat(512), "write {number} was acknowledged and is not there");
    }
    reader.disconnect().expect("a leave");
    ctl.check();
}

fn a_client_that_is_removed_loses_its_volumes_at_once(backing: Backing) {
    let cluster = with_clients(backing);
    let ctl = cluster.ctl();
    ctl.ok("volume attach db --client web");
    let uri = as_web(&cluster);
    let mut connected = client(&uri).expect("a connection");
    connected.write(0, &[1; 512], true).expect("a write");
    ctl.ok("manager client remove web");
    assert!(ctl.names("attachment").is_empty(), "its attachment has ended");
    assert!(connected.write(0, &[2; 512], true).is_err(), "its connection is cut");
    assert!(client(&uri).is_err(), "its certificate is void");
    client(&cluster.local_uri("db")).expect("local users are let in again").disconnect().expect("a leave");
    ctl.ok("volume attach db --client spare");
    ctl.check();
}

fn removing_a_client_waits_for_a_service_that_is_away(backing: Backing) {
    let mut cluster = with_clients(backing);
    let ctl = cluster.ctl();
    ctl.ok("volume attach db --client web");
    cluster.block.kill();
    ctl.run("manager client remove web --timeout 1s").fails(6, &["'db/web'", "removing", "attachment get db/web"]);
    cluster.block.start_serving(&cluster.block_ctl().socket);
    // The client itself is removed, and only what it had is waited for.
    let id = ctl.json("manager client list").as_array().and_then(|clients| {
        let web = clients.iter().find(|client| client["meta"]["name"] == "web")?;
        assert!(web["meta"]["removed_at"].is_string(), "{web}");
        web["meta"]["id"].as_str().map(str::to_owned)
    });
    ctl.ok(&format!("manager client remove {}", id.expect("it is remembered")));
    assert!(ctl.names("attachment").is_empty(), "its attachment has ended");
    ctl.check();
}

fn a_block_service_without_any_manager_keeps_its_attachments_in_force(backing: Backing) {
    let mut cluster = with_clients(backing);
    cluster.ctl().ok("volume attach db --client web");
    let certificate = std::fs::read(cluster.block_dir().join("tls/cert.pem")).expect("a certificate");
    let id = cluster.service_id();
    cluster.manager.kill();
    cluster.block.kill();
    cluster.block.start_serving(&cluster.block_ctl().socket);
    let local = cluster.local_uri("db");
    let port = until("the address where volumes are served", || {
        cluster.block_ctl().json("block status").pointer("/addresses/nbd")?.as_str().map(str::to_owned)
    });
    let uri = secure(&format!("nbds://{port}/db"), &cluster.path().join("bundle-web"));
    until("the volume to be served from the ledger", || client(&uri).ok()).disconnect().expect("a leave");
    tool("qemu-img", &["info", &local]).fails(1, &["attached to client 'web' alone"]);
    let spare = secure(&format!("nbds://{port}/db"), &cluster.path().join("bundle-spare"));
    assert!(client(&spare).is_err(), "it is attached to another");
    assert_eq!(std::fs::read(cluster.block_dir().join("tls/cert.pem")).expect("a certificate"), certificate);
    cluster.manager.start_serving(&cluster.ctl().socket);
    let ctl = cluster.ctl();
    ctl.wait_for_service(&id, "ready");
    until("the attachment to be ready", || {
        (ctl.text("attachment get db/web", "/status/phase") == "ready").then_some(())
    });
    assert_eq!(cluster.service_id(), id);
    cluster.block_ctl().run(&format!("block init 127.0.0.1:{}", cluster.manager_port)).fails(4, &[&id]);
    ctl.ok("volume detach db --client web");
    ctl.check_when_settled();
}
