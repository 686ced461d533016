"""All_reduce of device arrays on several hosts within which ranks reach each other's GPUs."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from pycomm.algorithms.hierarchical import plain
from pycomm.algorithms.ring import chunk_counts
from pycomm.arrays import View
from pycomm.devices.base import Stream
from pycomm.devices.process import Device
from pycomm.kernels.device import DeviceView
from pycomm.transport.base import Transport
from pycomm.transport.cuda_ipc import CudaIpc
from pycomm.transport.job import Job
from pycomm.transport.meeting import Meeting
from pycomm.transport.staged import Hosts, Memory, Staged
from pycomm.types import DType

_NOTHING = np.empty(0, np.uint8)


class AllHosts(Hosts, Protocol):
    """The hosts of one call, on several of which some ranks reach each other's GPUs."""

    order: str
    """In which order their collective adds."""

    def on_host(self) -> Meeting:
        """Return a meeting of the ranks on this one's host, for a part of the call."""

    def across(self) -> Hosts:
        """Return a meeting of this rank's counterparts likewise; it adds in their order."""


class Levels(Staged):
    """The device collectives of one communicator on several hosts: staged, but for all_reduce.

    all_reduce in the hosts' hierarchical order, on h hosts with m ranks each:

    1. On every host a reduce_scatter between the GPUs leaves rank l with chunk l, of m, of the
       host's sum, as partial sums.
    2. Rank l and its h−1 counterparts add those by a staged all_reduce, in the order of the hosts.
    3. The chunk is rounded, once; on every host an all_gather between the GPUs collects the chunks.

    So 1/m of the array goes through each host's memory a rank, where staging alone takes all of it.
    What fails on a rank in a step is told to those with which it does the next, and after the last
    to all. After step 1 the ranks of its host know already, and meet no more: they could not.
    """

    def __init__(self, device: Device, ranks: Transport):
        """`ranks` has `local` and `across`."""
        super().__init__(device, ranks.rank, ranks.size)
        local, across = ranks.local, ranks.across
        assert local is not None and across is not None
        self._on_host = CudaIpc(device, local.rank, local.size)
        self._across = Staged(device, across.rank, across.size)
        self._stream = device.runtime.new_stream()
        self._streams.append(self._stream)

    def connect(self, meeting: Meeting, memory: Memory) -> None:
        """Allocate the slots, as Staged.connect does."""
        super().connect(meeting, memory)
        self._across.connect(meeting, memory)

    def close(self) -> None:
        """Wait for all copies, and let go of the arrays and of the slots."""
        self._across.close()
        self._on_host.close()
        super().close()

    def _enqueue(self, job: Job, meeting: Any, caller: Stream, ready: Any) -> Stream:
        if job.kind != "all_reduce" or meeting.order != "hierarchical" or not job.output.count:
            return super()._enqueue(job, meeting, caller, ready)
        counts = chunk_counts(job.output.count, self._on_host.size)
        mine = counts[self._on_host.rank]
        with meeting.told():
            self._begin(job, caller, ready, self._stream)
            source = self._as_partials(job)
            rooms = self._room(mine, job.dtype.partial), self._room(mine, job.dtype)
        meeting.open(_NOTHING)
        meeting.meet()
        with meeting.told():
            self._all_reduce(job, meeting, counts, source, *rooms)
        return self._stream

    def _all_reduce(
        self,
        job: Job,
        hosts: AllHosts,
        counts: tuple[int, ...],
        source: View,
        sums: View,
        rounded: View,
    ) -> None:
        """Do the three steps.

        Args:
            counts: of the chunks.
            source: the input as partial sums.
            sums: room for this rank's chunk as such.
            rounded: room for it in the type of the array.
        """
        on_host, across, stream, wide = hosts.on_host(), hosts.across(), self._stream, sums.dtype
        op = job.op if source is job.input and job.op.name == "premul_sum" else plain(job.op)
        with across.told():
            part = Job("reduce_scatter", wide, source, sums, counts, op)
            self._on_host.run(part, on_host, stream, False)
        all_know = across.has_failed
        with on_host.told():
            total = Job("all_reduce", wide, sums, sums, op=plain(job.op))
            self._across.run(total, across, stream, self._across.after(stream), False)
            with self._runtime.on(stream):
                views = self._device_view(sums), self._device_view(rounded)
                self._runtime.kernels.finish(*views, job.dtype, job.op, self.size)
        if all_know:
            across.check()
        whole = Job("all_gather", job.dtype, rounded, job.output, counts)
        self._on_host.run(whole, on_host, stream, False)
        on_host.check()

    def _as_partials(self, job: Job) -> View:
        """Return the input in the type of partial sums, multiplied already if that is another."""
        if job.dtype.partial == job.dtype:
            return job.input
        wide = self._room(job.input.count, job.dtype.partial)
        with self._runtime.on(self._stream):
            views = self._device_view(job.input), self._device_view(wide)
            self._runtime.kernels.widen(*views, job.dtype, job.op)
        return wide

    def _room(self, count: int, dtype: DType) -> View:
        """Return symmetric memory of the GPU."""
        block = self._slabs.take(count * dtype.itemsize, self._stream)
        return View(block, dtype, count, block.address, device=self._runtime.device)

    def _device_view(self, x: View) -> DeviceView:
        return DeviceView(x.address, x.nbytes, self._runtime.device)
