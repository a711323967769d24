"""The servers that are compared: how each is started, where it listens, what it uses, and how it is stopped.

A server is a name, a command that stays in the foreground, and an URI for each transport. In both, {file} {sock} {port}
{size} {dir} {direct} {transport} {cache} {tls} are filled in; commands find the same values as BENCH_FILE and so on.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from typing import Optional

import nbd
import processes

TRANSPORTS = ("tcp", "unix", "tls")
BACKINGS = ("ram", "cache", "disk")
URIS = {
    "tcp": "nbd://127.0.0.1:{port}/",
    "unix": "nbd+unix:///?socket={sock}",
    "tls": "nbds://127.0.0.1:{port}/?tls-certificates={tls}",
}
# Seconds that a server may take to be ready, and to end.
START, STOP = 20, 2


class ServerError(Exception):
    """A server does not start, or does not serve."""


@dataclass
class Spec:
    name: str
    # By transport; what is missing is not served.
    commands: dict
    uris: dict = field(default_factory=dict)
    # Whether it goes around the page cache where that is asked for. Others run on the disk only where every write is
    # flushed, since elsewhere they would measure the page cache.
    direct: bool = True
    backings: tuple = BACKINGS
    # For one that leaves its session: where it writes its process id.
    pid_file: Optional[str] = None
    # One that runs already.
    pid: Optional[int] = None
    # What this benchmark is about; others are its peers.
    ours: bool = False

    def serves(self, backing, transport, workload, buffered_too=False):
        if transport not in self.commands or backing not in self.backings:
            return False
        return backing != "disk" or self.direct or workload.flushes or buffered_too


def _qemu(name, aio, cache="{cache}", **more):
    listens = {
        "tcp": "-b 127.0.0.1 -p {port}",
        "unix": "-k {sock}",
        "tls": "-b 127.0.0.1 -p {port} --object tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={tls} --tls-creds tls",
    }
    image = "driver=raw,file.driver=file,file.locking=off,file.filename={file}"
    command = f"exec qemu-nbd -t -e 64 --cache={cache} --aio={aio} %s --image-opts {image}"
    return Spec(name, {transport: command % listen for transport, listen in listens.items()}, **more)


def _nbdkit():
    return Spec(
        "nbdkit",
        {
            "tcp": "exec nbdkit -f -i 127.0.0.1 -p {port} file {file}",
            "unix": "exec nbdkit -f -U {sock} file {file}",
            "tls": "exec nbdkit -f -i 127.0.0.1 -p {port} --tls=require --tls-verify-peer --tls-certificates={tls} file {file}",
        },
        direct=False,
    )


def _nbd_server():
    lines = r"[generic]\nlistenaddr=127.0.0.1\nport={port}\n%s[x]\nexportname={file}\nflush=true\nfua=true\nrotational=false\n"
    # It has no way to stay in the foreground that also serves more than one connection.
    command = (
        f"printf '{lines}' > {{dir}}/nbd-server.conf; nbd-server -C {{dir}}/nbd-server.conf -p {{dir}}/pid; "
        "while [ -d {dir} ]; do sleep 1; done"
    )
    return Spec(
        "nbd-server",
        {"tcp": command % "", "unix": command % r"unixsock={sock}\n"},
        {"tcp": "nbd://127.0.0.1:{port}/x", "unix": "nbd+unix:///x?socket={sock}"},
        direct=False,
        pid_file="{dir}/pid",
    )


PEERS = (
    _qemu("qemu-uring", "io_uring"),
    _qemu("qemu-native", "native", backings=("ram", "disk")),
    _qemu("qemu-threads", "threads"),
    # Elsewhere it is what qemu-threads is.
    _qemu("qemu-wb", "threads", "writeback", direct=False, backings=("disk",)),
    _nbdkit(),
    _nbd_server(),
)
PROGRAMS = {"qemu": "qemu-nbd", "nbdkit": "nbdkit", "nbd-server": "nbd-server"}


def missing_program(spec):
    """The program that a peer needs and that is not installed, if any."""
    program = next((program for start, program in PROGRAMS.items() if spec.name.startswith(start)), None)
    return program if program and not shutil.which(program) else None


def given(text):
    """A server of ours, from NAME[@buffered]=COMMAND."""
    name, _, command = text.partition("=")
    name, _, kind = name.partition("@")
    return Spec(name, {transport: command for transport in TRANSPORTS}, direct=kind != "buffered", ours=True)


def attached(text):
    """A server of ours that runs already, from NAME=PID,URI."""
    name, _, rest = text.partition("=")
    pid, _, uri = rest.partition(",")
    transport = {"nbd+unix": "unix", "nbds": "tls"}.get(uri.partition(":")[0], "tcp")
    return Spec(name, {transport: ""}, {transport: uri}, pid=int(pid), ours=True)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A server that runs and has proved that it serves the file."""

    def __init__(self, spec, backing, transport, path, size, directory, certificates, pin):
        self.spec, self.peak, self.process, self.pid_file = spec, 0, None, None
        os.makedirs(directory, exist_ok=True)
        self.values = {
            "file": path,
            "sock": f"{directory}/s",
            "port": _free_port(),
            "size": size,
            "dir": directory,
            "direct": int(backing == "disk"),
            "transport": transport,
            "cache": "writeback" if backing == "cache" else "none",
            "tls": certificates,
        }
        self.uri = self._fill(spec.uris.get(transport, URIS[transport]))
        if spec.pid:
            self.log, path = None, None
            self.before = _share_schedule(spec.pid, pin)
        else:
            self.log = f"{directory}/log"
            self._start(spec, transport, pin)
        self._wait_until_ready(path, size)

    def _fill(self, text):
        return re.sub(r"\{(%s)\}" % "|".join(self.values), lambda match: str(self.values[match[1]]), text)

    def _start(self, spec, transport, pin):
        self.pid_file = spec.pid_file and self._fill(spec.pid_file)
        names = {f"BENCH_{name.upper()}": str(value) for name, value in self.values.items()}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", self._fill(spec.commands[transport])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **names},
                preexec_fn=(lambda: os.sched_setaffinity(0, pin)) if pin else None,
            )

    def _wait_until_ready(self, path, size):
        deadline = time.monotonic() + START
        while True:
            try:
                return nbd.verify(self.uri, path, size)
            except (OSError, KeyError) as error:
                ended = self.process and self.process.poll() is not None
                if ended or time.monotonic() > deadline:
                    said = self.said()
                    self.stop()
                    raise ServerError(f"{self.spec.name} ({self.values['transport']}): {error}\n{said}") from error
            time.sleep(0.05)

    def said(self):
        """The end of its log."""
        if not self.log:
            return ""
        with open(self.log, errors="replace") as log:
            return log.read()[-1000:]

    def pids(self):
        if self.spec.pid:
            return processes.descendants(self.spec.pid)
        if self.pid_file:
            try:
                with open(self.pid_file) as file:
                    return processes.descendants(int(file.read()))
            except (OSError, ValueError):
                return []
        return processes.in_session(self.process.pid)

    def cpu(self):
        return processes.cpu_seconds(self.pids())

    def sample_memory(self):
        """Notes the most memory that it has had so far, in KiB."""
        self.peak = max(self.peak, processes.peak_kib(self.pids()))

    def stop(self):
        if self.spec.pid:
            return _restore_schedule(self.before)
        for how in (signal.SIGTERM, signal.SIGKILL):
            for pid in {*self.pids(), *processes.in_session(self.process.pid)}:
                try:
                    os.kill(pid, how)
                except ProcessLookupError:
                    continue
            try:
                self.process.wait(STOP)
            except subprocess.TimeoutExpired:
                continue
            if not processes.in_session(self.process.pid):
                return None
        return None


def _share_schedule(pid, pin):
    """Schedules all threads of a running server as those that are started here; answers how it was before."""
    before = []
    for thread in (int(name) for each in processes.descendants(pid) for name in os.listdir(f"/proc/{each}/task")):
        try:
            nice = os.getpriority(os.PRIO_PROCESS, thread)
            before.append((thread, os.sched_getscheduler(thread), os.sched_getparam(thread), nice))
            os.sched_setscheduler(thread, os.sched_getscheduler(0), os.sched_getparam(0))
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, 0))
            if pin:
                os.sched_setaffinity(thread, pin)
        except OSError:
            continue
    return before


def _restore_schedule(before):
    for thread, policy, parameter, nice in before:
        try:
            os.sched_setscheduler(thread, policy, parameter)
            os.setpriority(os.PRIO_PROCESS, thread, nice)
        except OSError:
            continue
