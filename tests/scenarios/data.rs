//! Bytes: real file systems in, kill -9 of everything, the same bytes out.

use crate::stage::{
    Backing, Cluster, Control, Image, compare, finish, finish_with, on_each_store, path_text, qemu_io, sha256,
    symphony, tool,
};

on_each_store!(an_uploaded_file_system_survives_kill_9_of_everything);

fn an_uploaded_file_system_survives_kill_9_of_everything(backing: Backing) {
    let mut cluster = Cluster::start(backing);
    let (ctl, image) = (cluster.ctl(), Image::new(48, 1));
    let digest = sha256(&image.bytes());
    ctl.ok("volume create disk --size 48MiB");
    let sent = ctl.json(&format!("volume upload disk {}", path_text(&image.path())));
    assert_eq!(sent["sha256"], *digest);
    assert_eq!(sent["bytes"], 48 << 20);
    compare(&image.path(), &ctl.uri("disk", "nbd"));

    cluster.block.kill();
    cluster.restart_manager();
    cluster.restart_block();
    ctl.check_when_settled();
    compare(&image.path(), &ctl.uri("disk", "nbd"));
    compare(&image.path(), &ctl.uri("disk", "nbd-unix"));

    let copy = cluster.path().join("copy.raw");
    let received = ctl.json(&format!("volume download disk {}", path_text(&copy)));
    assert_eq!(received["sha256"], *digest);
    image.assert_same(&copy);
    // Holes stayed holes on the way in, too.
    let id = ctl.text("volume get disk", "/meta/id");
    image.assert_same(&cluster.pool().join(format!("volumes/{id}.img")));
    ctl.check();
}

#[test]
fn a_file_system_written_by_qemu_img_survives_kill_9_of_everything() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let (ctl, image) = (cluster.ctl(), Image::new(48, 2));
    ctl.ok("volume create disk --size 48MiB");
    let (path, uri) = (image.path(), ctl.uri("disk", "nbd"));
    tool("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", path_text(&path), &uri]).succeeds();
    cluster.restart_block();
    cluster.restart_manager();
    ctl.check_when_settled();
    compare(&path, &ctl.uri("disk", "nbd"));
    ctl.ok("volume resize disk --size 64MiB");
    ctl.ok("volume create other --size 48MiB");
    let copy = [ctl.uri("disk", "nbd"), ctl.uri("other", "nbd")];
    // Copying from a larger volume onto a smaller one is the program's business to refuse; the other way round works.
    tool("nbdcopy", &[&copy[1], &copy[0]]).succeeds();
    qemu_io(&copy[0], &["read -P 0 0 48M"]).succeeds();
    ctl.check();
}

#[test]
fn a_volume_is_filled_from_standard_input_and_emptied_into_standard_output() {
    let cluster = Cluster::start(Backing::Embedded);
    let (ctl, image) = (cluster.ctl(), Image::new(48, 3));
    let bytes = image.bytes();
    ctl.ok("volume create disk --size 48MiB");
    let socket = path_text(&ctl.socket).to_owned();
    let said = finish_with(symphony(["ctl", "--socket", &socket, "volume", "upload", "disk", "-"]), bytes.clone());
    assert!(said.succeeds().contains(&sha256(&bytes)));
    let outcome = finish(symphony(["ctl", "--socket", &socket, "volume", "download", "disk", "-"]));
    assert!(outcome.stdout == bytes, "standard output is not the volume");
    assert!(outcome.stderr.contains(&sha256(&bytes)), "{}", outcome.stderr);
    outcome.succeeds();
    ctl.check();
}

#[test]
fn a_file_that_is_larger_than_the_volume_is_refused_before_anything_is_written() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create small --size 1MiB");
    qemu_io(&ctl.uri("small", "nbd"), &["write -P 0x33 0 1M", "flush"]).succeeds();
    let large = cluster.path().join("large.raw");
    std::fs::write(&large, vec![0x44; (1 << 20) + 1]).expect("a file");
    ctl.run(&format!("volume upload small {}", path_text(&large))).fails(1, &["'small'", "1048577", "1048576"]);
    qemu_io(&ctl.uri("small", "nbd"), &["read -P 0x33 0 1M"]).succeeds();
    ctl.check();
}

#[test]
fn a_file_that_is_smaller_than_the_volume_leaves_the_rest_as_it_is() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create disk --size 1MiB");
    qemu_io(&ctl.uri("disk", "nbd"), &["write -P 0x33 0 1M", "flush"]).succeeds();
    let odd = cluster.path().join("odd.raw");
    std::fs::write(&odd, vec![0; 1000]).expect("a file");
    ctl.ok(&format!("volume upload disk {}", path_text(&odd)));
    qemu_io(&ctl.uri("disk", "nbd"), &["read -P 0 0 1000", "read -P 0x33 1000 1047576"]).succeeds();
    ctl.check();
}

#[test]
fn uploads_and_downloads_that_cannot_be_say_with_what_and_why() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create disk --size 1MiB");
    let missing = cluster.path().join("missing.raw");
    ctl.run(&format!("volume upload disk {}", path_text(&missing))).fails(1, &["missing.raw", "No such file"]);
    ctl.run(&format!("volume upload nosuch {}", path_text(&missing))).fails(3, &["'nosuch'", "volume list"]);
    ctl.run("volume download disk /nonexistent/copy.raw").fails(1, &["/nonexistent/copy.raw"]);
    ctl.run("volume download disk /dev/full").fails(1, &["'disk'"]);
    ctl.check();
}

#[test]
fn everything_in_one_process_survives_its_kill_9() {
    let scratch = tempfile::tempdir().expect("a directory");
    let mut dev = crate::dev::daemon(scratch.path());
    let ctl = Control::of(&scratch.path().join("dev/manager"));
    crate::dev::start(&mut dev, &ctl);
    let image = Image::new(48, 4);
    ctl.ok("volume create disk --size 48MiB");
    ctl.ok(&format!("volume upload disk {}", path_text(&image.path())));
    dev.kill();
    crate::dev::start(&mut dev, &ctl);
    ctl.check_when_settled();
    compare(&image.path(), &ctl.uri("disk", "nbd"));
    let copy = scratch.path().join("copy.raw");
    ctl.ok(&format!("volume download disk {}", path_text(&copy)));
    image.assert_same(&copy);
    ctl.check();
}
