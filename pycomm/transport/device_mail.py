"""What the messages of device arrays of a process share: its GPU, offers, private messages.

A message of a device array is a notice to the receiver, by the way of all messages: so tags, order
and any source are theirs. What follows are private messages of the pair, told apart by the notice's
serial number: answers to the sender, and what goes on to the receiver. See `device_sending.py`.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import numpy as np

from pycomm.arrays import View, view
from pycomm.devices.base import Stream
from pycomm.devices.offers import Offer, Offers
from pycomm.devices.pinned import Pinned
from pycomm.devices.process import Device
from pycomm.transport.courses import Background, Course, Look, Steps
from pycomm.transport.mailbox import DATA_TAGS, DEVICE_TAGS, Mailbox
from pycomm.transport.message import NOTICE, Received, Sent, SentByWire
from pycomm.transport.wire import Wire

PRIVATE = 1 << 31
"""Added to a communicator's number: the messages about messages."""

ANSWER, MORE = 0, 1
"""What a private message is: to the sender, or to the receiver."""

STAGED_BYTES = 4 << 20
"""The size of segments through the host, at most."""

ROOM_SEGMENTS = 4
ROOM_MESSAGES = 64
"""Copies of so many segments and messages may wait for one receiver that has not come."""

LAST_SENDS_S = 1.0
_LOOK_S = 50e-6


class Notice(NamedTuple):
    """What a message of a device array says about itself.

    Attributes:
        way: "offered", "asked" (whether to offer segments), "staged" (they come by the host), or
            "direct" (MPI shall bring it).
        gpu: the physical GPU of the sender.
        slab: opens some memory of the sender's, where nothing is offered: to try that.
        lent: whether the offer may be kept, instead of copied.
        direct: whether MPI can bring it, as far as the sender's library is concerned.
    """

    way: str
    serial: int
    dtype: str
    as_tensor: bool
    shape: tuple[int, ...]
    gpu: str
    offer: Offer | None
    slab: bytes
    lent: bool
    direct: bool


class Line(NamedTuple):
    """The private messages of one message between two ranks of a communicator."""

    mailbox: Mailbox
    context: int
    me: int
    peer: int
    process: int
    serial: int

    def say(self, what: int, data: Any) -> None:
        """Send an object to the peer."""
        self.send(what, view(np.frombuffer(pickle.dumps(data), np.uint8)))

    def hear(self, what: int) -> Generator[None, None, Any]:
        """Return the peer's next object, once it has come."""
        data = yield from self.receive(what, None)
        return pickle.loads(data.bytes.tobytes())

    def send(self, what: int, data: View) -> Sent | SentByWire:
        """Start to send bytes."""
        tag = 2 * self.serial + what
        return self.mailbox.send(data, False, self.context | PRIVATE, self.me, tag, self.process)

    def receive(self, what: int, out: View | None) -> Generator[None, None, View]:
        """Return the peer's next bytes, once they have come."""
        tag = 2 * self.serial + what
        received = self.mailbox.receive(self.context | PRIVATE, self.peer, tag, out)
        while not received.test():
            yield
        return received.result()


