//! Images, as users see them: imported, kept, cloned, written out, removed.

mod cut;
mod hostile;
mod qcow2;

use crate::stage::{
    Backing, Cluster, Control, Hosts, Image, compare, finish, finish_with, nbd_size, on_each_store, path_text, qemu_io,
    sha256, symphony, until,
};
use crate::support::mounted::Mounted;

/// A cluster whose pool `shares` shares blocks; none where this machine has no such file system.
fn stage(backing: Backing) -> Option<(Cluster, Mounted)> {
    let mounted = Mounted::xfs().map_err(|why| eprintln!("skipped: no XFS here: {why}")).ok()?;
    let cluster = Cluster::join(backing, "");
    let place = mounted.path().join("pool");
    cluster.ctl().ok(&format!("pool create shares --path {}", path_text(&place)));
    Some((cluster, mounted))
}

/// A directory in memory, whose files cannot share blocks.
fn memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a directory in memory")
}

fn import(ctl: &Control, image: &Image, name: &str) {
    let made = ctl.json(&format!("image import {} --name {name}", path_text(&image.path())));
    assert_eq!(made["spec"]["sha256"], *sha256(&image.bytes()), "{made}");
    assert_eq!(made["status"]["phase"], "ready", "{made}");
}

on_each_store!(an_image_is_imported_cloned_written_out_and_removed);

fn an_image_is_imported_cloned_written_out_and_removed(backing: Backing) {
    let Some((mut cluster, _mounted)) = stage(backing) else { return };
    let (ctl, image) = (cluster.ctl(), Image::new(48, 1));
    import(&ctl, &image, "base");
    assert_eq!(ctl.names("image"), ["base"]);
    assert!(ctl.names("volume").is_empty(), "what keeps an image is nobody's volume");
    ctl.ok("volume create web --image base");
    ctl.ok("volume create large --image base --size 96M");
    compare(&image.path(), &ctl.uri("web", "nbd"));
    assert_eq!(nbd_size(&ctl.uri("large", "nbd")), 96 << 20);
    ctl.run("volume create small --image base --size 8M").fails(2, &["'base'", "48MiB", "does not fit"]);
    ctl.check();

    cluster.restart_block();
    cluster.restart_manager();
    ctl.check_when_settled();
    let copy = cluster.path().join("copy.raw");
    let written = ctl.json(&format!("image export base {}", path_text(&copy)));
    assert_eq!(written["sha256"], *sha256(&image.bytes()));
    image.assert_same(&copy);

    ctl.run("pool remove shares").fails(4, &["'web'"]);
    ctl.ok("image remove base");
    assert!(ctl.names("image").is_empty());
    compare(&image.path(), &ctl.uri("web", "nbd"));
    ctl.ok("volume remove web");
    ctl.ok("volume remove large");
    ctl.ok("pool remove shares");
    ctl.check();
}

#[test]
fn an_image_of_odd_length_keeps_every_byte_and_its_volumes_end_in_zeros() {
    let Some((cluster, _mounted)) = stage(Backing::Embedded) else { return };
    let ctl = cluster.ctl();
    let odd: Vec<u8> = (0..1_234_567u32).map(|place| (place % 251) as u8 + 1).collect();
    let socket = path_text(&ctl.socket).to_owned();
    // Without a size it is put into a file first, with one it goes as it comes.
    let from_stdin = |arguments: &[&str]| {
        let line = ["ctl", "--socket", &socket, "image", "import", "-"];
        finish_with(symphony(line.iter().chain(arguments)), odd.clone())
    };
    from_stdin(&["--name", "spooled"]).succeeds();
    from_stdin(&["--name", "sent", "--size", "1234567"]).succeeds();
    from_stdin(&["--name", "short", "--size", "1234568"]).fails(1, &["ended after 1234567 of 1234568 bytes"]);
    from_stdin(&["--name", "long", "--size", "1234566"]).fails(1, &["more than the 1234566 bytes"]);
    from_stdin(&["--name", "vast", "--spool-limit", "1M"]).fails(1, &["--spool-limit"]);
    for name in ["spooled", "sent"] {
        assert_eq!(ctl.text(&format!("image get {name}"), "/spec/sha256"), sha256(&odd));
        let written = finish(symphony(["ctl", "--socket", &socket, "image", "export", name, "-"]));
        assert!(written.stdout == odd, "standard output is not the image");
        written.succeeds();
        ctl.ok(&format!("volume create of-{name} --image {name}"));
        let copy = cluster.path().join(name);
        ctl.ok(&format!("volume download of-{name} {}", path_text(&copy)));
        let mut padded = odd.clone();
        padded.resize(1_234_944, 0);
        assert!(std::fs::read(&copy).expect("the copy") == padded);
    }
    ctl.ok("image remove short");
    ctl.ok("image remove long");
    ctl.check();
}

