"""Symmetric memory: slabs that other processes can map, and the blocks that arrays lie in.

What is freed is reused in the order of streams: a block remembers the streams that it was used on,
and who gets its memory next first waits for what is on these.
"""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from pycomm.devices.base import Allocation, Runtime, Stream

SLAB_BYTES = 32 << 20
"""The smallest slab."""
ALIGNMENT = 512
"""Blocks begin at multiples of it, in bytes."""


class Place(NamedTuple):
    """Where an array lies for other processes: so many bytes into a slab of its process."""

    slab: int
    offset: int


@dataclass(order=True)
class Span:
    """A part of a slab, in use or free, and the streams on which it was used."""

    slab: int
    offset: int
    nbytes: int
    streams: set[Stream] = field(default_factory=set, compare=False)


class Block:
    """Memory in use: freed when nothing refers to it any more."""

    __slots__ = ("address", "nbytes", "_span", "_give_back")

    def __init__(self, address: int, span: Span, give_back: Callable[[Span], None]):
        self.address = address
        self.nbytes = span.nbytes
        self._span = span
        self._give_back = give_back

    def __del__(self) -> None:
        self._give_back(self._span)


class Slabs:
    """The symmetric memory of one process on one GPU; slab k is its k-th, and stays."""

    def __init__(self, runtime: Runtime, slab_bytes: int = SLAB_BYTES):
        self._runtime = runtime
        self._slab_bytes = slab_bytes
        self._numbers = itertools.count()
        self._slabs: dict[int, Allocation] = {}
        self._free: list[Span] = []
        self._used: list[Span] = []
        self._returned: deque[Span] = deque()
        """By finalizers, which may run at any time: so they only append."""
        self._lock = threading.Lock()

    def take(self, nbytes: int, stream: Stream) -> Block:
        """Return memory for work on `stream`, in the smallest free place that is large enough.

        Raises:
            DeviceError: the GPU has not that much left.
        """
        nbytes = max(1, -(-nbytes // ALIGNMENT)) * ALIGNMENT
        with self._lock:
            self._recover()
            span = self._cut(self._best(nbytes), nbytes)
            self._wait_for_streams(span, stream)
            insort(self._used, span)
        return Block(self._slabs[span.slab].address + span.offset, span, self._returned.append)

    def find(self, address: int, nbytes: int) -> Place | None:
        """Return where memory lies, or None if it is not symmetric."""
        for number, slab in list(self._slabs.items()):
            if slab.address <= address and address + nbytes <= slab.address + slab.nbytes:
                return Place(number, address - slab.address)
        return None

    def note_use(self, place: Place, stream: Stream) -> None:
        """Remember that the block at `place` is used on `stream`, until all that is there now."""
        with self._lock:
            at = bisect_right(self._used, Span(*place, 1 << 62)) - 1
            self._used[at].streams.add(stream)

    def address(self, slab: int) -> int:
        """Return where a slab begins."""
        return self._slabs[slab].address

    def handle(self, slab: int) -> bytes:
        """Return what opens a slab in other processes."""
        return self._slabs[slab].handle

    @property
    def nbytes(self) -> int:
        """How much memory the slabs take."""
        return sum(slab.nbytes for slab in self._slabs.values())

    def _recover(self) -> None:
        """Make free what was given back; neighbours become one."""
        while self._returned:
            span = self._returned.popleft()
            self._used.remove(span)
            at = bisect_right(self._free, span)
            for other in self._free[max(0, at - 1) : at + 1]:
                span = self._merge(span, other)
            insort(self._free, span)

    def _merge(self, span: Span, other: Span) -> Span:
        low, high = sorted((span, other))
        if low.slab != high.slab or low.offset + low.nbytes != high.offset:
            return span
        self._free.remove(other)
        return Span(low.slab, low.offset, low.nbytes + high.nbytes, low.streams | high.streams)

    def _best(self, nbytes: int) -> Span:
        fitting = [span for span in self._free if span.nbytes >= nbytes]
        if fitting:
            best = min(fitting, key=lambda span: span.nbytes)
            self._free.remove(best)
            return best
        slab = self._runtime.allocate(max(nbytes, self._slab_bytes))
        number = next(self._numbers)
        self._slabs[number] = slab
        return Span(number, 0, slab.nbytes)

    def _cut(self, span: Span, nbytes: int) -> Span:
        if span.nbytes > nbytes:
            rest = Span(span.slab, span.offset + nbytes, span.nbytes - nbytes, set(span.streams))
            insort(self._free, rest)
        return Span(span.slab, span.offset, nbytes, span.streams)

    def _wait_for_streams(self, span: Span, stream: Stream) -> None:
        for other in span.streams - {stream}:
            event = self._runtime.event()
            self._runtime.record(event, other)
            self._runtime.wait(stream, event)
        span.streams = {stream}


class Mapped:
    """Slabs of other processes, mapped at first sight, and kept."""

    def __init__(self, runtime: Runtime):
        self._runtime = runtime
        self._slabs: dict[bytes, Allocation] = {}

    def open(self, handle: bytes) -> int:
        """Return the address of a slab.

        Raises:
            DeviceError: it cannot be opened.
        """
        if handle not in self._slabs:
            self._slabs[handle] = self._runtime.open_memory(handle)
        return self._slabs[handle].address
