#!/usr/bin/env python3
"""Side-by-side NBD data-plane benchmark on one machine, loopback only.

Every server exports the same raw file(s); the same client (fio ioengine=nbd,
nbdcopy) drives the same matrix; runs are interleaved A B C | C B A | A B C so
that machine drift cancels; medians are reported with the ratio to the best
peer and to the limit (fio io_uring straight on the file).

  compare.py                      full run, < 8 min (--budget seconds)
  compare.py --quick              < 90 s
  compare.py --server 'symphony=/path/symphony-export --file {file} --tcp {port} --unix {sock}'
             --uri   'symphony=unix:nbd+unix:///vol?socket={sock}'
             --uri   'symphony=tcp:nbd://127.0.0.1:{port}/vol'
  compare.py --attach 'symphony=PID,nbd://127.0.0.1:10809/vol'   (already running)
  compare.py --only qemu-uring,symphony --groups ram:tcp,disk:tcp --rounds 5

Placeholders in a command/URI: {file} {sock} {port} {size} {dir} {direct} {transport}
({direct} is 1 on the disk backing, else 0; {transport} is unix or tcp; the same
values are in the environment as BENCH_FILE, BENCH_SOCK, ...).  The command runs in the foreground
under its own session; CPU and RSS are summed over every process of the session.
--server NAME=CMD takes part wherever its class fits: NAME@direct=CMD (default)
or NAME@buffered=CMD.  See README.md.
"""
import argparse, ctypes, json, os, re, resource, shlex, shutil, signal, socket, statistics as st
import struct, subprocess, sys, tempfile, threading, time, random
from urllib.parse import urlparse, parse_qs

TCK = os.sysconf("SC_CLK_TCK")
LEAN = None
HERE = os.path.dirname(os.path.abspath(__file__))

QEMU = ("exec qemu-nbd -t -e 64 --cache={cache} --aio={aio} {listen} --image-opts "
        "driver=raw,file.driver=file,file.locking=off,file.filename={file}")
QEMU_L = {"unix": "-k {sock}", "tcp": "-b 127.0.0.1 -p {port}"}
URI = {"unix": "nbd+unix:///?socket={sock}", "tcp": "nbd://127.0.0.1:{port}/"}

def qemu(aio, cache="{cache}"):
    return {t: QEMU.replace("{cache}", cache).replace("{aio}", aio).replace("{listen}", l)
            for t, l in QEMU_L.items()}

NBDSRV = ("printf '[generic]\\nlistenaddr=127.0.0.1\\nport={port}\\n@[x]\\nexportname={file}\\n"
          "flush=true\\nfua=true\\nrotational=false\\n' > {dir}/nbds.conf; "
          "nbd-server -C {dir}/nbds.conf -p {dir}/pid; while [ -d {dir} ]; do sleep 1; done")

# name -> class (direct: bypasses the page cache where that is asked for / buffered), command, URI
# backings: ram (tmpfs), cache (ext4 file wholly in the page cache, no O_DIRECT), disk (ext4, O_DIRECT)
SERVERS = {
    "qemu-uring":   dict(klass="direct",   cmd=qemu("io_uring")),
    "qemu-native":  dict(klass="direct",   cmd=qemu("native"), on=("ram", "disk")),
    "qemu-threads": dict(klass="direct",   cmd=qemu("threads")),
    "qemu-wb":      dict(klass="buffered", cmd=qemu("threads", "writeback"), on=("disk",)),  # elsewhere it is qemu-threads
    "nbdkit":       dict(klass="buffered", cmd={"unix": "exec nbdkit -f -U {sock} file {file}",
                                                "tcp": "exec nbdkit -f -i 127.0.0.1 -p {port} file {file}"}),
    "nbd-server":   dict(klass="buffered",
                         cmd={"unix": NBDSRV.replace("@", "unixsock={sock}\\n"),
                              "tcp": NBDSRV.replace("@", "")},
                         uri={"unix": "nbd+unix:///x?socket={sock}", "tcp": "nbd://127.0.0.1:{port}/x"},
                         pidfile="{dir}/pid"),                       # it daemonizes: its tree is found by pid
}

