"""Calls with device arrays, and what is made at the first one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from pycomm.algorithms.registry import Algorithm, find
from pycomm.arrays import array_of, is_tensor, place_name
from pycomm.device_levels import Levels
from pycomm.devices.process import check_device, process_device
from pycomm.devices.topology import mode
from pycomm.devices.work import StreamWork
from pycomm.errors import ArgumentError, CommError
from pycomm.host_meeting import HostMeeting
from pycomm.kernels.cuda_collective import MOST_RANKS
from pycomm.transport.cuda_ipc import CudaIpc
from pycomm.transport.cuda_peer import CudaPeer
from pycomm.transport.job import Job
from pycomm.transport.staged import Staged
from pycomm.tuning import Choice

_GPU_BYTES = 256
"""What tells a GPU, at most."""


class OnDevice:
    """What one communicator does with device arrays.

    Args:
        timeout: seconds that a GPU waits for those of other ranks.
    """

    def __init__(self, rank: int, size: int, timeout: float):
        self._rank = rank
        self._size = size
        self._timeout = timeout
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
        """Raise ArgumentError if the arrays are on another GPU, or the first call is captured."""
        mine = process_device().runtime.device
        if job.device != mine:
            raise ArgumentError(
                f"rank {self._rank}: an array is on {place_name(job.device)}, but this rank uses "
                f"{place_name(mine)}: a rank has one GPU, the current one at the first use of "
                "pycomm with GPUs"
            )
        if not self.is_connected:
            self._check_captured(job, False)

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
        if (found := mode(gpus, access.tolist())) != "staged":
            reached = CudaIpc(device, self._rank, self._size)
            reached.connect(meeting)
            if found == "peer" and 1 < self._size <= MOST_RANKS:
                reached.order = CudaPeer(reached, device, meeting, self._timeout)
            self._transport = reached
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

        Raises:
            ArgumentError: the stream is being captured, which this call cannot be.
        """
        caller, transport = process_device().runtime.stream(of_torch(job)), self._transport
        assert transport is not None
        given: dict[str, Any] = {"caller": caller, "asynchronous": asynchronous}
        if isinstance(transport, Staged):
            self._check_captured(job, False)
            given["ready"] = transport.after(caller)
        else:
            self._check_captured(job, not asynchronous and transport.order.capturable(job))

        def start(meeting: HostMeeting) -> Any:
            event = transport.run(job, meeting, **given)
            meeting.check()
            return event

        return start

    def _check_captured(self, job: Job, can_be: bool) -> None:
        """Raise ArgumentError if the caller's stream is being captured, and the call cannot be."""
        runtime = process_device().runtime
        if not can_be and runtime.is_capturing(runtime.stream(of_torch(job))):
            raise ArgumentError(
                f"rank {self._rank}: {job.kind} cannot be captured into a CUDA graph: every rank "
                "needs a GPU of its own with access to all others; make the same call once before, "
                "with symmetric arrays (Communicator.empty), and without async_op"
            )

    def work(self, job: Job, event: Any, out: Any) -> StreamWork:
        """Return the Work of a collective that was enqueued.

        Args:
            out: the caller's array for the result, None for job.output's own.
        """
        packed = job.output if out is not None and job.output.packed else None
        result, transport = array_of(job.output, out), self._transport
        work = StreamWork(process_device().runtime, event, result, packed, of_torch(job))
        if isinstance(transport, CudaIpc):
            work.check = transport.order.check
        return work

    def close(self) -> None:
        """Wait for asynchronous collectives."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None


def of_torch(job: Job) -> bool:
    """Say whether a call has torch tensors, whose stream is torch's current one."""
    return is_tensor(job.input.owner) or is_tensor(job.output.owner)


@cache
def device_algorithm(kind: str) -> Algorithm:
    """Return the algorithm of GPUs that reach each other."""
    return replace(find(kind, "direct"), name="device")