#[test]
fn a_second_pool_fetches_an_image_once_and_one_that_shares_nothing_gets_a_copy_for_each_volume() {
    let Some((cluster, _mounted)) = stage(Backing::Embedded) else { return };
    let Some(other) = Mounted::xfs().ok() else { return };
    let (ctl, image, flat) = (cluster.ctl(), Image::new(48, 2), memory());
    ctl.ok(&format!("pool create second --path {}", path_text(&other.path().join("pool"))));
    ctl.ok(&format!("pool create flat --path {}", path_text(&flat.path().join("pool"))));
    ctl.ok(&format!("image import {} --name base --pool shares", path_text(&image.path())));
    for name in ["a", "b"] {
        ctl.ok(&format!("volume create second-{name} --image base --pool second"));
        compare(&image.path(), &ctl.uri(&format!("second-{name}"), "nbd"));
        ctl.ok(&format!("volume create flat-{name} --image base --pool flat --size 64M"));
        assert_eq!(nbd_size(&ctl.uri(&format!("flat-{name}"), "nbd")), 64 << 20);
    }
    let copy = cluster.path().join("copy.raw");
    ctl.ok(&format!("volume download flat-a {}", path_text(&copy)));
    assert!(std::fs::read(&copy).expect("the copy").starts_with(&image.bytes()));
    let kept = ctl.json("image get base");
    assert_eq!(kept["status"]["bases"].as_array().map(Vec::len), Some(2), "{kept}");
    ctl.check();
    ctl.ok("image remove base");
    ctl.check();
}

#[test]
fn a_block_service_fetches_an_image_from_another_one() {
    let Some((cluster, _mounted)) = stage(Backing::Embedded) else { return };
    let (ctl, image, flat) = (cluster.ctl(), Image::new(48, 3), memory());
    import(&ctl, &image, "base");
    let (_second, control) = cluster.another_block("second");
    control.ok(&format!("block init 127.0.0.1:{}", cluster.manager_port));
    let id = control.text("block status", "/service/id");
    ctl.ok(&format!("pool create far --service {id} --path {}", path_text(&flat.path().join("pool"))));
    ctl.ok("volume create there --image base --pool far");
    compare(&image.path(), &ctl.uri("there", "nbd"));
    ctl.check();
}

#[test]
fn an_import_that_is_killed_goes_on_when_it_is_repeated() {
    let Some((cluster, _mounted)) = stage(Backing::Embedded) else { return };
    let (ctl, image) = (cluster.ctl(), Image::new(48, 4));
    let socket = path_text(&ctl.socket).to_owned();
    let bytes = image.bytes();
    // Standard input that stays open keeps the import from ending.
    let mut line =
        symphony(["ctl", "--socket", &socket, "image", "import", "-", "--name", "base", "--size", "50331648"]);
    line.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut child = line.spawn().expect("an import");
    let mut stdin = child.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut stdin, &bytes[..20 << 20]).expect("some of it");
    until("the import to have begun", || {
        let found = ctl.run("image get base -o json");
        (found.code == Some(0)).then_some(())
    });
    ctl.run("volume create web --image base").fails(4, &["not there as a whole"]);
    child.kill().expect("kill the import");
    child.wait().expect("bury it");
    assert!(ctl.ok("image list").contains("uploading"));
    ctl.run(&format!("image import {} --name base --format raw --pool nowhere", path_text(&image.path())))
        .fails(3, &["no pool 'nowhere'"]);
    import(&ctl, &image, "base");
    ctl.ok("volume create web --image base");
    compare(&image.path(), &ctl.uri("web", "nbd"));
    ctl.run(&format!("image import {} --name base", path_text(&image.path()))).fails(4, &["exists already"]);
    ctl.check();
}

/// An import from standard input that stays open: it does not end by itself.
struct Hanging {
    child: std::process::Child,
    stdin: std::process::ChildStdin,
}

impl Hanging {
    fn of(ctl: &Control, name: &str, size: usize) -> Self {
        Self::with(ctl, name, size, &[])
    }

