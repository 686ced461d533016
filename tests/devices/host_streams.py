"""Streams and events of the device's double: a stream is a thread with random delays."""

from __future__ import annotations

import queue
import random
import struct
import threading
import time
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from tests.devices.shared_pages import Pages, create_pages, open_pages

_PATIENCE_S = 30.0
_LOOK_S = 20e-6
_SHARED_EVENTS = 4096
_PLACE = struct.Struct("<24sq")


class HostStream:
    """Does what is enqueued, in order, on a thread of its own, now and then after a delay.

    Attributes:
        captured: if not None, work is noted there instead.
    """

    def __init__(self, seed: int, delay_s: float):
        self.delay_s = delay_s
        self.failure: BaseException | None = None
        self.captured: list[Callable[[], None]] | None = None
        self._random = random.Random(seed)
        self._enqueued = self._done = 0
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True, name=f"stream-{seed}").start()

    def put(self, work: Callable[[], None]) -> None:
        """Enqueue `work`, and return at once."""
        if self.captured is not None:
            self.captured.append(work)
        else:
            self._enqueued += 1
            self._work.put(work)

    @property
    def idle(self) -> bool:
        """Whether all that was enqueued is done, and nothing failed."""
        return self._done == self._enqueued and self.failure is None

    def end(self) -> None:
        """End the thread once it has done all work."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            if self.delay_s and self._random.random() < 0.5:
                time.sleep(self._random.random() * self.delay_s)
            try:
                work()
            except BaseException as error:
                self.failure = self.failure or error
            self._done += 1


class HostEvent:
    """Two counters in shared memory: how often it was recorded, and how much of that is done.

    Records on several streams must follow each other; `disorder` tells of those of this process
    that did not.
    """

    disorder: ClassVar[list[str]] = []

    def __init__(self, pages: Pages, place: int):
        counters = pages.bytes[16 * place : 16 * place + 16].view(np.int64)
        self._recorded, self._done = counters[:1], counters[1:]
        self.handle = _PLACE.pack(pages.handle, place)

    @classmethod
    def opened(cls, handle: bytes) -> HostEvent:
        """Open another process's event."""
        pages, place = _PLACE.unpack(handle[: _PLACE.size])
        return cls(open_pages(pages), place)

    def record(self, stream: HostStream) -> None:
        """Stand for what is on the stream now."""
        self._recorded[0] += 1
        number = int(self._recorded[0])
        stream.put(lambda: self._finish(number))

    def wait(self, stream: HostStream) -> None:
        """Let the stream wait for what was recorded until now: nothing, if nothing was."""
        number = int(self._recorded[0])
        stream.put(lambda: self._await(number))

    def query(self) -> bool:
        """Say whether all that was recorded is done."""
        return bool(self._done[0] >= self._recorded[0])

    def synchronize(self) -> None:
        """Wait for all that was recorded until now."""
        self._await(int(self._recorded[0]))

    def _finish(self, number: int) -> None:
        before = int(self._done[0])
        self._done[0] = max(number, before)
        if number > before + 1:
            self.disorder.append(f"record {number} of an event is done after {before}")

    def _await(self, number: int) -> None:
        end = time.monotonic() + _PATIENCE_S
        while self._done[0] < number:
            if time.monotonic() > end:
                raise TimeoutError(f"an event was not done within {_PATIENCE_S} s")
            time.sleep(_LOOK_S)


class HostEvents:
    """The events of a process: those that it shares lie in memory that others can map."""

    def __init__(self) -> None:
        self._pages = create_pages(16 * _SHARED_EVENTS)
        self._next = 0

    def take(self, shared: bool) -> HostEvent:
        """Return an event that was never recorded."""
        if not shared:
            counters = np.zeros(16, np.uint8)
            return HostEvent(Pages(counters, counters.ctypes.data, b""), 0)
        assert self._next < _SHARED_EVENTS, "the double has no more events to share"
        self._next += 1
        return HostEvent(self._pages, self._next - 1)
