//! qcow2 files, qemu's own and damaged ones, imported.

use super::stage;
use crate::stage::{Backing, Cluster, Image, finish_with, path_text, sha256, symphony, tool};

/// The files that qemu makes of one content, in each way that it can write.
const FORMS: &[&[&str]] = &[
    &[],
    &["-c"],
    &["-c", "-o", "compression_type=zstd"],
    &["-o", "compat=0.10"],
    &["-c", "-o", "compat=0.10"],
    &["-o", "cluster_size=512"],
    &["-c", "-o", "cluster_size=512"],
    &["-o", "cluster_size=2M"],
    &["-c", "-o", "cluster_size=2M,compression_type=zstd"],
    &["-o", "lazy_refcounts=on,refcount_bits=1"],
    &["-o", "refcount_bits=64"],
    &["-o", "preallocation=metadata"],
    &["-o", "preallocation=full"],
];

#[test]
fn every_form_of_qcow2_that_qemu_writes_becomes_what_qemu_makes_of_it() {
    let Some((cluster, _mounted)) = stage(Backing::Embedded) else { return };
    let (ctl, image) = (cluster.ctl(), Image::new(20, 5));
    let raw = path_text(&image.path()).to_owned();
    // A disk whose end is in the middle of a cluster.
    std::fs::File::options()
        .append(true)
        .open(&raw)
        .and_then(|file| file.set_len((20 << 20) + 512 * 7))
        .expect("a file");
    let digest = sha256(&image.bytes());
    for (number, options) in FORMS.iter().enumerate() {
        let file = cluster.path().join(format!("form-{number}.qcow2"));
        let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
        arguments.extend(*options);
        arguments.extend([raw.as_str(), path_text(&file)]);
        tool("qemu-img", &arguments).succeeds();
        let made = ctl.json(&format!("image import {} --name form-{number}", path_text(&file)));
        assert_eq!(made["spec"]["sha256"], *digest, "{options:?}");
        assert_eq!(made["spec"]["format"], "qcow2");
        let (copy, expected) = (cluster.path().join("copy.raw"), cluster.path().join("expected.raw"));
        tool("qemu-img", &["convert", "-O", "raw", path_text(&file), path_text(&expected)]).succeeds();
        ctl.ok(&format!("image export form-{number} {}", path_text(&copy)));
        assert!(std::fs::read(&copy).expect("ours") == std::fs::read(&expected).expect("qemu's"), "{options:?}");
        ctl.ok(&format!("image remove form-{number}"));
    }
    ctl.check();
}

#[test]
fn qcow2_files_that_qemu_wrote_over_and_over_are_read_as_they_are_now() {
    let Some((cluster, _mounted)) = stage(Backing::Embedded) else { return };
    let ctl = cluster.ctl();
    let (file, raw) = (cluster.path().join("used.qcow2"), cluster.path().join("used.raw"));
    let (file, raw) = (path_text(&file), path_text(&raw));
    tool("qemu-img", &["create", "-q", "-f", "qcow2", file, "64M"]).succeeds();
    let io = |commands: &[&str]| {
        let mut arguments = vec!["-f", "qcow2"];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        arguments.push(file);
        tool("qemu-io", &arguments).succeeds()
    };
    io(&["write -P 1 0 4M", "write -c -P 2 8M 64k", "write -z 1M 1M", "discard 2M 512k"]);
    tool("qemu-img", &["snapshot", "-c", "before", file]).succeeds();
    io(&[
        "write -P 3 512k 100k",
        "write -z -u 3M 128k",
        "write -P 4 63M 1M",
        "discard 8M 64k",
        "write -P 5 40000000 512",
    ]);
    tool("qemu-img", &["convert", "-O", "raw", file, raw]).succeeds();
    let made = ctl.json(&format!("image import {file} --name used"));
    assert_eq!(made["spec"]["sha256"], *sha256(&std::fs::read(raw).expect("qemu's")));
    // The same by standard input, which has to be seen as a whole first.
    let socket = path_text(&ctl.socket).to_owned();
    let bytes = std::fs::read(file).expect("the file");
    let line = ["ctl", "--socket", &socket, "image", "import", "-", "--name", "piped", "-o", "json"];
    let piped = finish_with(symphony(line), bytes).succeeds();
    let piped: serde_json::Value = serde_json::from_str(&piped).expect("JSON");
    assert_eq!(piped["spec"]["sha256"], made["spec"]["sha256"]);
    ctl.check();
}

#[test]
fn qcow2_files_that_cannot_be_imported_are_refused_by_name_and_leave_nothing() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    let make = |name: &str, options: &[&str]| {
        let file = cluster.path().join(name);
        let mut arguments = vec!["create", "-q", "-f", "qcow2"];
        arguments.extend(options);
        arguments.extend([path_text(&file), "8M"]);
        tool("qemu-img", &arguments).succeeds();
        file
    };
    let base = make("base.qcow2", &[]);
    let data = cluster.path().join("data.raw");
    let data = format!("data_file={}", path_text(&data));
    for (file, words) in [
        (make("backed.qcow2", &["-b", path_text(&base), "-F", "qcow2"]), "backing file"),
        (make("apart.qcow2", &["-o", &data]), "another file"),
        (make("fine.qcow2", &["-o", "extended_l2=on"]), "subclusters"),
    ] {
        ctl.run(&format!("image import {} --name refused", path_text(&file))).fails(1, &[words, "qcow2"]);
    }
    let whole = std::fs::read(&base).expect("the file");
    let damaged = cluster.path().join("damaged.qcow2");
    let import = format!("image import {} --name refused", path_text(&damaged));
    for (place, bytes, words) in [
        (24, (1u64 << 63).to_be_bytes().to_vec(), "no device has"),
        (24, (1u64 << 60).to_be_bytes().to_vec(), "first table"),
        (20, 63u32.to_be_bytes().to_vec(), "clusters of 2^63"),
        (40, (1u64 << 50).to_be_bytes().to_vec(), "first table"),
        (48, (1u64 << 50).to_be_bytes().to_vec(), "reference counts"),
        (72, 2u64.to_be_bytes().to_vec(), "corrupt"),
        // With a key of LUKS, as its method says.
        (32, 2u32.to_be_bytes().to_vec(), "encrypted"),
    ] {
        let mut bad = whole.clone();
        bad[place..place + bytes.len()].copy_from_slice(&bytes);
        std::fs::write(&damaged, bad).expect("a file");
        ctl.run(&import).fails(1, &[words]);
    }
    std::fs::write(&damaged, &whole[..100]).expect("a file");
    ctl.run(&import).fails(1, &["damaged.qcow2", "cut short"]);
    std::fs::write(&damaged, b"").expect("a file");
    ctl.run(&import).fails(1, &["empty"]);
    ctl.run(&format!("{import} --format qcow2")).fails(1, &["no qcow2 file"]);
    // A small file that promises more than any pool has.
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", path_text(&damaged), "1P"]).succeeds();
    ctl.run(&import).fails(4, &["no pool has"]);
    assert!(ctl.names("image").is_empty());
    ctl.check();
}
