"""Values as messages: a tensor as it is; anything else as a header and its tensors."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pycomm.errors import CommTimeoutError
from pycomm.parallel.idle import Times
from pycomm.parallel.values import Place, Value
from pycomm.work import Work

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


@dataclass(frozen=True)
class Failure:
    """What comes instead of a value from a stage that has failed.

    Attributes:
        text: what happened, and where.
    """

    text: str


Item = Value | Failure


class Parcels:
    """Sends and receives values; a tensor that is as usual costs no more than its message.

    A header is an array of NumPy, so that nobody takes it for a tensor; behind it, with the same
    tag, come the tensors. What was sent may change as soon as `send` has returned if the channel
    has room for it: it is copied there. Without room it must stay until `settle`.

    Args:
        comm: the ranks.
        times: where the time of messages is counted.
        copy: whether what was received is copied out of the channel; if not it stays in there
            until it is dropped.
    """

    def __init__(self, comm: Communicator, times: Times, copy: bool):
        self._comm, self._times, self._copy = comm, times, copy
        self._sends: list[Work] = []

    def send(self, item: Item, rank: int, tag: int, learns: bool) -> None:
        """Start to send.

        Args:
            item: what.
            rank, tag: where to.
            learns: whether a float tensor usually learns; `expect` must be told the same.
        """
        with self._times.transferring():
            if isinstance(item, Failure) or not _is_usual(item, learns):
                self._post(_header(item), rank, tag)
            for tensor in item.tensors if isinstance(item, Value) else ():
                self._post(tensor.detach(), rank, tag)

    def expect(self, rank: int, tag: int, learns: bool) -> Expected:
        """Start to receive."""
        work = self._comm.irecv(rank, tag, copy=self._copy)
        return Expected(self, work, rank, tag, learns)

    def settle(self) -> None:
        """Return when all that was sent may change."""
        with self._times.transferring():
            for work in self._sends:
                work.wait()
        self._sends = []

    def wait(self, work: Work, rank: int) -> Any:
        """Return what comes from a rank."""
        with self._times.transferring() if work.done() else self._times.waiting(rank):
            return work.wait()

    def receive(self, rank: int, tag: int) -> Any:
        """Return a message from a rank."""
        return self.wait(self._comm.irecv(rank, tag, copy=self._copy), rank)

    def _post(self, array: Any, rank: int, tag: int) -> None:
        work = self._comm.isend(array, rank, tag)
        try:
            work.wait(0)
        except CommTimeoutError:
            self._sends.append(work)


@dataclass
class Expected:
    """A value that is to come."""

    parcels: Parcels
    work: Work
    rank: int
    tag: int
    learns: bool

    def wait(self) -> Item:
        """Return the value once it has come."""
        first = self.parcels.wait(self.work, self.rank)
        if isinstance(first, torch.Tensor):
            return Value(Place(0), [first], [self.learns and is_float(first)])
        content = pickle.loads(first.tobytes())
        if isinstance(content, Failure):
            return content
        form, learns = content
        return Value(form, [self.parcels.receive(self.rank, self.tag) for _ in learns], learns)


def is_float(tensor: torch.Tensor) -> bool:
    """Say whether a tensor can have a gradient."""
    return tensor.is_floating_point() or tensor.is_complex()


def _is_usual(value: Value, learns: bool) -> bool:
    if not isinstance(value.form, Place):
        return False
    return value.learns[0] == (learns and is_float(value.tensors[0]))


def _header(item: Item) -> np.ndarray:
    content = item if isinstance(item, Failure) else (item.form, item.learns)
    return np.frombuffer(pickle.dumps(content), np.uint8)
