"""Measures all_reduce between hosts made on this machine, each limited to a rate.

    python -m bench.hosts --rate 1gbit --mib 64

For every layout and algorithm: the bytes that a host must send by the algorithm's own count, those
that its link counted, the time that both need at the rate, and the time that it took (the slowest
rank of each repetition). The results of all ranks are verified. Needs root and iproute2.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np

import pycomm
from pycomm.algorithms.registry import find
from tests.hosts.network import hosts, missing

LAYOUTS = [(2, 1, "ring"), (3, 1, "ring"), (2, 2, "ring"), (2, 2, "hierarchical")]
"""Hosts, ranks on each, algorithm."""

UNITS = {"mbit": 1e6 / 8, "gbit": 1e9 / 8}


def bytes_per_s(rate: str) -> float:
    """Return what tc's words for a rate mean."""
    return float(rate[:-4]) * UNITS[rate[-4:]]


def link_bytes() -> int:
    """Return the bytes that this host has sent."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    counters = next(line for line in lines if "eth0:" in line)
    return int(counters.split(":")[1].split()[8])


def work(algorithm: str, count: int, repeats: int) -> None:
    """Time all_reduce on one of the ranks; rank 0 prints the slowest rank of each repetition."""
    comm = pycomm.init(timeout=120.0)
    x = comm.empty(count)
    seconds, sent = [], []
    for _ in range(repeats + 1):
        x[:] = comm.rank + np.arange(count) % 7
        comm.barrier()
        before = link_bytes()
        comm.barrier()
        start = time.perf_counter()
        comm.all_reduce(x, algorithm=algorithm)
        seconds.append(time.perf_counter() - start)
        comm.barrier()
        sent.append(link_bytes() - before)
    expected = comm.size * (comm.size - 1) // 2 + comm.size * (np.arange(count) % 7)
    wrong = int((x != expected).sum())
    rows = comm.all_gather_object((seconds[1:], sent[1:], wrong))
    if comm.rank == 0:
        slowest = [max(times) for times in zip(*(row[0] for row in rows))]
        most = max(max(row[1]) for row in rows)
        print(json.dumps([slowest, most, sum(row[2] for row in rows)]))


def share(number: int, ranks: int, algorithm: str) -> float:
    """Return what a host sends of S."""
    if find("all_reduce", algorithm).by_host:
        return 2 * (number - 1) / number
    return 2 * (number * ranks - 1) / (number * ranks)


def measure(number: int, ranks: int, algorithm: str, options: argparse.Namespace) -> int:
    """Print one row; return the number of wrong elements."""
    count = options.mib << 18
    with hosts(number, options.rate) as network:
        arguments = ["--work", algorithm, count, options.repeats]
        result = network.mpirun(ranks, "-m", "bench.hosts", *map(str, arguments), timeout=300)
    if result.returncode:
        sys.exit(result.stdout + result.stderr)
    seconds, counted, wrong = json.loads(result.stdout)
    must = share(number, ranks, algorithm) * count * 4
    best, median = min(seconds), statistics.median(seconds)
    need = must / bytes_per_s(options.rate)
    link = counted / bytes_per_s(options.rate)
    print(
        f"{number:5} {ranks:5} {algorithm:13} {must / 2**20:8.1f} {counted / 2**20:8.1f} "
        f"{need * 1e3:8.1f} {link * 1e3:8.1f} {best * 1e3:8.1f} {median * 1e3:8.1f} "
        f"{best / need:7.2f} {best / link:7.2f} {wrong:6}"
    )
    return wrong


def main() -> None:
    """Measure all layouts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", default="1gbit", help="what each host may send: 1gbit, 200mbit")
    parser.add_argument("--mib", type=int, default=64, help="S, of float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", nargs=3, metavar=("ALGORITHM", "COUNT", "REPEATS"))
    options = parser.parse_args()
    if options.work:
        return work(options.work[0], *map(int, options.work[1:]))
    if missing():
        sys.exit(missing())
    print(f"# {platform.machine()}, {platform.release()}, rate {options.rate}, S {options.mib} MiB")
    print("# need: time of the algorithm's bytes; link: of those counted; times in ms")
    print(
        "hosts ranks algorithm          MiB  counted     need     link      min      med "
        "min/need min/link #wrong"
    )
    sys.exit(sum(measure(*layout, options) for layout in LAYOUTS) > 0)


if __name__ == "__main__":
    main()
