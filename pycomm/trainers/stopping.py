"""Stopping when asked from outside: by a signal to a rank, or to the launcher that passes it on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Says whether any rank was asked to stop.

    Attributes:
        asked: whether this one was.
    """

    def __init__(self, comm: Communicator):
        self._comm = comm
        self.asked = False

    @contextmanager
    def on_signals(self, on: bool) -> Iterator[None]:
        """Let SIGTERM and SIGUSR1 ask, instead of ending the process; in the main thread only.

        Without `on`, nothing changes.
        """
        if not on or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def agreed(self) -> bool:
        """Say, the same on all ranks, whether any was asked; every rank must call this."""
        asked = np.array([self.asked], np.uint8)
        return bool(self._comm.all_reduce(asked, op="max")[0])

    def _ask(self, *_: Any) -> None:
        self.asked = True
