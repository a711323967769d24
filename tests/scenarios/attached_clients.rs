//! The data path from other hosts: only clients to whom a volume is attached, with their certificates, over TLS.

use crate::stage::{FarBlock, Host, Hosts, Image, client, path_text, secure, tool, until};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A cluster with the volume `db` on the host `block`, and the bundles of the data clients `web` and `spare`.
struct Scene {
    hosts: Hosts,
    block: FarBlock,
    web: PathBuf,
    spare: PathBuf,
}

impl Scene {
    fn set() -> Option<Self> {
        let hosts = Hosts::start(["block", "client"], "")?;
        let block = hosts.joined_block("block");
        hosts.ctl().ok("volume create db --size 16M");
        let (web, spare) = (hosts.bundle("web", "data"), hosts.bundle("spare", "data"));
        Some(Self { hosts, block, web, spare })
    }

    fn uri(&self, bundle: &Path) -> String {
        secure(&self.hosts.ctl().uri("db", "nbd-tls"), bundle)
    }

    fn far(&self) -> &Host {
        self.hosts.host("client")
    }

    /// Whether a client on another host gets at the volume.
    fn reaches(&self, bundle: &Path) -> bool {
        self.far().run("nbdinfo", &["--size", &self.uri(bundle)]).code == Some(0)
    }

    /// qemu on the client's host, as the README has it.
    fn qemu(&self, bundle: &Path) -> [String; 2] {
        let place = &self.block.host.address;
        let credentials = format!("tls-creds-x509,id=tls,endpoint=client,dir={}", path_text(bundle));
        let image = format!("driver=nbd,host={place},port=10809,export=db,tls-creds=tls");
        [credentials, image]
    }
}

#[test]
fn a_client_elsewhere_gets_in_once_the_volume_is_attached_to_it_and_with_its_bundle_only() {
    let Some(scene) = Scene::set() else { return };
    let ctl = scene.hosts.ctl();
    assert!(!scene.reaches(&scene.web), "before it is attached");
    ctl.ok("volume attach db --client web");
    let size = scene.far().run("nbdinfo", &["--size", &scene.uri(&scene.web)]).succeeds();
    assert_eq!(size.trim(), (16 << 20).to_string());
    assert!(!scene.reaches(&scene.spare), "attached to another");
    let bare = ctl.uri("db", "nbd-tls");
    assert_ne!(scene.far().run("nbdinfo", &["--size", &bare]).code, Some(0), "no certificate");
    let plain = bare.replace("nbds://", "nbd://");
    scene.far().run("nbdinfo", &["--size", &plain]).fails(1, &["TLS"]);

    // There and back again, and the same bytes seen on the way.
    let image = Image::new(16, 7);
    let copy = scene.hosts.path().join("copy");
    let uri = scene.uri(&scene.web);
    scene.far().run("nbdcopy", &[path_text(&image.path()), &uri]).succeeds();
    scene.far().run("nbdcopy", &[&uri, path_text(&copy)]).succeeds();
    image.assert_same(&copy);
    let [credentials, place] = scene.qemu(&scene.web);
    let converted = scene.hosts.path().join("converted");
    let arguments = ["convert", "--object", &credentials, "--image-opts", &place, "-O", "raw", path_text(&converted)];
    scene.far().run("qemu-img", &arguments).succeeds();
    image.assert_same(&converted);
    let [credentials, place] = scene.qemu(&scene.spare);
    let refused = scene.far().run("qemu-img", &["info", "--object", &credentials, "--image-opts", &place]);
    refused.fails(1, &["volume attach db --client NAME"]);
    ctl.check();
}

#[test]
fn an_exclusive_client_shuts_out_local_users_and_other_clients_until_it_is_detached() {
    let Some(scene) = Scene::set() else { return };
    let (ctl, local) = (scene.hosts.ctl(), scene.block.local_uri("db"));
    client(&local).expect("a local peer").disconnect().expect("a leave");
    ctl.ok("volume attach db --client web");
    let refused = tool("qemu-img", &["info", &local]);
    refused.fails(1, &["attached to client 'web' alone", "volume detach db --client web"]);
    assert_ne!(tool("nbdinfo", &["--size", &local]).code, Some(0));
    ctl.run("volume attach db --client spare").fails(4, &["'web'", "for itself", "volume detach db --client web"]);
    assert!(!scene.reaches(&scene.spare));
    assert!(scene.reaches(&scene.web));
    ctl.run("volume remove db").fails(4, &["'web'", "volume detach db"]);
    ctl.ok("volume detach db --client web");
    assert!(!scene.reaches(&scene.web), "detached");
    client(&local).expect("a local peer again").disconnect().expect("a leave");
    ctl.ok("volume remove db");
    ctl.check();
}

