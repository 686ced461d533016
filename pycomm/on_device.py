"""Calls with device arrays: the host's meetings in them, and what is made at the first one."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from pycomm import _native
from pycomm.algorithms.hierarchical import levels
from pycomm.algorithms.registry import Algorithm, find
from pycomm.algorithms.ring import chunk_counts
from pycomm.arrays import View, array_of, is_tensor, place_name
from pycomm.device_levels import Levels
from pycomm.devices.process import check_device, process_device
from pycomm.devices.topology import mode
from pycomm.devices.work import StreamWork
from pycomm.errors import ArgumentError, CommError, MismatchError
from pycomm.kernels.base import Kernels
from pycomm.opening import agree, compare, exchange_notes, gather_rows
from pycomm.transport.base import Transport
from pycomm.transport.cuda_ipc import CudaIpc
from pycomm.transport.job import Job
from pycomm.transport.staged import Staged
from pycomm.tuning import Choice
from pycomm.types import DTYPES

_BYTES = DTYPES["uint8"]
_GPU_BYTES = 256
"""What tells a GPU, at most."""


class HostMeeting:
    """The Meeting of one call, by small collectives of the host that carry its fingerprint."""

    def __init__(
        self, transport: Transport, kernels: Kernels, job: Job, algorithm: Algorithm | None = None
    ):
        """`algorithm` is the one of `collective`, if that is used."""
        self._algorithm = algorithm
        self.transport = transport
        self._kernels = kernels
        self._job = job
        self._word = job.fingerprint
        self._what = f"{job.kind} of arrays on a GPU"
        self._failure: Exception | None = None

    def open(self, row: np.ndarray) -> np.ndarray:
        """Return every rank's `row`, once all of them made the same call."""
        if "all_gather" not in self.transport.fused:
            compare(self.transport, self._kernels, self._word, False)
        return self.gather(row)

    def gather(self, row: np.ndarray) -> np.ndarray:
        """Return every rank's `row`; all have the same length."""
        rows = np.empty((self.transport.size, row.size), row.dtype)
        if "all_gather" not in self.transport.fused:
            return gather_rows(self.transport, self._kernels, row) if row.size else rows
        counts = (row.nbytes,) * self.transport.size
        source, target = _bytes_of(row), _bytes_of(rows)
        job = Job("all_gather", _BYTES, source, target, counts, part_of=self._what)
        job.fingerprint = self._word
        self.transport.run(job)
        return rows

    def meet(self) -> None:
        """Return when all ranks are here, and nothing failed on any of them."""

        def meet(word: int) -> None:
            if self.transport.size > 1:
                agree(self.transport, self._kernels, word, self._what)

        self._unless_failed(meet)

    @property
    def order(self) -> str:
        """In which order `collective` adds."""
        return self._algorithm.order if self._algorithm else ""

    def on_host(self) -> HostMeeting:
        """Return a meeting of the ranks on this one's host, for a part of the call."""
        return HostMeeting(levels(self.transport)[0], self._kernels, self._job)

    def across(self) -> HostMeeting:
        """Return a meeting of this rank's counterparts likewise; it adds in their order."""
        pairwise = find("all_reduce", "pairwise")
        return HostMeeting(levels(self.transport)[1], self._kernels, self._job, pairwise)

    def parts(self, job: Job) -> tuple[int, ...]:
        """Return the chunks of an array by which the algorithm orders its sums."""
        count = max(job.input.count, job.output.count)
        return chunk_counts(count, self.transport.size) if self.order == "ring" else (count,)

    def collective(self, job: Job) -> None:
        """Do a collective of the hosts that this call consists of, unless something failed."""
        algorithm, job.part_of = self._algorithm, self._what
        assert algorithm is not None

        def run(word: int) -> None:
            job.fingerprint = word
            if algorithm.name != "direct" and self.transport.size > 1:
                compare(self.transport, self._kernels, word, algorithm.opens)
            algorithm.run(self.transport, self._kernels, job)

        if self.transport.size == 1:
            self.check()
        self._unless_failed(run)

    def _unless_failed(self, act: Callable[[int], None]) -> None:
        """Call `act` with a word that all ranks have in common, unless something failed on one."""
        try:
            act(self._word ^ self.has_failed)
        except MismatchError:
            notes = exchange_notes(self.transport, self._kernels, str(self._failure or ""))
            self.check()
            raise self._others(notes) from None
        self.check()

    @property
    def has_failed(self) -> bool:
        """Whether `check` raises."""
        return self._failure is not None

    def check(self) -> None:
        """Raise what failed on this rank since the last meeting."""
        if self._failure is not None:
            raise self._failure

    def told(self) -> HostMeeting:
        """Return a context: the next `meet` raises, on all ranks, what is raised here."""
        return self

    def __enter__(self) -> None:
        """Begin what may fail."""

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        """Keep the first error; those that end the process go on."""
        if not isinstance(error, Exception):
            return False
        self._failure = self._failure or error
        return True

    def host_memory(self, nbytes: int) -> np.ndarray:
        """Return new bytes of the host; symmetric, if ranks of this host share memory."""
        transport = self.transport
        shared = transport.fused or (transport.local and transport.local.fused)
        memory: Any = _native.SharedMemory(nbytes) if shared else mmap.mmap(-1, nbytes)
        return np.frombuffer(memory, np.uint8)

    def _others(self, notes: list[str]) -> CommError:
        told = [f"  rank {rank}: {note}" for rank, note in enumerate(notes) if note]
        head = f"rank {self.transport.rank}: {self._what} failed on another rank"
        return CommError("\n".join([head, *told]))


