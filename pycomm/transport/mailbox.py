"""Point-to-point messages that describe themselves: any tag, any posting order, any source.

Node-mates write into each other's mailbox (csrc/shm/mailbox.h), which also matches what comes with
what was posted. On the wire, a message is a header (communicator, source, tag, dtype, shape), sent
with tag 0, and its data: behind the header when they are small, else as a second message under a
wire tag of the pair's own.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count

import numpy as np

from pycomm import _native
from pycomm.arrays import View
from pycomm.transport.base import Request
from pycomm.transport.header import Header
from pycomm.transport.message import Received, Sent, SentByWire
from pycomm.transport.sharing import Exchange
from pycomm.transport.wire import Wire
from pycomm.types import DTYPES

ANY = -1
"""As the source of a receive: whoever sends first."""

HEADER_TAG = 0
DATA_TAGS = 4096
"""Wire tags 1…DATA_TAGS carry data, in turn for each pair."""
DEVICE_TAGS = 4096
"""The next ones carry arrays of GPUs, in turn for each receiver; higher ones communicators."""

INLINE_BYTES = 4096
LAST_SENDS_S = 1.0
DOZE_US = 5000
"""Sleep until a node-mate rings, at most so long; between hosts nobody can ring."""
DOZE_WIRED_US = 100

_logger = logging.getLogger("pycomm")
_BY_CODE = list(DTYPES.values())


def memory_at(address: int, nbytes: int) -> np.ndarray:
    """Return memory for a wire; it must stay, and on a GPU nobody but MPI may look into it."""
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8)


class Mailbox:
    """All point-to-point messages of a process, for all communicators on a wire.

    Attributes:
        memory: the mailbox that node-mates write into; it matches messages of the wire, too.
        mates: by process, its number there.
    """

    def __init__(self, wire: Wire):
        self._wire = wire
        self.memory = _native.Mailbox(1, 0, False, False)
        self.mates = {wire.rank: 0}
        self._under_way: list[Sent | SentByWire | Received] = []
        self._sent: Counter[int] = Counter()
        self._numbers = count(1)
        self._data: dict[int, tuple[int, int]] = {}
        self._transfers: list[tuple[_native.Receive, Request]] = []
        self._lock = threading.Lock()
        self._keeping = threading.Lock()
        self._owner = os.getpid()

    def connect(
        self, exchange: Exchange, mates: Sequence[int], direct: bool, crowded: bool
    ) -> None:
        """Reach the processes `mates` of this host through memory; collective over all processes.

        Args:
            exchange: gathers one object of every process.
            mates: this process among them.
            direct: whether ordinary memory may be reached, too, where the kernel allows that.
            crowded: whether they are more than the cores.
        """
        me = mates.index(self._wire.rank)
        memory = _native.Mailbox(len(mates), me, direct, crowded)
        where = os.getpid(), memory.fd, memory.nonce, memory.secret, memory.secret_address
        rows = exchange(where)
        connected = True
        try:
            for number, process in enumerate(mates):
                if number != me:
                    memory.connect(number, *rows[process])
        except (OSError, RuntimeError) as error:
            _logger.warning("messages go over the wire, as memory cannot be shared: %s", error)
            connected = False
        if all(exchange(connected)):
            self.memory, self.mates = memory, {p: number for number, p in enumerate(mates)}
        memory.close_descriptor()

    def send(
        self, view: View, is_tensor: bool, context: int, source: int, tag: int, to: int
    ) -> Sent | SentByWire:
        """Start to send to process `to`; the memory must not change until it is complete."""
        if (mate := self.mates.get(to)) is None:
            with self._lock:
                by_wire = self._send_by_wire(view, is_tensor, context, source, tag, to)
            self._keep(by_wire)
            return by_wire
        handle = self.memory.send(
            mate, context, source, tag, view.address, view.nbytes, *_kind(view, is_tensor)
        )
        return self.sent(handle, view)

    def sent(self, handle: _native.Send, view: View) -> Sent:
        """Return the Request of a message on its way to a node-mate; keeps it, used or not."""
        sent = Sent(self.memory, handle, view)
        self._keep(sent)
        return sent

    def received(self, handle: _native.Receive, out: View | None) -> Received:
        """Return the Request of a posted receive; keeps it, used or not."""
        received = Received(self, handle, out)
        if out:
            self._keep(received)
        return received

    def _keep(self, request: Sent | SentByWire | Received) -> None:
        if not request.finished():
            with self._keeping:
                self._under_way = [r for r in self._under_way if not r.finished()]
                self._under_way.append(request)

    def finish(self) -> None:
        """At the end: wait a little for what is being sent, and keep the memory of the rest.

        MPI goes on reading and writing that until it is finalized.
        """
        if os.getpid() != self._owner:
            return
        end = time.monotonic() + LAST_SENDS_S
        with self._keeping:
            sent = [r for r in self._under_way if isinstance(r, SentByWire)]
            while time.monotonic() < end and not all([r.finished() for r in sent]):
                time.sleep(1e-3)
            for request in self._under_way:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(request))

    def _send_by_wire(
        self, view: View, is_tensor: bool, context: int, source: int, tag: int, to: int
    ) -> SentByWire:
        data_tag = 1 + self._sent[to] % DATA_TAGS
        self._sent[to] += view.nbytes > INLINE_BYTES
        kind = view.dtype, is_tensor, tuple(view.owner.shape)
        header = Header(context, source, tag, view.nbytes, data_tag, *kind)
        head = np.frombuffer(header.pack(), np.uint8)
        if view.nbytes <= INLINE_BYTES:
            message = np.concatenate([head, view.bytes])
            return SentByWire(self._wire.isend(message, to, HEADER_TAG))
        first = self._wire.isend(head, to, HEADER_TAG)
        return SentByWire(first, self._wire.isend(view.bytes, to, data_tag))

    def receive(
        self, context: int, source: int, tag: int, out: View | None, keep: bool = False
    ) -> Received:
        """Post a receive; it takes the first message that matches and that no earlier one took.

        Args:
            context: the communicator's number.
            source: a rank of it, or ANY.
            tag: only messages with this tag match.
            out: where to; None for memory of its own.
            keep: that may be the sender's slot, until the array is dropped.
        """
        with self._lock:  # a message that another thread delivers meanwhile is fetched there
            if out is None:
                handle = self.memory.receive(context, source, tag, keep)
            else:
                dtype, _, shape = _kind(out, False)
                where = out.address, out.nbytes
                handle = self.memory.receive_into(context, source, tag, *where, dtype, shape)
            self._fetch(handle)
        return self.received(handle, out)

    def progress(self) -> None:
        """Make progress with all messages of this process."""
        self.memory.progress()
        if len(self.mates) < self._wire.size:
            with self._lock:
                self._progress_on_wire()

    def doze(self, ready: Callable[[], bool]) -> None:
        """Sleep until something has come, if `ready` does not hold; may return early."""
        expected = self.memory.expect()
        try:
            if not ready():
                wired = len(self.mates) < self._wire.size
                self.memory.sleep(expected, DOZE_WIRED_US if wired else DOZE_US)
        finally:
            self.memory.leave()

    def _progress_on_wire(self) -> None:
        while (taken := self._wire.take(HEADER_TAG)) is not None:
            data, origin = taken
            self._deliver(*Header.unpack(data), origin)
        under_way = []
        for receive, transfer in self._transfers:
            if transfer.test():
                receive.finish()
            else:
                under_way.append((receive, transfer))
        self._transfers = under_way

    def _deliver(self, header: Header, inline: np.ndarray, origin: int) -> None:
        number = 0 if header.nbytes <= INLINE_BYTES else next(self._numbers)
        if number:
            self._data[number] = origin, header.data_tag
        receive = self.memory.deliver(
            header.context,
            header.source,
            header.tag,
            0 if number else inline.ctypes.data,
            header.nbytes,
            header.dtype.code,
            header.is_tensor,
            list(header.shape),
            number,
        )
        if receive is not None:
            self._fetch(receive)

    def _fetch(self, receive: _native.Receive) -> None:
        """Start to move large data that are at the other end of the wire."""
        if number := receive.elsewhere:
            memory = memory_at(receive.address, receive.nbytes)
            transfer = self._wire.irecv(memory, *self._data.pop(number))
            self._transfers.append((receive, transfer))

    def forget(self, context: int) -> None:
        """Drop what is left of a communicator that was closed."""
        self.memory.forget(context)


def _kind(view: View, is_tensor: bool) -> tuple[int, bool, list[int]]:
    return view.dtype.code, is_tensor, list(view.owner.shape)
