"""Brings runs together: XHC is a second launch, MPICH another environment."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from bench.peers import PEERS
from bench.records import Record

Run = tuple[dict[str, Any], list[Record]]
"""What one JSON file has: its meta record and its results."""


def label(record: Record) -> str:
    """Return what a curve is called: MPI by its library, which differs from run to run."""
    return record.mpi if record.impl == "mpi4py" else record.impl


def curves(runs: Sequence[Run], where: tuple) -> dict[str, list[Record]]:
    """Return the points of every implementation by size; of each, those of the first run with it.

    Args:
        runs: in order of precedence.
        where: which curves, see Record.where.
    """
    found: dict[str, list[Record]] = {}
    for _, records in runs:
        by_label: dict[str, list[Record]] = {}
        for record in records:
            if record.where == where:
                by_label.setdefault(label(record), []).append(record)
        for name, points in by_label.items():
            found.setdefault(name, sorted(points, key=lambda r: r.size_bytes))
    return found


def places(runs: Sequence[Run]) -> list[tuple]:
    """Return every Record.where of the runs, in order of appearance."""
    return list(dict.fromkeys(record.where for _, records in runs for record in records))


def competes(record: Record) -> bool:
    """Say whether a record is of an implementation to be faster than."""
    return record.impl in PEERS and PEERS[record.impl].competes


def limits(record: Record) -> bool:
    """Say whether a record is what the machine allows."""
    return record.impl in PEERS and not PEERS[record.impl].verified


def ratios(
    runs: Sequence[Run], where: tuple, impl: str, others: Callable[[Record], bool] = competes
) -> dict[int, tuple[str, float]]:
    """Return size → (the fastest of the others, its time over impl's).

    Runs are paired: a ratio is of two that took turns in one run.
    """
    best: dict[int, tuple[str, float]] = {}
    for _, records in runs:
        here = [r for r in records if r.where == where]
        own = {r.size_bytes: r.t_med_us for r in here if r.impl == impl}
        for other in (r for r in here if others(r) and r.size_bytes in own):
            ratio = other.t_med_us / own[other.size_bytes]
            if ratio < best.get(other.size_bytes, ("", math.inf))[1]:
                best[other.size_bytes] = (label(other), ratio)
    return dict(sorted(best.items()))


def table(runs: Sequence[Run]) -> list[str]:
    """Return lines that say, for every size, who comes closest to pycomm, and how far it is."""
    lines = [
        f"{'op':<16}{'ranks':>5}  {'impl':<18}{'size(B)':>12}  {'other':<22}{'other/impl':>12}"
    ]
    for where in places(runs):
        for impl in (name for name in PEERS if name.startswith("pycomm")):
            ahead = ratios(runs, where, impl)
            rows = [(str(size), *found) for size, found in ahead.items()]
            if ahead:
                mean = statistics.geometric_mean(ratio for _, ratio in ahead.values())
                rows.append(("all", "geometric mean", mean))
            limit = ratios(runs, where, impl, limits)
            rows += [(str(size), *found) for size, found in limit.items()]
            lines += [
                _line(where[0], str(where[-1]), impl, size, other, f"{ratio:.2f}")
                for size, other, ratio in rows
            ]
    return lines


def _line(op: str, ranks: str, impl: str, size: str, other: str, ratio: str) -> str:
    return f"{op:<16}{ranks:>5}  {impl:<18}{size:>12}  {other:<22}{ratio:>12}"
