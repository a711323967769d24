"""Debian packages without a Debian system: what depends on what, the files, and the libraries that a program loads.

Nothing is installed, mounted or chrooted, and no root rights are needed: apt-get only plans and downloads, dpkg-deb
unpacks into one directory, the pool, and the pool's own dynamic loader says what each program needs.
"""

import os
import re
import stat
import subprocess

LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = "usr/lib64/ld-linux-x86-64.so.2"
# What nobody reads in a guest.
UNREAD = [
    *(f"./usr/share/{name}/*" for name in "doc man locale info lintian bash-completion initramfs-tools".split()),
    "./usr/lib/systemd/system/*", "./etc/init.d/*",
]


class PackageError(Exception):
    """A package could not be had; the text says what apt-get or dpkg-deb said."""


def output(*command, **options):
    """What a command prints; PackageError with what it complained of if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    if done.returncode:
        raise PackageError(f"{' '.join(map(str, command[:6]))} … failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def closure(names, scratch):
    """{package: version} of everything that apt would install for `names` on an empty system."""
    empty = scratch / "empty-status"
    empty.write_text("")
    options = [f"Dir::State::status={empty}", "APT::Install-Recommends=false", "Debug::NoLocking=1"]
    plan = output("apt-get", "--simulate", *(word for option in options for word in ("-o", option)), "install", *names)
    return {match[1]: match[2] for match in re.finditer(r"^Inst (\S+?)(?::\S+)? \((\S+)", plan, re.M)}


def kernel():
    """{package: version} of the newest kernel of this Debian release."""
    name = re.search(r"Depends: (linux-image-\d\S+)", output("apt-cache", "depends", "linux-image-amd64"))[1]
    version = re.search(r"^\s*Candidate: (\S+)", output("apt-cache", "policy", name), re.M)[1]
    return {name: version}


def refresh_lists():
    """Brings apt's lists up to date: on a fresh machine there are none, on an old one they name what is gone."""
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    output(*sudo, "apt-get", "-qq", "update", timeout=300)


def download(versions, directory):
    """{package: path of its archive}; downloads only what is not there yet."""
    directory.mkdir(parents=True, exist_ok=True)

    def archive(name):
        return next(iter(directory.glob(f"{name}_{versions[name].replace(':', '%3a')}_*.deb")), None)

    missing = [f"{name}={version}" for name, version in versions.items() if not archive(name)]
    if missing:
        print(f"downloading {len(missing)} Debian packages", flush=True)
        output("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *missing, cwd=directory, timeout=900)
    return {name: archive(name) for name in versions}


def unpack(archive, root):
    """Unpacks an archive below `root`; the names of its files, without the directories."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as source:
        exclude = [f"--exclude={pattern}" for pattern in UNREAD]
        options = ["--keep-directory-symlink", "--no-same-owner", "--verbose", *exclude]
        names = output("tar", "-x", *options, "-C", root, stdin=source.stdout)
    if source.returncode:
        raise PackageError(f"dpkg-deb cannot read {archive}")
    return [merged(name) for name in names.splitlines() if not name.endswith("/")]


def merged(name):
    """Packages still ship /bin and /lib; the guest's root has them below /usr, as every Debian system."""
    name = name.removeprefix(".").removeprefix("/")
    return f"usr/{name}" if re.match(r"(bin|sbin|lib|lib64)/", name) else name


def pool(root):
    """Prepares a directory that packages are unpacked into."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")


def with_libraries(root, files):
    """`files` of the pool that exist, with every library that the programs among them load, and the links on the way."""
    # The C library opens libgcc_s by itself when a thread ends.
    needed = {LOADER, f"{LIBRARIES}/libgcc_s.so.1"}
    for file in files:
        if is_program(root / file):
            needed.update(libraries(root, root / file))
    chosen = {file for file in files if os.path.lexists(root / file)}
    for file in needed:
        while file not in chosen and os.path.lexists(root / file):
            chosen.add(file)
            if os.path.islink(root / file):
                file = merged(os.path.normpath(os.path.join(os.path.dirname(file), os.readlink(root / file))))
    return chosen


def is_program(path):
    if not os.path.lexists(path) or not stat.S_ISREG(os.lstat(path).st_mode):
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def libraries(root, program):
    """What `ldd` would say inside the pool; nothing for what is linked statically."""
    path = ":".join(f"{root}/{directory}" for directory in (LIBRARIES, "usr/lib"))
    listed = subprocess.run([root / LOADER, "--library-path", path, "--list", program], stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True)
    found = re.findall(r"(/\S+) \(0x", listed.stdout) if listed.returncode == 0 else []
    return [os.path.relpath(library, root) for library in found if library.startswith(str(root))]
