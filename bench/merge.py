"""Brings runs together: XHC is a second launch, MPICH another environment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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


def ratios(runs: Sequence[Run], where: tuple, impl: str) -> dict[int, tuple[str, float]]:
    """Return size → (best peer, its time over impl's), each ratio within one run.

    Runs are paired: a peer is only ever compared with what ran in turn with it.
    """
    best: dict[int, tuple[str, float]] = {}
    for _, records in runs:
        here = [r for r in records if r.where == where]
        own = {r.size_bytes: r.t_med_us for r in here if r.impl == impl}
        for peer in (r for r in here if competes(r) and r.size_bytes in own):
            ratio = peer.t_med_us / own[peer.size_bytes]
            if ratio < best.get(peer.size_bytes, ("", math.inf))[1]:
                best[peer.size_bytes] = (label(peer), ratio)
    return dict(sorted(best.items()))


def geometric_mean(values: Iterable[float]) -> float:
    """Return it."""
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


def table(runs: Sequence[Run]) -> list[str]:
    """Return lines that say, for every size, which peer is best and how far behind pycomm."""
    lines = []
    for where in places(runs):
        op, dtype, redop, _, place, ranks = where
        lines.append(f"# {op} {dtype} {redop} {place}, {ranks} ranks")
        lines.append(f"{'impl':<18}{'size(B)':>12}  {'best peer':<24}{'times ahead':>12}")
        for impl in (name for name, cls in PEERS.items() if not cls.competes):
            found = ratios(runs, where, impl)
            for size, (peer, ratio) in found.items():
                lines.append(f"{impl:<18}{size:>12}  {peer:<24}{ratio:>12.2f}")
            if found and impl != "limit":
                mean = geometric_mean(ratio for _, ratio in found.values())
                lines.append(f"{impl:<18}{'all':>12}  {'geometric mean':<24}{mean:>12.2f}")
    return lines
