"""What communication cost a rank so far: seconds, of them idle, and bytes sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stats:
    """Counters of one communicator on one rank.

    Attributes:
        busy_s: seconds that callers spent inside operations.
        idle_s: seconds of these spent waiting for other ranks.
        bytes_sent: bytes that this rank passed to others.
        operations: how many were completed.
    """

    busy_s: float = 0.0
    idle_s: float = 0.0
    bytes_sent: int = 0
    operations: int = 0
    _caller: int | None = field(default=None, repr=False)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the body's time as busy, and waiting in it as idle."""
        start, self._caller = time.perf_counter(), threading.get_ident()
        try:
            yield
        finally:
            self._caller = None
            self.busy_s += time.perf_counter() - start

    def add_idle(self, seconds: float) -> None:
        """Count waiting, if it is a caller that waits and not an engine's thread."""
        if self._caller == threading.get_ident():
            self.idle_s += seconds
