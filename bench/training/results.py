"""One flat record a variant and job of data parallelism, and its line of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.sampling import Samples
from bench.training.jobs import Job
from bench.training.timed import Timed, aligned, megabytes, ratio, timed, times
from bench.training.variants import VARIANTS
from bench.training.variants.alone import NO_SYNC


@dataclass(frozen=True)
class Trained(Timed):
    """How one variant trains; bench/README.md says what the fields are."""

    wire_bytes: int
    peak_bytes: int | None
    over_no_sync: float | None = None
    vs_best_peer: float | None = None


@dataclass(frozen=True)
class Checked:
    """What is known of a variant before it is timed, the largest of all ranks' numbers."""

    off: float
    wrong: int
    wire_bytes: int
    peak_bytes: int | None


def trained(job: Job, impl: str, mpi: str, checked: Checked, samples: Samples) -> Trained:
    """Summarize the samples of one variant."""
    return Trained(
        **timed(job, impl, mpi, checked.off, checked.wrong, samples),
        wire_bytes=checked.wire_bytes,
        peak_bytes=checked.peak_bytes,
    )


def compared(found: Sequence[Trained]) -> list[Trained]:
    """Return records of one job with their ratios to no synchronisation and to the best peer."""
    alone = [r.t_med_us for r in found if r.impl == NO_SYNC]
    peers = [r.t_med_us for r in found if VARIANTS[r.impl].competes]
    return [
        replace(
            r,
            over_no_sync=r.t_med_us / alone[0] if alone else None,
            vs_best_peer=min(peers) / r.t_med_us if peers else None,
        )
        for r in found
    ]


WIDTHS = {
    "model": 8,
    "optimizer": 9,
    "impl": 16,
    "grad(MB)": 9,
    "batch": 5,
    "t_min": 9,
    "t_med": 9,
    "t_p95(ms)": 9,
    "iqr%": 6,
    "over_no_sync": 12,
    "vs_best_peer": 12,
    "wire(MB)": 9,
    "peak(MB)": 9,
    "off": 8,
    "#wrong": 6,
    "slow_rank": 9,
}
"""The columns of the table."""


def row(r: Trained) -> str:
    """Return one line of the table."""
    cells = [f" {r.model}", r.optimizer, r.impl, megabytes(r.gradient_bytes), str(r.batch)]
    cells += [*times(r), ratio(r.over_no_sync), ratio(r.vs_best_peer)]
    cells += [megabytes(r.wire_bytes), megabytes(r.peak_bytes), f"{r.off:.0e}", str(r.wrong)]
    return aligned([*cells, str(r.slow_rank)], WIDTHS)
