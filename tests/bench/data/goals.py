"""What the data path must reach and what it aims at, row by row, and how far a run has come."""

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Aim:
    """Factors of the best peer's figure in the same run, whichever peer is best in that figure; `raw` is of the limit.
    Rates are reached from below, the others from above. What is None is not asked for."""

    rate: Optional[float] = None
    cpu: Optional[float] = None
    p99: Optional[float] = None
    raw: Optional[float] = None

    def __str__(self):
        parts = [
            self.rate and f"{self.rate:g}x",
            self.cpu and f"cpu {self.cpu:g}",
            self.p99 and f"p99 {self.p99:g}",
            self.raw and f"raw {self.raw:g}",
        ]
        return " ".join(part for part in parts if part) or "-"

    def missed(self, seen):
        """What falls short in the factors that were seen: {"rate": …, "cpu": …, "p99": …, "raw": …}."""
        short = []
        for name in ("rate", "cpu", "p99", "raw"):
            wanted, factor = getattr(self, name), seen.get(name)
            if wanted is None:
                continue
            if factor is None:
                short.append(f"{name} unknown")
            elif (factor < wanted) if name in ("rate", "raw") else (factor > wanted):
                short.append(f"{name} {factor:.2f}")
        return short


_LEAN_MANY = (Aim(2.0, 0.5), Aim(2.8, 0.32, p99=0.4))
_LEAN_ONE = (Aim(1.7, 0.6), Aim(2.5, 0.4))
_FIO_MANY = (Aim(1.3, 0.6), Aim(1.6, 0.4))
_FIO_ONE = (Aim(1.0, p99=1.0), Aim(1.15, 0.7))
_BULK_READ = (Aim(1.3), Aim(1.8, 0.5))
_COPY = (Aim(1.0), Aim(1.25, 0.7))
_DISK_READ = (Aim(1.1, 0.75, raw=0.75), Aim(1.3, 0.5, raw=0.85))

# (backing, workload): (must, goal)
ROWS = {
    ("ram", "lean-r8x4"): _LEAN_MANY,
    ("cache", "lean-r8x4"): _LEAN_MANY,
    ("ram", "lean-r16"): _LEAN_ONE,
    ("cache", "lean-r16"): _LEAN_ONE,
    ("ram", "rr4k-8x4"): _FIO_MANY,
    ("ram", "rw4k-8x4"): _FIO_MANY,
    ("cache", "rr4k-8x4"): _FIO_MANY,
    ("ram", "rr4k-q1"): _FIO_ONE,
    ("ram", "rw4k-q1"): _FIO_ONE,
    ("cache", "rr4k-q1"): _FIO_ONE,
    ("disk", "rr4k-q1"): _FIO_ONE,
    ("disk", "rw4k-q1"): _FIO_ONE,
    ("ram", "sr128k-q8"): _BULK_READ,
    ("cache", "sr128k-q8"): _BULK_READ,
    ("ram", "copy1m"): _COPY,
    ("cache", "copy1m"): _COPY,
    ("disk", "rr4k-q16"): _DISK_READ,
    ("disk", "rr4k-8x4"): _DISK_READ,
    ("disk", "rw4k-8x4"): (Aim(1.1, 0.8), Aim(1.2, 0.55, raw=0.92)),
    ("disk", "sr128k-q8"): (Aim(1.15, 0.5), Aim(1.3, 0.3, raw=0.9)),
    ("disk", "sw128k-q8"): (Aim(1.8, 0.5), Aim(2.4, 0.3, raw=0.9)),
    ("disk", "fsync4k"): (Aim(1.0, 0.7), Aim(1.3, 0.5)),
}

# The most memory that a server may have had, in MiB: (must, goal).
MEMORY = {4: (40, 16), 1000: (100, 32)}


def aims(backing, transport, workload):
    """(must, goal) of a row, or None where nothing is asked for."""
    return ROWS.get((backing, workload)) if transport == "tcp" else None


def verdict(must, goal, seen):
    short = must.missed(seen)
    if short:
        return "MISSED: " + ", ".join(short)
    short = goal.missed(seen)
    return "met must; goal misses " + ", ".join(short) if short else "met goal"


def memory_verdict(connections, mib):
    must, goal = MEMORY[connections]
    return "met goal" if mib <= goal else "met must" if mib <= must else "MISSED"
