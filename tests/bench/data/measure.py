"""One measurement: a client's figures, beside what the server and everybody else used meanwhile; and many as one."""

import statistics
import time

import processes

# A run with a larger share of the machine taken by others counts only if too few clean ones are left.
DISTURBED = 0.12
FIGURES = ("rate", "mib", "p50", "p99", "server_us", "all_us", "steal", "foreign")


def measure(run, server):
    """Runs a client and adds: server_us and all_us (CPU per operation, the server's and with the client's), and the shares
    of the machine that were stolen, and used by neither of the two."""
    used = server.cpu() if server else 0
    idle, stolen = processes.idle_and_stolen()
    began, clients = time.monotonic(), processes.client_seconds()
    figures = run()
    if server:
        # Children that serve one connection are reaped by now.
        time.sleep(0.02)
        used = server.cpu() - used
    whole = (time.monotonic() - began) * processes.CPUS
    now_idle, now_stolen = processes.idle_and_stolen()
    stolen = now_stolen - stolen
    busy = max(0.0, whole - (now_idle - idle) - stolen)
    others = busy - (processes.client_seconds() - clients) - used
    figures["steal"], figures["foreign"] = stolen / whole, max(0.0, others) / whole
    count = figures["count"]
    figures["server_us"] = used / count * 1e6 if server and count else None
    figures["all_us"] = (used + figures["cpu"]) / count * 1e6 if count else None
    return figures


def is_clean(run, scheduled_first):
    """Under real-time scheduling the work of others does not displace ours; only the hypervisor does."""
    return (scheduled_first or run["foreign"] <= DISTURBED) and run["steal"] <= DISTURBED


def medians(runs, scheduled_first):
    """One figure of each kind, of the clean runs if there are two of them."""
    clean = [run for run in runs if is_clean(run, scheduled_first)]
    counted = clean if len(clean) >= min(2, len(runs)) else runs
    figures = {}
    for name in FIGURES:
        values = [run[name] for run in counted if run.get(name) is not None]
        figures[name] = statistics.median(values) if values else None
    rates = [run["rate"] for run in counted]
    figures["spread"] = (max(rates) - min(rates)) / figures["rate"] if figures["rate"] else None
    figures["runs"], figures["clean"] = len(runs), len(clean)
    return figures
