"""Collectives of device arrays through the hosts, where ranks cannot reach each other's GPUs.

Arrays go in segments through page-locked memory of the host, and the hosts do their own collective
of each, by any algorithm. There are three slots for segments, so that three are under way at once:

    the GPU copies down    the hosts do    the GPU copies up
    segment k+1            segment k       segment k−1

1. The hosts meet, and compare the call, while segment 0 comes down.
2. For every segment, each host waits until it is down, and has ordered the next one by then; the
   hosts do their collective of it; its result is ordered up.
3. The caller's stream waits for the last copy up; the hosts meet, for what failed since.

A segment may go down into a slot when the one that had it is up again: the stream of copies down
waits for that, and a host that waits for the copy down knows both.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from pycomm.devices.base import Stream
from pycomm.devices.process import Device
from pycomm.errors import CommError
from pycomm.transport.device_moves import source_of
from pycomm.transport.device_segments import IN_PLACE, Segment, chunks_down, chunks_up, on_host
from pycomm.transport.job import Job
from pycomm.transport.meeting import Meeting

SEGMENT_BYTES = 4 << 20
"""The largest segment: long enough to hide what a copy and a collective cost to begin."""
SLOTS = 3
_LARGEST_ITEM = 16
_NOTHING = np.empty(0, np.uint8)

Memory = Callable[[int], np.ndarray]
"""Returns so many new bytes of the host, which the ranks on it share if they can."""


class Hosts(Meeting, Protocol):
    """The hosts of one call, who also do its collective on their own memory."""

    def parts(self, job: Job) -> tuple[int, ...]:
        """Return the numbers of elements of the chunks by which an array's sums are ordered."""

    def collective(self, job: Job) -> None:
        """Do a collective of the hosts; raises, on all ranks, what failed on one before."""


class Staged:
    """The device collectives of one communicator, by way of the hosts.

    Attributes:
        segment_bytes: the size of a slot.
        segments: how many there were in all calls; they take the slots in turn.
    """

    def __init__(self, device: Device, rank: int, size: int):
        self.rank = rank
        self.size = size
        self.segment_bytes = max(min(device.segment_bytes, SEGMENT_BYTES), _LARGEST_ITEM * size)
        self.segments = 0
        self._slabs = device.slabs
        self._runtime = runtime = device.runtime
        self._down, self._up = self._streams = [runtime.new_stream() for _ in range(2)]
        self._is_down = [runtime.event() for _ in range(SLOTS)]
        self._is_up = [runtime.event() for _ in range(SLOTS)]
        self._sources: list[np.ndarray] = []
        self._targets: list[np.ndarray] = []
        self._kept: deque[tuple[Any, Job]] = deque()
        """Until an asynchronous collective is done nobody may reuse its arrays."""

    def connect(self, meeting: Meeting, memory: Memory) -> None:
        """Allocate the slots; if that fails on one rank, all raise, and are to close this."""
        with meeting.told():
            for slots in (self._sources, self._targets):
                for _ in range(SLOTS):
                    slot = memory(self.segment_bytes)
                    self._runtime.pin(slot.ctypes.data, self.segment_bytes)
                    slots.append(slot)
        meeting.meet()

    def after(self, caller: Stream) -> Any:
        """Return an event for all that is on the caller's stream now, or why there is none."""
        try:
            event = self._runtime.event()
            self._runtime.record(event, caller)
        except CommError as error:
            return error
        return event

    def run(self, job: Job, meeting: Any, caller: Stream, ready: Any, asynchronous: bool) -> Any:
        """Do a collective, but for the last copies up, which are enqueued.

        Args:
            meeting: of the Hosts.
            caller: the stream that the arrays are used on.
            ready: what `after` returned when the caller called.
            asynchronous: whether the caller's stream does not wait for the last copies.

        Returns:
            An event that is done when the collective is; None if the caller's stream has it.
        """
        event = None
        try:
            last = self._enqueue(job, meeting, caller, ready)
            with meeting.told():
                event = self._finished(last, job, caller, asynchronous)
            meeting.meet()
        except BaseException:
            self._settle()
            raise
        return event

    def close(self) -> None:
        """Wait for all copies, and let go of the arrays and of the slots."""
        self._settle()
        self._kept.clear()
        for slot in (*self._sources, *self._targets):
            with contextlib.suppress(CommError):
                self._runtime.unpin(slot.ctypes.data)
        self._sources, self._targets = [], []

    def _enqueue(self, job: Job, meeting: Any, caller: Stream, ready: Any) -> Stream:
        """Do what `run` does, and return the stream that the last of it is on."""
        _Call(self, job, meeting).run(caller, ready)
        return self._up

    def _begin(self, job: Job, caller: Stream, ready: Any, *streams: Stream) -> None:
        """Put what these streams do behind all that the caller enqueued before the call."""
        while self._kept and self._runtime.query(self._kept[0][0]):
            self._kept.popleft()
        if isinstance(ready, CommError):
            raise ready
        for stream in streams:
            self._runtime.wait(stream, ready)
        for x in (job.input, job.output):
            if place := self._slabs.find(x.address, x.nbytes):
                self._slabs.note_use(place, caller)

    def _finished(self, stream: Stream, job: Job, caller: Stream, asynchronous: bool) -> Any:
        """Return what `run` does, when all that is left to do is on `stream`."""
        event = self._runtime.event()
        self._runtime.record(event, stream)
        if not asynchronous:
            self._runtime.wait(caller, event)
            return None
        self._kept.append((event, job))
        return event

    def _settle(self) -> None:
        """Let the host wait for all copies, as far as the GPU still does any."""
        for stream in self._streams:
            with contextlib.suppress(CommError):
                event = self._runtime.event()
                self._runtime.record(event, stream)
                self._runtime.synchronize(event)


