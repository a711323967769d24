//! The programs that users bring: qemu, libnbd, e2fsprogs. One that is missing fails its test with its package's name.

use super::command::{Outcome, finish};
use crate::support::process::mortal;
use std::path::Path;
use symphony::nbd::{Client, Dialled};

const PACKAGES: &[(&str, &str)] = &[
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("fio", "fio"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("mke2fs", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("xfs_io", "xfsprogs"),
    ("etcdctl", "etcd-client"),
    ("ip", "iproute2"),
    ("lvm", "lvm2"),
    ("losetup", "mount"),
    ("umount", "mount"),
    ("ldd", "libc-bin"),
];

/// Runs a program that is in `PATH` or where administrators have theirs.
#[track_caller]
pub fn tool(program: &str, arguments: &[&str]) -> Outcome {
    let package = PACKAGES.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| *package);
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let found = std::env::split_paths(&path).map(|place| place.join(program)).find(|place| place.is_file());
    let found = found.unwrap_or_else(|| panic!("{program} is missing: install the package '{package}'"));
    let mut command = mortal(found);
    command.args(arguments);
    finish(command)
}

#[track_caller]
pub fn qemu_io(uri: &str, commands: &[&str]) -> Outcome {
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(uri);
    tool("qemu-io", &arguments)
}

/// Whether qemu finds a file and an export the same, byte for byte.
#[track_caller]
pub fn compare(image: &Path, uri: &str) {
    let image = super::path_text(image);
    tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, uri]).succeeds();
}

/// The size that a new connection sees, in bytes.
#[track_caller]
pub fn nbd_size(uri: &str) -> u64 {
    tool("nbdinfo", &["--size", uri]).succeeds().trim().parse().expect("a size")
}

/// A connection of our own client, which knows what has been acknowledged.
pub fn client(uri: &str) -> Result<Dialled, symphony::nbd::ClientError> {
    Client::dial(&uri.parse().expect("an URI"))
}
