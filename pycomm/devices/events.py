"""The events by which ranks order their streams: each rank's own, and those of its peers."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

from pycomm.devices.base import Runtime, Stream

_ROW_BYTES = 1024


class OwnEvents:
    """Two events for sources that are there, and two for rounds that are done; of this rank alone.

    Round k uses those of k mod 2.

    Args:
        shared: whether other processes can open them.
    """

    def __init__(self, runtime: Runtime, shared: bool = False):
        self._runtime = runtime
        self._own = [runtime.event(shared=shared) for _ in range(4)]
        self._all: list[list[Any]] = [self._own]

    def source_ready(self, k: int, stream: Stream) -> None:
        """Record that this rank's source of round k is there."""
        self._runtime.record(self._own[k % 2], stream)

    def round_done(self, k: int, stream: Stream) -> None:
        """Record that this rank's part of round k is done."""
        self._runtime.record(self._own[2 + k % 2], stream)

    def wait_for_sources(self, k: int, stream: Stream) -> None:
        """Let the stream wait for all sources of round k."""
        for events in self._all:
            self._runtime.wait(stream, events[k % 2])

    def wait_for_round(self, k: int, stream: Stream) -> None:
        """Let the stream wait for all parts of round k."""
        for events in self._all:
            self._runtime.wait(stream, events[2 + k % 2])


class Events(OwnEvents):
    """The same of every rank: before a stream waits for them, all ranks must have met.

    A rank records one anew only after a meeting that its peers come to when their streams wait for
    it already.
    """

    def __init__(self, runtime: Runtime, rank: int):
        super().__init__(runtime, shared=True)
        self._rank = rank

    def row(self) -> np.ndarray:
        """Return what peers need: (1024,) of uint8."""
        handles = [self._runtime.handle_of(event) for event in self._own]
        data = pickle.dumps((self._runtime.identity, handles))
        return np.frombuffer(data.ljust(_ROW_BYTES, b"\0"), np.uint8)

    def connect(self, rows: np.ndarray) -> list[str]:
        """Open the events of all ranks; return the physical GPU of each."""
        known = [pickle.loads(row.tobytes()) for row in rows]
        self._all = [
            self._own if rank == self._rank else list(map(self._runtime.open_event, handles))
            for rank, (_, handles) in enumerate(known)
        ]
        return [identity for identity, _ in known]
