"""The guest's kernel and base system, made of Debian packages and kept until this directory's sources change.

    target/vm/debs/          archives as downloaded, kept over rebuilds
    target/vm/image-DIGEST/  vmlinux, base.cpio, and `versions`, the list of what went in

Under emulation every byte that is unpacked and every instruction before the first test counts. So the kernel is handed
over uncompressed (it boots by its PVH entry, without the in-guest decompressor), the archive is not compressed either,
and modules lose their signatures, whose hashing takes seconds.
"""

import hashlib
import lzma
import os
import shutil
import subprocess
from pathlib import Path

import packages
from cpio import Archive

HERE = Path(__file__).resolve().parent

# All files of these go in, with the libraries that their programs load.
PACKAGES = """busybox-static bash coreutils util-linux util-linux-extra mount kmod iproute2 procps grep sed gawk findutils
diffutils jq lvm2 dmsetup thin-provisioning-tools e2fsprogs logsave xfsprogs btrfs-progs nbd-client
python3.11-minimal libpython3.11-minimal""".split()

# These go in, with all that they depend on; every other driver is left out.
MODULES = """virtio_pci virtio_blk virtio_console virtio_net virtio_rng
dm-mod dm-thin-pool dm-snapshot dm-mirror dm-raid dm-flakey dm-delay dm-log-writes dm-zero
nbd loop scsi_debug sd_mod ext4 xfs btrfs overlay crc32c_generic crc32c-intel crc32_pclmul
veth bridge dummy sch_netem""".split()

# Of these packages only what is named: the rest is large, and nothing in a guest uses it.
FILES = {"libpython3.11-stdlib": ["usr/lib/python3.11/lib-dynload/mmap.cpython-311-x86_64-linux-gnu.so"]}

# Not worth their libraries, which are larger than all the rest.
HEAVY = {"usr/sbin/xfs_scrub", "usr/sbin/arpd"}

# What installation scripts would have linked.
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "var/run": "/run",
         "var/lock": "/run/lock", "etc/mtab": "/proc/self/mounts", "usr/bin/sh": "bash", "usr/bin/awk": "gawk",
         "usr/bin/python3": "python3.11"}
DIRECTORIES = "usr/bin usr/sbin usr/lib usr/lib64 dev proc sys run tmp mnt root etc var/lib var/log".split()


class Image:
    """Paths of what was built."""

    def __init__(self, directory):
        self.directory = directory
        self.kernel = directory / "vmlinux"
        self.base = directory / "base.cpio"


def ensure(cache):
    """The image that belongs to these sources, built now if it is not there."""
    sources = [HERE / name for name in ("image.py", "packages.py", "cpio.py")]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    directory = cache / f"image-{digest}"
    if not directory.exists():
        cache.mkdir(parents=True, exist_ok=True)
        try:
            build(cache, directory)
        except packages.PackageError:
            packages.refresh_lists()
            build(cache, directory)
        for old in cache.glob("image-*"):
            if old != directory:
                shutil.rmtree(old)
    return Image(directory)


def build(cache, directory):
    """Builds beside the place and renames at the end: an image is there as a whole or not at all."""
    work = directory.with_suffix(".new")
    shutil.rmtree(work, ignore_errors=True)
    root, kernel_root = work / "pool", work / "kernel"
    kernel_root.mkdir(parents=True)
    packages.pool(root)
    kernel, versions = packages.kernel(), packages.closure([*PACKAGES, *FILES], work)
    archives = packages.download({**versions, **kernel}, cache / "debs")
    files = {name: packages.unpack(archives[name], root) for name in versions}
    subprocess.run(["dpkg-deb", "-x", archives[next(iter(kernel))], kernel_root], check=True)
    compressed = next((kernel_root / "boot").glob("vmlinuz-*"))
    (work / "vmlinux").write_bytes(decompressed(compressed.read_bytes()))
    chosen = {file for name in PACKAGES for file in files[name]} - HEAVY - set(LINKS)
    chosen.update(file for some in FILES.values() for file in some)
    modules = module_tree(kernel_root, compressed.name.removeprefix("vmlinuz-"), work / "modules")
    with Archive(work / "base.cpio") as archive:
        write_base(archive, root, chosen, modules)
    lines = sorted(f"{name} {version}\n" for name, version in {**versions, **kernel}.items())
    (work / "versions").write_text("".join(lines))
    (work / "empty-status").unlink()
    for finished in (root, kernel_root, modules):
        shutil.rmtree(finished)
    os.rename(work, directory)


def write_base(archive, root, chosen, modules):
    for name in DIRECTORIES:
        archive.directory(name)
    archive.device("dev/console", 5, 1)
    archive.device("dev/null", 1, 3, 0o666)
    for name, target in LINKS.items():
        archive.link(name, target)
    for file in sorted(packages.with_libraries(root, chosen)):
        archive.copy(file, root / file)
    # busybox has what no package above brings: vi, ping, nc …
    for applet in packages.output(root / "usr/bin/busybox", "--list").split():
        if not {f"usr/bin/{applet}", f"usr/sbin/{applet}"} & archive.names:
            archive.link(f"usr/bin/{applet}", "busybox")
    archive.tree("usr/lib/modules", modules / "lib/modules")


def decompressed(kernel):
    """The ELF image inside a compressed kernel; Debian packs it with xz."""
    start = kernel.find(b"\xfd7zXZ\0")
    while start >= 0:
        try:
            image = lzma.LZMADecompressor().decompress(kernel[start:])
        except lzma.LZMAError:
            image = b""
        if image.startswith(b"\x7fELF"):
            return image
        start = kernel.find(b"\xfd7zXZ\0", start + 1)
    raise packages.PackageError("the kernel holds no xz-packed ELF image: Debian packs it in another way now")


def module_tree(kernel_root, release, tree):
    """A directory like / with the chosen modules alone, indexed for modprobe; its path."""
    below = Path("lib/modules") / release
    packages.output("depmod", "-b", kernel_root, release)
    for module in MODULES:
        listed = packages.output("modprobe", "-d", kernel_root, "-S", release, "--show-depends", module)
        for line in listed.splitlines():
            if line.startswith("insmod"):
                source = Path(line.split()[1])
                target = tree / source.relative_to(kernel_root)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(unsigned(source.read_bytes()))
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(kernel_root / below / name, tree / below / name)
    packages.output("depmod", "-b", tree, release)
    return tree


def unsigned(module):
    """A module without its signature, which stands at its end before its own length and a magic line."""
    magic = b"~Module signature appended~\n"
    if not module.endswith(magic):
        return module
    length = int.from_bytes(module[-len(magic) - 4:-len(magic)], "big")
    return module[:-len(magic) - 12 - length]
