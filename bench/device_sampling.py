"""Times work on a GPU: batches of launches between two events, all implementations in turn."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np

from bench.device import Device
from bench.sampling import Plan, Samples

Use = Callable[[int], object]
"""One launch, or what takes its place, on the buffers of a set."""

_MOST_LAUNCHES = 500
_LEAST_SAMPLES, _MOST_SAMPLES = 10, 300
_OVERHEAD_LAUNCHES, _OVERHEAD_ROUNDS = 200, 15


class Turns:
    """An implementation that goes round the sets, one after the other."""

    def __init__(self, device: Device, use: Use, sets: int):
        self._device, self._use, self._sets, self._next = device, use, sets, 0

    def sample_us(self, launches: int) -> float:
        """Return the time of so many launches back to back."""
        return self._device.elapsed_us(lambda: self._launch(launches))

    def _launch(self, launches: int) -> None:
        for k in range(self._next, self._next + launches):
            self._use(k % self._sets)
        self._next = (self._next + launches) % self._sets


def collect(device: Device, uses: Mapping[str, Use], sets: int, plan: Plan) -> dict[str, Samples]:
    """Measure implementations in turn, A B A B …, each sample on sets that it has not just used."""
    turns = {name: Turns(device, use, sets) for name, use in uses.items()}
    batches, round_us = {}, 0.0
    for name, turn in turns.items():
        batches[name], took_us = _calibrated(turn, plan.sample_us)
        round_us += took_us
    rounds = plan.iterations or _rounds(round_us, len(turns), plan.seconds)
    times: dict[str, list[float]] = {name: [] for name in turns}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, turn in turns.items():
                times[name].append(turn.sample_us(batches[name]) / batches[name])
    finally:
        gc.enable()
    return {name: Samples(batches[name], np.array(times[name])[None]) for name in turns}


def _calibrated(turn: Turns, sample_us: float) -> tuple[int, float]:
    """Return how many launches make a sample, and how long it takes in microseconds."""
    turn.sample_us(3)  # compiles, loads, allocates
    one_us = max(0.1, min(turn.sample_us(3) / 3 for _ in range(3)))
    launches = min(_MOST_LAUNCHES, max(1, math.ceil(sample_us / one_us)))
    return launches, launches * one_us


def _rounds(round_us: float, implementations: int, seconds: float) -> int:
    fitting = int(seconds * 1e6 * implementations / round_us)
    return min(max(fitting, _LEAST_SAMPLES), _MOST_SAMPLES)


def overhead_us(device: Device, use: Callable[[], object]) -> float:
    """Return the time that a call takes before it returns, while nothing waits for the device."""
    times = []
    for _ in range(_OVERHEAD_ROUNDS):
        device.synchronize()
        start = time.perf_counter_ns()
        for _ in range(_OVERHEAD_LAUNCHES):
            use()
        times.append((time.perf_counter_ns() - start) / 1e3 / _OVERHEAD_LAUNCHES)
    device.synchronize()
    return statistics.median(times)