class _Call:
    """One collective of device arrays."""

    def __init__(self, staged: Staged, job: Job, hosts: Hosts):
        self._staged = staged
        self._job = job
        self._hosts = hosts
        self._runtime = staged._runtime
        self._parts = parts = hosts.parts(job)
        down = [chunks_down(job, rank, parts) for rank in range(staged.size)]
        up = [chunks_up(job, rank, parts) for rank in range(staged.size)]
        self._chunks_down, self._chunks_up = down[staged.rank], up[staged.rank]
        chunks = [c for c in (*down, *up) if c]
        self._step = staged.segment_bytes // max(map(len, chunks)) // job.dtype.itemsize
        self._segments = -(-max(map(max, chunks)) // self._step)
        self._first = staged.segments
        staged.segments += self._segments

    def run(self, caller: Stream, ready: Any) -> None:
        """Do all but wait for the last copies up."""
        staged, hosts = self._staged, self._hosts
        with hosts.told():
            staged._begin(self._job, caller, ready, staged._down, staged._up)
            self._copy_down(0)
        hosts.open(_NOTHING)
        for k in range(self._segments):
            with hosts.told():
                self._copy_down(k + 1)
                self._runtime.synchronize(staged._is_down[self._slot(k)])
            hosts.collective(self._of_hosts(k))
            with hosts.told():
                self._copy_up(k)

    def _segment(self, k: int) -> Segment:
        return Segment(k * self._step, (k + 1) * self._step)

    def _slot(self, k: int) -> int:
        return (self._first + k) % SLOTS

    def _of_hosts(self, k: int) -> Job:
        staged, slot = self._staged, self._slot(k)
        memory = staged._sources[slot], staged._targets[slot]
        return on_host(self._job, staged.rank, self._parts, self._segment(k), *memory)

    def _copy_down(self, k: int) -> None:
        """Copy a segment to the host, if there is one, once what was in its slot is up."""
        if k >= self._segments:
            return
        staged, slot, item = self._staged, self._slot(k), self._job.dtype.itemsize
        self._runtime.wait(staged._down, staged._is_up[slot])
        array, memory = source_of(self._job).address, staged._sources[slot].ctypes.data
        for run in self._segment(k).runs(self._chunks_down):
            source, target = array + run.in_array * item, memory + run.in_segment * item
            self._runtime.copy(target, source, run.elements * item, staged._down)
        self._runtime.record(staged._is_down[slot], staged._down)

    def _copy_up(self, k: int) -> None:
        """Copy the result of a segment to the GPU."""
        staged, slot, item = self._staged, self._slot(k), self._job.dtype.itemsize
        slots = staged._sources if self._job.kind in IN_PLACE else staged._targets
        array, memory = self._job.output.address, slots[slot].ctypes.data
        for run in self._segment(k).runs(self._chunks_up):
            source, target = memory + run.in_segment * item, array + run.in_array * item
            self._runtime.copy(target, source, run.elements * item, staged._up)
        self._runtime.record(staged._is_up[slot], staged._up)
