"""What a comparison has to say: one table of our server against the best of the others, and all figures of all servers."""

import statistics

import goals
from workloads import WORKLOADS

LIMIT = "limit"


def _number(value):
    if value is None:
        return "-"
    if value >= 1e4:
        return f"{value / 1e3:.1f}k" if value < 1e5 else f"{value / 1e3:.0f}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _factor(value, reference):
    return value / reference if value is not None and reference else None


def _text(factor):
    return "-" if factor is None else f"{factor:.2f}"


def _latency(figures):
    return f"{_number(figures['p50'])}/{_number(figures['p99'])}"


def print_table(rows, out):
    """Rows of text under their heads, the first line; each column as wide as it must be."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [text.ljust(width) if column in (0, len(row) - 1) else text.rjust(width)
                 for column, (text, width) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip(), file=out)
        if number == 0:
            print("  ".join("-" * width for width in widths), file=out)


def best_peers(figures, peers):
    """The highest rate, and the lowest CPU and p99, of any peer each: (name, rate, cpu, p99); None without peers."""
    there = [name for name in peers if name in figures]
    if not there:
        return None
    fastest = max(there, key=lambda name: figures[name]["rate"])
    least = lambda key: min((figures[name][key] for name in there if figures[name][key]), default=None)
    return fastest, figures[fastest]["rate"], least("server_us"), least("p99")


def factors(figures, ours, peers):
    """Ours against the best: {"rate", "cpu", "p99", "raw"}."""
    mine, best = figures[ours], best_peers(figures, peers)
    _, rate, cpu, p99 = best or (None, None, None, None)
    return {
        "rate": _factor(mine["rate"], rate),
        "cpu": _factor(mine["server_us"], cpu),
        "p99": _factor(mine["p99"], p99),
        "raw": _factor(mine["rate"], figures[LIMIT]["rate"]) if LIMIT in figures else None,
    }


def _row(key, figures, ours, peers):
    backing, transport, name = key
    mine, best, seen = figures[ours], best_peers(figures, peers), factors(figures, ours, peers)
    asked = goals.aims(backing, transport, name)
    few = "" if mine["clean"] >= 2 else "~"
    return [
        f"{backing}{'' if transport == 'tcp' else ':' + transport} {WORKLOADS[name].says}",
        few + _number(mine["rate"]),
        f"{best[0]} {_number(best[1])}" if best else "-",
        _text(seen["rate"]),
        _number(mine["server_us"]),
        _text(seen["cpu"]),
        _latency(mine),
        _text(seen["p99"]),
        _text(seen["raw"]),
        str(asked[0]) if asked else "-",
        str(asked[1]) if asked else "-",
        goals.verdict(*asked, seen) if asked else "-",
    ]


def _memory_row(connections, mib, others):
    must, goal = goals.MEMORY[connections]
    idle = "idle " if connections > 4 else ""
    cells = [f"peak memory, {connections:,} {idle}connections", f"{mib:.1f} MiB", others]
    verdict = goals.memory_verdict(connections, mib)
    return cells + ["-"] * 6 + [f"{must} MiB", f"{goal} MiB", verdict]


HEADS = ["row", "/s", "best peer", "x", "cpu us", "x", "p50/p99 us", "p99 x", "of raw", "must", "goal", "verdict"]


def print_summary(results, memory, ours, peers, out):
    """The table of a server of ours. `memory` is {connections: {server: KiB}}."""
    print(f"\n{ours} against the best peer of each figure, in one run. cpu us: the server's CPU time per operation.", file=out)
    print("of raw: of fio's io_uring straight on the file; over TLS, of the same server without. ~: disturbed.\n", file=out)
    rows = [_row(key, figures, ours, peers) for key, figures in results.items() if ours in figures]
    for connections, used in memory.items():
        if ours in used:
            least = min(((used[name], name) for name in peers if name in used), default=None)
            others = f"{least[1]} {least[0] / 1024:.1f} MiB" if least else "-"
            rows.append(_memory_row(connections, used[ours] / 1024, others))
    print_table([HEADS, *rows], out)
    words = [row[-1].split(":")[0].split(";")[0] for row in rows if row[-1] != "-"]
    counts = ", ".join(f"{words.count(word)} {word}" for word in ("met goal", "met must", "MISSED"))
    print(f"\n{len(words)} rows with aims: {counts}", file=out)


def print_details(results, names, out):
    """Every figure of every server."""
    print("\nrate /s, server's CPU us per operation (with the client's), p50/p99 us, clean runs of all\n", file=out)
    rows = [["row", "server", "rate", "cpu", "with client", "p50/p99", "runs", ""]]
    for (backing, transport, name), figures in results.items():
        for server in [LIMIT, *names]:
            if server in figures:
                each = figures[server]
                cells = [_number(each[key]) for key in ("rate", "server_us", "all_us")]
                runs = f"{each['clean']}/{each['runs']}"
                rows.append([f"{backing}:{transport} {name}", server, *cells, _latency(each), runs, ""])
    print_table(rows, out)


def print_circumstances(runs, results, environment, out):
    """How far the figures can be trusted."""
    if not runs:
        return
    spreads = [each["spread"] for figures in results.values() for each in figures.values() if each["spread"] is not None]
    share = lambda key, of: f"{of(run[key] for run in runs) * 100:.0f} %"
    print(
        f"{len(runs)} runs; the work of others: median {share('foreign', statistics.median)}, at most "
        f"{share('foreign', max)} of the machine; stolen: at most {share('steal', max)}; spread of rates: median "
        f"{statistics.median(spreads) * 100:.0f} %, at most {max(spreads) * 100:.0f} %; {environment['wall']:.0f} s",
        file=out,
    )
