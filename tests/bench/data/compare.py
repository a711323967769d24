#!/usr/bin/env python3
"""Compares NBD servers on this machine, over loopback: the same clients, the same file, turn by turn in one run.

  compare.py                     everything, under 8 minutes (--budget seconds)
  compare.py --quick             under 90 seconds
  compare.py --server 'symphony=exec serve {file} {transport} {port} {sock}'
  compare.py --attach 'symphony=PID,nbd://127.0.0.1:10809/vol'     one that runs already
  compare.py --only qemu-uring,symphony --groups ram:tcp,disk:tcp --workloads rr4k-q16 --rounds 5

Runs are interleaved (A B C, C B A, …), so that a machine that changes its pace changes it for all; medians are compared.
README.md says what the rows mean.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True

import clients
import machine
import measure
import nbd
import processes
import report
import servers
import workloads

# Connections that do nothing, for the row of that name.
IDLE = 1000
# Seconds that a run takes beside its time, before that has been observed.
OVERHEAD = 0.42
# Seconds of a run, at least and at most.
SHORTEST, LONGEST = 0.3, 2.0


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true")
    add("--budget", type=float, help="seconds for the whole run (default 450, quick 75)")
    add("--rounds", type=int, help="runs of each server in each row (default 3, quick 2)")
    add("--secs", type=float, help="seconds of one run (default: as the budget allows)")
    add("--groups", help="backing:transport, such as ram:unix,disk:tcp")
    add("--workloads", help="of " + " ".join(workloads.WORKLOADS))
    add("--only", help="servers, separated by commas")
    add("--server", action="append", default=[], metavar="NAME[@buffered]=COMMAND")
    add("--uri", action="append", default=[], metavar="NAME=TRANSPORT:URI")
    add("--attach", action="append", default=[], metavar="NAME=PID,URI")
    add("--size", type=int, default=1024, help="MiB of the file")
    add("--disk-dir", default="/var/tmp/symphony-nbd-bench", help="a folder on the disk")
    add("--ram-dir", default="/dev/shm")
    add("--pin", action="store_true", help="clients on CPU 0, servers on CPU 1")
    add("--nice", type=int, default=-10, help="of clients and servers alike")
    add("--rt", action="store_true", help="SCHED_RR for clients and servers alike: least disturbed by other work")
    add("--cc", default="cubic", help="TCP congestion control of the private loopback")
    add("--no-limit", action="store_true")
    add("--no-idle", action="store_true", help=f"leave out the row of {IDLE} idle connections")
    add("--buffered-on-disk", action="store_true", help="run buffered servers on every row of the disk")
    add("--details", action="store_true", help="print every figure of every server, too")
    add("--json", help="write everything here")
    return parser.parse_args()


def specs(options):
    """The servers that take part, by name."""
    found = {spec.name: spec for spec in servers.PEERS}
    found |= {spec.name: spec for spec in map(servers.given, options.server)}
    found |= {spec.name: spec for spec in map(servers.attached, options.attach)}
    for text in options.uri:
        name, _, rest = text.partition("=")
        transport, _, uri = rest.partition(":")
        found[name].uris[transport] = uri
    names = options.only.split(",") if options.only else list(found)
    if options.quick and not options.only:
        names = [name for name in names if name not in ("qemu-threads", "qemu-wb")]
    for name in list(names):
        program = servers.missing_program(found[name])
        if program:
            print(f"{name} is left out: {program} is not installed", file=sys.stderr)
            names.remove(name)
    return {name: found[name] for name in names}


class Pace:
    """How long each run may take, so that all of them fit into the budget."""

    def __init__(self, options, runs):
        self.rounds = options.rounds or (2 if options.quick else 3)
        self.budget = options.budget or (75 if options.quick else 450)
        self.fixed, self.began, self.overhead = options.secs, time.monotonic(), OVERHEAD
        self.left = runs * self.rounds

    def elapsed(self):
        return time.monotonic() - self.began

    def next_row(self, runs):
        """(rounds, seconds of a run) of a row with so many runs in a round: shorter runs first, then fewer rounds."""
        room, rounds = self.budget - self.elapsed(), self.rounds
        each = lambda rounds: room / max(1, self.left * rounds / self.rounds) - self.overhead
        while rounds > 1 and each(rounds) < 0.25:
            rounds -= 1
        self.left -= runs * self.rounds
        return rounds, self.fixed or max(SHORTEST, min(LONGEST, each(rounds)))

    def took(self, seconds, planned):
        self.overhead += 0.1 * (seconds - planned - self.overhead)

    def has_time_to_repeat(self, seconds):
        return self.budget - self.elapsed() > self.left * (0.6 * seconds + self.overhead)


class Comparison:
    """One run of everything that was asked for."""

    def __init__(self, options, scratch):
        self.options, self.scratch = options, scratch
        self.specs = specs(options)
        self.plan = workloads.plan(options.quick, options.groups, options.workloads)
        lean = clients.build_lean(options.disk_dir)
        if not lean:
            print("rustc is not installed: rows of the lean client are left out", file=sys.stderr)
            self.plan = {group: [row for row in rows if row.client != "lean"] for group, rows in self.plan.items()}
        self.size = options.size << 20
        pins = ({0}, {1}) if options.pin and processes.CPUS > 1 else (None, None)
        self.server_pin = pins[1]
        self.clients = clients.Clients(scratch, self.size, pins[0], lean)
        self.files, self.limits, self.results = {}, {}, {}
        self.memory, self.runs, self.errors = {4: {}, IDLE: {}}, [], []
        self.patience = 6.0 if options.quick else 40.0
        self.scheduled_first = False
        rows = [(group, row) for group, rows in self.plan.items() for row in rows]
        self.pace = Pace(options, sum(len(self.takers(*row)) + self.wants_limit(*row) for row in rows))

    def takers(self, group, workload):
        """The servers that take part in a row."""
        too = self.options.buffered_on_disk
        return [name for name, spec in self.specs.items() if spec.serves(*group, workload, too)]

    def wants_limit(self, group, workload):
        return not self.options.no_limit and group[1] != "tls" and (group[0], workload.name) not in self.limits

    def prepare(self, ram):
        """Files, certificates, and our place on the machine."""
        backings = {group[0] for group in self.plan}
        places = {"ram": ram, "cache": self.scratch, "disk": self.scratch}
        for backing in backings:
            path = f"{places[backing]}/{backing}.raw"
            self.files[backing] = machine.make_file(path, self.size, cached=backing == "cache")
        if "disk" in backings and not all(spec.direct for spec in self.specs.values()):
            # Pages that one server leaves in the cache must not be in the way of another one's direct accesses.
            self.files["buffered"] = machine.make_file(f"{self.scratch}/buffered.raw", self.size, cached=False)
        self.certificates = f"{self.scratch}/tls"
        if any(group[1] == "tls" for group in self.plan):
            machine.make_certificates(self.certificates)
        machine.allow_many_files()
        if not self.options.attach:
            machine.private_network(self.options.cc)
        self.scheduled_first = machine.come_first(self.options.nice, self.options.rt)

    def file_of(self, backing, direct):
        return self.files["buffered" if backing == "disk" and not direct else backing]

    def start(self, group, rows):
        """The servers of a group, by name."""
        started = {}
        for name, spec in self.specs.items():
            if not any(name in self.takers(group, row) for row in rows):
                continue
            directory = f"{self.scratch}/{name}-{'-'.join(group)}"
            path = self.file_of(group[0], spec.direct)
            try:
                started[name] = servers.Server(
                    spec, *group, path, self.size, directory, self.certificates, self.server_pin
                )
            except servers.ServerError as error:
                self.fail(str(error))
        return started

    def fail(self, text):
        self.errors.append(text)
        print(f"FAILED {text}", file=sys.stderr)

    def run(self):
        for group, rows in self.plan.items():
            running = self.start(group, rows)
            try:
                for row in rows:
                    self.measure_row(group, row, running)
                if group[1] != "tls":
                    for name, server in running.items():
                        self.note_memory(4, name, server)
                if group == ("ram", "tcp") and not self.options.no_idle:
                    self.measure_idle(running)
            finally:
                for server in running.values():
                    server.stop()

    def note_memory(self, connections, name, server):
        server.sample_memory()
        used = self.memory[connections]
        used[name] = max(used.get(name, 0), server.peak)

    def measure_idle(self, running):
        """Of our servers alone: some peers have so many threads for each connection that the machine would suffer."""
        for name, server in running.items():
            if not server.spec.ours:
                continue
            try:
                idle = nbd.idle_connections(server.uri, IDLE)
            except OSError as error:
                self.fail(f"{IDLE} connections to {name}: {error}")
                continue
            self.note_memory(IDLE, name, server)
            for client in idle:
                client.close()

    def measure_row(self, group, workload, running):
        backing = group[0]
        if backing == "cache":
            machine.read_through(self.files["cache"])
        wants_limit = self.wants_limit(group, workload)
        names = [report.LIMIT] * wants_limit + [name for name in self.takers(group, workload) if name in running]
        rounds, seconds = self.pace.next_row(len(names))
        runs = {}
        for number in range(rounds + 2):
            if number >= rounds:
                # Disturbed runs are made up for while there is time.
                names = [name for name in names if name in runs and sum(map(self.is_clean, runs[name])) < 2]
                if not names or not self.pace.has_time_to_repeat(seconds):
                    break
            for name in names[::-1] if number % 2 else names:
                self.measure_once(group, workload, name, running.get(name), seconds, runs.setdefault(name, []))
        figures = {name: measure.medians(each, self.scheduled_first) for name, each in runs.items() if each}
        self.add_limit(group, workload, figures)
        self.results[(*group, workload.name)] = figures
        rates = " ".join(f"{name}={each['rate']:.0f}" for name, each in figures.items())
        print(f"  {self.pace.elapsed():5.0f}s {':'.join(group)} {workload.name}: {rates}", file=sys.stderr)

    def add_limit(self, group, workload, figures):
        """The limit of one transport is that of the others; TLS is compared with the same server without it."""
        key = (group[0], workload.name)
        if group[1] == "tls":
            plain = self.results.get((group[0], "tcp", workload.name), {})
            ours = next((name for name in figures if self.specs[name].ours and name in plain), None)
            if ours:
                figures[report.LIMIT] = plain[ours]
        elif report.LIMIT in figures:
            self.limits[key] = figures[report.LIMIT]
        elif key in self.limits:
            figures[report.LIMIT] = self.limits[key]

    def is_clean(self, run):
        return measure.is_clean(run, self.scheduled_first)

    def measure_once(self, group, workload, name, server, seconds, runs):
        if runs and not self.is_clean(runs[-1]):
            self.patience -= processes.wait_until_quiet(min(2.0, self.patience))
        if server:
            run = lambda: self.clients.on_server(workload, server.uri, seconds, server.sample_memory)
        else:
            path = self.file_of(group[0], True)
            run = lambda: self.clients.on_file(workload, path, group[0] != "cache", seconds)
        began = time.monotonic()
        try:
            figures = measure.measure(run, server)
        except (clients.ClientError, subprocess.SubprocessError, OSError) as error:
            said = server.said() if server else ""
            return self.fail(f"{':'.join(group)} {workload.name} {name}: {error}\n{said}")
        runs.append(figures)
        self.pace.took(time.monotonic() - began, seconds)
        self.runs.append({"group": ":".join(group), "workload": workload.name, "server": name, **figures})

    def environment(self):
        said = {name: machine.first_line([name, "--version"]) for name in ("fio", "qemu-nbd", "nbdkit", "nbdinfo")}
        return {
            "kernel": os.uname().release,
            "cpus": processes.CPUS,
            "programs": said,
            "real_time": self.scheduled_first,
            "size_mib": self.options.size,
            "wall": self.pace.elapsed(),
        }

    def report(self):
        ours = [name for name, spec in self.specs.items() if spec.ours]
        peers = [name for name in self.specs if name not in ours]
        environment = self.environment()
        if self.options.details or not ours:
            report.print_details(self.results, list(self.specs), sys.stdout)
        for name in ours:
            report.print_summary(self.results, self.memory, name, peers, sys.stdout)
        report.print_circumstances(self.runs, self.results, environment, sys.stdout)
        for error in self.errors:
            print("FAILED", error.split("\n")[0])
        if self.options.json:
            table = [{"row": ":".join(key), "servers": figures} for key, figures in self.results.items()]
            whole = {
                "environment": environment,
                "table": table,
                "memory_kib": self.memory,
                "errors": self.errors,
                "runs": self.runs,
            }
            with open(self.options.json, "w") as file:
                json.dump(whole, file, indent=1)


def main():
    options = arguments()
    # As an end by Ctrl-C: the servers that were started must not outlive this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for program in ("fio", "nbdcopy"):
        if not shutil.which(program):
            sys.exit(f"{program} is not installed")
    os.makedirs(options.disk_dir, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="run-", dir=options.disk_dir) as scratch,
        tempfile.TemporaryDirectory(prefix="nbd-bench-", dir=options.ram_dir) as ram,
    ):
        try:
            comparison = Comparison(options, scratch)
        except workloads.UnknownRow as error:
            sys.exit(str(error))
        comparison.prepare(ram)
        comparison.run()
        comparison.report()
    return 1 if comparison.errors else 0


if __name__ == "__main__":
    sys.exit(main())
