"""Where a rank's time in a pipeline goes: computing, waiting for others, moving data."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Times:
    """Seconds of one rank, of one step or of several added up.

    On a GPU these are the host's: it goes on while the GPU computes.

    Attributes:
        computing_s: by stage.
        waiting_s: by the rank whose data were waited for.
        transferring_s: of sending, and of receiving what was there already.
        ending_s: of waiting for all ranks at the end of a step.
    """

    def __init__(self) -> None:
        self.computing_s: defaultdict[int, float] = defaultdict(float)
        self.waiting_s: defaultdict[int, float] = defaultdict(float)
        self.transferring_s = self.ending_s = 0.0

    @contextmanager
    def computing(self, stage: int) -> Iterator[None]:
        """Count the body as computing of a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.computing_s[stage] += time.perf_counter() - start

    @contextmanager
    def waiting(self, rank: int) -> Iterator[None]:
        """Count the body as waiting for a rank."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.waiting_s[rank] += time.perf_counter() - start

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Count the body as waiting for all ranks."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.ending_s += time.perf_counter() - start

    @contextmanager
    def transferring(self) -> Iterator[None]:
        """Count the body as moving data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.transferring_s += time.perf_counter() - start

    def add(self, other: Times) -> None:
        """Add the times of a step."""
        for stage, seconds in other.computing_s.items():
            self.computing_s[stage] += seconds
        for rank, seconds in other.waiting_s.items():
            self.waiting_s[rank] += seconds
        self.transferring_s += other.transferring_s
        self.ending_s += other.ending_s

    @property
    def idle_s(self) -> float:
        """Seconds of waiting for others."""
        return sum(self.waiting_s.values()) + self.ending_s

    @property
    def total_s(self) -> float:
        """Seconds of all of it."""
        return sum(self.computing_s.values()) + self.idle_s + self.transferring_s
