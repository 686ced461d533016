"""Of each model and optimizer: the time of a step, what ranks idle, and what they keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.training.drawing import bars, title
from bench.training.pipelined import Pipelined
from bench.training.variants.one_process import ONE_PROCESS, THREADS

_ALONE = (*ONE_PROCESS, THREADS)


def draw(meta: dict[str, Any], found: Sequence[Pipelined], path: Path) -> None:
    """Draw a row of three panels for each job."""
    jobs = list(dict.fromkeys((r.model, r.optimizer) for r in found))
    size = (13, 0.8 + 3.0 * len(jobs))
    figure, axes = plt.subplots(len(jobs), 3, figsize=size, squeeze=False, layout="constrained")
    figure.suptitle(title(meta), fontsize=10)
    for (model, optimizer), (times, idle, kept) in zip(jobs, axes):
        those = [r for r in found if (r.model, r.optimizer) == (model, optimizer)]
        _times(times, those)
        _idle(idle, [r for r in those if r.impl not in _ALONE])
        _kept(kept, those)
        times.set_title(f"{model}, {optimizer}", loc="left", fontsize=10, fontweight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _times(plot: Axes, found: Sequence[Pipelined]) -> None:
    bars(plot, found, lambda r: r.over_one_process, dark=_ALONE)
    bound_ms = found[0].bound_us / 1e3
    plot.axvline(bound_ms, color="#222222", linestyle="--", linewidth=1)
    plot.set_xlabel("ms, median; lines: quartiles; dashed: (m + p − 1) · t", fontsize=8)


def _idle(plot: Axes, found: Sequence[Pipelined]) -> None:
    _by_rank(plot, found, [r.idle_percent for r in found])
    for at, r in enumerate(found):
        plot.plot([r.bubble_percent] * 2, [at - 0.4, at + 0.4], color="#222222", linestyle="--")
    plot.set_xlabel("% of a step that each rank does not compute; dashed: on paper", fontsize=8)


def _kept(plot: Axes, found: Sequence[Pipelined]) -> None:
    _by_rank(plot, found, [[n / 1e6 for n in r.activation_bytes] for r in found])
    plot.set_xlabel("MB kept for backward at most, by rank", fontsize=8)


def _by_rank(plot: Axes, found: Sequence[Pipelined], rows: Sequence[Sequence[float]]) -> None:
    """Draw thin bars, one for each rank, rank 0 on top and darkest."""
    ranks = len(rows[0]) if rows else 1
    shades = plt.get_cmap("Blues_r")
    for at, row in enumerate(rows):
        for rank, value in enumerate(row):
            top = at - 0.35 + 0.7 * (rank + 0.5) / ranks
            plot.barh(top, value, height=0.7 / ranks, color=shades(0.1 + 0.6 * rank / ranks))
    plot.set_yticks(range(len(found)), [r.impl for r in found], fontsize=8)
    plot.invert_yaxis()
    plot.spines[["top", "right"]].set_visible(False)
