"""Time and bandwidth over size, every implementation in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench import merge
from bench.merge import Run
from bench.records import Record

_STYLES: dict[str, dict[str, Any]] = {
    "pycomm": {"color": "#0b5fa5", "linewidth": 2.4, "marker": "o", "zorder": 5},
    "pycomm-symmetric": {"color": "#17a2d8", "linewidth": 2.4, "marker": "o", "zorder": 5},
    "pycomm-torch": {"color": "#5b4fb3", "linewidth": 2.0, "marker": "o", "zorder": 4},
    "pycomm-alloc": {"color": "#17a2d8", "linewidth": 2.4, "marker": "o", "zorder": 4},
    "gloo": {"color": "#d1495b", "marker": "s"},
    "deepspeed": {"color": "#8f5fbf", "marker": "^"},
    "limit": {"color": "#555555", "linestyle": "--", "marker": "."},
    "n_in_n_out": {"color": "#555555", "linestyle": "--", "marker": "."},
    "mpi4py-staged": {"color": "#e08e0b", "marker": "D"},
    "copy": {"color": "#555555", "linestyle": "--", "marker": "."},
    "torch": {"color": "#d1495b", "marker": "s"},
    "torch-foreach": {"color": "#8f5fbf", "marker": "^"},
    "cupy": {"color": "#7a9a01", "marker": "D"},
}
_MPI_COLORS = {" XHC": "#7a9a01", "Open MPI": "#e08e0b", "MPICH": "#8c6d46", "": "#c2185b"}


def draw(runs: Sequence[Run], path: Path) -> None:
    """Write a figure with one row of two panels for each operation.

    Args:
        runs: meta records and results; the first run's meta record is the title.
        path: its suffix says the format.
    """
    rows = [where for where in merge.places(runs) if where[0] != "barrier"]
    if not rows:
        return
    figure, axes = plt.subplots(
        len(rows), 2, figsize=(13, 0.9 + 4.6 * len(rows)), squeeze=False, layout="constrained"
    )
    figure.suptitle(_title(runs[0][0]), fontsize=11)
    for (time, bandwidth), where in zip(axes, rows):
        found = merge.curves(runs, where)
        _draw_time(time, found)
        _draw_bandwidth(bandwidth, found)
        time.set_title(_describe(where), loc="left", fontsize=11, fontweight="bold")
        bandwidth.legend(fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _title(meta: dict[str, Any]) -> str:
    crowded = ", more ranks than cores" if meta["oversubscribed"] else ""
    cores = f"{meta['ranks']} ranks on {meta['cores']} cores{crowded}"
    return f"{cores}   |   {meta['machine']}\npycomm at {meta['commit']}, {meta['time'][:10]}"


def _describe(where: tuple) -> str:
    op, dtype, redop, root, place, _ = where
    words = [op, dtype, *([redop] if redop != "none" else [])]
    words += [f"root {root}"] if root >= 0 else []
    return ", ".join([*words, {"in": "in place", "out": "out of place"}[place]])


def _draw_time(axes: Axes, found: dict[str, list[Record]]) -> None:
    for name, points, style in _styled(found):
        sizes = [r.size_bytes for r in points]
        axes.plot(sizes, [r.t_med_us for r in points], label=name, **style)
        low, high = [r.t_q25_us for r in points], [r.t_q75_us for r in points]
        axes.fill_between(sizes, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    axes.set_ylabel("time (µs), median; shaded: quartiles")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda us, _: f"{us:g}"))
    _size_axis(axes, found)


def _draw_bandwidth(axes: Axes, found: dict[str, list[Record]]) -> None:
    for name, points, style in _styled(found):
        sizes = [r.size_bytes for r in points]
        axes.plot(sizes, [r.busbw_gbps for r in points], label=name, **style)
    axes.set_yscale("log")
    axes.set_ylabel("bus bandwidth (GB/s)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda gbps, _: f"{gbps:g}"))
    _size_axis(axes, found)


def _styled(
    found: dict[str, list[Record]],
) -> list[tuple[str, list[Record], dict[str, Any]]]:
    base = {"linewidth": 1.5, "markersize": 4}
    return [(name, points, base | _style(name)) for name, points in found.items()]


def _style(name: str) -> dict[str, Any]:
    color = next(color for part, color in _MPI_COLORS.items() if part in name)
    return _STYLES.get(name) or {"color": color, "marker": "D"}


def _size_axis(axes: Axes, found: dict[str, list[Record]]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=16, numticks=30))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _bytes(size)))
    axes.set_xlabel("size (bytes)")
    axes.grid(True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _bytes(size: float) -> str:
    for unit, name in ((2**30, " Gi"), (2**20, " Mi"), (2**10, " Ki")):
        if size >= unit:
            return f"{size / unit:g}{name}"
    return f"{size:g}"
