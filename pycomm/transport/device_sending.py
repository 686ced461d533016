"""How a device array is sent: the notice, and what follows.

    way       notice says                receiver answers        then
    offered   where the data lie         "taken", with an event  done: streams wait for the event
    offered                              "staged": out of reach  as below
    asked     nothing yet                "segments"              copy a segment, offer it; …
    asked                                "staged"                as below
    staged    that segments will come    nothing                 copy each to the host, send it; …
    direct    that MPI shall bring it    "direct", with a tag    MPI sends it from where it lies

Where the MPI of both ends takes memory of GPUs, the answer out of reach is "direct", and that is
the way from then on: see `device_direct.py`.

A symmetric array is offered where it is. Of an ordinary one a copy is offered, as long as it is at
most a segment and not too much waits for that receiver; larger ones are asked for. A receiver that
could not reach this GPU once gets everything staged, or direct. Two segments are under way at a
time.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from pycomm.arrays import View, is_tensor, view
from pycomm.devices.base import Stream
from pycomm.devices.offers import Ticket
from pycomm.devices.slabs import Block, Place
from pycomm.transport import device_direct
from pycomm.transport.courses import Steps
from pycomm.transport.device_mail import ANSWER, MORE, DeviceMail, Line, Notice, notice_view
from pycomm.transport.message import Sent, SentByWire

SMALL_BYTES = 32 << 10
"""Smaller symmetric arrays are copied, too: then `send` need not wait for the receiver."""


class Sending:
    """One device array on its way.

    Attributes:
        free: whether the array may be used again by streams that wait for `event`.
    """

    def __init__(self, mail: DeviceMail, line: Line, tag: int, source: View, stream: Stream):
        self.free = False
        self.event: Any = None
        self._mail = mail
        self._line = line
        self._tag = tag
        self._source = source
        self._address = source.address
        self._stream = stream
        self._runtime = mail.gpu.runtime
        self._slabs = mail.gpu.slabs
        self._begun: Any = None
        self._copy: Block | None = None
        self._ticket: Ticket | None = None

    def steps(self) -> Steps:
        """Send it; ends when the receiver has it, and nothing here is in use for it any more."""
        place = self._place()
        self._begun = self._mail.event_on(self._stream)
        known = self._mail.unreachable.get(self._line.process)
        self._notify(known or ("offered" if place else "asked"), place)
        if known == "staged":
            yield from self._stage()
            return
        if self._copy:
            self._set_free(self._begun)
        way, told = yield from self._line.hear(ANSWER)
        if way in ("staged", "direct"):
            self._mail.unreachable[self._line.process] = way
        yield from self._go(way, told)
        if self._ticket:
            self._take_back(self._ticket, told if way == "taken" else b"", place)
        self._drop_copy()
        if not self.free:
            self._set_free(self._mail.event_on(self._mail.returning))

    def _go(self, way: str, told: Any) -> Steps:
        """Send it in the way that the receiver has answered."""
        if way == "staged":
            yield from self._stage()
        elif way == "segments":
            yield from self._offer_segments()
        elif way == "direct":
            where = self._address, self._source.nbytes
            yield from device_direct.send(self._mail, self._line, *where, self._begun, told)

    def _place(self) -> Place | None:
        """Return where to offer the whole array; the first step, on the caller's stream."""
        source, process = self._source, self._line.process
        place = self._slabs.find(source.address, source.nbytes) if source.nbytes else None
        if place:
            self._slabs.note_use(place, self._stream)
        if process == self._mail.process:
            return self._copied()
        large = place is not None and source.nbytes > SMALL_BYTES
        if large or self._mail.unreachable.get(process) == "staged":
            return place
        return self._copied() if self._mail.has_room(process, source.nbytes) else place

    def _copied(self) -> Place:
        self._copy = self._slabs.take(self._source.nbytes, self._stream)
        self._runtime.copy(self._copy.address, self._address, self._source.nbytes, self._stream)
        self._address = self._copy.address
        return self._found(self._copy)

    def _found(self, block: Block) -> Place:
        place = self._slabs.find(block.address, 1)
        assert place is not None
        return place

    def _notify(self, way: str, place: Place | None) -> None:
        source, line, offer, slab = self._source, self._line, None, b""
        if way == "asked":
            first = self._slabs.take(1, self._mail.outgoing)
            slab = self._mail.offers.slab(self._found(first))
        if way == "offered":
            assert place is not None
            self._ticket, offer = self._mail.offers.make(line.process, place, self._stream)
        notice = Notice(
            way,
            line.serial,
            source.dtype.name,
            is_tensor(source.owner),
            tuple(source.owner.shape),
            self._runtime.identity,
            offer,
            slab,
            self._copy is None,
            self._mail.wire.takes_gpus,
        )
        self._mail.mailbox.send(
            notice_view(notice), False, line.context, line.me, self._tag, line.process
        )

    def _set_free(self, event: Any) -> None:
        """Let the array be used behind the event; it stays alive until that is done."""
        self._mail.keep(event, self._source)
        self._source = View(None, self._source.dtype, self._source.count, 0)
        self.event = event
        self.free = True

    def _take_back(self, ticket: Ticket, done: bytes, place: Place | None) -> None:
        """Let what was offered be used behind the receiver's reading."""
        returning, process = self._mail.returning, self._line.process
        self._mail.offers.wait_for_reader(ticket, process, done, returning)
        if place and done:
            self._slabs.note_use(place, returning)

    def _drop_copy(self) -> None:
        process = self._line.process
        if self._copy and process != self._mail.process:
            self._mail.leave_room(process, self._source.nbytes)
        self._copy = None

    # ---- segments

    def _offer_segments(self) -> Steps:
        outgoing, step = self._mail.outgoing, self._mail.gpu.segment_bytes
        self._runtime.wait(outgoing, self._begun)
        under_way: deque[tuple[Block, Ticket]] = deque()
        for begin in range(0, self._source.nbytes, step):
            if len(under_way) == 2:
                yield from self._take_back_segment(*under_way.popleft())
            nbytes = min(step, self._source.nbytes - begin)
            block = self._slabs.take(nbytes, outgoing)
            self._runtime.copy(block.address, self._address + begin, nbytes, outgoing)
            ticket, offer = self._mail.offers.make(self._line.process, self._found(block), outgoing)
            self._line.say(MORE, tuple(offer))
            under_way.append((block, ticket))
        self._set_free(self._mail.event_on(outgoing))
        while under_way:
            yield from self._take_back_segment(*under_way.popleft())

    def _take_back_segment(self, block: Block, ticket: Ticket) -> Steps:
        _, done = yield from self._line.hear(ANSWER)
        returning = self._mail.returning
        self._mail.offers.wait_for_reader(ticket, self._line.process, done, returning)
        self._slabs.note_use(self._found(block), returning)

    def _stage(self) -> Steps:
        """Copy segments to the host, and send each from there while the next one is copied."""
        outgoing, pinned = self._mail.outgoing, self._mail.pinned
        self._runtime.wait(outgoing, self._begun)
        sent: deque[tuple[Sent | SentByWire, np.ndarray]] = deque()
        for begin in range(0, self._source.nbytes, pinned.nbytes):
            if len(sent) == 2:
                yield from self._give_back(*sent.popleft())
            nbytes, room = min(pinned.nbytes, self._source.nbytes - begin), pinned.take()
            self._runtime.copy(room.ctypes.data, self._address + begin, nbytes, outgoing)
            yield from self._mail.until(self._mail.event_on(outgoing))
            sent.append((self._line.send(MORE, view(room[:nbytes])), room))
        if not self.free:
            self._set_free(self._mail.event_on(outgoing))
        while sent:
            yield from self._give_back(*sent.popleft())

    def _give_back(self, sent: Sent | SentByWire, room: np.ndarray) -> Steps:
        while not sent.test():
            yield None
        self._mail.pinned.give_back(room)
