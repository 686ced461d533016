"""Calls with device arrays: the host's meetings in them, and what is made at the first one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from pycomm import _native
from pycomm.algorithms.registry import Algorithm, find
from pycomm.arrays import View, is_tensor, place_name
from pycomm.devices.process import Device, check_device, process_device
from pycomm.devices.work import StreamWork
from pycomm.errors import ArgumentError, CommError, MismatchError
from pycomm.kernels.base import Kernels
from pycomm.kernels.cuda_collective import MOST_RANKS
from pycomm.opening import agree, compare, exchange_notes, gather_rows
from pycomm.transport.base import Transport
from pycomm.transport.cuda_ipc import CudaIpc
from pycomm.transport.cuda_peer import CudaPeer
from pycomm.transport.job import Job
from pycomm.types import DTYPES
from pycomm.work import Task

_BYTES = DTYPES["uint8"]


class HostMeeting:
    """The Meeting of one call, by small collectives of the host that carry its fingerprint."""

    def __init__(self, transport: Transport, kernels: Kernels, job: Job):
        self._transport = transport
        self._kernels = kernels
        self._word = job.fingerprint
        self._what = f"{job.kind} of arrays on a GPU"
        self._failure: Exception | None = None

    def open(self, row: np.ndarray) -> np.ndarray:
        """Return every rank's `row`, once all of them made the same call."""
        if "all_gather" not in self._transport.fused:
            compare(self._transport, self._kernels, self._word, False)
        return self.gather(row)

    def gather(self, row: np.ndarray) -> np.ndarray:
        """Return every rank's `row`; all have the same length."""
        if "all_gather" not in self._transport.fused:
            return gather_rows(self._transport, self._kernels, row)
        rows = np.empty((self._transport.size, row.size), row.dtype)
        counts = (row.nbytes,) * self._transport.size
        source, target = _bytes_of(row), _bytes_of(rows)
        job = Job("all_gather", _BYTES, source, target, counts, part_of=self._what)
        job.fingerprint = self._word
        self._transport.run(job)
        return rows

    def meet(self) -> None:
        """Return when all ranks are here, and nothing failed on any of them."""
        failed = self._failure is not None
        try:
            if self._transport.size > 1:
                agree(self._transport, self._kernels, self._word ^ failed, self._what)
        except MismatchError:
            notes = exchange_notes(self._transport, self._kernels, str(self._failure or ""))
            self.check()
            raise self._others(notes) from None
        self.check()

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

    def _others(self, notes: list[str]) -> CommError:
        told = [f"  rank {rank}: {note}" for rank, note in enumerate(notes) if note]
        head = f"rank {self._transport.rank}: {self._what} failed on another rank"
        return CommError("\n".join([head, *told]))


class OnDevice:
    """What one communicator does with device arrays.

    Args:
        timeout: seconds that a GPU waits for those of other ranks.
    """

    def __init__(self, rank: int, size: int, timeout: float):
        self._rank = rank
        self._size = size
        self._timeout = timeout
        self._transport: CudaIpc | None = None

    def empty(self, shape: tuple[int, ...], dtype: Any, device: Any) -> Any:
        """Return a symmetric array, as Communicator.empty does."""
        mine = process_device()
        check_device(device, mine.runtime.device)
        try:
            return mine.empty(shape, dtype)
        except CommError as error:
            raise type(error)(f"rank {self._rank}: {error}") from error

    def algorithm(self, job: Job, name: str | None) -> Algorithm:
        """Return the one algorithm there is, or raise ArgumentError if another is asked for."""
        if name is not None:
            raise ArgumentError(
                f"algorithm={name!r} does not exist for arrays on a GPU: leave it out"
            )
        return _algorithm(job.kind)

    def prepared(self, job: Job, asynchronous: bool) -> Callable[[HostMeeting], Any]:
        """Return what starts a collective behind what is on the caller's stream now.

        Returns:
            start(meeting) returns an event, or None: see CudaIpc.run.

        Raises:
            ArgumentError: the arrays are on another GPU than this rank's, or the stream is being
                captured, which this call cannot be.
        """
        device = process_device()
        if job.device != device.runtime.device:
            raise ArgumentError(
                f"rank {self._rank}: an array is on {place_name(job.device)}, but this rank uses "
                f"{place_name(device.runtime.device)}: a rank has one GPU, the current one at the "
                "first use of pycomm with GPUs"
            )
        stream = device.runtime.stream(of_torch(job))
        if device.runtime.is_capturing(stream):
            self._check_capturable(job, asynchronous)

        def start(meeting: HostMeeting) -> Any:
            transport = self._connected(device, meeting)
            event = transport.run(job, meeting, stream, asynchronous)
            meeting.check()
            return event

        return start

    def _connected(self, device: Device, meeting: HostMeeting) -> CudaIpc:
        """Return the transport; the first call finds out how ranks reach each other."""
        if self._transport is None:
            ranks = CudaIpc(device, self._rank, self._size)
            if ranks.connect(meeting) == "peer" and 1 < self._size <= MOST_RANKS:
                ranks.order = CudaPeer(ranks, device, meeting, self._timeout)
            self._transport = ranks
        return self._transport

    def _check_capturable(self, job: Job, asynchronous: bool) -> None:
        transport = self._transport
        if asynchronous or transport is None or not transport.order.capturable(job):
            raise ArgumentError(
                f"rank {self._rank}: {job.kind} cannot be captured into a CUDA graph: every rank "
                "needs a GPU of its own with access to all others; make the same call once before, "
                "with symmetric arrays (Communicator.empty), and without async_op"
            )

    def work(self, job: Job, event: Any, result: Any, packed: View | None) -> StreamWork:
        """Return the Work of a collective that was enqueued."""
        assert self._transport is not None, "it has enqueued the collective"
        check = self._transport.order.check
        return StreamWork(process_device().runtime, event, result, packed, of_torch(job), check)

    def close(self) -> None:
        """Wait for asynchronous collectives."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None


class TaskOnDevice:
    """Work of a thread that may find, once the others have told it, that a GPU does it."""

    def __init__(self, task: Task):
        self._task = task

    def wait(self, timeout: float | None = None, *, host: bool = False) -> Any:
        """Return the operation's result, for which the current stream waits; or raise."""
        result = self._task.wait(timeout)
        if isinstance(result, StreamWork):
            return result.wait(timeout, host=host)
        return result

    def done(self) -> bool:
        """Say whether the operation is complete, also if it failed."""
        return self._task.done() and (self._enqueued is None or self._enqueued.done())

    def exception(self) -> BaseException | None:
        """Return what the operation failed with; None if it has not."""
        failed = self._task.exception()
        return failed or (self._enqueued.exception() if self._enqueued else None)

    @property
    def _enqueued(self) -> StreamWork | None:
        if not self._task.done() or self._task.exception() is not None:
            return None
        result = self._task.wait()
        return result if isinstance(result, StreamWork) else None


def _bytes_of(row: np.ndarray) -> View:
    return View(row, _BYTES, row.nbytes, _native.address(row))


def of_torch(job: Job) -> bool:
    """Say whether a call has torch tensors, whose stream is torch's current one."""
    return is_tensor(job.input.owner) or is_tensor(job.output.owner)


@cache
def _algorithm(kind: str) -> Algorithm:
    return replace(find(kind, "direct"), name="device")
