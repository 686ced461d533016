"""The wire of a process that is alone, without any MPI."""

from __future__ import annotations

import os

import numpy as np

from pycomm.errors import CommError
from pycomm.transport.wire import WireRequest


class LoopbackWire:
    """One process: there is nobody to send to, and messages to oneself need no wire."""

    rank = 0
    size = 1
    tags = 2**31
    library = "no MPI"
    threads = "none"
    outlives = False
    takes_gpus = False

    def isend(self, data: np.ndarray, peer: int, tag: int) -> WireRequest:
        """Raise: no other process exists."""
        raise CommError(f"cannot send to process {peer}: this process is alone")

    def irecv(self, out: np.ndarray, peer: int, tag: int) -> WireRequest:
        """Raise: no other process exists."""
        raise CommError(f"cannot receive from process {peer}: this process is alone")

    def take(self, tag: int) -> None:
        """Return None: no message ever comes."""
        return None

    def failed(self) -> list[int]:
        """Return nobody."""
        return []

    def shrink(self) -> LoopbackWire:
        """Raise: nobody can have died."""
        raise CommError("this process is alone: no other one can have died")

    def abort(self, code: int) -> None:
        """End the process."""
        os._exit(code)
