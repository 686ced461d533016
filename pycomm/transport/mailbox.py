"""Point-to-point messages that describe themselves: any tag, any posting order, any source.

A message is a header (communicator, source, tag, dtype, shape), sent with the wire's tag 0, and
its data: behind the header when they are small, else as a second message under a wire tag of the
pair's own. A process reads headers as they come, and so matches whatever was posted in whatever
order.
"""

from __future__ import annotations

import struct
import threading
from collections import Counter
from dataclasses import dataclass

import numpy as np

from pycomm.arrays import NOTHING, View, empty
from pycomm.errors import MismatchError
from pycomm.transport.base import Request
from pycomm.transport.wire import Wire
from pycomm.types import DTYPES, DType

ANY = -1
"""As the source of a receive: whoever sends first."""

HEADER_TAG = 0
DATA_TAGS = 4096
"""Wire tags 1…DATA_TAGS carry data, in turn for each pair; higher ones are for communicators."""

INLINE_BYTES = 4096
_FIXED = struct.Struct("<IIqQHBBB")
_BY_CODE = list(DTYPES.values())


@dataclass(frozen=True)
class Header:
    """What a message says about itself; `source` is a rank of communicator `context`."""

    context: int
    source: int
    tag: int
    nbytes: int
    data_tag: int
    dtype: DType
    is_tensor: bool
    shape: tuple[int, ...]

    def pack(self) -> bytes:
        """Return the header's bytes."""
        fixed = (self.context, self.source, self.tag, self.nbytes, self.data_tag)
        kind = (self.dtype.code, self.is_tensor, len(self.shape))
        return _FIXED.pack(*fixed, *kind) + struct.pack(f"<{len(self.shape)}q", *self.shape)

    @classmethod
    def unpack(cls, message: np.ndarray) -> tuple[Header, np.ndarray]:
        """Return the header at the start of `message`, and the bytes behind it."""
        context, source, tag, nbytes, data_tag, code, is_tensor, ndim = _FIXED.unpack_from(message)
        shape = struct.unpack_from(f"<{ndim}q", message, _FIXED.size)
        kind = _BY_CODE[code], bool(is_tensor), shape
        return cls(context, source, tag, nbytes, data_tag, *kind), message[_FIXED.size + 8 * ndim :]


@dataclass
class Incoming:
    """A message whose header has come, from process `origin`; large data are still there."""

    header: Header
    origin: int
    data: np.ndarray | None


@dataclass
class Receive:
    """A posted receive: a Request, then `data` holds the message. `source` may be ANY."""

    mailbox: Mailbox
    context: int
    source: int
    tag: int
    out: View | None
    data: View = NOTHING
    error: MismatchError | None = None
    _transfer: Request | None = None
    _done: bool = False

    def unmatched(self) -> bool:
        """Say whether no message has come for it yet."""
        return self.data is NOTHING

    def matches(self, header: Header) -> bool:
        """Say whether this receive takes the message."""
        same = header.context == self.context and header.tag == self.tag
        return same and self.source in (ANY, header.source)

    def take(self, message: Incoming, wire: Wire) -> None:
        """Start to move the message's data into `out`, or a new array if there is none."""
        header = message.header
        self.error = _disagreement(header, self.out) if self.out else None
        if self.out is None or self.error:  # even an unwanted message is received: its sender waits
            self.data = empty(header.shape, header.dtype, header.is_tensor)
        else:
            self.data = self.out
        if message.data is not None:
            self.data.bytes[:] = message.data
            self._done = True
        else:
            self._transfer = wire.irecv(self.data.bytes, message.origin, header.data_tag)

    def test(self) -> bool:
        """Make progress and say whether the data are there."""
        self.mailbox.progress()
        self._done = self._done or (self._transfer is not None and self._transfer.test())
        return self._done


def _disagreement(header: Header, out: View) -> MismatchError | None:
    want, sent = tuple(out.owner.shape), (header.shape, header.dtype.name)
    if sent == (want, out.dtype.name):
        return None
    return MismatchError(
        f"rank {header.source} sent shape {header.shape} of {header.dtype.name} with tag "
        f"{header.tag}, but out= has shape {want} of {out.dtype.name}: make them equal, or pass "
        "no out="
    )


class _Send:
    def __init__(self, mailbox: Mailbox, *parts: Request):
        self._mailbox = mailbox
        self._parts = parts

    def test(self) -> bool:
        self._mailbox.progress()  # the peer may wait for what it sent itself
        return all([part.test() for part in self._parts])


class Mailbox:
    """All point-to-point messages of a process, for all communicators on a wire."""

    def __init__(self, wire: Wire):
        self._wire = wire
        self._posted: list[Receive] = []
        self._unexpected: list[Incoming] = []
        self._sent: Counter[int] = Counter()
        self._lock = threading.Lock()

    def send(
        self, view: View, is_tensor: bool, context: int, source: int, tag: int, to: int
    ) -> Request:
        """Start to send to process `to`; the memory must not change until it is complete."""
        with self._lock:
            data_tag = 1 + self._sent[to] % DATA_TAGS
            self._sent[to] += view.nbytes > INLINE_BYTES
            kind = view.dtype, is_tensor, tuple(view.owner.shape)
            header = Header(context, source, tag, view.nbytes, data_tag, *kind)
            if to == self._wire.rank:  # to oneself: nobody else could make a receiver come
                self._deliver(Incoming(header, to, view.bytes.copy()))
                return _Send(self)
            head = np.frombuffer(header.pack(), np.uint8)
            if view.nbytes <= INLINE_BYTES:
                message = np.concatenate([head, view.bytes])
                return _Send(self, self._wire.isend(message, to, HEADER_TAG))
            first = self._wire.isend(head, to, HEADER_TAG)
            return _Send(self, first, self._wire.isend(view.bytes, to, data_tag))

    def receive(self, context: int, source: int, tag: int, out: View | None) -> Receive:
        """Post a receive; it takes the first message that matches and that no earlier one took."""
        receive = Receive(self, context, source, tag, out)
        with self._lock:
            for i, message in enumerate(self._unexpected):
                if receive.matches(message.header):
                    receive.take(self._unexpected.pop(i), self._wire)
                    return receive
            self._posted.append(receive)
        return receive

    def progress(self) -> None:
        """Read the headers that have come and hand each message to the receive that wants it."""
        with self._lock:
            while (taken := self._wire.take(HEADER_TAG)) is not None:
                data, origin = taken
                header, inline = Header.unpack(data)
                inlined = header.nbytes <= INLINE_BYTES
                self._deliver(Incoming(header, origin, inline if inlined else None))

    def _deliver(self, message: Incoming) -> None:
        for i, receive in enumerate(self._posted):
            if receive.matches(message.header):
                del self._posted[i]
                return receive.take(message, self._wire)
        self._unexpected.append(message)

    def forget(self, context: int) -> None:
        """Drop what is left of a communicator that was closed."""
        with self._lock:
            self._posted = [r for r in self._posted if r.context != context]
            self._unexpected = [m for m in self._unexpected if m.header.context != context]
