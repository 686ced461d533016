"""Asynchronous progress: the collectives of a communicator run in the order of their calls."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from pycomm._native import Waits
from pycomm.work import Task


class Engine:
    """Runs the asynchronous operations of one communicator on a thread of its own.

    The thread starts with the first one, so that communicators without cost nothing; different
    communicators never wait for each other.
    """

    def __init__(self, name: str, note: Callable[[int], None]):
        """`note` is told of every operation: +1 when it is submitted, −1 when it is done."""
        self._name = name
        self._note = note
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._last: Task | None = None
        self._thread: threading.Thread | None = None

    def submit(self, function: Callable[[], Any]) -> Task:
        """Run `function` after all that were submitted before."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._note(1)
        self._last = Task(function)
        self._tasks.put(self._last)
        return self._last

    def busy(self) -> bool:
        """Say whether an operation is waiting or running."""
        if self._last is not None and self._last.has_run:
            self._last = None  # and with it the result
        return self._last is not None

    def close(self) -> None:
        """End the thread once all operations are done."""
        if self._thread is not None:
            self._tasks.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        Waits.leave_out_this_thread()
        while (task := self._tasks.get()) is not None:
            task.run()
            self._note(-1)
            del task
