"""How a message is received where the sender's array, or the receiver's, is on a GPU.

See `device_sending.py` for what goes back and forth.
"""

from __future__ import annotations

import ctypes
import importlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pycomm.arrays import HOST, View, view
from pycomm.devices.base import DeviceError, Stream
from pycomm.devices.offers import Offer
from pycomm.errors import MissingError
from pycomm.transport.courses import Steps
from pycomm.transport.device_mail import ANSWER, MORE, DeviceMail, Line, Notice, notice_of
from pycomm.transport.message import Received, disagreement
from pycomm.types import DTYPES

Fill = Callable[[int, np.ndarray], Steps]
"""Fill(begin, room) brings the bytes from `begin` on that the room has space for."""


class Loan:
    """A sender's memory that an array lies on; the array keeps it alive, and its end returns it.

    Attributes:
        stream: the last one that has used the array, as far as is known.
    """

    def __init__(self, address: int, nbytes: int, stream: Stream, dropped: list[Stream]):
        self.address = address
        self.nbytes = nbytes
        self.stream = stream
        self._dropped = dropped

    def __del__(self) -> None:
        self._dropped.append(self.stream)


class Arrival:
    """A message that was received.

    Attributes:
        array: a View of `out`, or of the new array.
        event: is done when the data are there; None if they are.
        used: is told of a stream that uses the array.
    """

    def __init__(
        self, array: View, event: Any = None, used: Callable[[Stream], None] = lambda stream: None
    ):
        self.array = array
        self.event = event
        self.used = used


class Receiving:
    """One posted receive.

    Args:
        ranks: the communicator's, as processes.
        out: where to; None for a new array.
        keep: that may lie on the sender's memory.
        before: an event of the caller's stream, if `out` is on the GPU.
    """

    def __init__(
        self,
        mail: DeviceMail,
        received: Received,
        context: int,
        rank: int,
        ranks: Sequence[int],
        out: View | None,
        keep: bool,
        before: Any,
    ):
        self._mail = mail
        self._received = received
        self._context, self._rank, self._ranks = context, rank, ranks
        self._out = out
        self._keep = keep and out is None
        self._before = before

    def steps(self) -> Steps:
        """Receive it; returns the Arrival."""
        while not self._received.test():
            yield
        if self._before is not None:
            self._mail.gpu.runtime.wait(self._mail.incoming, self._before)
        if not self._received.handle.is_notice:
            return (yield from self._from_host())
        notice, source = notice_of(self._received), self._received.handle.source
        mail, process = self._mail, self._ranks[source]
        line = Line(mail.mailbox, self._context, self._rank, source, process, notice.serial)
        return (yield from _Noticed(mail, line, notice).steps(self._target, self._keep))

    def _target(self, notice: Notice) -> View:
        """Return where a noticed array goes."""
        dtype, out = DTYPES[notice.dtype], self._out
        if out is None:
            return _new_array(self._mail, notice)
        if (dtype, notice.shape) != (out.dtype, tuple(out.owner.shape)):
            message = self._received.handle
            raise disagreement(message.source, message.tag, dtype, notice.shape, out)
        return out

    def _from_host(self) -> Steps:
        out = self._out
        message = self._received.result()
        if out is None or out.device == HOST:
            return Arrival(message)
        kind = message.dtype, tuple(message.owner.shape)
        if kind != (out.dtype, tuple(out.owner.shape)):
            handle = self._received.handle
            raise disagreement(handle.source, handle.tag, *kind, out)

        def fill(begin: int, room: np.ndarray) -> Steps:
            ctypes.memmove(room.ctypes.data, message.address + begin, room.nbytes)
            yield from ()

        return (yield from _lift(self._mail, out, self._mail.pinned.nbytes, fill))


