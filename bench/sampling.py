"""Takes samples: batches long enough for the clock, all implementations in turn, max over ranks."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.ranks import Ranks
from bench.verify import Batch

_MOST_OPERATIONS = 100_000
_LEAST_SAMPLES, _MOST_SAMPLES = 10, 2_000


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        sample_us: a sample is of as many operations back to back as take this long.
        seconds: to spend on each implementation and size.
        iterations: the number of samples, instead of `seconds`.
        trials: of how many samples the fastest says how long an operation takes.
    """

    sample_us: float
    seconds: float
    iterations: int | None = None
    trials: int = 5


@dataclass(frozen=True)
class Samples:
    """The times of one operation of one implementation.

    Attributes:
        batch: operations in a sample.
        per_rank_us: (ranks, samples), the mean over the batch.
    """

    batch: int
    per_rank_us: np.ndarray

    @property
    def slowest_us(self) -> np.ndarray:
        """(samples,): an operation is over when it is over on every rank."""
        return self.per_rank_us.max(axis=0)

    @property
    def slow_rank(self) -> int:
        """The rank with the largest median."""
        return int(np.median(self.per_rank_us, axis=1).argmax())

    def summary(self) -> dict[str, float]:
        """Return what every record says of its samples."""
        low, median, high = map(self.quantile_us, (0.25, 0.5, 0.75))
        return {
            "samples": self.slowest_us.size,
            "t_min_us": self.quantile_us(0),
            "t_q25_us": low,
            "t_med_us": median,
            "t_q75_us": high,
            "t_p95_us": self.quantile_us(0.95),
            "iqr_percent": 100 * (high - low) / median,
            "slow_rank": self.slow_rank,
        }

    def quantile_us(self, q: float) -> float:
        """Return a quantile of the samples; 0 is the smallest, 0.5 the median."""
        return float(np.quantile(self.slowest_us, q))


def collect(
    batches: Mapping[str, Batch], trips: int, ranks: Ranks, plan: Plan
) -> dict[str, Samples]:
    """Measure implementations in turn, A B A B …; collective, in the same order on all ranks.

    Each sample comes after one operation that is not timed, which leaves the caches as the
    implementation leaves them, and after a barrier. Times stay with their rank until the end.
    """
    sizes, times_us = {}, {}
    for name, batch in batches.items():
        sizes[name], times_us[name] = _calibrate(batch, ranks, plan)
    rounds = _rounds(sum(times_us.values()), len(batches), plan)
    elapsed_ns = np.empty((len(batches), rounds), np.int64)
    gc.collect()
    gc.disable()
    try:
        for sample in range(rounds):
            for row, (name, batch) in enumerate(batches.items()):
                elapsed_ns[row, sample] = _sample(batch, sizes[name], ranks)
    finally:
        gc.enable()
    all_ns = ranks.stacked(elapsed_ns)
    return {
        name: Samples(sizes[name], all_ns[:, row] / (1e3 * trips * sizes[name]))
        for row, name in enumerate(batches)
    }


def _sample(batch: Batch, operations: int, ranks: Ranks) -> int:
    batch(1)
    ranks.barrier()
    start = time.perf_counter_ns()
    batch(operations)
    return time.perf_counter_ns() - start


def _calibrate(batch: Batch, ranks: Ranks, plan: Plan) -> tuple[int, float]:
    """Return how many operations make a sample, and how long it takes in microseconds."""
    operations = 1
    while True:
        fastest_ns = min(_sample(batch, operations, ranks) for _ in range(plan.trials))
        took_us = ranks.largest(fastest_ns / 1e3)
        if took_us >= plan.sample_us or operations == _MOST_OPERATIONS:
            return operations, took_us
        wanted = math.ceil(operations * min(10.0, 1.1 * plan.sample_us / took_us))
        operations = min(wanted, _MOST_OPERATIONS)


def _rounds(round_us: float, implementations: int, plan: Plan) -> int:
    if plan.iterations is not None:
        return plan.iterations
    fitting = int(plan.seconds * 1e6 * implementations / round_us)
    return min(max(fitting, _LEAST_SAMPLES), _MOST_SAMPLES)
