"""One flat record a variant and job of model parallelism, and its line of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.sampling import Samples
from bench.training.jobs import PipelineJob
from bench.training.timed import Timed, aligned, ratio, timed, times
from bench.training.variants import VARIANTS
from bench.training.variants.one_process import ONE_PROCESS


@dataclass(frozen=True)
class Pipelined(Timed):
    """How one variant trains a model in parts; bench/README.md says what the fields are."""

    microbatches: int
    part_bytes: list[int]
    activation_bytes: list[int]
    bubble_percent: float
    idle_percent: list[float]
    bound_us: float
    over_bound: float
    over_one_process: float | None = None
    vs_best_peer: float | None = None


@dataclass(frozen=True)
class Checked:
    """What a rank knows of a variant after its first steps."""

    off: float
    wrong: int
    part_bytes: int


@dataclass(frozen=True)
class Known:
    """What is known of a variant before it is timed; lists are by rank."""

    off: float
    wrong: int
    part_bytes: list[int]
    activation_bytes: list[int]
    idle_percent: list[float]


def pipelined(
    job: PipelineJob, impl: str, mpi: str, known: Known, samples: Samples, bound_us: float
) -> Pipelined:
    """Summarize the samples of one variant."""
    bubble = VARIANTS[impl].bubble(job.ranks.size, job.microbatches)
    common = timed(job, impl, mpi, known.off, known.wrong, samples)
    return Pipelined(
        **common,
        microbatches=job.microbatches,
        part_bytes=known.part_bytes,
        activation_bytes=known.activation_bytes,
        bubble_percent=100 * bubble,
        idle_percent=known.idle_percent,
        bound_us=bound_us,
        over_bound=common["t_med_us"] / bound_us,
    )


def compared(found: Sequence[Pipelined]) -> list[Pipelined]:
    """Return records of one job with their ratios to one process and to the best peer."""
    alone = [r.t_med_us for r in found if r.impl in ONE_PROCESS]
    peers = [r.t_med_us for r in found if VARIANTS[r.impl].competes]
    return [
        replace(
            r,
            over_one_process=r.t_med_us / min(alone) if alone else None,
            vs_best_peer=min(peers) / r.t_med_us if peers else None,
        )
        for r in found
    ]


WIDTHS = {
    "model": 14,
    "optimizer": 9,
    "impl": 19,
    "batch": 5,
    "t_min": 8,
    "t_med": 8,
    "t_p95(ms)": 9,
    "iqr%": 6,
    "over_one_process": 16,
    "vs_best_peer": 12,
    "over_bound": 10,
    "bubble%": 7,
    "idle%": 11,
    "parts(MB)": 15,
    "activations(MB)": 19,
    "off": 6,
    "#wrong": 6,
    "slow_rank": 9,
}
"""The columns of the table."""


def row(r: Pipelined) -> str:
    """Return one line of the table; numbers of ranks are joined by slashes."""
    cells = [f" {r.model}", r.optimizer, r.impl, f"{r.microbatches}×{r.batch}", *times(r)]
    cells += [ratio(r.over_one_process), ratio(r.vs_best_peer), ratio(r.over_bound)]
    cells += [f"{r.bubble_percent:.1f}", _each(r.idle_percent, 0)]
    cells += [_each([n / 1e6 for n in sizes], 1) for sizes in (r.part_bytes, r.activation_bytes)]
    return aligned([*cells, f"{r.off:.0e}", str(r.wrong), str(r.slow_rank)], WIDTHS)


def _each(numbers: Sequence[float], digits: int) -> str:
    return "/".join(f"{number:.{digits}f}" for number in numbers)
