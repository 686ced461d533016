"""Bars of the time of a step, a panel for each model and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.training.results import Trained
from bench.training.timed import Timed
from bench.training.variants import VARIANTS
from bench.training.variants.alone import NO_SYNC

R = TypeVar("R", bound=Timed)


def draw(meta: dict[str, Any], found: Sequence[Trained], path: Path) -> None:
    """Draw a panel of bars for each job: the median, its quartiles, and the ratio to no-sync."""
    jobs = list(dict.fromkeys((r.model, r.optimizer) for r in found))
    rows = list(dict.fromkeys(optimizer for _, optimizer in jobs))
    columns = list(dict.fromkeys(model for model, _ in jobs))
    size = (3.8 * len(columns), 0.8 + 2.4 * len(rows))
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=size, squeeze=False, layout="constrained"
    )
    figure.suptitle(title(meta), fontsize=10)
    for (model, optimizer), plot in zip(
        ((m, o) for o in rows for m in columns), (a for line in axes for a in line)
    ):
        those = [r for r in found if (r.model, r.optimizer) == (model, optimizer)]
        bars(plot, those, lambda r: r.over_no_sync, dark=[NO_SYNC])
        plot.set_title(f"{model}, {optimizer}", loc="left", fontsize=10, fontweight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def title(meta: dict[str, Any]) -> str:
    """Return what is above all panels: the machine, and when."""
    where = f"{meta['ranks']} ranks on {meta['cores']} cores   |   {meta['machine']}"
    gpu = f"\nGPUs: {meta['gpu']}" if meta["gpu"] else ""
    return f"time of a step{gpu}   |   {where}\npycomm at {meta['commit']}, {meta['time'][:10]}"


def bars(
    plot: Axes, found: Sequence[R], ratio: Callable[[R], float | None], dark: Sequence[str]
) -> None:
    """Draw a bar for each record: the median with its quartiles, and a ratio written into it.

    Args:
        plot: where.
        found: the records of one job.
        ratio: what is written.
        dark: the variants that others are compared with.
    """
    colors = dict.fromkeys(dark, "#555555")
    colors |= {n: "#d1495b" for n, v in VARIANTS.items() if v.competes}
    for at, r in enumerate(found):
        ms = [us / 1e3 for us in (r.t_q25_us, r.t_med_us, r.t_q75_us)]
        spread = [[ms[1] - ms[0]], [ms[2] - ms[1]]]
        plot.barh(at, ms[1], xerr=spread, color=colors.get(r.impl, "#0b5fa5"), height=0.7)
        if (value := ratio(r)) is not None:
            plot.text(0, at, f" {value:.2f}×", va="center", color="white", fontsize=8)
    plot.set_yticks(range(len(found)), [r.impl for r in found], fontsize=8)
    plot.invert_yaxis()
    plot.set_xlabel("ms, median; lines: quartiles", fontsize=8)
    plot.spines[["top", "right"]].set_visible(False)
