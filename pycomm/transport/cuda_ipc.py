"""Collectives of device arrays between ranks that reach each other's GPU memory.

The hosts order, the GPUs move: no host waits for a GPU, and no kernel for another process. A rank
records an event, the hosts meet and so know that all events are recorded, and then each lets its
stream wait for those of its peers. In every collective

1. the hosts meet, and compare the call; each rank says where its source lies;
2. streams wait for all sources; each rank enqueues its `moves`;
3. the hosts meet again; streams wait for all ranks' moves.

Where all sources are symmetric that is one round. Else sources go through a ring of two segments
in symmetric memory: while a segment is being used the next one is copied in, and steps 2 and 3
are done for each segment.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from pycomm.devices.base import Stream
from pycomm.devices.events import Events, OwnEvents
from pycomm.devices.process import Chain, Device
from pycomm.devices.slabs import ALIGNMENT, Block, Place
from pycomm.devices.topology import launchers
from pycomm.transport.device_moves import (
    Copy,
    Reduction,
    Round,
    chunks_of,
    cut,
    enqueued,
    moves,
    source_of,
)
from pycomm.transport.job import Job
from pycomm.transport.meeting import Meeting
from pycomm.transport.rank_slabs import RankSlabs

NOWHERE = Place(-1, 0)
_MOST_KNOWN = 1024
"""So many calls are kept in mind."""


class CudaIpc(RankSlabs):
    """The device collectives of one communicator, on the GPU of each of its ranks."""

    def __init__(self, device: Device, rank: int, size: int):
        super().__init__(device, rank, size)
        self._runtime = device.runtime
        self._launchers: list[int] = []
        self._events = Events(device.runtime, rank)
        self._ring: Block | None = None
        self._asynchronous = device.runtime.new_stream()
        self._reductions = device.runtime.new_stream()
        self.order = ByHosts()
        self._kept: deque[tuple[Any, Job]] = deque()
        self.known: dict[Any, list[Copy | Reduction]] = {}

    def run(self, job: Job, meeting: Meeting, caller: Stream, asynchronous: bool) -> Any:
        """Enqueue a collective behind what is on the caller's stream, and return.

        Args:
            asynchronous: enqueue it on a stream of its own.

        Returns:
            An event that is done when the collective is; None if the caller's stream has it.
        """
        stream = self._asynchronous if asynchronous else caller
        if not self._runtime.is_capturing(caller):
            with meeting.told():
                self._let_go()
                self._put_behind(stream, caller)
        self.order.call(self, job, meeting, stream).run()
        if not asynchronous:
            return None
        event = self._runtime.event()
        self._runtime.record(event, stream)
        self._kept.append((event, job))
        return event

    def close(self) -> None:
        """Wait for the asynchronous collectives, and let go of their arrays."""
        for event, _ in self._kept:
            self._runtime.synchronize(event)
        self._kept.clear()

    def _put_behind(self, stream: Stream, caller: Stream) -> None:
        """Let `stream` wait for the caller's, and for the last collective."""
        for before in (caller, self.order.chain.last or stream):
            if before != stream:
                event = self._runtime.event()
                self._runtime.record(event, before)
                self._runtime.wait(stream, event)
        self.order.chain.last = stream

    def _let_go(self) -> None:
        """Forget the arrays of collectives that are done: until then nobody may reuse them."""
        while self._kept and self._runtime.query(self._kept[0][0]):
            self._kept.popleft()

    # ---- what its calls use

    def connect(self, meeting: Meeting) -> None:
        """Exchange events, in the first call."""
        if self._launchers:
            return
        rows = meeting.gather(self._events.row())
        with meeting.told():
            gpus = self._events.connect(rows)
        meeting.meet()
        self._launchers = launchers(gpus, self._device.every_rank_launches)

    def place_of(self, job: Job) -> Place | None:
        """Return where this rank's source is; None: it is not symmetric, or nobody reads it."""
        source, read = source_of(job), chunks_of(job, self.rank)
        return self._device.slabs.find(source.address, source.nbytes) if read else None

    @property
    def segment_bytes(self) -> int:
        """The size of each of the ring's two segments."""
        return max(self._device.segment_bytes, ALIGNMENT * self.size) // ALIGNMENT * ALIGNMENT

    def ring(self, stream: Stream) -> int:
        """Return the address of this rank's ring."""
        if self._ring is None:
            self._ring = self._device.slabs.take(2 * self.segment_bytes, stream)
        return self._ring.address


class ByHosts:
    """The order of collectives by hosts and events, see above; `chain` are those of one."""

    def __init__(self) -> None:
        self.chain = Chain()

    def call(self, ranks: CudaIpc, job: Job, meeting: Meeting, stream: Stream) -> Call:
        """Return what enqueues a collective."""
        return Call(ranks, job, meeting, stream)

    def capturable(self, job: Job) -> bool:
        """Say whether a collective can be captured into a CUDA graph: not if hosts order it."""
        return False

    def check(self) -> None:
        """Raise if a GPU is known to have failed others in a collective."""


