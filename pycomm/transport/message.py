"""Messages under way, as Requests that keep their arrays alive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pycomm import _native
from pycomm.arrays import View, laid_into, place_name, view
from pycomm.errors import CommError, MismatchError, UnreachableError
from pycomm.transport.base import Request
from pycomm.types import DTYPES, DType

_BY_CODE = list(DTYPES.values())

NOTICE = DType("notice", 255, 1, "integer", "notice")
"""As the type of a message: no array, but where there is one on a GPU; no `out` agrees with it."""


class Box(Protocol):
    """What a posted receive is in: a Mailbox."""

    memory: _native.Mailbox

    def progress(self) -> None:
        """Make progress with all messages of this process."""


class Sent:
    """A message under way to a node-mate: a Request that keeps the array alive."""

    def __init__(self, mailbox: _native.Mailbox, handle: _native.Send, view: View):
        self._mailbox = mailbox
        self._handle = handle
        self._view: View | None = view

    def test(self) -> bool:
        """Make progress and say whether the memory may be reused."""
        if self._view is not None:
            self._mailbox.progress()
            if _moved(self._handle.test):
                self._view = None
        return self._view is None

    def finished(self) -> bool:
        """Say whether the array may be dropped."""
        try:
            return self.test()
        except CommError:
            return True

    def settle(self) -> None:
        """Let a large message wait in shared memory, if the receiver has not come."""
        self._handle.settle()


class SentByWire:
    """A message under way by the wire, whose requests keep the array alive."""

    def __init__(self, *parts: Request):
        self._parts = parts

    def test(self) -> bool:
        """Make progress and say whether the memory may be reused."""
        return all([part.test() for part in self._parts])

    def finished(self) -> bool:
        """Say whether the array may be dropped."""
        return self.test()

    def settle(self) -> None:
        """Do nothing: the wire has no memory to spare."""


class Received:
    """A posted receive: a Request, then `result` is the message."""

    def __init__(self, mailbox: Box, handle: _native.Receive, out: View | None):
        self._mailbox = mailbox
        self._handle = handle
        self._out = out

    def unmatched(self) -> bool:
        """Say whether no message has come for it yet."""
        return not self._handle.matched

    def finished(self) -> bool:
        """Say whether the array may be dropped."""
        try:
            return _moved(self._handle.test)
        except CommError:
            return True

    def test(self) -> bool:
        """Make progress and say whether the data are there."""
        self._mailbox.progress()
        return _moved(self._handle.test)

    @property
    def handle(self) -> _native.Receive:
        """What the message says about itself, once it has come."""
        return self._handle

    def withdraw(self) -> None:
        """Take no message any more."""
        self._mailbox.memory.withdraw(self._handle)

    def result(self) -> View:
        """Return `out`, or a new array if there is none.

        Raises:
            MismatchError: `out` has not the dtype and shape that were sent.
        """
        if self._handle.disagrees and self._out:
            kind = _BY_CODE[self._handle.dtype], tuple(self._handle.shape)
            raise disagreement(self._handle.source, self._handle.tag, *kind, self._out)
        return self._out or view(new_array(self._handle))


def new_array(message: _native.Receive) -> Any:
    """Return a message that has come as an array on its memory."""
    dtype = _BY_CODE[message.dtype]
    return laid_into(message.memory(), message.shape, dtype, message.is_tensor)


def _moved(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except (RuntimeError, _native.Unreachable) as error:
        why = str(error) or "it has closed the communicator, or cannot reach this rank's memory"
        raise UnreachableError(why) from error


def disagreement(
    source: int, tag: int, dtype: DType, shape: tuple[int, ...], out: View
) -> MismatchError:
    """Return the error for an `out` that has not the dtype and shape that were sent."""
    return MismatchError(
        f"rank {source} sent shape {shape} of {dtype.name} with tag {tag}, but out= has shape "
        f"{tuple(out.owner.shape)} of {out.dtype.name}: make them equal, or pass no out="
    )


def misplaced(source: int, tag: int, on_gpu: bool, out: View) -> MismatchError:
    """Return the error for an `out` that is on the host where a GPU's array was sent, or so."""
    return MismatchError(
        f"rank {source} sent an array on {'a GPU' if on_gpu else 'the host'} with tag {tag}, but "
        f"out= is on {place_name(out.device)}: copy one to where the other is, or pass no out="
    )
