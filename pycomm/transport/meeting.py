"""Where the hosts of all ranks meet in a call of device arrays: it begins, goes on, or fails."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np


class Meeting(Protocol):
    """One call; every method is collective, and raises on every rank if it does on one.

    What was enqueued before a meeting, above all that an event was recorded, is known to be so on
    all ranks after it.
    """

    def open(self, row: np.ndarray) -> np.ndarray:
        """Return every rank's `row`, once all of them made the same call.

        Raises:
            MismatchError: they did not.
        """

    def gather(self, row: np.ndarray) -> np.ndarray:
        """Return every rank's `row`; all have the same length."""

    def meet(self) -> None:
        """Return when all ranks are here.

        Raises:
            CommError: something failed on a rank since the last meeting.
        """

    def told(self) -> AbstractContextManager[None]:
        """Return a context: what it raises here is raised by the next `meet`, on all ranks."""

    @property
    def has_failed(self) -> bool:
        """Whether `check` raises."""

    def check(self) -> None:
        """Raise what failed on this rank since the last meeting."""
