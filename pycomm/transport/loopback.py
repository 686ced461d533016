"""The wire of a process that is alone, without any MPI: messages to oneself."""

from __future__ import annotations

import os
from collections import defaultdict, deque

import numpy as np

from pycomm.errors import MismatchError
from pycomm.transport.base import Request


class _Sent:
    def test(self) -> bool:
        return True


class _Received:
    def __init__(self, box: deque[np.ndarray], out: np.ndarray):
        self._box = box
        self._out: np.ndarray | None = out

    def test(self) -> bool:
        if self._out is not None and self._box:
            data = self._box.popleft()
            if data.nbytes != self._out.nbytes:
                raise MismatchError(f"{data.nbytes} bytes sent, {self._out.nbytes} received")
            self._out[:] = data
            self._out = None
        return self._out is None


class LoopbackWire:
    """One process; what it sends is copied and waits in a box for each tag."""

    rank = 0
    size = 1
    tags = 2**31

    def __init__(self) -> None:
        self._boxes: defaultdict[int, deque[np.ndarray]] = defaultdict(deque)

    def isend(self, data: np.ndarray, peer: int, tag: int) -> Request:
        """Copy the data into the tag's box."""
        self._boxes[tag].append(data.copy())
        return _Sent()

    def irecv(self, out: np.ndarray, peer: int, tag: int) -> Request:
        """Start to receive the next message in the tag's box."""
        return _Received(self._boxes[tag], out)

    def take(self, tag: int) -> tuple[np.ndarray, int] | None:
        """Return the next message with `tag`; None if there is none."""
        box = self._boxes[tag]
        return (box.popleft(), 0) if box else None

    def abort(self, code: int) -> None:
        """End the process."""
        os._exit(code)

    def close(self) -> None:
        """Nothing is held."""
