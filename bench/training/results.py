"""One flat record a variant and job; as a line of the table, and as bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bench.sampling import Samples
from bench.training.jobs import Job
from bench.training.variants import VARIANTS
from bench.training.variants.alone import NO_SYNC


@dataclass(frozen=True)
class Trained:
    """How one variant trains; bench/README.md says what the fields are."""

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
    wire_bytes: int
    peak_bytes: int | None
    off: float
    wrong: int
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
        model=job.model,
        optimizer=job.rule,
        impl=impl,
        ranks=job.ranks.size,
        mpi=mpi,
        device=job.device,
        gradient_bytes=job.gradient_bytes,
        batch=job.batch,
        wire_bytes=checked.wire_bytes,
        peak_bytes=checked.peak_bytes,
        off=checked.off,
        wrong=checked.wrong,
        **samples.summary(),
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


_WIDTHS = {
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


def titles() -> str:
    """Return the line above the table."""
    return _aligned([f"#{name}" if name == "model" else name for name in _WIDTHS])


def row(r: Trained) -> str:
    """Return one line of the table."""
    times = (f"{us / 1e3:.2f}" for us in (r.t_min_us, r.t_med_us, r.t_p95_us))
    cells = [f" {r.model}", r.optimizer, r.impl, _mb(r.gradient_bytes), str(r.batch), *times]
    cells += [f"{r.iqr_percent:.1f}", _ratio(r.over_no_sync), _ratio(r.vs_best_peer)]
    cells += [_mb(r.wire_bytes), _mb(r.peak_bytes), f"{r.off:.0e}", str(r.wrong)]
    return _aligned([*cells, str(r.slow_rank)])


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _mb(nbytes: int | None) -> str:
    return "-" if nbytes is None else f"{nbytes / 1e6:.1f}"


def _aligned(cells: Iterable[str]) -> str:
    left = ("model", "optimizer", "impl")
    return " ".join(
        cell.ljust(width) if name in left else cell.rjust(width)
        for cell, (name, width) in zip(cells, _WIDTHS.items())
    ).rstrip()
