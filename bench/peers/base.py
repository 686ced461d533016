"""What the benchmark wants of an implementation, and the table of all that there are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import repeat
from typing import Any, ClassVar, TypeVar

import numpy as np

from bench.memory import GUARD_BYTES, Buffers
from bench.operations import WINDOW, Case
from bench.ranks import Ranks
from bench.verify import Batch
from pycomm import UnsupportedError

Call = Callable[[], Any]
Start = Callable[[], Call]
"""Starts an operation, and returns what waits for it."""


class UnavailableError(Exception):
    """The implementation cannot be used here; says why."""


class Peer:
    """An implementation of collectives, of messages, or of both.

    Attributes:
        name: what `--impl` calls it.
        devices: what its arrays can be on.
        memory: in which kind of memory its buffers are, "ordinary" or "symmetric".
        competes: whether it is one of those that pycomm is to be faster than.
        verified: whether it gives results at all.
    """

    name: ClassVar[str]
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    memory: ClassVar[str] = "ordinary"
    competes: ClassVar[bool] = True
    verified: ClassVar[bool] = True

    def __init__(self, ranks: Ranks):
        """Set it up; collective.

        Raises:
            UnavailableError: on all ranks or on some.
        """
        self.ranks = ranks

    def version(self) -> str:
        """Return the name and version for the header, "" if that says it already."""
        return ""

    def batch(self, case: Case, buffers: Buffers) -> Batch:
        """Return what does the case's operation so many times.

        On a GPU the host waits for each operation, and for the messages of a stream together.

        Raises:
            UnsupportedError: it cannot.
        """
        wait = buffers.wait
        if not case.op.message:
            return repeated(waited_for(self.collective(case, buffers), wait))
        odd = case.rank % 2 == 1
        send, receive = self.message(case, buffers)
        if case.op.name == "ping_pong":
            batch = ping_pong(odd, send, waited_for(receive, wait))
            return batch if wait is None else complete(batch, wait)
        answer = self.message(*_answer(case))[0 if odd else 1]
        return stream(odd, send, receive, in_sequence(wait, answer) if wait else answer)

    def collective(self, case: Case, buffers: Buffers) -> Call:
        """Return what does the collective once."""
        raise UnsupportedError(f"{self.name} has no {case.op.name}")

    def starting(self, case: Case, buffers: Buffers) -> Start:
        """Return what starts an all_reduce that goes on by itself.

        Raises:
            UnsupportedError: it has none.
        """
        raise UnsupportedError(f"{self.name} has no asynchronous all_reduce")

    def message(self, case: Case, buffers: Buffers) -> tuple[Call, Call]:
        """Return what sends x to the case's partner, and what receives into out from it.

        The second may return a new array instead.
        """
        raise UnsupportedError(f"{self.name} has no messages")

    def close(self) -> None:
        """Leave nothing behind; collective."""


P = TypeVar("P", bound=type[Peer])
PEERS: dict[str, type[Peer]] = {}
"""Every implementation by name."""


def peer(name: str) -> Callable[[P], P]:
    """Register the decorated class."""

    def register(cls: P) -> P:
        cls.name = name
        PEERS[name] = cls
        return cls

    return register


def repeated(call: Call) -> Batch:
    """Return what does a call so many times."""

    def batch(times: int) -> None:
        for _ in repeat(None, times):
            call()

    return batch


def complete(batch: Batch, wait: Callable[[], None]) -> Batch:
    """Return a batch behind which the host waits: the peer may depend on what was sent last."""

    def to_the_end(times: int) -> Any:
        result = batch(times)
        wait()
        return result

    return to_the_end


def waited_for(call: Call, wait: Callable[[], None] | None) -> Call:
    """Return a call behind which the host waits, if it has to."""
    if wait is None:
        return call

    def complete() -> Any:
        result = call()
        wait()
        return result

    return complete


def in_sequence(*calls: Callable[[], Any]) -> Call:
    """Return a call that makes all of these."""

    def complete() -> None:
        for call in calls:
            call()

    return complete


def _answer(case: Case) -> tuple[Case, Buffers]:
    """Return the case of a message of one element, and its memory."""
    small = replace(case, count=1)
    x, out = np.zeros((2, small.size_bytes + GUARD_BYTES), np.uint8)
    return small, Buffers(small, x, out)


def ping_pong(odd: bool, send: Call, receive: Call) -> Batch:
    """Return this rank's side of messages to and fro."""

    def batch(times: int) -> Any:
        received = None
        for _ in repeat(None, times):
            if odd:
                received = receive()
                send()
            else:
                send()
                received = receive()
        return received

    return batch


def stream(odd: bool, send: Call, receive: Call, acknowledge: Call) -> Batch:
    """Return this rank's side of windows of messages from even to odd, each with one answer."""
    step = receive if odd else send

    def batch(times: int) -> Any:
        received = None
        for _ in repeat(None, times):
            for _ in repeat(None, WINDOW):
                received = step()
            acknowledge()
        return received

    return batch


def as_tensor(array: Any) -> Any:
    """Return a torch tensor on the same memory; NumPy and torch share no bfloat16 or float8."""
    torch = sys.modules["torch"]
    if isinstance(array, torch.Tensor):
        return array
    return torch.from_numpy(array.view(np.uint8)).view(getattr(torch, array.dtype.name))
