"""The fields that every record of a training step has, and how a line of a table is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.sampling import Samples
from bench.training.jobs import Job

LEFT = ("model", "optimizer", "impl")
"""Columns of words."""


@dataclass(frozen=True)
class Timed:
    """How long a step of one variant takes, and whether it is right."""

    model: str
    optimizer: str
    impl: str
    ranks: int
    mpi: str
    device: str
    gradient_bytes: int
    batch: int
    samples: int
    t_min_us: float
    t_q25_us: float
    t_med_us: float
    t_q75_us: float
    t_p95_us: float
    iqr_percent: float
    slow_rank: int
    off: float
    wrong: int


def timed(
    job: Job, impl: str, mpi: str, off: float, wrong: int, samples: Samples
) -> dict[str, Any]:
    """Return the fields of Timed from the samples of one variant."""
    return {
        "model": job.model,
        "optimizer": job.rule,
        "impl": impl,
        "ranks": job.ranks.size,
        "mpi": mpi,
        "device": job.device,
        "gradient_bytes": job.gradient_bytes,
        "batch": job.batch,
        "off": off,
        "wrong": wrong,
        **samples.summary(),
    }


def titles(widths: Mapping[str, int]) -> str:
    """Return the line above a table with these columns."""
    return aligned([f"#{name}" if name == "model" else name for name in widths], widths)


def times(r: Timed) -> list[str]:
    """Return the cells t_min, t_med, t_p95(ms) and iqr%."""
    cells = [f"{us / 1e3:.2f}" for us in (r.t_min_us, r.t_med_us, r.t_p95_us)]
    return [*cells, f"{r.iqr_percent:.1f}"]


def ratio(value: float | None) -> str:
    """Return the cell of a ratio."""
    return "-" if value is None else f"{value:.3f}"


def megabytes(nbytes: int | None) -> str:
    """Return the cell of a size."""
    return "-" if nbytes is None else f"{nbytes / 1e6:.1f}"


def aligned(cells: Iterable[str], widths: Mapping[str, int]) -> str:
    """Return one line of a table."""
    return " ".join(
        cell.ljust(width) if name in LEFT else cell.rjust(width)
        for cell, (name, width) in zip(cells, widths.items())
    ).rstrip()
