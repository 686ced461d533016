"""The meetings of the hosts in a call with device arrays."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np

from pycomm import _native
from pycomm.algorithms.hierarchical import levels
from pycomm.algorithms.registry import Algorithm, find
from pycomm.algorithms.ring import chunk_counts
from pycomm.arrays import View
from pycomm.errors import CommError, MismatchError
from pycomm.kernels.base import Kernels
from pycomm.opening import agree, compare, exchange_notes, gather_rows
from pycomm.transport.base import Transport
from pycomm.transport.job import Job
from pycomm.types import DTYPES

_BYTES = DTYPES["uint8"]


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


def _bytes_of(row: np.ndarray) -> View:
    return View(row, _BYTES, row.nbytes, _native.address(row))