# name, fio rw, bs, iodepth, jobs, fsync, unit
W = {
    "rr4k-q1":   dict(rw="randread",  bs="4k",   qd=1,  jobs=1),
    "rr4k-q16":  dict(rw="randread",  bs="4k",   qd=16, jobs=1),
    "rr4k-q32":  dict(rw="randread",  bs="4k",   qd=32, jobs=1),
    "rr4k-8x4":  dict(rw="randread",  bs="4k",   qd=8,  jobs=4),    # QD32 over 4 connections
    "rw4k-q1":   dict(rw="randwrite", bs="4k",   qd=1,  jobs=1),
    "rw4k-q16":  dict(rw="randwrite", bs="4k",   qd=16, jobs=1),
    "rw4k-q32":  dict(rw="randwrite", bs="4k",   qd=32, jobs=1),
    "rw4k-8x4":  dict(rw="randwrite", bs="4k",   qd=8,  jobs=4),
    "sr128k-q8": dict(rw="read",      bs="128k", qd=8,  jobs=1),
    "sw128k-q8": dict(rw="write",     bs="128k", qd=8,  jobs=1),
    "copy1m":    dict(copy=True),
    # the lean client (lean.rs): it batches, so that the server and not libnbd in fio is the bottleneck
    "lean-r16":  dict(lean="r", rw="randread",  bs="4k", qd=16, jobs=1),
    "lean-r8x4": dict(lean="r", rw="randread",  bs="4k", qd=8,  jobs=4),
    "lean-w8x4": dict(lean="w", rw="randwrite", bs="4k", qd=8,  jobs=4),
    "fsync4k":   dict(rw="randwrite", bs="4k",   qd=1,  jobs=1, fsync=1),
}
FULL = {
    ("ram", "tcp"):   ["rr4k-q1", "rr4k-q16", "rr4k-8x4", "rw4k-q1", "rw4k-q16", "rw4k-8x4",
                       "sr128k-q8", "sw128k-q8", "copy1m", "lean-r8x4", "lean-w8x4"],
    ("ram", "unix"):  ["rr4k-q1", "rr4k-8x4", "sr128k-q8"],
    ("cache", "tcp"): ["rr4k-q1", "rr4k-q16", "rr4k-8x4", "sr128k-q8", "lean-r16", "lean-r8x4"],
    ("disk", "tcp"):  ["rr4k-q1", "rr4k-q16", "rr4k-8x4", "rw4k-q1", "rw4k-q16", "rw4k-8x4",
                       "sr128k-q8", "sw128k-q8", "fsync4k"],
    ("disk", "unix"): ["rr4k-q1", "rr4k-8x4", "rw4k-8x4", "sr128k-q8", "fsync4k"],
}
QUICK = {
    ("ram", "tcp"):  ["rr4k-q1", "rr4k-q16", "rr4k-8x4", "rw4k-q16", "sr128k-q8"],
    ("cache", "tcp"): ["rr4k-q16", "lean-r8x4"],
    ("disk", "tcp"): ["rr4k-q16", "rw4k-q16", "fsync4k"],
}

# ---------------------------------------------------------------- /proc accounting
def stat_fields(pid):
    with open(f"/proc/{pid}/stat") as f:
        s = f.read()
    return s[s.rindex(")") + 2:].split()          # [0]=state(3) [1]=ppid [2]=pgrp [3]=session

def session_pids(sid, extra=None):
    out = []
    for d in os.listdir("/proc"):
        if d.isdigit():
            try:
                if int(stat_fields(d)[3]) == sid or (extra and int(d) == extra):
                    out.append(int(d))
            except (OSError, ValueError, IndexError):
                pass
    return out

def tree_pids(root):
    """root and all descendants (for --attach)"""
    kids = {}
    for d in os.listdir("/proc"):
        if d.isdigit():
            try:
                kids.setdefault(int(stat_fields(d)[1]), []).append(int(d))
            except (OSError, ValueError, IndexError):
                pass
    out, todo = [], [root]
    while todo:
        p = todo.pop(); out.append(p); todo += kids.get(p, [])
    return out

def cpu_ticks(pids):
    t = 0
    for p in pids:
        try:
            f = stat_fields(p)
            t += sum(int(x) for x in f[11:15])    # utime stime cutime cstime
        except (OSError, ValueError, IndexError):
            pass
    return t

def rss_kib(pids):
    cur = peak = 0
    for p in pids:
        try:
            with open(f"/proc/{p}/status") as f:
                for l in f:
                    if l.startswith("VmRSS:"): cur += int(l.split()[1])
                    elif l.startswith("VmHWM:"): peak += int(l.split()[1])
        except OSError:
            pass
    return cur, peak

def cli_cpu():
    r = resource.getrusage(resource.RUSAGE_CHILDREN); return r.ru_utime + r.ru_stime

def box():
    """(idle ticks, steal ticks) over all CPUs"""
    with open("/proc/stat") as f:
        v = [int(x) for x in f.readline().split()[1:]]
    idle, steal = v[3] + v[4], v[7]
    return idle, steal

