"""What is measured: the workloads, and which of them run on which backing over which transport."""

from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Workload:
    name: str
    says: str
    # fio, or lean (lean.rs: it batches, so that the server and not its client is the bottleneck), or nbdcopy.
    client: str
    # In fio's words.
    pattern: str
    block: int
    depth: int = 1
    connections: int = 1
    # A flush after every write.
    flushes: bool = False

    @property
    def writes(self):
        return "write" in self.pattern

    @property
    def is_bulk(self):
        return self.block > 4 * KIB


def _fio(name, says, pattern, block, depth=1, connections=1, flushes=False):
    return Workload(name, says, "fio", pattern, block, depth, connections, flushes)


WORKLOADS = {
    workload.name: workload
    for workload in (
        _fio("rr4k-q1", "fio 4 KiB read, QD1", "randread", 4 * KIB),
        _fio("rr4k-q16", "fio 4 KiB read, QD16", "randread", 4 * KIB, 16),
        _fio("rr4k-q32", "fio 4 KiB read, QD32", "randread", 4 * KIB, 32),
        _fio("rr4k-8x4", "fio 4 KiB read, QD8 x 4", "randread", 4 * KIB, 8, 4),
        _fio("rw4k-q1", "fio 4 KiB write, QD1", "randwrite", 4 * KIB),
        _fio("rw4k-q16", "fio 4 KiB write, QD16", "randwrite", 4 * KIB, 16),
        _fio("rw4k-q32", "fio 4 KiB write, QD32", "randwrite", 4 * KIB, 32),
        _fio("rw4k-8x4", "fio 4 KiB write, QD8 x 4", "randwrite", 4 * KIB, 8, 4),
        _fio("sr128k-q8", "128 KiB sequential read", "read", 128 * KIB, 8),
        _fio("sw128k-q8", "128 KiB sequential write", "write", 128 * KIB, 8),
        _fio("fsync4k", "a flush after every 4 KiB write", "randwrite", 4 * KIB, flushes=True),
        Workload("copy1m", "nbdcopy to nowhere, 1 MiB", "nbdcopy", "read", MIB, 8),
        Workload("lean-r16", "lean 4 KiB read, QD16", "lean", "randread", 4 * KIB, 16),
        Workload("lean-r8x4", "lean 4 KiB read, QD8 x 4", "lean", "randread", 4 * KIB, 8, 4),
        Workload("lean-w8x4", "lean 4 KiB write, QD8 x 4", "lean", "randwrite", 4 * KIB, 8, 4),
    )
}

# Backings: ram is a file on tmpfs; cache is one on ext4, wholly in the page cache; disk is one on ext4 that is read and
# written around the page cache. Transports: tcp, unix, and tls over tcp.
FULL = {
    ("ram", "tcp"): (
        "rr4k-q1 rr4k-q16 rr4k-8x4 rw4k-q1 rw4k-q16 rw4k-8x4 sr128k-q8 sw128k-q8 copy1m lean-r16 lean-r8x4 lean-w8x4"
    ),
    ("ram", "tls"): "copy1m",
    ("cache", "tcp"): "rr4k-q1 rr4k-q16 rr4k-8x4 sr128k-q8 copy1m lean-r16 lean-r8x4",
    ("disk", "tcp"): "rr4k-q1 rr4k-q16 rr4k-8x4 rw4k-q1 rw4k-q16 rw4k-8x4 sr128k-q8 sw128k-q8 fsync4k",
}

QUICK = {
    ("ram", "tcp"): "rr4k-q1 rr4k-8x4 rw4k-8x4 sr128k-q8 lean-r8x4",
    ("cache", "tcp"): "lean-r16",
    ("disk", "tcp"): "rr4k-q16 rw4k-8x4 fsync4k",
}

# Only where they are asked for.
EXTRA = {
    ("ram", "unix"): "rr4k-q1 rr4k-8x4 sr128k-q8",
    ("disk", "unix"): "rr4k-q1 rr4k-8x4 rw4k-8x4 sr128k-q8 fsync4k",
}


class UnknownRow(Exception):
    """No such group or workload."""


def plan(quick, groups, workloads):
    """{(backing, transport): [Workload]}, of the groups and workloads that are named, or of all."""
    rows = QUICK if quick else FULL
    if groups:
        known = {**EXTRA, **FULL, **(QUICK if quick else {})}
        chosen = [tuple(group.split(":")) for group in groups.split(",")]
        unknown = [":".join(group) for group in chosen if group not in known]
        if unknown:
            raise UnknownRow(f"no such group: {', '.join(unknown)}; there are {', '.join(map(':'.join, known))}")
        rows = {group: known[group] for group in chosen}
    named = workloads.split(",") if workloads else None
    unknown = [name for name in named or () if name not in WORKLOADS]
    if unknown:
        raise UnknownRow(f"no such workload: {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    # Of the clients only nbdcopy speaks TLS.
    takes = lambda group, name: group[1] != "tls" or WORKLOADS[name].client == "nbdcopy"
    return {
        group: [WORKLOADS[name] for name in named or names.split() if takes(group, name)] for group, names in rows.items()
    }