class _Noticed:
    """A device array that a notice has come of."""

    def __init__(self, mail: DeviceMail, line: Line, notice: Notice):
        self._mail = mail
        self._line = line
        self._notice = notice

    def steps(self, target_of: Callable[[Notice], View], keep: bool) -> Steps:
        address = self._reached()
        if keep and address is not None and self._notice.offer and self._notice.lent:
            return self._borrow(address, self._notice.offer)
        try:
            target = target_of(self._notice)
        except Exception:
            yield from self._decline()
            raise
        return (yield from self._into(target, address))

    def _reached(self) -> int | None:
        """Return where the sender's memory is mapped; None if it is out of reach."""
        device, notice = self._mail.device, self._notice
        if device is None or notice.way == "staged" or not device.runtime.can_access(notice.gpu):
            return None
        try:
            offers = self._mail.offers
            return offers.address(notice.offer) if notice.offer else offers.base(notice.slab)
        except DeviceError:
            return None

    def _decline(self) -> Steps:
        """Let the sender go on, though nobody wants its array."""
        if self._notice.way == "staged":
            scratch = np.empty(_nbytes(self._notice), np.uint8)
            yield from self._from_segments(view(scratch))
        else:
            self._line.say(ANSWER, ("taken", b""))

    def _into(self, target: View, address: int | None) -> Steps:
        mail, notice = self._mail, self._notice
        if address is None:
            if notice.way != "staged":
                self._line.say(ANSWER, ("staged", b""))
            return (yield from self._from_segments(target))
        if notice.offer:
            self._copy(notice.offer, address, target.address, target.nbytes)
        else:
            yield from self._from_offers(target)
        event = mail.event_on(mail.incoming)
        if target.device == HOST:
            yield from mail.until(event)
            return Arrival(target)
        return _arrival(mail, target, event)

    def _copy(self, offer: Offer, source: int, target: int, nbytes: int) -> None:
        mail, stream = self._mail, self._mail.incoming
        mail.offers.wait_for_offer(offer, stream)
        mail.gpu.runtime.copy(target, source, nbytes, stream)
        self._return(offer, stream)

    def _return(self, offer: Offer, stream: Stream) -> None:
        done = self._mail.offers.read(offer, self._line.process, stream)
        self._line.say(ANSWER, ("taken", done))

    def _from_offers(self, target: View) -> Steps:
        """Ask for segments, and copy one after the other."""
        self._line.say(ANSWER, ("segments", b""))
        step = self._notice.segment_bytes
        for begin in range(0, target.nbytes, step):
            offer = Offer(*(yield from self._line.hear(MORE)))
            source, nbytes = self._mail.offers.address(offer), min(step, target.nbytes - begin)
            self._copy(offer, source, target.address + begin, nbytes)

    def _from_segments(self, target: View) -> Steps:
        """Take what comes through the host."""

        def fill(begin: int, room: np.ndarray) -> Steps:
            received = self._line.receive(MORE, view(room))
            while not received.test():
                yield

        step = self._notice.staged_bytes
        if target.device != HOST:
            return (yield from _lift(self._mail, target, step, fill))
        for begin in range(0, target.nbytes, step):
            yield from fill(begin, target.bytes[begin : begin + step])
        return Arrival(target)

    def _borrow(self, address: int, offer: Offer) -> Arrival:
        """Return the sender's memory as an array; it is given back when that is dropped."""
        mail, notice, dropped = self._mail, self._notice, list[Stream]()
        loan = Loan(address, _nbytes(notice), mail.incoming, dropped)
        mail.offers.wait_for_offer(offer, mail.incoming)
        event = mail.event_on(mail.incoming)
        array = view(_laid_into(mail, loan, notice))

        def give_back() -> Steps:
            while not dropped:
                yield
            self._return(offer, dropped[0])

        def used(stream: Stream) -> None:
            loan.stream = stream

        mail.start(give_back(), "loan", self._line.context)
        return Arrival(array, event, used)


def _lift(mail: DeviceMail, target: View, step: int, fill: Fill) -> Steps:
    """Fill page-locked rooms, and copy each to the GPU while the next one is filled."""
    stream, under_way = mail.incoming, deque[tuple[Any, np.ndarray]]()
    for begin in range(0, target.nbytes, step):
        if len(under_way) == 2:
            yield from _empty(mail, *under_way.popleft())
        nbytes = min(step, target.nbytes - begin)
        room = mail.pinned.take() if step <= mail.pinned.nbytes else np.empty(step, np.uint8)
        yield from fill(begin, room[:nbytes])
        mail.gpu.runtime.copy(target.address + begin, room.ctypes.data, nbytes, stream)
        under_way.append((mail.event_on(stream), room))
    while under_way:
        yield from _empty(mail, *under_way.popleft())
    return _arrival(mail, target, mail.event_on(stream))


def _empty(mail: DeviceMail, copied: Any, room: np.ndarray) -> Steps:
    yield from mail.until(copied)
    if room.nbytes == mail.pinned.nbytes:
        mail.pinned.give_back(room)


def _arrival(mail: DeviceMail, target: View, event: Any) -> Arrival:
    mail.keep(event, target)
    place = mail.gpu.slabs.find(target.address, 1)
    if place is None:
        return Arrival(target, event)
    slabs, where = mail.gpu.slabs, place
    slabs.note_use(where, mail.incoming)
    return Arrival(target, event, lambda stream: slabs.note_use(where, stream))


def _nbytes(notice: Notice) -> int:
    return int(np.prod(notice.shape, dtype=int)) * DTYPES[notice.dtype].itemsize


def _new_array(mail: DeviceMail, notice: Notice) -> View:
    """Return a new array on the GPU, as the one noticed."""
    if mail.device is None:
        raise MissingError(
            f"an array on a GPU was sent, of shape {notice.shape} and {notice.dtype}, but this "
            "process has no GPU: receive it into an array of the host, by out="
        )
    block = mail.gpu.slabs.take(_nbytes(notice), mail.incoming)
    return view(_laid_into(mail, block, notice))


def _laid_into(mail: DeviceMail, memory: Any, notice: Notice) -> Any:
    if notice.as_tensor:
        importlib.import_module("torch")
    dtype = DTYPES[notice.dtype]
    return mail.gpu.runtime.array(memory, notice.shape, dtype, notice.as_tensor)