# ---------------------------------------------------------------- tiny NBD client: readiness + correctness
class Nbd:
    def __init__(self, uri, timeout=5):
        u = urlparse(uri)
        if u.scheme == "nbd+unix":
            self.s = socket.socket(socket.AF_UNIX); self.s.settimeout(timeout)
            self.s.connect(parse_qs(u.query)["socket"][0])
        else:
            self.s = socket.create_connection((u.hostname, u.port or 10809), timeout=timeout)
        name = u.path.lstrip("/").encode()
        if self.rx(8) != b"NBDMAGIC" or self.rx(8) != b"IHAVEOPT": raise OSError("not newstyle NBD")
        fl, = struct.unpack(">H", self.rx(2))
        self.s.sendall(struct.pack(">I", fl & 3))
        d = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self.s.sendall(b"IHAVEOPT" + struct.pack(">II", 7, len(d)) + d)
        self.size = None
        while True:
            m, o, t, n = struct.unpack(">QIII", self.rx(20)); b = self.rx(n)
            if t == 3 and b[:2] == b"\0\0": self.size, self.flags = struct.unpack(">QH", b[2:12])
            if t == 1: break
            if t & 0x80000000: raise OSError(f"NBD_OPT_GO refused {t:#x} {b!r}")
        self.h = 0
    def rx(self, n):
        b = b""
        while len(b) < n:
            c = self.s.recv(n - len(b))
            if not c: raise OSError("closed")
            b += c
        return b
    def req(self, typ, off, ln, data=b""):
        self.h += 1
        self.s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, typ, self.h, off, ln) + data)
        m, e, h = struct.unpack(">IIQ", self.rx(16))
        if m != 0x67446698 or e or h != self.h: raise OSError(f"bad reply {m:#x} err {e}")
        return self.rx(ln) if typ == 0 else b""
    def close(self):
        try: self.s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0))
        except OSError: pass
        self.s.close()

