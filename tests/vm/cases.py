"""The cases: scripts in `cases/`, what they say about themselves, and which of them share a boot.

A case opens with what it proves, in one line of comment, and may go on with a line of options:

    # A file pool on ext4 carries the kernel's own NBD client.
    # vm: disks=1G,1G memory=1024 seconds=400 powerloss guests=3 crashes conformance

`disks` are fresh and empty. `seconds` is the deadline of the case alone, 240 without it. A case that `crashes` a guest,
and one with several guests, has its machine for itself; all others with the same machine share one boot of it. A case
that runs `conformance` or `bench` finds the program of that name, which is `tests/conformance` or `tests/bench`, in its
guest. One that runs `bench` measures: nothing is asserted, what it says is shown, and it is run only when it is named.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from machine import Hardware

# What cases may find in their guests beside symphony.
PROGRAMS = frozenset({"conformance", "bench"})
DIRECTORY = Path(__file__).resolve().parent / "cases"
# Seconds for a case that asks for no other number: ten times what it takes on an idle machine.
PATIENCE = 240
UNITS = {"M": 1 << 20, "G": 1 << 30}


class CaseError(Exception):
    """A case says something about itself that is not understood, or does not exist."""


@dataclass(frozen=True)
class Case:
    name: str
    path: Path
    proves: str
    hardware: Hardware
    seconds: int
    crashes: bool
    programs: frozenset

    @property
    def alone(self):
        return self.crashes or self.hardware.guests > 1

    @property
    def measures(self):
        return "bench" in self.programs


def read(path):
    lines = path.read_text().splitlines()
    if not lines or not lines[0].startswith("# "):
        raise CaseError(f"{path.name}: its first line is a comment that says what it proves")
    words = lines[1].removeprefix("# vm:").split() if lines[1:] and lines[1].startswith("# vm:") else []
    options = dict(word.partition("=")[::2] for word in words)
    unknown = set(options) - {"disks", "memory", "seconds", "powerloss", "guests", "crashes"} - PROGRAMS
    if unknown:
        raise CaseError(f"{path.name}: no such options: {', '.join(sorted(unknown))}")
    sizes = [size for size in options.get("disks", "").split(",") if size]
    hardware = Hardware(
        disks=tuple(read_size(path, size) for size in sizes),
        memory=int(options.get("memory", 1024)),
        powerloss="powerloss" in options,
        guests=int(options.get("guests", 1)),
    )
    seconds = int(options.get("seconds", PATIENCE))
    proves = lines[0].removeprefix("# ")
    return Case(path.stem, path, proves, hardware, seconds, "crashes" in options, PROGRAMS & options.keys())


def read_size(path, text):
    match = re.fullmatch(r"(\d+)([MG])", text)
    if not match:
        raise CaseError(f"{path.name}: '{text}' is not a size such as 512M or 1G")
    return int(match[1]) * UNITS[match[2]]


def choose(wanted):
    """The cases whose names are or begin with one of the words, in order; all that assert something if there are no words."""
    cases = [read(path) for path in sorted(DIRECTORY.glob("*.sh"))]
    for word in wanted:
        if not any(case.name.startswith(word) for case in cases):
            raise CaseError(f"no case is called '{word}'; there are: {', '.join(case.name for case in cases)}")
    if not wanted:
        return [case for case in cases if not case.measures]
    return [case for case in cases if any(case.name.startswith(word) for word in wanted)]


def groups(cases):
    """Lists of cases that share a boot: those with the same machine."""
    together = {}
    for case in cases:
        together.setdefault((case.hardware, case.name if case.alone else None), []).append(case)
    return list(together.values())
