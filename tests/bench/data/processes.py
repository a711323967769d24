"""What /proc says about processes and about the machine: CPU time, memory, who else is busy."""

import os
import resource
import time

TICKS = os.sysconf("SC_CLK_TCK")
CPUS = os.cpu_count()


def _stat(pid):
    """The fields of /proc/PID/stat from the state on: [0] state, [1] parent, [2] group, [3] session, [11..15] times."""
    with open(f"/proc/{pid}/stat") as file:
        line = file.read()
    return line[line.rindex(")") + 2 :].split()


def _all():
    """(pid, fields) of every process that can be looked at."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                yield int(name), _stat(name)
            except (OSError, ValueError):
                continue


def in_session(leader):
    """Every process of a session."""
    return [pid for pid, fields in _all() if int(fields[3]) == leader]


def descendants(root):
    """A process and all that it has brought forth."""
    children = {}
    for pid, fields in _all():
        children.setdefault(int(fields[1]), []).append(pid)
    found, left = [], [root]
    while left:
        found.append(left.pop())
        left += children.get(found[-1], [])
    return found


def cpu_seconds(pids):
    """Of all threads, kernel workers included, and of children that have been waited for."""
    ticks = 0
    for pid in pids:
        try:
            ticks += sum(int(field) for field in _stat(pid)[11:15])
        except (OSError, ValueError, IndexError):
            continue
    return ticks / TICKS


def peak_kib(pids):
    """The most that each process has ever had resident, in all. What several share is counted in each of them."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/status") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
        except OSError:
            continue
    return total


def client_seconds():
    """CPU time of the clients that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def idle_and_stolen():
    """Seconds that all CPUs together were idle, and that the hypervisor took from us."""
    with open("/proc/stat") as file:
        fields = [int(field) for field in file.readline().split()[1:]]
    return (fields[3] + fields[4]) / TICKS, fields[7] / TICKS


def wait_until_quiet(limit):
    """Waits until nobody else uses the machine, `limit` seconds at most; answers how long that took."""
    began = time.monotonic()
    while time.monotonic() - began < limit:
        (idle, _), now = idle_and_stolen(), time.monotonic()
        time.sleep(0.2)
        if idle_and_stolen()[0] - idle > 0.9 * CPUS * (time.monotonic() - now):
            break
    return time.monotonic() - began