class OnDevice:
    """What one communicator does with device arrays."""

    def __init__(self, rank: int, size: int):
        self._rank = rank
        self._size = size
        self._transport: CudaIpc | Staged | None = None

    @property
    def is_connected(self) -> bool:
        """Whether the ranks know how they reach each other's GPUs."""
        return self._transport is not None

    @property
    def is_staged(self) -> bool:
        """Whether device arrays go through the hosts."""
        return isinstance(self._transport, Staged)

    def empty(self, shape: tuple[int, ...], dtype: Any, device: Any) -> Any:
        """Return a symmetric array, as Communicator.empty does."""
        mine = process_device()
        check_device(device, mine.runtime.device)
        try:
            return mine.empty(shape, dtype)
        except CommError as error:
            raise type(error)(f"rank {self._rank}: {error}") from error

    def check(self, job: Job) -> None:
        """Raise ArgumentError if the arrays are on another GPU than this rank's."""
        mine = process_device().runtime.device
        if job.device != mine:
            raise ArgumentError(
                f"rank {self._rank}: an array is on {place_name(job.device)}, but this rank uses "
                f"{place_name(mine)}: a rank has one GPU, the current one at the first use of "
                "pycomm with GPUs"
            )

    def connect(self, meeting: HostMeeting) -> None:
        """Find out, in a call, how the ranks reach each other's GPUs; the same on all of them."""
        device = process_device()
        gpu = device.runtime.identity.encode()[:_GPU_BYTES].ljust(_GPU_BYTES, b"\0")
        rows = meeting.open(np.frombuffer(gpu, np.uint8))
        mine = np.zeros(self._size, bool)
        gpus = [row.tobytes().rstrip(b"\0").decode() for row in rows]
        with meeting.told():
            mine[:] = [device.runtime.can_access(gpu) for gpu in gpus]
        meeting.meet()
        access = meeting.gather(mine)
        if mode(gpus, access.tolist()) != "staged":
            self._transport = CudaIpc(device, self._rank, self._size)
            return
        ranks = meeting.transport
        if ranks.across and all(access[np.ix_(r, r)].all() for r in ranks.ranks_by_host):
            staged: Staged = Levels(device, ranks)
        else:
            staged = Staged(device, self._rank, self._size)
        try:
            staged.connect(meeting, meeting.host_memory)
        except BaseException:
            staged.close()
            raise
        self._transport = staged

    def algorithm(self, job: Job, name: str | None, choose: Callable[..., Choice]) -> Algorithm:
        """Return the algorithm of the hosts where collectives are staged; else the only one.

        Args:
            name: what the caller asked for, if anything.
            choose: returns the hosts' choice for `nbytes` and `name`.

        Raises:
            ArgumentError: one was asked for that does not exist.
        """
        if isinstance(self._transport, Staged):
            nbytes = min(job.nbytes, self._transport.segment_bytes)
            return choose(nbytes=nbytes, name=name).algorithm
        if name is not None:
            raise ArgumentError(
                f"algorithm={name!r} does not exist for arrays on GPUs that reach each other: "
                "leave it out"
            )
        return device_algorithm(job.kind)

    def label(self, algorithm: Algorithm) -> Algorithm:
        """Return the algorithm as ranks compare and record it: apart from that of host arrays."""
        return replace(algorithm, name=f"staged {algorithm.name}") if self.is_staged else algorithm

    def prepared(self, job: Job, asynchronous: bool) -> Callable[[HostMeeting], Any]:
        """Return what starts a collective behind what is on the caller's stream now.

        Returns:
            start(meeting) returns an event, or None: see CudaIpc.run and Staged.run.
        """
        caller, transport = process_device().runtime.stream(of_torch(job)), self._transport
        assert transport is not None
        given: dict[str, Any] = {"caller": caller, "asynchronous": asynchronous}
        if isinstance(transport, Staged):
            given["ready"] = transport.after(caller)

        def start(meeting: HostMeeting) -> Any:
            event = transport.run(job, meeting, **given)
            meeting.check()
            return event

        return start

    def work(self, job: Job, event: Any, out: Any) -> StreamWork:
        """Return the Work of a collective that was enqueued.

        Args:
            out: the caller's array for the result, None for job.output's own.
        """
        packed = job.output if out is not None and job.output.packed else None
        result = array_of(job.output, out)
        return StreamWork(process_device().runtime, event, result, packed, of_torch(job))

    def close(self) -> None:
        """Wait for asynchronous collectives."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None


def _bytes_of(row: np.ndarray) -> View:
    return View(row, _BYTES, row.nbytes, _native.address(row))


def of_torch(job: Job) -> bool:
    """Say whether a call has torch tensors, whose stream is torch's current one."""
    return is_tensor(job.input.owner) or is_tensor(job.output.owner)


@cache
def device_algorithm(kind: str) -> Algorithm:
    """Return the algorithm of GPUs that reach each other."""
    return replace(find(kind, "direct"), name="device")
