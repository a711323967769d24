//! Files that are not what they say, and too large for where they are to go. No volume beside them is harmed.

use super::holds_nothing;
use crate::stage::{Backing, Cluster, Control, path_text, qemu_io, tool};
use std::path::{Path, PathBuf};

/// A cluster with somebody's volume in the pool that images go to.
struct Stage {
    cluster: Cluster,
    ctl: Control,
}

impl Stage {
    fn new() -> Self {
        let cluster = Cluster::start(Backing::Embedded);
        let ctl = cluster.ctl();
        ctl.ok("volume create bystander --size 4M");
        qemu_io(&ctl.uri("bystander", "nbd"), &["write -P 0x5a 0 4M", "flush"]).succeeds();
        Self { cluster, ctl }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cluster.path().join(name)
    }

    /// A qcow2 file of 8 MiB of data.
    fn qcow2(&self, options: &[&str]) -> Vec<u8> {
        let (raw, file) = (self.path("raw"), self.path("made.qcow2"));
        std::fs::write(&raw, vec![7; 8 << 20]).expect("a file");
        let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
        arguments.extend(options);
        arguments.extend([path_text(&raw), path_text(&file)]);
        tool("qemu-img", &arguments).succeeds();
        std::fs::read(file).expect("the file")
    }

    fn import(&self, file: &Path) -> crate::stage::Outcome {
        self.ctl.run(&format!("image import {} --name hostile", path_text(file)))
    }

    /// That nobody else is harmed, and nothing is left once the bystander is gone.
    fn ends_well(&self) {
        assert!(self.ctl.names("image").is_empty());
        qemu_io(&self.ctl.uri("bystander", "nbd"), &["read -P 0x5a 0 4M"]).succeeds();
        self.ctl.check();
        self.ctl.ok("volume remove bystander");
        holds_nothing(&self.cluster.pool());
        self.ctl.check();
    }
}

#[test]
fn an_image_whose_header_lies_about_its_size_is_refused_and_harms_no_volume() {
    let stage = Stage::new();
    let (whole, file) = (stage.qcow2(&[]), stage.path("lies.qcow2"));
    let lie = |size: u64| {
        let mut bytes = whole.clone();
        bytes[24..32].copy_from_slice(&size.to_be_bytes());
        std::fs::write(&file, bytes).expect("a file");
        stage.import(&file)
    };
    // More than its tables speak of, than any device has, than there are numbers for; and nothing at all.
    lie(1 << 40).fails(1, &["first table"]);
    lie(1 << 60).fails(1, &["first table"]);
    lie(1 << 63).fails(1, &["no device has"]);
    lie(u64::MAX).fails(1, &["no device has"]);
    lie(0).fails(1, &["size of zero"]);
    // What is missing at its end is not made up, whether that shows before anything is sent or on the way.
    std::fs::write(&file, &whole[..200_000]).expect("a file");
    stage.import(&file).fails(1, &["cut short"]);
    assert!(stage.ctl.names("image").is_empty());
    std::fs::write(&file, &whole[..whole.len() / 2]).expect("a file");
    stage.import(&file).fails(1, &["cut short", "image remove hostile"]);
    stage.ctl.ok("image remove hostile");
    stage.ends_well();
}

#[test]
fn an_image_larger_than_the_volume_or_the_pool_is_refused_and_harms_no_volume() {
    let stage = Stage::new();
    let (ctl, file) = (&stage.ctl, stage.path("whole.qcow2"));
    std::fs::write(&file, stage.qcow2(&[])).expect("a file");
    stage.import(&file).succeeds();
    ctl.run("volume create small --image hostile --size 4M").fails(2, &["'hostile'", "8MiB", "does not fit"]);
    ctl.ok("image remove hostile");
    // Into a volume that is there.
    let raw = stage.path("raw");
    ctl.run(&format!("volume upload bystander {}", path_text(&raw))).fails(1, &["8MiB", "4MiB"]);
    // A small file that promises more than any pool has.
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", path_text(&file), "1P"]).succeeds();
    stage.import(&file).fails(4, &["no pool has"]);
    // One that says less of standard input than there is.
    ctl.run("image import - --name hostile --size 1P").fails(4, &["no pool has"]);
    stage.ends_well();
}

#[test]
fn a_decompression_bomb_ends_its_import_which_can_be_thrown_away_and_harms_no_volume() {
    // Deflate: one byte, over and over, for 32 KiB at a time; zstd: a frame that announces a window of many GiB.
    let deflate = [0xed, 0xc1, 0x01, 0x01, 0x00, 0x00, 0x00, 0x80, 0x90, 0xfe, 0xaf, 0xee, 0x08, 0x0a];
    let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x03, 0x00, 0x20, 0x41];
    for (options, bomb) in [(&["-c"][..], &deflate[..]), (&["-c", "-o", "compression_type=zstd"], &zstd)] {
        let stage = Stage::new();
        let (mut bytes, file) = (stage.qcow2(options), stage.path("bomb.qcow2"));
        // The last compressed cluster becomes something that unpacks to much more.
        let table = 0x40000;
        let entry = u64::from_be_bytes(bytes[table + 8 * 127..table + 8 * 128].try_into().expect("an entry"));
        assert_eq!(entry >> 62, 1, "{entry:#x} is no compressed cluster");
        let offset = (entry & ((1 << 54) - 1)) as usize;
        bytes.resize(bytes.len().max(offset + 4096), 0);
        bytes[offset..offset + bomb.len()].copy_from_slice(bomb);
        std::fs::write(&file, &bytes).expect("a file");
        stage.import(&file).fails(1, &["compressed cluster", "image remove hostile"]);
        stage.ctl.run("volume create v --image hostile").fails(4, &["not there as a whole"]);
        stage.ctl.ok("image remove hostile");
        stage.ends_well();
    }
}