def verify(uri, path, need):
    """The server must return what the file holds and read back what was written."""
    c = Nbd(uri)
    if c.size < need: raise OSError(f"export has {c.size} bytes, need {need}")
    rnd = random.Random(7)
    if path:
        with open(path, "rb") as f:
            for _ in range(8):
                o = rnd.randrange(need // 4096) * 4096; f.seek(o)
                if c.req(0, o, 4096) != f.read(4096): raise OSError(f"wrong data at {o}")
    for _ in range(8):
        o = rnd.randrange(need // 4096) * 4096; d = os.urandom(4096)
        c.req(1, o, 4096, d)
        if c.flags & 4: c.req(3, 0, 0)
        if c.req(0, o, 4096) != d: raise OSError(f"read-back differs at {o}")
    c.close()

# ---------------------------------------------------------------- servers
def free_port():
    s = socket.socket(); s.bind(("127.0.0.1", 0)); p = s.getsockname()[1]; s.close(); return p

class Server:
    def __init__(self, name, spec, transport, path, size, tmp, kind, pin):
        direct = kind == "disk"
        self.name, self.klass = name, spec.get("klass", "direct")
        self.proc = self.attach = self.pidfile = None
        self.peak = 0
        d = os.path.join(tmp, f"{name}-{transport}-{kind}"); os.makedirs(d, exist_ok=True)
        self.sub = dict(transport=transport, file=path, sock=f"{d}/s", port=free_port(), size=size, dir=d, direct=int(direct),
                        cache="writeback" if kind == "cache" else "none")
        fill = lambda s: re.sub(r"\{(file|sock|port|size|dir|direct|transport|cache)\}", lambda m: str(self.sub[m[1]]), s)
        if "attach" in spec:
            self.attach, self.uri = spec["attach"]
            self.path = None
            self.saved = []                                 # give it the same scheduling as the started servers
            for p in tree_pids(self.attach):
                for t in map(int, os.listdir(f"/proc/{p}/task")):
                    try:
                        self.saved.append((t, os.sched_getscheduler(t), os.sched_getparam(t), os.getpriority(os.PRIO_PROCESS, t)))
                        os.sched_setscheduler(t, os.sched_getscheduler(0), os.sched_getparam(0))
                        os.setpriority(os.PRIO_PROCESS, t, os.getpriority(os.PRIO_PROCESS, 0))
                        if pin: os.sched_setaffinity(t, pin)
                    except OSError: pass
        else:
            cmd = spec["cmd"]; cmd = cmd[transport] if isinstance(cmd, dict) else cmd
            self.uri = fill(spec.get("uri", URI)[transport])
            self.pidfile = fill(spec["pidfile"]) if "pidfile" in spec else None
            self.path = path if "{file}" in cmd else None
            self.cmd = fill(cmd)
            self.log = open(f"{d}/log", "wb")
            env = dict(os.environ, **{"BENCH_" + k.upper(): str(v) for k, v in self.sub.items()})
            pre = (lambda: os.sched_setaffinity(0, pin)) if pin else None
            self.proc = subprocess.Popen(["/bin/sh", "-c", self.cmd], stdin=subprocess.DEVNULL, stdout=self.log,
                                         stderr=self.log, start_new_session=True, env=env, preexec_fn=pre)
        end = time.time() + 20
        while True:
            try:
                verify(self.uri, self.path, size); break
            except (OSError, KeyError) as e:
                if time.time() > end or (self.proc and self.proc.poll() is not None):
                    tail = "" if self.attach else open(f"{d}/log", errors="replace").read()[-500:]
                    self.stop(); raise RuntimeError(f"{name} ({transport}): {e}\n{tail}")
                time.sleep(0.05)
    def pids(self):
        if self.attach: return tree_pids(self.attach)
        if self.pidfile:
            try: return tree_pids(int(open(self.pidfile).read()))
            except (OSError, ValueError): return []
        return session_pids(self.proc.pid)
    def cpu(self):
        return cpu_ticks(self.pids())
    def sample(self):
        self.peak = max(self.peak, rss_kib(self.pids())[1])
    def stop(self):
        if self.attach:
            for t, pol, par, pri in self.saved:
                try: os.sched_setscheduler(t, pol, par); os.setpriority(os.PRIO_PROCESS, t, pri)
                except OSError: pass
        if not self.proc: return
        for sig, wait in ((signal.SIGTERM, 2), (signal.SIGKILL, 2)):
            for p in set(self.pids() + session_pids(self.proc.pid)):
                try: os.kill(p, sig)
                except ProcessLookupError: pass
            try: self.proc.wait(wait)
            except subprocess.TimeoutExpired: continue
            if not session_pids(self.proc.pid): break

# ---------------------------------------------------------------- one run
def run_one(w, target, secs, size, tmp, pin_client, sampler):
    """target: ('uri', uri) or ('file', path, backing).  -> dict of metrics"""
    pre = (lambda: os.sched_setaffinity(0, pin_client)) if pin_client else None
    if w.get("copy"):
        if target[0] == "file":
            w = dict(rw="read", bs="1m", qd=8, jobs=1)      # limit for the copy
        else:
            n, el, ru = 0, 0.0, cli_cpu()
            while el < secs:
                t = time.monotonic()
                subprocess.run(["nbdcopy", "--no-extents", "--request-size=1048576", target[1], "null:"], check=True,
                               stdout=subprocess.DEVNULL, preexec_fn=pre, timeout=60)
                el += time.monotonic() - t; n += 1
                sampler()
            return dict(iops=n * size / 2**20 / el, mibs=n * size / 2**20 / el, gib=n * size / 2**30,
                        ios=n * size / 2**20, p50=None, p99=None, secs=el, cli_cpu=cli_cpu() - ru)
    if w.get("lean") and target[0] == "uri":
        u = urlparse(target[1])
        addr = parse_qs(u.query)["socket"][0] if u.scheme == "nbd+unix" else f"{u.hostname}:{u.port or 10809}"
        ru = cli_cpu()
        r = subprocess.run([LEAN, addr, u.path.lstrip("/"), w["lean"], "4096", str(w["qd"]), str(w["jobs"]), str(secs)],
                           capture_output=True, text=True, timeout=secs + 20, preexec_fn=pre)
        if r.returncode: raise RuntimeError("lean: " + r.stderr[-300:])
        sampler(); j = json.loads(r.stdout)
        return dict(iops=j["iops"], mibs=j["iops"] / 256, gib=j["n"] / 2**18, ios=j["n"], p50=j["p50"], p99=j["p99"],
                    secs=j["secs"], cli_cpu=cli_cpu() - ru)
    out = os.path.join(tmp, "fio.json")
    cmd = ["fio", "--name=b", f"--rw={w['rw']}", f"--bs={w['bs']}", f"--iodepth={w['qd']}", f"--numjobs={w['jobs']}",
           f"--size={size}", "--time_based", f"--runtime={int(secs * 1000)}ms", "--thread", "--group_reporting",
           "--randrepeat=0", "--norandommap", "--lat_percentiles=1", "--clat_percentiles=0", "--percentile_list=50:99",
           "--output-format=json", f"--output={out}", "--eta=never"]
    if w["jobs"] > 1 and not w["rw"].startswith("rand"): cmd.append(f"--offset_increment={size // w['jobs']}")
    if w.get("fsync"): cmd.append(f"--fsync={w['fsync']}")
    if target[0] == "uri": cmd += ["--ioengine=nbd", f"--uri={target[1]}"]
    else: cmd += ["--ioengine=io_uring", f"--direct={int(target[2] != 'cache')}", "--invalidate=0", f"--filename={target[1]}"]
    p = subprocess.Popen(cmd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=pre)
    try:
        time.sleep(secs * 0.6); sampler()
        err = p.communicate(timeout=secs + 20)[1]
    except subprocess.TimeoutExpired:
        p.kill(); p.wait(); raise RuntimeError("fio hung")
    try:
        txt = open(out).read()
        j = json.loads(txt[txt.index("{"):])["jobs"][0]     # libnbd engine chatter precedes the JSON
    except (ValueError, KeyError, IndexError):
        raise RuntimeError("fio: " + err.decode()[-300:])
    if j["error"] or p.returncode: raise RuntimeError(f"fio error {j['error']} rc {p.returncode}: {err.decode()[-300:]}")
    k = "read" if "read" in w["rw"] else "write"
    r = j[k]
    lat = j["sync"]["lat_ns"] if w.get("fsync") else r["lat_ns"]
    pc = lat.get("percentile", {})
    return dict(iops=r["iops"], mibs=r["bw_bytes"] / 2**20, gib=r["io_bytes"] / 2**30, ios=r["total_ios"],
                p50=pc.get("50.000000", 0) / 1e3, p99=pc.get("99.000000", 0) / 1e3, secs=r["runtime"] / 1e3,
                cli_cpu=(j["usr_cpu"] + j["sys_cpu"]) / 100 * j["job_runtime"] / 1e3)

def measure(wname, srv, target, secs, size, tmp, pin):
    c0, (i0, s0), t0, u0 = srv.cpu() if srv else 0, box(), time.monotonic(), cli_cpu()
    m = run_one(W[wname], target, secs, size, tmp, pin, srv.sample if srv else (lambda: None))
    if srv: time.sleep(0.02)                                # let per-connection children be reaped
    c1, (i1, s1), t1, u1 = srv.cpu() if srv else 0, box(), time.monotonic(), cli_cpu()
    ncpu = os.cpu_count()
    m["srv_cpu"] = (c1 - c0) / TCK if srv else None
    m["steal"] = (s1 - s0) / TCK / ((t1 - t0) * ncpu)
    busy = max(0.0, (t1 - t0) * ncpu - (i1 - i0 + s1 - s0) / TCK)
    # CPU that neither the server nor the client used (other people's work, kernel threads), as a share of the box
    m["foreign"] = max(0.0, busy - (u1 - u0) - (m["srv_cpu"] or 0)) / ((t1 - t0) * ncpu)
    m["cpu100k"] = m["srv_cpu"] / m["ios"] * 1e5 if srv and m["ios"] else None
    m["cpugib"] = m["srv_cpu"] / m["gib"] if srv and m["gib"] else None
    m["all100k"] = ((m["srv_cpu"] or 0) + m["cli_cpu"]) / m["ios"] * 1e5 if m["ios"] else None
    m["allgib"] = ((m["srv_cpu"] or 0) + m["cli_cpu"]) / m["gib"] if m["gib"] else None
    return m

DIRTY = 0.12          # a run with more foreign CPU or steal than this counts only if too few clean ones are left
RT = False            # under --rt other people's work does not displace ours; only steal does
def clean(r): return (RT or r["foreign"] <= DIRTY) and r["steal"] <= DIRTY

def wait_quiet(limit):
    """wait until nobody else uses the box, at most limit seconds; returns the seconds waited"""
    t0 = time.monotonic()
    while time.monotonic() - t0 < limit:
        (i0, _), t = box(), time.monotonic()
        time.sleep(0.2)
        if (box()[0] - i0) / TCK > 0.9 * os.cpu_count() * (time.monotonic() - t): break
    return time.monotonic() - t0

def medians(runs):
    o = {}
    o["dirty"] = sum(not clean(r) for r in runs)
    if len(runs) - o["dirty"] >= min(2, len(runs)): runs = [r for r in runs if clean(r)]
    for k in ("iops", "mibs", "p50", "p99", "cpu100k", "cpugib", "all100k", "allgib", "steal", "foreign"):
        v = [r[k] for r in runs if r.get(k) is not None]
        o[k] = st.median(v) if v else None
    v = [r["iops"] for r in runs]
    o["spread"] = (max(v) - min(v)) / o["iops"] if o["iops"] else None
    o["n"] = len(runs)
    return o

# ---------------------------------------------------------------- report
def fmt_n(x):
    if x is None: return "-"
    if x >= 1e5: return f"{x/1e3:.0f}k"
    if x >= 1e4: return f"{x/1e3:.1f}k"
    if x >= 1e3: return f"{x/1e3:.2f}k"
    return f"{x:.0f}"
def fmt_f(x):
    return "-" if x is None else f"{x:.2f}" if x < 10 else f"{x:.1f}" if x < 100 else f"{x:.0f}"
def fmt_us(x):
    return "-" if x is None else f"{x:.0f}" if x < 1e4 else f"{x/1e3:.0f}m"

def is_bulk(w): return w.startswith(("sr", "sw", "copy"))

def report(res, names, focus, specs, rss, out=sys.stdout):
    P = lambda *a: print(*a, file=out)
    groups = []
    for (g, w) in res:
        if g not in groups: groups.append(g)
    for g in groups:
        cols = [n for n in ["limit"] + names if any(n in res[k] for k in res if k[0] == g)]
        wd = max(13, max(len(c) for c in cols) + 1)
        P(f"\n== {g[0]}:{g[1]} ==   I/O: IOPS (MiB/s for bulk) xratio to best peer | cpu: server CPU-s per 100k I/O (per GiB for bulk)"
          f" | lat: p50/p99 us | all: cpu of server + client")
        P(f"{'':<15}" + "".join(f"{c:>{wd}}" for c in cols))
        for (gg, w), row in res.items():
            if gg != g: continue
            bulk = is_bulk(w)
            val = lambda n: row[n]["mibs" if bulk else "iops"]
            peers = [n for n in row if n not in ("limit",) and not specs.get(n, {}).get("ours")]
            P_ = lambda head, f: P(f"{head:<15}" + "".join(f"{f(n) if n in row else '':>{wd}}" for n in cols))
            best = max((val(n) for n in peers), default=None)
            P_(w, lambda n: ("~" if row[n]["dirty"] and row[n]["n"] - row[n]["dirty"] < 2 else "") + fmt_n(val(n)) + (f" x{val(n)/best:.2f}" if best and n != "limit" else ""))
            P_("     cpu", lambda n: fmt_f(row[n]["cpugib" if bulk else "cpu100k"]))
            if w != "copy1m": P_("     lat", lambda n: fmt_us(row[n]["p50"]) + "/" + fmt_us(row[n]["p99"]))
            P_("     all", lambda n: fmt_f(row[n]["allgib" if bulk else "all100k"]))
    P("\npeak RSS MiB: " + "  ".join(f"{n}={rss[n]/1024:.1f}" for n in names if n in rss))
    for n in focus:
        P(f"\n-- {n} against the best peer in each row (and the limit) --")
        P(f"{'':<22}{'best peer':>14}{'I/O x peer':>12}{'x limit':>9}{'cpu x lowest':>14}{'p99 x lowest':>14}")
        for (g, w), row in res.items():
            if n not in row: continue
            bulk = is_bulk(w); kv, kc = ("mibs", "cpugib") if bulk else ("iops", "cpu100k")
            peers = [p for p in row if p != "limit" and not specs.get(p, {}).get("ours")]
            if not peers: continue
            b = max(peers, key=lambda p: row[p][kv])
            lo = lambda k: min((row[p][k] for p in peers if row[p][k]), default=None)
            rt = lambda a, b_: f"{a/b_:.2f}" if a is not None and b_ else "-"
            P(f"{g[0]+':'+g[1]+' '+w:<22}{b:>14}{rt(row[n][kv], row[b][kv]):>12}"
              f"{rt(row[n][kv], row['limit'][kv]) if 'limit' in row else '-':>9}"
              f"{rt(row[n][kc], lo(kc)):>14}{rt(row[n]['p99'], lo('p99')):>14}")

def build_lean(d):
    """the lean client, if rustc is there"""
    global LEAN
    src, exe = os.path.join(HERE, "lean.rs"), os.path.join(d, "lean")
    if not shutil.which("rustc") or not os.path.exists(src): return None
    if not os.path.exists(exe) or os.path.getmtime(exe) < os.path.getmtime(src):
        if subprocess.run(["rustc", "--edition=2021", "-O", "-o", exe, src], capture_output=True).returncode: return None
    LEAN = exe
    return exe

def private_net(cc):
    """Own network namespace: own loopback, own ports, own congestion control; nothing outside is touched."""
    if os.geteuid() != 0 or ctypes.CDLL(None, use_errno=True).unshare(0x40000000): return False
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    try:
        with open("/proc/sys/net/ipv4/tcp_congestion_control", "w") as f: f.write(cc)
    except OSError: pass
    return True

def sh(c):
    try: return subprocess.run(c, shell=True, capture_output=True, text=True, timeout=10).stdout.strip().split("\n")[0]
    except Exception: return ""

# ---------------------------------------------------------------- main
def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--quick", action="store_true")
    ap.add_argument("--budget", type=float, help="wall seconds for the whole run (default 450, quick 75)")
    ap.add_argument("--rounds", type=int, help="interleaved rounds (default 3, quick 2)")
    ap.add_argument("--secs", type=float, help="seconds per run (default: from the budget)")
    ap.add_argument("--groups", help="e.g. ram:unix,disk:tcp")
    ap.add_argument("--workloads", help="comma list, out of " + " ".join(W))
    ap.add_argument("--only", help="comma list of servers")
    ap.add_argument("--server", action="append", default=[], metavar="NAME[@direct|@buffered]=CMD")
    ap.add_argument("--uri", action="append", default=[], metavar="NAME=unix:URI | NAME=tcp:URI")
    ap.add_argument("--attach", action="append", default=[], metavar="NAME=PID,URI")
    ap.add_argument("--focus", help="servers of ours to summarise (default: every --server/--attach)")
    ap.add_argument("--size", type=int, default=1024, help="MiB of backing file")
    ap.add_argument("--disk-dir", default="/var/tmp/symphony-nbd-bench", help="a folder on the real disk")
    ap.add_argument("--ram-dir", default="/dev/shm")
    ap.add_argument("--pin", action="store_true", help="client on CPU 0, servers on CPU 1 (one core each)")
    ap.add_argument("--nice", type=int, default=-10, help="for client and servers alike, against other work on the box")
    ap.add_argument("--rt", action="store_true", help="SCHED_RR for client and servers alike: least disturbed by other work")
    ap.add_argument("--cc", default="cubic", help="TCP congestion control on the private loopback")
    ap.add_argument("--no-limit", action="store_true")
    ap.add_argument("--buffered-on-disk", action="store_true", help="run buffered servers on every disk row, not only fsync")
    ap.add_argument("--json", default=None, help="write JSON here (default DIR/result.json)")
    a = ap.parse_args()

    t_start = time.time()
    for t in ("fio", "nbdcopy"):
        if not shutil.which(t): sys.exit(f"{t} not found")
    specs = dict(SERVERS); focus = []
    for s in a.server:
        n, _, c = s.partition("="); n, _, k = n.partition("@")
        specs[n] = dict(klass=k or "direct", cmd=c, ours=True); focus.append(n)
    for s in a.attach:
        n, _, c = s.partition("="); pid, _, u = c.partition(",")
        specs[n] = dict(klass="direct", attach=(int(pid), u), ours=True); focus.append(n)
    for s in a.uri:
        n, _, c = s.partition("="); t, _, u = c.partition(":")
        specs[n].setdefault("uri", dict(URI))
        specs[n]["uri"] = dict(specs[n]["uri"], **{t: u})
    names = a.only.split(",") if a.only else [n for n in specs if not (a.quick and n in ("qemu-threads", "qemu-wb"))]
    need = {"qemu": "qemu-nbd", "nbdkit": "nbdkit", "nbd-server": "nbd-server"}
    for n in list(names):
        for k, b in need.items():
            if n.startswith(k) and not shutil.which(b):
                print(f"skip {n}: {b} not installed", file=sys.stderr); names.remove(n); break
    if a.focus: focus = a.focus.split(",")
    for n in focus:
        if n in specs: specs[n] = dict(specs[n], ours=True)
    plan = QUICK if a.quick else FULL
    if a.groups:
        plan = {tuple(g.split(":")): FULL[tuple(g.split(":"))] if not a.quick else QUICK.get(tuple(g.split(":")), FULL[tuple(g.split(":"))])
                for g in a.groups.split(",")}
    elif not a.quick:
        plan = {k: v for k, v in FULL.items() if k != ("disk", "unix")}
    if a.workloads:
        plan = {g: [w for w in a.workloads.split(",")] for g in plan}
    patience = 6.0 if a.quick else 40.0
    rounds = a.rounds or (2 if a.quick else 3)
    budget = a.budget or (75 if a.quick else 450)
    size = a.size << 20

    def takes(g, w):
        ns = []
        for n in names:
            sp = specs[n]
            if "attach" in sp and not (sp["attach"][1].startswith("nbd+unix")) == (g[1] == "unix"): continue
            if g[0] not in sp.get("on", ("ram", "cache", "disk")): continue
            if g[0] == "disk" and sp["klass"] == "buffered" and w != "fsync4k" and not a.buffered_on_disk: continue
            ns.append(n)
        return ns
    n_runs = n_fixed = 0
    seen = set()
    for g, ws in plan.items():
        for w in ws:
            n_runs += rounds * len(takes(g, w))
            if not a.no_limit and (g[0], w) not in seen: seen.add((g[0], w)); n_runs += rounds
    over, todo = 0.42, n_runs
    fixed = 6 + 1.5 * len(plan) * len(names) * 0.3
    secs = a.secs or max(0.35, min(2.0, (budget - fixed) / max(1, n_runs) - over))
    est = fixed + n_runs * (secs + over)
    print(f"{n_runs} runs of {secs:.2f}s in {rounds} rounds, about {est:.0f}s; servers: {' '.join(names)}", file=sys.stderr)

    os.makedirs(a.disk_dir, exist_ok=True)
    if not build_lean(a.disk_dir):
        print("no rustc: lean-* rows skipped", file=sys.stderr)
        plan = {g: [w for w in ws if not W[w].get("lean")] for g, ws in plan.items()}
    tmp = tempfile.mkdtemp(prefix="run-", dir=a.disk_dir)
    ramd = tempfile.mkdtemp(prefix="nbdbench-", dir=a.ram_dir)
    files = {}
    def mk(path, drop=True):
        with open(path, "wb") as f:
            blk = os.urandom(1 << 20)
            os.posix_fallocate(f.fileno(), 0, size)
            for i in range(a.size):
                f.write(blk[i % 4096:] + blk[:i % 4096])
            f.flush(); os.fsync(f.fileno())
            if drop: os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return path
    kinds = {g[0] for g in plan}
    if "ram" in kinds: files["ram"] = mk(f"{ramd}/ram.raw")
    if "cache" in kinds:
        files["cache"] = mk(f"{tmp}/cache.raw", drop=False)
    if "disk" in kinds:
        files["disk-direct"] = mk(f"{tmp}/direct.raw")
        if any(specs[n]["klass"] == "buffered" for n in names): files["disk-buffered"] = mk(f"{tmp}/buffered.raw")
    fileof = lambda g, k: files.get(g[0]) or files["disk-" + k]

    if not a.attach: private_net(a.cc)
    if a.nice:
        try: os.nice(a.nice)
        except OSError: pass
    if a.rt:
        global RT
        RT = True
        try: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        except OSError as e: print("no --rt:", e, file=sys.stderr)
    ncpu = os.cpu_count()
    pin_c, pin_s = ({0}, {1}) if a.pin and ncpu > 1 else (None, None)
    res, raw, rss, lim, errors = {}, [], {}, {}, []
    live = []
    try:
        for g, ws in plan.items():
            live = []
            for n in names:
                if not any(n in takes(g, w) for w in ws): continue
                try:
                    live.append(Server(n, specs[n], g[1], fileof(g, specs[n]["klass"]), size, tmp, g[0], pin_s))
                except RuntimeError as e:
                    errors.append(str(e)); print("skip", e, file=sys.stderr)
            by = {s.name: s for s in live}
            for w in ws:
                if g[0] == "cache":
                    with open(files["cache"], "rb") as f:
                        while f.read(1 << 22): pass
                runs = {}
                who = [n for n in takes(g, w) if n in by]
                want_lim = not a.no_limit and (g[0], w) not in lim
                left = budget - (time.time() - t_start)     # keep the whole run inside the budget
                rr = rounds                                 # shorter runs first, then fewer rounds
                while rr > 1 and left / max(1, todo * rr / rounds) - over < 0.25: rr -= 1
                if not a.secs: secs = max(0.3, min(2.0, left / max(1, todo * rr / rounds) - over))
                todo -= rounds * (len(takes(g, w)) + want_lim)
                for r in range(rr + 2):
                    order = (["limit"] if want_lim else []) + who
                    if r >= rr:                         # make up for disturbed runs while there is time
                        if budget - (time.time() - t_start) < todo * (0.6 * secs + over): break
                        order = [n for n in order if n in runs and sum(map(clean, runs[n])) < 2]
                        if not order: break
                    if r % 2: order = order[::-1]
                    for n in order:
                        s = by.get(n)
                        if r and runs.get(n) and not clean(runs[n][-1]): patience -= wait_quiet(min(2.0, patience))
                        t_run = time.time()
                        tgt = ("file", fileof(g, "direct"), g[0]) if n == "limit" else ("uri", s.uri)
                        try:
                            m = measure(w, s, tgt, secs, size, tmp, pin_c)
                        except (RuntimeError, subprocess.SubprocessError, OSError) as e:
                            errors.append(f"{g} {w} {n}: {e}"); print("FAILED", errors[-1], file=sys.stderr); continue
                        runs.setdefault(n, []).append(m)
                        over += 0.1 * (time.time() - t_run - secs - over)   # what starting a client really costs here
                        raw.append(dict(group=":".join(g), workload=w, server=n, round=r, **m))
                row = {n: medians(v) for n, v in runs.items()}
                if "limit" in row: lim[(g[0], w)] = row["limit"]
                elif (g[0], w) in lim: row["limit"] = lim[(g[0], w)]
                res[(g, w)] = row
                print(f"  {time.time()-t_start:5.0f}s {g[0]}:{g[1]} {w}: " +
                      " ".join(f"{n}={fmt_n(v['iops'])}" for n, v in row.items()), file=sys.stderr)
            for s in live:
                rss[s.name] = max(rss.get(s.name, 0), s.peak); s.stop()
            live = []
    finally:
        for s in live: s.stop()
        logs = {}
        for d in os.listdir(tmp):
            if errors and os.path.exists(f"{tmp}/{d}/log"): logs[d] = open(f"{tmp}/{d}/log", errors="replace").read()[-2000:]
        shutil.rmtree(ramd, ignore_errors=True)
        for f in os.listdir(tmp):
            f = os.path.join(tmp, f)
            shutil.rmtree(f, ignore_errors=True) if os.path.isdir(f) else os.unlink(f)
    env = dict(kernel=os.uname().release, ncpu=ncpu, cpu=sh("grep -m1 'model name' /proc/cpuinfo | cut -d: -f2"),
               mem_mib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20, fio=sh("fio --version"),
               qemu=sh("qemu-nbd --version"), nbdkit=sh("nbdkit --version"), nbd_server=sh("nbd-server -V 2>&1"),
               libnbd=sh("nbdinfo --version"), pinned=bool(pin_c), rt=a.rt, cc=sh('cat /proc/sys/net/ipv4/tcp_congestion_control'), secs=secs, rounds=rounds, size_mib=a.size,
               wall=round(time.time() - t_start, 1), when=time.strftime("%FT%TZ", time.gmtime()))
    report(res, [n for n in names], [n for n in focus if n in names], specs, rss)
    stl = [r["steal"] for r in raw]; frn = [r["foreign"] for r in raw]
    sp = [v["spread"] for row in res.values() for n, v in row.items() if v["spread"] is not None]
    if raw:
        print(f"\n{sum(not clean(r) for r in raw)} of {len(raw)} runs disturbed (~: too few clean ones); other work on the box "
              f"median {st.median(frn)*100:.0f}% max {max(frn)*100:.0f}%; steal max {max(stl)*100:.0f}%; spread (max-min)/median: median "
              f"{st.median(sp)*100:.0f}% max {max(sp)*100:.0f}%; {rounds} rounds x {secs:.2f}s; wall {env['wall']:.0f}s; pinned={env['pinned']}")
    for e in errors: print("ERROR", e.split("\n")[0])
    jp = a.json or os.path.join(tmp, "result.json")
    with open(jp, "w") as f:
        json.dump(dict(env=env, rss_kib=rss, errors=errors, logs=logs,
                       table=[dict(group=":".join(g), workload=w, servers=row) for (g, w), row in res.items()],
                       runs=raw), f, indent=1)
    print("json:", jp)
    return 1 if errors else 0

if __name__ == "__main__":
    sys.exit(main())
