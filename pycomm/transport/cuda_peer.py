"""Collectives of device arrays between ranks that have a GPU each, and access to all others.

The kernels meet on the GPUs (csrc/cuda/meet.h), so no stream waits for an event of another rank,
and the hosts meet once a call, to compare it. In every collective

1. the hosts meet, and compare the call; each rank says where its source lies;
2. each rank launches one kernel: it meets those of all other ranks, does this rank's `moves`, and
   meets them again. An all_reduce of few bytes is one shot: every rank adds everything.

Ordinary arrays go through the ring of two segments of cuda_ipc.py, with a kernel a segment. A
user's operation is a kernel of its own, between two that only meet.

A call that was made before can be captured into a CUDA graph: what kernels count their meetings by
lies on the GPU, so the hosts meet when it is captured, and not when it is replayed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pycomm.devices.base import Stream
from pycomm.devices.events import OwnEvents
from pycomm.devices.process import Device
from pycomm.devices.slabs import Place
from pycomm.errors import ArgumentError, CommError, CommTimeoutError
from pycomm.kernels.cuda_collective import BOARD_BYTES, MOST_BLOCKS, CollectiveKernels, Group
from pycomm.kernels.numba_ops import UserOp
from pycomm.transport.cuda_ipc import NOWHERE, ByHosts, Call, CudaIpc
from pycomm.transport.device_moves import ROOT_ONLY, Copy, Reduce, chunks_of, moves
from pycomm.transport.job import Job
from pycomm.transport.meeting import Meeting
from pycomm.types import DTYPES

_MOST_MADE = 4096
_FAILED = -1
_kept: list[Any] = []
"""Boards, and what kernels write to, as long as the process lives: ranks may be late."""


class CudaPeer(ByHosts):
    """The order of a communicator's collectives by meetings of kernels.

    Args:
        ranks: connected.
        timeout: seconds that a kernel waits for those of other ranks.

    Attributes:
        chain: of all such collectives of the process, so that their kernels never compete for room.
        kernels: those that meet.
        timeout: as above.
    """

    def __init__(self, ranks: CudaIpc, device: Device, meeting: Meeting, timeout: float):
        self.chain = device.chain
        self.timeout = timeout
        self._ranks = ranks
        with meeting.told():
            self._late = device.runtime.host_word()
            self._events = OwnEvents(device.runtime)
        self._one_shot_bytes = device.one_shot_bytes
        self._made: set[int] = set()
        self.kernels = self._connect(device, meeting)

    def call(self, ranks: CudaIpc, job: Job, meeting: Meeting, stream: Stream) -> Call:
        """Return what enqueues a collective."""
        return PeerCall(self, self._events, ranks, job, meeting, stream)

    def capturable(self, job: Job) -> bool:
        """Say whether this rank can let a graph do a call: its kernels and arrays are known."""
        if job.fingerprint not in self._made:
            return False
        place = self._ranks.place_of(job)
        unread = not chunks_of(job, self._ranks.rank) or self.is_one_shot(job)
        return unread or (place is not None and self._ranks.knows(place))

    def is_one_shot(self, job: Job) -> bool:
        """Say whether every rank adds everything; the same on all ranks."""
        most = min(self._one_shot_bytes, self.kernels.group.one_shot_bytes)
        small = job.kind == "all_reduce" and job.nbytes <= most
        return small and not isinstance(job.op, UserOp)

    def note(self, job: Job) -> None:
        """Remember that a call was made, whose kernels are loaded therefore."""
        if len(self._made) >= _MOST_MADE:
            self._made.clear()
        self._made.add(job.fingerprint)

    @property
    def late(self) -> int:
        """1 + a rank whose kernel did not come in time; 0 if all came until now."""
        return int(self._late[0])

    def check(self) -> None:
        """Raise CommTimeoutError if a rank's kernel did not come to this rank's in time."""
        if self.late:
            raise self.too_late(self.late, self._ranks.rank)

    def too_late(self, late: int, waiting: int) -> CommTimeoutError:
        """Return what to raise for `late` of the rank `waiting`."""
        return CommTimeoutError(
            f"rank {self._ranks.rank}: rank {late - 1}'s GPU did not come to a collective within "
            f"{self.timeout:g} s, for which rank {waiting}'s waited: results since then are "
            "undefined"
        )

    def _connect(self, device: Device, meeting: Meeting) -> CollectiveKernels:
        """Make this rank's board, and map all others'."""
        launcher, row = device.runtime.kernels.launcher, np.zeros(5, np.int64)
        with meeting.told():
            row[:] = (*_new_board(device), *NOWHERE, launcher.multiprocessors)
        meeting.meet()
        _kept.append(self._late)
        rows = meeting.gather(row)
        self._ranks.learn(rows[:, :4], meeting)
        places = [(rank, *place) for rank, place in enumerate(rows[:, :2].tolist())]
        boards = tuple(self._ranks.address(*place) for place in places)
        blocks = min(MOST_BLOCKS, int(rows[:, 4].min()))
        late = self._late.ctypes.data
        group = Group(self._ranks.rank, boards, self.timeout, late, blocks)
        return CollectiveKernels(launcher, group)


def _new_board(device: Device) -> Place:
    """Return the place of new symmetric memory that is all zeros."""
    runtime, stream = device.runtime, device.runtime.stream()
    block = device.slabs.take(BOARD_BYTES, stream)
    _kept.append(block)
    runtime.array(block, (BOARD_BYTES,), DTYPES["uint8"], False)[...] = 0
    event = runtime.event()
    runtime.record(event, stream)
    runtime.synchronize(event)
    place = device.slabs.find(block.address, BOARD_BYTES)
    assert place is not None
    return place


class PeerCall(Call):
    """One collective, of kernels that meet."""

    def __init__(
        self,
        peers: CudaPeer,
        events: OwnEvents,
        ranks: CudaIpc,
        job: Job,
        meeting: Meeting,
        stream: Stream,
    ):
        super().__init__(ranks, job, meeting, stream)
        self._peers = peers
        self._events = events

    def run(self) -> None:
        """Enqueue it: the GPUs wait for each other, and no host for a GPU."""
        if not self._peers.is_one_shot(self._job):
            return super().run()
        with self._meeting.told():
            self._note_uses()
        self._open(self._row(NOWHERE))
        job, address = self._job, self._job.output.address
        with self._meeting.told(), self._runtime.on(self._stream):
            kernels = self._peers.kernels
            kernels.all_reduce(address, address, job.output.count, job.dtype, job.op)

    def _open(self, row: np.ndarray) -> np.ndarray:
        """Compare the calls, also whether they are captured, and return every rank's row."""
        captured = self._runtime.is_capturing(self._stream)
        rows = self._meeting.open(np.array([*row, self._state(), captured], np.int64))
        self._check_states(rows[:, -2].tolist())
        self._check_captured(rows[:, -1].tolist())
        self._peers.note(self._job)
        return rows[:, :-2]

    def _meet(self) -> None:
        """Do nothing: kernels meet."""

    def _state(self) -> int:
        """Return `late`, or that something failed here."""
        try:
            self._meeting.check()
        except Exception:
            return _FAILED
        return self._peers.late

    def _check_states(self, states: list[int]) -> None:
        """Raise, on all ranks, what has failed on any of them."""
        mine = f"rank {self._ranks.rank}"
        self._meeting.check()
        for rank, late in enumerate(states):
            if late == _FAILED:
                raise CommError(f"{mine}: {self._job.kind} failed on rank {rank}, see there")
            if late:
                raise self._peers.too_late(late, rank)

    def _check_captured(self, captured: list[int]) -> None:
        """Raise, on all ranks, unless all ranks capture the call or none does."""
        if any(captured) and not all(captured):
            mine, kind = f"rank {self._ranks.rank}", self._job.kind
            raise ArgumentError(
                f"{mine}: rank {captured.index(1)} captures {kind} into a CUDA graph, but rank "
                f"{captured.index(0)} does not: capture it on all ranks, or on none"
            )

    def _enqueue_moves(self, k: int, stream: Stream) -> None:
        """Launch round k's kernel, also where this rank has nothing to do in it."""
        job, now = self._job, self._round(k)
        longest = min(now.end, self._longest) - now.begin
        found = moves(job, self._ranks.rank, now)
        with self._runtime.on(stream):
            if longest <= 0:
                return
            if "reduce" not in job.kind:
                copies = [move for move in found if isinstance(move, Copy)]
                self._copy(copies, longest)
            elif isinstance(job.op, UserOp):
                self._peers.kernels.meet()
                super()._enqueue_moves(k, stream)
                self._peers.kernels.meet()
            else:
                reductions = [move for move in found if isinstance(move, Reduce)]
                self._reduce(reductions, longest)

    def _reduce(self, found: list[Reduce], longest: int) -> None:
        job, shares = self._job, self._ranks.size if self._job.kind == "all_reduce" else 1
        move = found[0] if found else Reduce([], [], 0)
        self._peers.kernels.reduce(*move, -(-longest // shares), job.dtype, job.op)

    def _copy(self, found: list[Copy], longest: int) -> None:
        """Copy from the next rank first, so that not all read from the same one at a time."""
        job, rank = self._job, self._ranks.rank
        turned = [*found[rank + 1 :], *found[: rank + 1]]
        copies = [move for move in turned if move.target != move.source]
        sources = 1 if job.kind in ROOT_ONLY else self._ranks.size
        self._peers.kernels.copy(copies, longest * job.dtype.itemsize * sources)
