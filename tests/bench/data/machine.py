"""What a run needs of the machine: a network of its own, files to serve, certificates, a place before others."""

import ctypes
import os
import resource
import subprocess
import sys

CLONE_NEWNET = 0x40000000
CHUNK = 1 << 20


def private_network(congestion_control):
    """As root: a loopback, ports and congestion control of our own, so that nothing outside is touched."""
    if os.geteuid() != 0 or ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        return
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    try:
        with open("/proc/sys/net/ipv4/tcp_congestion_control", "w") as file:
            file.write(congestion_control)
    except OSError as error:
        print(f"congestion control stays as it is: {error}", file=sys.stderr)


def allow_many_files():
    """As many open files as may be, here and in what is started from here."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def come_first(nice, real_time):
    """Schedules this process and all that it starts before others, client and servers alike."""
    try:
        os.nice(nice)
        if real_time:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError as error:
        print(f"no place before others: {error}", file=sys.stderr)
        return False
    return real_time


def make_file(path, size, cached):
    """A file whose blocks are all there, and differ."""
    noise = os.urandom(CHUNK)
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        for number in range(size // CHUNK):
            turn = number % 4096
            file.write(noise[turn:] + noise[:turn])
        file.flush()
        os.fsync(file.fileno())
        if not cached:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def read_through(path):
    """Brings all of a file into the page cache."""
    with open(path, "rb") as file:
        while file.read(4 * CHUNK):
            pass


def make_certificates(directory):
    """An authority, and a server and a client that it knows, named as nbdkit, qemu-nbd and libnbd look for them."""
    os.makedirs(directory, exist_ok=True)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]

    def openssl(name, subject, *more):
        output = ["-keyout", f"{directory}/{name}-key.pem", "-out", f"{directory}/{name}-cert.pem"]
        command = ["openssl", "req", "-x509", *key, *output, "-subj", f"/CN={subject}", *more]
        subprocess.run(command, check=True, capture_output=True)

    authority = ["-CA", f"{directory}/ca-cert.pem", "-CAkey", f"{directory}/ca-key.pem"]
    leaf = ["-addext", "basicConstraints=critical,CA:false", "-addext", "keyUsage=critical,digitalSignature"]
    openssl("ca", "bench authority", "-addext", "keyUsage=critical,keyCertSign")
    openssl("server", "localhost", *authority, *leaf, "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    openssl("client", "bench client", *authority, *leaf)
    return directory


def first_line(command):
    """The first line that a program says of itself; empty if it cannot."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip().split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return ""