#[test]
fn clients_that_share_a_volume_write_only_where_they_may() {
    let Some(scene) = Scene::set() else { return };
    let ctl = scene.hosts.ctl();
    ctl.ok("volume attach db --client web --shared");
    ctl.ok("volume attach db --client spare --shared --read-only");
    let write = |bundle: &Path| {
        let [credentials, place] = scene.qemu(bundle);
        let arguments = ["--object", &credentials, "--image-opts", &place, "-c", "write -P 0xab 0 64k"];
        scene.far().run("qemu-io", &arguments)
    };
    write(&scene.web).succeeds();
    assert_ne!(write(&scene.spare).code, Some(0), "it may only read");
    let info = scene.far().run("nbdinfo", &["--json", &scene.uri(&scene.spare)]).succeeds();
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["exports"][0]["is_read_only"], true, "{info}");
    let [credentials, place] = scene.qemu(&scene.spare);
    let place = format!("{place},read-only=on");
    let read = ["-r", "--object", &credentials, "--image-opts", &place, "-c", "read -P 0xab 0 64k"];
    let read = scene.far().run("qemu-io", &read).succeeds();
    assert!(read.contains("read 65536/65536") && !read.contains("verification failed"), "{read}");
    // Others of the host may come in as well.
    client(&scene.block.local_uri("db")).expect("a local peer").disconnect().expect("a leave");
    ctl.ok("volume detach db --client spare");
    assert!(!scene.reaches(&scene.spare) && scene.reaches(&scene.web));
    ctl.check();
}

#[test]
fn detaching_cuts_a_client_that_writes_and_it_cannot_come_back() {
    let Some(scene) = Scene::set() else { return };
    let ctl = scene.hosts.ctl();
    ctl.ok("volume attach db --client web");
    // It writes without end, from another host.
    let [credentials, place] = scene.qemu(&scene.web);
    let mut command = scene.far().command("qemu-io");
    command.args(["--object", &credentials, "--image-opts", &place]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut writer = command.spawn().expect("a writer");
    let mut orders = writer.stdin.take().expect("a pipe");
    let mut answers = BufReader::new(writer.stdout.take().expect("a pipe")).lines();
    let mut write = |pattern: u8| {
        writeln!(orders, "write -P {pattern} 0 1M").expect("an order");
        let told = |line: &String| line.contains("wrote 1048576/1048576") || line.contains("write failed");
        answers.by_ref().map(|line| line.expect("a line")).find(told).expect("an answer")
    };
    let begins_with = |bytes: &[u8]| *bytes.first().expect("a byte");
    for pattern in 1..=50 {
        assert!(write(pattern).contains("wrote"), "write {pattern}");
    }
    let inside = || std::fs::read(backing_file(&scene)).expect("the volume's file");
    assert!(inside()[..1 << 20].iter().all(|byte| *byte == 50), "the last write is there");
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| (51..=u8::MAX).cycle().map(&mut write).find(|answer| answer.contains("failed")));
        until("writes while it is being detached", || (begins_with(&inside()) > 60).then_some(()));
        ctl.ok("volume detach db --client web");
        // Fenced: whatever is there now stays as it is.
        let then = inside();
        writing.join().expect("a writer").expect("a write that fails");
        assert!(inside() == then, "something was written behind the detach");
    });
    assert!(write(1).contains("failed"), "it cannot come back");
    assert!(!scene.reaches(&scene.web), "nor can another of its connections");
    drop(orders);
    writer.wait().expect("bury a child");
    ctl.check();
}

/// The file of the only volume of the pool.
fn backing_file(scene: &Scene) -> PathBuf {
    let mut found = Vec::new();
    let mut places = vec![scene.hosts.path().join("block-pool")];
    while let Some(place) = places.pop() {
        for entry in std::fs::read_dir(place).expect("a directory") {
            let entry = entry.expect("an entry");
            let facts = entry.metadata().expect("its facts");
            match facts.is_dir() {
                true => places.push(entry.path()),
                false if facts.len() == 16 << 20 => found.push(entry.path()),
                false => {}
            }
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn the_operator_s_own_copies_go_over_tls_as_well() {
    let Some(scene) = Scene::set() else { return };
    let ctl = scene.hosts.ctl();
    let ops = scene.hosts.bundle("ops", "admin");
    let image = Image::new(16, 11);
    let copy = scene.hosts.path().join("copy");
    let far = |line: &str| scene.hosts.ctl_on("client", &format!("--bundle {} {line}", path_text(&ops)));
    let upload = format!("volume upload db {}", path_text(&image.path()));
    far(&upload).fails(1, &["db", "volume attach db --client"]);
    far("volume attach db --client ops").succeeds();
    far(&upload).succeeds();
    far(&format!("volume download db {}", path_text(&copy))).succeeds();
    image.assert_same(&copy);
    far("volume detach db --client ops").succeeds();
    ctl.check();
}