    fn with(ctl: &Control, name: &str, size: usize, more: &[&str]) -> Self {
        let (socket, size) = (path_text(&ctl.socket).to_owned(), size.to_string());
        let mut line = symphony(["ctl", "--socket", &socket, "image", "import", "-", "--name", name, "--size", &size]);
        line.args(more);
        let piped = std::process::Stdio::piped;
        let mut child = line.stdin(piped()).stdout(piped()).stderr(piped()).spawn().expect("an import");
        let stdin = child.stdin.take().expect("a pipe");
        Self { child, stdin }
    }

    fn send(&mut self, bytes: &[u8]) {
        // One that has ended reads no more.
        drop(std::io::Write::write_all(&mut self.stdin, bytes));
    }

    /// It dies, as its host does.
    fn kill(mut self) {
        self.child.kill().expect("kill the import");
        self.child.wait().expect("bury it");
    }

    /// What it says when nothing more comes.
    fn end(self) -> (Option<i32>, String) {
        let Self { child, stdin } = self;
        drop(stdin);
        let output = child.wait_with_output().expect("its end");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Asserts that nothing of any volume is in a pool of files.
#[track_caller]
fn holds_nothing(pool: &std::path::Path) {
    let left: Vec<_> = std::fs::read_dir(pool.join("volumes")).expect("a directory").collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Waits until what will keep the image has been written so many bytes.
fn wait_for_writes(ctl: &Control, image: &str, bytes: u64) {
    until("bytes to arrive", || {
        let found = ctl.run(&format!("image get {image} -o json"));
        let image: serde_json::Value = serde_json::from_slice(&found.stdout).ok()?;
        let base = ctl.json(&format!("volume get {}", image.pointer("/status/bases/0")?.as_str()?));
        let name = base["meta"]["name"].as_str()?.to_owned();
        // It may not be served yet.
        let looked = ctl.run(&format!("volume stats {name} --interval 100ms -o json"));
        let figures: serde_json::Value = serde_json::from_slice(&looked.stdout).ok()?;
        (figures.pointer("/0/total/operations/write/bytes")?.as_u64()? >= bytes).then_some(())
    });
}

#[test]
fn of_two_imports_of_one_name_the_later_one_takes_over_and_the_first_is_told() {
    let Some((cluster, _mounted)) = stage(Backing::Embedded) else { return };
    let (ctl, image) = (cluster.ctl(), Image::new(48, 6));
    let bytes = image.bytes();
    let mut first = Hanging::of(&ctl, "base", bytes.len());
    first.send(&bytes[..4 << 20]);
    // Zeros are not sent on.
    wait_for_writes(&ctl, "base", 1);
    ctl.run("image import - --name base --size 1M")
        .fails(4, &["import of something else as 'base'", "image remove base"]);
    import(&ctl, &image, "base");
    // What the first one sends now reaches nobody.
    first.send(&vec![0xee; bytes.len() - (4 << 20)]);
    let (code, said) = first.end();
    assert!(code == Some(1) && said.contains("another import of image 'base' has taken over"), "{code:?} {said}");
    ctl.ok("volume create web --image base");
    compare(&image.path(), &ctl.uri("web", "nbd"));
    ctl.check();
}

#[test]
fn an_image_that_is_removed_while_it_is_imported_leaves_nothing() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    let mut import = Hanging::of(&ctl, "base", 48 << 20);
    import.send(&vec![7; 4 << 20]);
    wait_for_writes(&ctl, "base", 4 << 20);
    ctl.ok("image remove base");
    import.send(&vec![7; 44 << 20]);
    let (code, said) = import.end();
    assert_ne!(code, Some(0), "{said}");
    assert!(ctl.names("image").is_empty());
    holds_nothing(&cluster.pool());
    ctl.ok("pool remove main");
    ctl.check();
}

#[test]
fn a_block_service_killed_while_it_compares_and_fetches_begins_again() {
    let Some((mut cluster, _mounted)) = stage(Backing::Embedded) else { return };
    let (ctl, flat) = (cluster.ctl(), memory());
    ctl.ok(&format!("pool create flat --path {}", path_text(&flat.path().join("pool"))));
    let image = Image::new(40, 7);
    let file = path_text(&image.path()).to_owned();
    for round in 0..4 {
        ctl.ok(&format!("image import {file} --name i{round} --pool shares --no-wait"));
        cluster.restart_block();
    }
    for round in 0..4 {
        let name = format!("i{round}");
        until(&name, || (ctl.text(&format!("image get {name}"), "/status/phase") == "ready").then_some(()));
        ctl.ok(&format!("volume create flat-{round} --image {name} --pool flat --no-wait"));
        cluster.restart_block();
    }
    ctl.check_when_settled();
    for round in 0..4 {
        let copy = cluster.path().join("copy.raw");
        ctl.ok(&format!("volume download flat-{round} {}", path_text(&copy)));
        image.assert_same(&copy);
    }
    ctl.check();
}

#[test]
fn what_clients_wrote_is_not_filled_over_by_a_service_that_was_killed() {
    let cluster = Cluster::start(Backing::Embedded);
    let (ctl, image, flat) = (cluster.ctl(), Image::new(24, 8), memory());
    let mut cluster = cluster;
    ctl.ok(&format!("pool create flat --path {}", path_text(&flat.path().join("pool"))));
    import(&ctl, &image, "base");
    ctl.ok("volume create v --image base --pool flat");
    qemu_io(&ctl.uri("v", "nbd"), &["write -P 0x5a 0 1M", "flush"]).succeeds();
    cluster.block.kill();
    cluster.forget_what_was_made();
    cluster.restart_block();
    assert!(!cluster.block.log().contains("the ledger is damaged"));
    ctl.check_when_settled();
    qemu_io(&ctl.uri("v", "nbd"), &["read -P 0x5a 0 1M"]).succeeds();
    ctl.check();
}

#[test]
fn an_image_whose_bytes_changed_behind_our_back_before_the_seal_is_never_ready() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    let mut import = Hanging::of(&ctl, "base", 8 << 20);
    import.send(&vec![7; 4 << 20]);
    wait_for_writes(&ctl, "base", 4 << 20);
    let base = ctl.text("image get base", "/status/bases/0");
    let uri = ctl.uri(&base, "nbd");
    qemu_io(&uri, &["write -P 1 0 64k", "flush"]).succeeds();
    import.send(&vec![7; 4 << 20]);
    let (code, said) = import.end();
    assert!(code == Some(1) && said.contains("the content is not what was sent"), "{code:?} {said}");
    ctl.run("volume create v --image base").fails(4, &["not there as a whole"]);
    ctl.run("image export base /dev/null").fails(1, &["not there as a whole"]);
    let whole = cluster.path().join("whole.raw");
    std::fs::write(&whole, vec![7; 8 << 20]).expect("a file");
    ctl.ok(&format!("image import {} --name base", path_text(&whole)));
    // Nobody reaches what keeps it any more.
    assert!(crate::stage::client(&uri).is_err());
    ctl.ok("image remove base");
    ctl.check();
}

#[test]
fn an_operator_elsewhere_imports_an_image_that_a_third_host_fetches_over_tls() {
    let Some(hosts) = Hosts::start(["near", "far", "operator"], "") else { return };
    let ctl = hosts.ctl();
    let (_near, far) = (hosts.joined_block("near"), hosts.joined_block("far"));
    let admin = hosts.bundle("ops", "admin");
    let image = Image::new(32, 9);
    let asked = |line: &str| {
        let address = hosts.address("manager");
        hosts.ctl_on("operator", &format!("--bundle {} --manager {address} {line}", path_text(&admin)))
    };
    asked(&format!("image import {} --name base --pool near", path_text(&image.path()))).succeeds();
    assert_eq!(ctl.text("image get base", "/spec/sha256"), sha256(&image.bytes()));
    // The leave to write has ended with the import.
    until("nobody to be attached", || ctl.names("attachment").is_empty().then_some(()));
    asked("volume create there --image base --pool far").succeeds();
    let copy = hosts.path().join("copy.raw");
    asked(&format!("image export base {}", path_text(&copy))).succeeds();
    image.assert_same(&copy);
    let there = hosts.path().join("there.raw");
    let uri = far.local_uri("there");
    let mut read = far.host.command("qemu-img");
    read.args(["convert", "-f", "raw", "-O", "raw", &uri, path_text(&there)]);
    finish(read).succeeds();
    image.assert_same(&there);
    // Who only looks hands nothing out.
    let viewer = hosts.bundle("eyes", "viewer");
    let line = format!("--bundle {} --manager {}", path_text(&viewer), hosts.address("manager"));
    hosts.ctl_on("operator", &format!("{line} image export base /dev/null")).fails(4, &["viewer"]);
    hosts.ctl_on("operator", &format!("{line} image remove base")).fails(4, &["viewer"]);
    ctl.ok("image remove base");
    ctl.check();
}
