"""One guest as a QEMU process: its disks, how it is started, and the ways it dies. Knows nothing of cases.

There is no KVM: everything is emulated, and what the processor pretends to be is chosen to be cheap (no AVX). A guest
does not outlive the runner, whatever ends that.

A killed guest is a crash: what it had handed to its disks is in this machine's page cache and stays. With `powerloss`
an nbdkit with a volatile cache stands under each disk and dies with the guest: what was not flushed is really gone.
"""

import ctypes
import functools
import mmap
import os
import platform
import signal
import subprocess
import time
from dataclasses import dataclass

KERNEL = ("console=ttyS0 quiet loglevel=4 panic=-1 oops=panic mitigations=off nokaslr audit=0 nowatchdog no_timer_check "
          "tsc=reliable clocksource=tsc random.trust_cpu=on rcupdate.rcu_cpu_stall_suppress=1")
MACHINE = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", "pc",
           "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "Nehalem,+aes,+pclmulqdq,+rdrand"]


@dataclass(frozen=True)
class Hardware:
    """What a guest is made of. Sizes of disks in bytes, memory in MiB."""

    disks: tuple = ()
    memory: int = 1024
    powerloss: bool = False
    guests: int = 1


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@functools.cache
def tsc_khz():
    """How fast the processor's time stamp counter runs, which guests see as it is; None where there is none.

    A guest measures it while it boots, and on a busy machine so badly that its clock then runs many times too fast."""
    if platform.machine() != "x86_64":
        return None
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    # rdtsc; shl rdx, 32; or rax, rdx; ret
    code.write(bytes.fromhex("0f31 48c1e220 4809d0 c3"))
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))

    def both():
        """Counter and clock at one moment: the closest of some tries, since others may run in between."""
        tries = [(time.monotonic_ns(), read(), time.monotonic_ns()) for _ in range(100)]
        before, ticks, after = min(tries, key=lambda tried: tried[2] - tried[0])
        return ticks, (before + after) // 2

    ticks, began = both()
    time.sleep(0.1)
    later, ended = both()
    return (later - ticks) * 1_000_000 // (ended - began)


class Guest:
    """Guest `number` of a run, over all its boots. Its disks are files in `directory` and survive each of them."""

    def __init__(self, number, hardware, image, initrd, nonce, directory):
        self.number, self.hardware, self.image, self.initrd = number, hardware, image, initrd
        self.nonce, self.directory = nonce, directory
        self.boots = 0
        self.process = None
        self.caches = []
        self.console = directory / f"console-{number}"

    def port(self, name):
        """The unix socket behind the guest's virtio port `name`: `out` or `host`. Listen there before starting."""
        return f"{self.directory}/{name}-{self.number}"

    def start(self):
        self.boots += 1
        command = ["qemu-system-x86_64", "-name", f"node{self.number}", *MACHINE,
                   "-uuid", f"00000000-0000-4000-8000-{self.number:012d}",
                   "-smp", "2" if self.hardware.guests == 1 else "1", "-m", str(self.hardware.memory),
                   "-kernel", self.image.kernel, "-initrd", self.initrd, "-append", self.kernel_line(),
                   "-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console",
                   "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
        for name in ("out", "host"):
            command += ["-chardev", f"socket,id={name},path={self.port(name)},server=off",
                        "-device", f"virtserialport,chardev={name},name={name}"]
        for number, size in enumerate(self.hardware.disks):
            command += self.disk(number, size)
        if self.hardware.guests > 1:
            command += self.network()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)

    def kernel_line(self):
        facts = {"id": self.number, "guests": self.hardware.guests, "boot": self.boots, "nonce": self.nonce}
        clock = [f"tsc_early_khz={tsc_khz()}"] if tsc_khz() else []
        return " ".join([KERNEL, *clock, *(f"vm.{name}={value}" for name, value in facts.items())])

    def disk(self, number, size):
        path = self.directory / f"disk-{self.number}-{number}"
        if not path.exists():
            path.touch()
            os.truncate(path, size)
        node = f"driver=raw,node-name=disk{number},discard=unmap,file."
        if self.hardware.powerloss:
            node += f"driver=nbd,file.server.type=unix,file.server.path={self.volatile(path, number)}"
        else:
            # This machine does not lose power in between, so nobody waits for its disk.
            node += f"driver=file,file.filename={path},cache.no-flush=on"
        return ["-blockdev", node, "-device", f"virtio-blk-pci,drive=disk{number},serial=node{self.number}-disk{number}"]

    def volatile(self, path, number):
        """Puts a cache that only a flush writes back before a disk; the path of its socket."""
        socket = f"{self.directory}/cache-{self.number}-{number}-{self.boots}"
        command = ["nbdkit", "--foreground", "--unix", socket, "--filter=cache", "file", path, "cache=writeback"]
        environment = {**os.environ, "TMPDIR": str(self.directory)}
        # It complains when the guest is killed before it, which is the point of it.
        complaints = open(f"{socket}.log", "wb")
        cache = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=complaints, env=environment,
                                 preexec_fn=die_with_parent)
        complaints.close()
        self.caches.append(cache)
        end = time.monotonic() + 30
        while not os.path.exists(socket):
            if cache.poll() is not None or time.monotonic() > end:
                said = open(f"{socket}.log", errors="replace").read()
                raise RuntimeError(f"nbdkit does not serve {path}: {said}")
            time.sleep(0.01)
        return socket

    def network(self):
        """A card on the switch that listens at `switch` in the same directory."""
        port, switch = self.directory / f"port-{self.number}", self.directory / "switch"
        port.unlink(missing_ok=True)
        ends = f"local.type=unix,local.path={port},remote.type=unix,remote.path={switch}"
        card = f"virtio-net-pci,netdev=net,mac=52:54:00:77:00:{self.number:02x},romfile=,host_mtu=9000"
        return ["-netdev", f"dgram,id=net,{ends}", "-device", card]

    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        """Ends the guest in the middle of whatever it does, and the volatile caches under it."""
        for process in [self.process, *self.caches]:
            if process is not None:
                process.kill()
                process.wait()
        self.caches.clear()

    def console_tail(self, lines=15):
        """The end of the kernel's log; from where it broke, if it did."""
        try:
            log = self.console.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        signs = ("Kernel panic", "BUG:", "Oops", "general protection", "Out of memory")
        broken = next((at for at, line in enumerate(log) if any(sign in line for sign in signs)), None)
        return log[-lines:] if broken is None else log[max(0, broken - 3):broken + lines]
