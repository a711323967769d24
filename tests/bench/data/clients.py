"""The clients: fio, nbdcopy and the lean one, each run once, and what it says about that."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import processes
from workloads import MIB

HERE = Path(__file__).resolve().parent
# Seconds that a client may take beyond its time.
PATIENCE = 20


class ClientError(Exception):
    """A client has failed, or says what is not understood."""


class Clients:
    """How clients are run: `pin` is the CPUs that they may use, `scratch` a folder, `size` the file's in bytes."""

    def __init__(self, scratch, size, pin, lean):
        self.scratch, self.size, self.lean = scratch, size, lean
        self.pin = (lambda: os.sched_setaffinity(0, pin)) if pin else None

    def on_server(self, workload, uri, seconds, half_way):
        """Runs a workload; `half_way` is called while it runs, or right after it. Answers a dictionary: rate (operations
        a second), count, mib (a second), p50 and p99 (microseconds), cpu (the client's, seconds)."""
        if workload.client == "nbdcopy":
            return self._nbdcopy(workload, uri, seconds, half_way)
        if workload.client == "lean":
            return self._lean(workload, uri, seconds, half_way)
        return self._fio(workload, ["--ioengine=nbd", f"--uri={uri}"], seconds, half_way)

    def on_file(self, workload, path, direct, seconds):
        """The limit: the same accesses by io_uring straight on the file."""
        engine = ["--ioengine=io_uring", f"--direct={int(direct)}", "--invalidate=0", f"--filename={path}"]
        return self._fio(workload, engine, seconds, lambda: None)

    def _nbdcopy(self, workload, uri, seconds, half_way):
        command = ["nbdcopy", "--no-extents", f"--request-size={workload.block}", uri, "null:"]
        took, copies, before = 0.0, 0, processes.client_seconds()
        while took < seconds:
            began = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, preexec_fn=self.pin, timeout=60)
            took += time.monotonic() - began
            copies += 1
            half_way()
        count = copies * self.size // workload.block
        return {
            "rate": count / took,
            "count": count,
            "mib": count * workload.block / MIB / took,
            "p50": None,
            "p99": None,
            "cpu": processes.client_seconds() - before,
        }

    def _lean(self, workload, uri, seconds, half_way):
        parts = urlparse(uri)
        unix = parts.scheme == "nbd+unix"
        address = parse_qs(parts.query)["socket"][0] if unix else f"{parts.hostname}:{parts.port}"
        kind = "w" if workload.writes else "r"
        shape = [str(workload.block), str(workload.depth), str(workload.connections), str(seconds)]
        command = [self.lean, address, parts.path.lstrip("/"), kind, *shape]
        before = processes.client_seconds()
        run = subprocess.run(command, capture_output=True, text=True, timeout=seconds + PATIENCE, preexec_fn=self.pin)
        if run.returncode:
            raise ClientError(f"lean: {run.stderr[-300:]}")
        half_way()
        said = json.loads(run.stdout)
        return {
            "rate": said["iops"],
            "count": said["n"],
            "mib": said["iops"] * workload.block / MIB,
            "p50": said["p50"],
            "p99": said["p99"],
            "cpu": processes.client_seconds() - before,
        }

    def _fio(self, workload, engine, seconds, half_way):
        output = os.path.join(self.scratch, "fio.json")
        command = [
            *["fio", "--name=b", *engine, f"--rw={workload.pattern}", f"--bs={workload.block}"],
            *[f"--iodepth={workload.depth}", f"--numjobs={workload.connections}", f"--size={self.size}"],
            *["--time_based", f"--runtime={int(seconds * 1000)}ms", "--thread", "--group_reporting"],
            *["--randrepeat=0", "--norandommap", "--lat_percentiles=1", "--clat_percentiles=0"],
            *["--percentile_list=50:99", "--output-format=json", f"--output={output}", "--eta=never"],
        ]
        if workload.flushes:
            command.append("--fsync=1")
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=self.pin)
        try:
            time.sleep(seconds * 0.6)
            half_way()
            complaint = run.communicate(timeout=seconds + PATIENCE)[1].decode()[-300:]
        except subprocess.TimeoutExpired as error:
            run.kill()
            run.wait()
            raise ClientError("fio hangs") from error
        try:
            with open(output) as file:
                text = file.read()
            # The nbd engine's chatter precedes the JSON.
            job = json.loads(text[text.index("{") :])["jobs"][0]
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise ClientError(f"fio: {complaint}") from error
        if job["error"] or run.returncode:
            raise ClientError(f"fio: error {job['error']}, exit code {run.returncode}: {complaint}")
        done = job["write" if workload.writes else "read"]
        latency = (job["sync"] if workload.flushes else done)["lat_ns"].get("percentile", {})
        return {
            "rate": done["iops"],
            "count": done["total_ios"],
            "mib": done["bw_bytes"] / MIB,
            "p50": latency.get("50.000000", 0) / 1e3,
            "p99": latency.get("99.000000", 0) / 1e3,
            "cpu": (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1e3,
        }


def build_lean(directory):
    """The lean client's path, built if need be; None without rustc."""
    source, program = HERE / "lean.rs", Path(directory) / "lean"
    if not shutil.which("rustc"):
        return None
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["rustc", "--edition=2021", "-O", "-o", program, source], check=True)
    return str(program)