class DeviceMail:
    """The messages of device arrays of one process.

    Attributes:
        device: None if the process has no GPU: then it can only receive, through the host.
        process: this one's number on the wire.
        incoming, outgoing, returning: streams: what is received, what is copied to be sent, and
            what waits for receivers.
        wire: carries the data of some messages itself, where it takes memory of GPUs.
        unreachable: the processes that cannot read this one's GPU memory, and the way to them.
    """

    def __init__(
        self, mailbox: Mailbox, device: Device | None, wire: Wire, note: Callable[[int], None]
    ):
        """`note` is told when the process begins (+1) and ceases (−1) to wait for its GPU."""
        self.mailbox = mailbox
        self.device = device
        self.wire = wire
        self.process = wire.rank
        self.unreachable: dict[int, str] = {}
        self.serials = itertools.count()
        self._received = itertools.count()
        self._note = note
        self._at_gpu = 0
        self._left: list[Course] = []
        self._owner = os.getpid()
        self._waiting: Counter[int] = Counter()
        self._messages: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._background = Background(self._pause)
        if device:
            runtime = device.runtime
            self.offers = Offers(runtime, device.slabs, device.mapped)
            self.pinned = Pinned(runtime, min(device.segment_bytes, STAGED_BYTES))
            self.incoming, self.outgoing, self.returning = (runtime.new_stream() for _ in range(3))

    @property
    def gpu(self) -> Device:
        """The GPU, where there is one."""
        assert self.device is not None
        return self.device

    # ---- courses

    def start(self, steps: Steps, kind: str, context: int) -> Course:
        """Begin a course of a communicator: its first step is done now."""
        course = Course(steps, kind, context)
        if not course.advance():
            self._background.add(course)
        return course

    def leave(self, course: Course) -> None:
        """Go on no more with a course; its memory stays, as its peer may come yet."""
        self._left += self._background.drop(lambda other: other is course)

    def advance(self) -> None:
        """Go on with everything that is under way."""
        self._background.advance()

    def close(self, context: int) -> None:
        """Wait a little for what a communicator sends, then leave it; loans can still end."""
        self._await_sends(lambda course: course.context == context)
        kinds = "send", "receive"
        self._left += self._background.drop(lambda c: c.context == context and c.kind in kinds)

    def finish(self) -> None:
        """Wait a little for what is being sent: the GPU's memory ends with the process.

        The rest stays: MPI goes on reading and writing that until it is finalized.
        """
        if os.getpid() == self._owner:
            self._await_sends(lambda course: True)
            self._background.stop()
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))

    def _await_sends(self, which: Callable[[Course], bool]) -> None:
        end = time.monotonic() + LAST_SENDS_S
        while self._background.any(lambda course: course.kind == "send" and which(course)):
            if time.monotonic() > end:
                return
            self.advance()
            time.sleep(_LOOK_S)

    def doze(self, ready: Callable[[], bool]) -> None:
        """Sleep for a short while: until something has come, or the GPU may have got on."""
        if self._at_gpu:
            time.sleep(_LOOK_S)
        else:
            self.mailbox.doze(ready)

    def _pause(self) -> None:
        self.doze(lambda: False)

    # ---- events

    def event_on(self, stream: Stream) -> Any:
        """Return an event that stands for what is on the stream now."""
        event = self.gpu.runtime.event()
        self.gpu.runtime.record(event, stream)
        return event

    def keep(self, event: Any, what: Any) -> None:
        """Keep something alive until the event is done."""

        def kept(_: Any) -> Steps:
            while not self.gpu.runtime.query(event):
                yield None

        self.start(kept(what), "kept", -1)

    def until(self, event: Any) -> Steps:
        """Go on once the event is done."""
        yield from self.looking(lambda: self.gpu.runtime.query(event))

    def looking(self, done: Callable[[], bool]) -> Steps:
        """Go on once that holds; meanwhile the process looks often, and waits not only for others.

        So it is with what nobody rings for: events, and what MPI does by itself.
        """
        look = Look(self._at)
        try:
            while not done():
                yield look
        finally:
            look.end()

    def _at(self, more: int) -> None:
        with self._lock:
            self._at_gpu += more
        self._note(more)

    def wire_tag(self) -> int:
        """Return a tag of the wire for what is received next."""
        return DATA_TAGS + 1 + next(self._received) % DEVICE_TAGS

    # ---- room for copies that wait for their receivers

    def has_room(self, process: int, nbytes: int) -> bool:
        """Take room for a copy of a message to a process, if there is some."""
        segment = self.gpu.segment_bytes
        with self._lock:
            full = self._waiting[process] + nbytes > ROOM_SEGMENTS * segment
            if nbytes > segment or full or self._messages[process] == ROOM_MESSAGES:
                return False
            self._waiting[process] += nbytes
            self._messages[process] += 1
        return True

    def leave_room(self, process: int, nbytes: int) -> None:
        """Give back what `has_room` took."""
        with self._lock:
            self._waiting[process] -= nbytes
            self._messages[process] -= 1


def notice_view(notice: Notice) -> View:
    """Return a notice as a message."""
    data = view(np.frombuffer(pickle.dumps(tuple(notice)), np.uint8))
    return View(data.owner, NOTICE, data.count, data.address)


def notice_of(received: Received) -> Notice:
    """Return the notice that came as a message."""
    memory: Any = received.handle.memory()
    return Notice(*pickle.loads(bytes(memory)))
