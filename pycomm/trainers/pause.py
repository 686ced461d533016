"""Pause: for how long the death of a rank held training up."""

from __future__ import annotations

import logging
import time

_logger = logging.getLogger(__name__)


class Pause:
    """Measures from the last step before ranks died to the first one after.

    That includes the step under way, its repetition, and how long nobody knew of the death.
    """

    def __init__(self) -> None:
        self._done = time.perf_counter()
        self._begun: float | None = None

    def begin(self) -> None:
        """Say that ranks have died."""
        self._begun = time.perf_counter()

    def over(self, step: int, rank: int) -> None:
        """Say that a step is done; if ranks had died before it, rank 0 logs the times."""
        now = time.perf_counter()
        if self._begun is not None and rank == 0:
            _logger.warning(
                "step %d is done: %.2f s after it was known that a rank died, %.2f s after the "
                "last step with it",
                step,
                now - self._begun,
                now - self._done,
            )
        self._done, self._begun = now, None