class Call:
    """One collective of device arrays; the hosts order it, see above."""

    def __init__(self, ranks: CudaIpc, job: Job, meeting: Meeting, stream: Stream):
        self._ranks = ranks
        self._job = job
        self._meeting = meeting
        self._stream = stream
        self._runtime = ranks._runtime
        self._events: OwnEvents = ranks._events
        self._slabs = ranks._device.slabs
        of_shape = cut(job, ranks.size, ranks.segment_bytes)
        self._chunks, self._offsets, self._longest, self._slot, self._step = of_shape
        self._rows = np.empty((0, 4), np.int64)
        self._direct = False

    def run(self) -> None:
        """Enqueue it: all ranks' streams wait for each other, and no host for a stream."""
        ranks = self._ranks
        place, mine = ranks.place_of(self._job), self._chunks[ranks.rank]
        with self._meeting.told():
            self._note_uses()
            if mine and place is None and ranks.size > 1:
                self._copy_in(0)
            self._events.source_ready(0, self._stream)
        self._rows = self._open(self._row(place or NOWHERE))
        ranks.connect(self._meeting)
        ranks.learn(self._rows, self._meeting)
        symmetric = [self._rows[r, 0] >= 0 for r, chunks in enumerate(self._chunks) if chunks]
        self._direct = ranks.size == 1 or all(symmetric)
        if not self._direct and any(symmetric):
            self._go_ordinary(place)
        self._rounds(1 if self._direct else max(1, -(-self._longest // self._step)))

    def _open(self, row: np.ndarray) -> np.ndarray:
        """Compare the calls, and return every rank's row."""
        return self._meeting.open(row)

    def _meet(self) -> None:
        """Make known what all ranks have recorded."""
        self._meeting.meet()

    def _go_ordinary(self, place: Place | None) -> None:
        """Copy symmetric sources into rings, too, where other ranks' are ordinary."""
        with self._meeting.told():
            if place is not None:
                self._copy_in(0)
                self._events.source_ready(0, self._stream)
        self._rows = self._meeting.gather(self._row(place or NOWHERE))
        self._ranks.learn(self._rows, self._meeting)

    def _rounds(self, rounds: int) -> None:
        """Do the rounds; the hosts have met for the first."""
        stream, events = self._stream, self._events
        work = stream if rounds == 1 else self._ranks._reductions
        for k in range(rounds + 1):
            if k > 0:
                with self._meeting.told():
                    if k < rounds:
                        self._copy_in(k)
                        events.source_ready(k, stream)
                self._meet()
            with self._meeting.told():
                if k < rounds:
                    events.wait_for_sources(k, work)
                    self._enqueue_moves(k, work)
                    events.round_done(k, work)
                if k > 0:
                    events.wait_for_round(k - 1, stream)
                    self._copy_out(k - 1)

    def _row(self, place: Place) -> np.ndarray:
        """Return where this rank's source and its ring are: slab, offset, slab, offset."""
        ring, size = self._ranks._ring, 2 * self._ranks.segment_bytes
        where = self._slabs.find(ring.address, size) if ring else None
        return np.array([*place, *(where or NOWHERE)], np.int64)

    def _note_uses(self) -> None:
        for x in {self._job.input, self._job.output}:
            if place := self._slabs.find(x.address, x.nbytes):
                self._slabs.note_use(place, self._stream)

    def _round(self, k: int) -> Round:
        job, ranks, item = self._job, self._ranks, self._job.dtype.itemsize

        def in_source(rank: int, chunk: int) -> int:
            where = self._offsets[rank][chunk] * item
            if rank == ranks.rank:
                return source_of(job).address + where
            return ranks.address(rank, *self._rows[rank, :2].tolist()) + where

        def in_ring(rank: int, chunk: int) -> int:
            ring = ranks.address(rank, *self._rows[rank, 2:].tolist())
            return ring + k % 2 * ranks.segment_bytes + chunk * self._slot

        begin, end, at = k * self._step, (k + 1) * self._step, in_ring
        if self._direct:
            begin, end, at = 0, self._longest, in_source
        return Round(ranks.size, begin, end, at, ranks._launchers)

    def _enqueue_moves(self, k: int, stream: Stream) -> None:
        job, runtime = self._job, self._runtime
        with runtime.on(stream):
            for move in self._moves(k):
                if isinstance(move, Reduction):
                    runtime.kernels.reduce_into(*move, job.dtype, job.op)
                else:
                    runtime.copy(*move, stream)

    def _moves(self, k: int) -> list[Copy | Reduction]:
        """Return what to enqueue in a round; for arrays used directly what it was the last time."""
        job, known = self._job, self._ranks.known
        if not self._direct:
            return self._find_moves(k)
        shape = job.kind, job.dtype, job.counts, job.sent, job.root, job.output.count
        key = *shape, job.input.address, job.output.address, self._rows.tobytes()
        if key not in known:
            if len(known) == _MOST_KNOWN:
                known.clear()
            known[key] = self._find_moves(k)
        return known[key]

    def _find_moves(self, k: int) -> list[Copy | Reduction]:
        found = moves(self._job, self._ranks.rank, self._round(k))
        return enqueued(found, self._job.dtype, self._runtime.device)

    def _copy_in(self, k: int) -> None:
        """Copy a segment of every chunk of this rank's source into its ring."""
        job, item, begin = self._job, self._job.dtype.itemsize, k * self._step
        ring = self._ranks.ring(self._stream) + k % 2 * self._ranks.segment_bytes
        chunks, offsets = (of[self._ranks.rank] for of in (self._chunks, self._offsets))
        for chunk, (count, offset) in enumerate(zip(chunks, offsets)):
            nbytes = max(0, min(self._step, count - begin)) * item
            source = source_of(job).address + (offset + begin) * item
            if nbytes:
                self._runtime.copy(ring + chunk * self._slot, source, nbytes, self._stream)

    def _copy_out(self, k: int) -> None:
        """Copy a segment of an all_reduce's result out of this rank's ring."""
        job, item, begin = self._job, self._job.dtype.itemsize, k * self._step
        nbytes = max(0, min(self._step, job.output.count - begin)) * item
        if job.kind == "all_reduce" and not self._direct and nbytes:
            source = self._ranks.ring(self._stream) + k % 2 * self._ranks.segment_bytes
            self._runtime.copy(job.output.address + begin * item, source, nbytes, self._stream)
