"""How a message is received where the sender's array is, or may be, on a GPU.

See `device_sending.py` for what goes back and forth.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from pycomm.arrays import HOST, View, view
from pycomm.devices.base import DeviceError, Stream
from pycomm.devices.offers import Offer
from pycomm.errors import MissingError
from pycomm.transport import device_direct
from pycomm.transport.courses import Steps
from pycomm.transport.device_mail import ANSWER, MORE, DeviceMail, Line, Notice, notice_of
from pycomm.transport.message import Received, disagreement, misplaced
from pycomm.types import DTYPES


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
            yield None
        handle, out = self._received.handle, self._out
        if not handle.is_notice:
            if out is not None and out.device != HOST:
                raise misplaced(handle.source, handle.tag, False, out)
            return Arrival(self._received.result())
        notice, process = notice_of(self._received), self._ranks[handle.source]
        mail, peer = self._mail, (handle.source, process)
        line = Line(mail.mailbox, self._context, self._rank, *peer, notice.serial)
        return (yield from _Noticed(mail, line, notice).steps(self._target, self._keep))

    def _target(self, notice: Notice) -> View:
        """Return where a noticed array goes, once streams may write there."""
        message, dtype, out = self._received.handle, DTYPES[notice.dtype], self._out
        if out is None:
            return self._new_array(notice)
        if out.device == HOST:
            raise misplaced(message.source, message.tag, True, out)
        if (dtype, notice.shape) != (out.dtype, tuple(out.owner.shape)):
            raise disagreement(message.source, message.tag, dtype, notice.shape, out)
        self._mail.gpu.runtime.wait(self._mail.incoming, self._before)
        return out

    def _new_array(self, notice: Notice) -> View:
        mail = self._mail
        if mail.device is None:
            raise MissingError(
                f"rank {self._rank}: rank {self._received.handle.source} sent an array on a GPU, "
                f"of shape {notice.shape} of {notice.dtype}, but this process has no GPU: "
                "send a copy on the host"
            )
        block = mail.gpu.slabs.take(_nbytes(notice), mail.incoming)
        return view(_laid_into(mail, block, notice))


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
        if not (notice.offer or notice.slab):
            return None
        if device is None or not device.runtime.can_access(notice.gpu):
            return None
        try:
            offers = self._mail.offers
            return offers.address(notice.offer) if notice.offer else offers.base(notice.slab)
        except DeviceError:
            return None

    def _decline(self) -> Steps:
        """Let the sender go on, though nobody wants its array."""
        if self._notice.way != "staged":
            self._line.say(ANSWER, ("taken", b""))
            return
        left = _nbytes(self._notice)
        while left:
            left -= (yield from self._line.receive(MORE, None)).nbytes

    def _into(self, target: View, address: int | None) -> Steps:
        if address is None and self._notice.direct and self._mail.wire.takes_gpus:
            yield from device_direct.receive(self._mail, self._line, target)
        elif address is None:
            if self._notice.way != "staged":
                self._line.say(ANSWER, ("staged", b""))
            yield from self._from_host(target)
        elif self._notice.offer:
            self._copy(self._notice.offer, address, target.address, target.nbytes)
        else:
            yield from self._from_offers(target)
        return _arrival(self._mail, target)

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
        step = self._mail.gpu.segment_bytes
        for begin in range(0, target.nbytes, step):
            offer = Offer(*(yield from self._line.hear(MORE)))
            source, nbytes = self._mail.offers.address(offer), min(step, target.nbytes - begin)
            self._copy(offer, source, target.address + begin, nbytes)

    def _from_host(self, target: View) -> Steps:
        """Take segments into page-locked rooms; copy each while the next one comes."""
        mail, under_way = self._mail, deque[tuple[Any, np.ndarray]]()
        for begin in range(0, target.nbytes, mail.pinned.nbytes):
            if len(under_way) == 2:
                yield from self._empty(*under_way.popleft())
            nbytes, room = min(mail.pinned.nbytes, target.nbytes - begin), mail.pinned.take()
            yield from self._line.receive(MORE, view(room[:nbytes]))
            mail.gpu.runtime.copy(target.address + begin, room.ctypes.data, nbytes, mail.incoming)
            under_way.append((mail.event_on(mail.incoming), room))
        while under_way:
            yield from self._empty(*under_way.popleft())

    def _empty(self, copied: Any, room: np.ndarray) -> Steps:
        yield from self._mail.until(copied)
        self._mail.pinned.give_back(room)

    def _borrow(self, address: int, offer: Offer) -> Arrival:
        """Return the sender's memory as an array; it is given back when that is dropped."""
        mail, notice, dropped = self._mail, self._notice, list[Stream]()
        loan = Loan(address, _nbytes(notice), mail.incoming, dropped)
        mail.offers.wait_for_offer(offer, mail.incoming)
        event = mail.event_on(mail.incoming)
        array = view(_laid_into(mail, loan, notice))

        def give_back() -> Steps:
            while not dropped:
                yield None
            self._return(offer, dropped[0])

        def used(stream: Stream) -> None:
            loan.stream = stream

        mail.start(give_back(), "loan", self._line.context)
        return Arrival(array, event, used)


def _arrival(mail: DeviceMail, target: View) -> Arrival:
    """Return what is there once all is done that is on the stream now."""
    event, slabs = mail.event_on(mail.incoming), mail.gpu.slabs
    mail.keep(event, target)
    place = slabs.find(target.address, 1)
    if place is None:
        return Arrival(target, event)
    slabs.note_use(place, mail.incoming)
    return Arrival(target, event, partial(slabs.note_use, place))


def _nbytes(notice: Notice) -> int:
    return int(np.prod(notice.shape, dtype=int)) * DTYPES[notice.dtype].itemsize


def _laid_into(mail: DeviceMail, memory: Any, notice: Notice) -> Any:
    if notice.as_tensor:
        importlib.import_module("torch")
    dtype = DTYPES[notice.dtype]
    return mail.gpu.runtime.array(memory, notice.shape, dtype, notice.as_tensor)
