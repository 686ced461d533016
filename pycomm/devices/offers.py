"""Memory that a process offers another to read once, and the events that say from and until when.

A ticket is an event of the offering process for one reader: recorded when the data are there. The
reader has an event for each ticket: recorded when it has read. The offerer uses a ticket again once
a stream of its own waits for that. So neither event is ever recorded anew while somebody still has
to wait for what it stood for; and as that may be on another stream, it is behind the last time.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

from pycomm.devices.base import HANDLE_BYTES, Runtime, Stream
from pycomm.devices.slabs import Mapped, Place, Slabs


class Offer(NamedTuple):
    """What a reader needs: the slab and how far into it, the ticket, and its event."""

    slab: bytes
    offset: int
    ticket: int
    ready: bytes


@dataclass(frozen=True)
class Ticket:
    """A number that tells a process's offers to one reader apart, and its event."""

    number: int
    ready: Any
    handle: bytes


class Offers:
    """What one process offers others, and what others offer it; processes are numbers."""

    def __init__(self, runtime: Runtime, slabs: Slabs, mapped: Mapped):
        self._runtime = runtime
        self._slabs = slabs
        self._mapped = mapped
        self._events: dict[bytes, Any] = {}
        self._own: dict[bytes, int] = {}
        self._tickets: defaultdict[int, int] = defaultdict(int)
        self._free: defaultdict[int, list[Ticket]] = defaultdict(list)
        self._read: dict[tuple[int, int], tuple[Any, bytes]] = {}
        self._lock = threading.Lock()

    def make(self, reader: int, place: Place, stream: Stream) -> tuple[Ticket, Offer]:
        """Offer a place, as it will be once all that is on the stream now is done."""
        slab = self.slab(place)
        with self._lock:
            ticket = self._free[reader].pop() if self._free[reader] else self._new(reader)
        self._record_behind(ticket.ready, stream)
        return ticket, Offer(slab, place.offset, ticket.number, ticket.handle)

    def wait_for_reader(self, ticket: Ticket, reader: int, done: bytes, stream: Stream) -> None:
        """Let a stream wait until the reader has read; the ticket can be used again.

        Args:
            done: what the reader's `read` returned; nothing if it did not read.
        """
        if done:
            self._runtime.wait(stream, self._event(done))
        with self._lock:
            self._free[reader].append(ticket)

    def address(self, offer: Offer) -> int:
        """Return where an offer is mapped here.

        Raises:
            DeviceError: it cannot be mapped.
        """
        return self.base(offer.slab) + offer.offset

    def slab(self, place: Place) -> bytes:
        """Return what opens the slab of a place."""
        slab = _padded(self._slabs.handle(place.slab))
        self._own[slab] = self._slabs.address(place.slab)
        return slab

    def base(self, slab: bytes) -> int:
        """Return where a slab is mapped here.

        Raises:
            DeviceError: it cannot be mapped.
        """
        with self._lock:
            own = self._own.get(slab)
            return self._mapped.open(slab) if own is None else own

    def wait_for_offer(self, offer: Offer, stream: Stream) -> None:
        """Let a stream wait until the data are there: the offer must have come by a message."""
        self._runtime.wait(stream, self._event(offer.ready))

    def read(self, offer: Offer, offerer: int, stream: Stream) -> bytes:
        """Record that all that is on the stream now was the reading; return what tells of that."""
        with self._lock:
            key = offerer, offer.ticket
            if key not in self._read:
                self._read[key] = self._shared_event()
            event, handle = self._read[key]
        self._record_behind(event, stream)
        return handle

    def _record_behind(self, event: Any, stream: Stream) -> None:
        """Record an event anew, on any stream, once all is done that it has stood for."""
        self._runtime.wait(stream, event)
        self._runtime.record(event, stream)

    def _new(self, reader: int) -> Ticket:
        number = self._tickets[reader]
        self._tickets[reader] += 1
        return Ticket(number, *self._shared_event())

    def _shared_event(self) -> tuple[Any, bytes]:
        event = self._runtime.event(shared=True)
        handle = _padded(self._runtime.handle_of(event))
        self._events[handle] = event
        return event, handle

    def _event(self, handle: bytes) -> Any:
        with self._lock:
            if handle not in self._events:
                self._events[handle] = self._runtime.open_event(handle)
            return self._events[handle]


def _padded(handle: bytes) -> bytes:
    return handle.ljust(HANDLE_BYTES, b"\0")
