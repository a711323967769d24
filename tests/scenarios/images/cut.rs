//! Imports that do not come to their end: they are gone on with, or leave nothing behind.

use super::{Hanging, holds_nothing, import, memory, stage, wait_for_writes};
use crate::stage::{Backing, Cluster, Image, compare, finish_with, path_text, sha256, symphony, tool, until};
use std::path::{Path, PathBuf};

#[test]
fn an_import_whose_client_is_gone_for_good_is_thrown_away_and_leaves_nothing() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    let mut hanging = Hanging::of(&ctl, "base", 48 << 20);
    hanging.send(&vec![7; 4 << 20]);
    wait_for_writes(&ctl, "base", 4 << 20);
    hanging.kill();
    // Nobody takes it for something whole, now or after everything was started anew.
    cluster.restart_block();
    cluster.restart_manager();
    ctl.check_when_settled();
    assert!(ctl.ok("image list").contains("uploading"));
    ctl.run("volume create v --image base").fails(4, &["not there as a whole"]);
    ctl.run("pool remove main").fails(4, &["'base'"]);
    ctl.ok("image remove base");
    assert!(ctl.names("image").is_empty());
    holds_nothing(&cluster.pool());
    ctl.check();
    ctl.ok("pool remove main");
}

#[test]
fn a_stream_that_is_cut_short_is_gone_on_with_or_leaves_nothing() {
    let Some((cluster, mounted)) = stage(Backing::Embedded) else { return };
    let (ctl, image) = (cluster.ctl(), Image::new(24, 11));
    let (socket, bytes) = (path_text(&ctl.socket).to_owned(), image.bytes());
    let from_stdin = |more: &[&str], bytes: &[u8]| {
        let line = ["ctl", "--socket", &socket, "image", "import", "-", "--name", "base"];
        finish_with(symphony(line.iter().chain(more)), bytes.to_vec())
    };
    let size = bytes.len().to_string();
    for cut in [1, 4096, 5 << 20, bytes.len() - 1] {
        let said = format!("ended after {cut} of {size} bytes");
        from_stdin(&["--size", &size], &bytes[..cut]).fails(1, &[&said, "repeat it to go on", "image remove base"]);
    }
    from_stdin(&["--size", &size], &bytes).succeeds();
    assert_eq!(ctl.text("image get base", "/spec/sha256"), sha256(&bytes));
    ctl.ok("volume create web --image base");
    compare(&image.path(), &ctl.uri("web", "nbd"));
    ctl.ok("volume remove web");
    ctl.ok("image remove base");

    from_stdin(&["--size", &size], &bytes[..5 << 20]).fails(1, &["ended after"]);
    ctl.ok("image remove base");
    // A qcow2 file has to be seen as a whole, and that its tables are missing shows before anything is sent.
    let file = cluster.path().join("whole.qcow2");
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", path_text(&image.path()), path_text(&file)]).succeeds();
    let whole = std::fs::read(&file).expect("the file");
    from_stdin(&[], &whole[..200_000]).fails(1, &["cut short"]);
    assert!(ctl.names("image").is_empty());
    holds_nothing(&mounted.path().join("pool"));
    ctl.check();
}

/// A file system that takes no changes for now.
struct Frozen(PathBuf);

impl Frozen {
    fn new(path: &Path) -> Self {
        tool("fsfreeze", &["--freeze", path_text(path)]).succeeds();
        Self(path.to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        tool("fsfreeze", &["--unfreeze", path_text(&self.0)]).succeeds();
    }
}

#[test]
fn the_wait_for_the_seal_ends_at_its_timeout_and_the_comparison_goes_on() {
    let Some((cluster, mounted)) = stage(Backing::Embedded) else { return };
    let (ctl, bytes) = (cluster.ctl(), vec![7; 4 << 20]);
    let mut hanging = Hanging::with(&ctl, "base", bytes.len(), &["--timeout", "10s"]);
    hanging.send(&bytes);
    wait_for_writes(&ctl, "base", 4 << 20);
    let base = ctl.text("image get base", "/status/bases/0");
    let file = mounted.path().join(format!("pool/volumes/{base}.img"));
    until("all of it to have arrived", || std::fs::read(&file).ok()?.starts_with(&bytes).then_some(()));
    // What was compared cannot be noted on the disk.
    let frozen = Frozen::new(mounted.path());
    let (code, said) = hanging.end();
    assert_eq!(code, Some(6), "{said}");
    for words in ["not done within 10s", "image 'base' is pending", "image get base"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    drop(frozen);
    until("the image to be whole", || (ctl.text("image get base", "/status/phase") == "ready").then_some(()));
    assert_eq!(ctl.text("image get base", "/spec/sha256"), sha256(&bytes));
    ctl.ok("image remove base");
    ctl.check();
}

#[test]
fn a_volume_removed_while_it_is_filled_leaves_nothing_and_the_image_is_as_it_was() {
    let Some((mut cluster, _mounted)) = stage(Backing::Embedded) else { return };
    let (ctl, image, flat) = (cluster.ctl(), Image::new(48, 12), memory());
    ctl.ok(&format!("pool create flat --path {}", path_text(&flat.path().join("pool"))));
    ctl.ok(&format!("image import {} --name base --pool shares", path_text(&image.path())));
    for round in 0..4 {
        let name = format!("v{round}");
        ctl.ok(&format!("volume create {name} --image base --pool flat --no-wait"));
        if round % 2 == 1 {
            cluster.restart_block();
        }
        ctl.ok(&format!("volume remove {name}"));
    }
    holds_nothing(&flat.path().join("pool"));
    ctl.check_when_settled();
    let copy = cluster.path().join("copy.raw");
    ctl.ok(&format!("image export base {}", path_text(&copy)));
    image.assert_same(&copy);
    ctl.ok("image remove base");
    import(&ctl, &image, "base");
}
