"""One collective as it is done: calls compared, recorded and counted, failures explained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pycomm import _native
from pycomm.algorithms.registry import Algorithm, find
from pycomm.arrays import returned
from pycomm.errors import MismatchError
from pycomm.guard import call_site, describe, recorded
from pycomm.kernels.base import Kernels
from pycomm.observe.flight import note_flight
from pycomm.observe.stats import Stats
from pycomm.observe.trace import Trace
from pycomm.opening import compare, exchange_notes
from pycomm.transport.base import Transport
from pycomm.transport.job import Job
from pycomm.transport.shm import SharedMemory


class Performer:
    """Does collectives of one communicator, one at a time.

    Attributes:
        transport: what they go by; none once closed.
        closed: whether there are no more to do.
        when_failed: called as soon as one has failed.
    """

    def __init__(
        self,
        transport: Transport,
        kernels: Kernels,
        stats: Stats,
        flight: _native.Flight,
        trace: Trace | None,
    ):
        self.transport = transport
        self.closed = False
        self.when_failed: Callable[[], None] = lambda: None
        self._kernels = kernels
        self._stats = stats
        self._flight = flight
        self._trace = trace
        self._failure: BaseException | None = None

    def stats(self) -> Stats:
        """Return the counters of this communicator, quick calls included; the last if closed."""
        total = replace(self._stats)
        if self.closed:
            return total
        if isinstance(self.transport, SharedMemory):
            counts = self.transport.quick.quick_counts
            for kind, (operations, nbytes, busy_s, idle_s) in counts.items():
                total.operations += operations
                total.busy_s += busy_s
                total.idle_s += idle_s
                total.bytes_sent += int(
                    find(kind, "direct").wire_bytes(self.transport.size, nbytes)
                )
        return total

    def fail(self, error: BaseException) -> BaseException:
        """Let all later calls raise, because of `error`; it says where this rank's flight is."""
        self._flight.end(False)
        note_flight(error)
        self._failure = error
        self._allow_quick(False)
        self.when_failed()
        return error

    def _allow_quick(self, allowed: bool) -> None:
        """Quick calls would overtake the engine."""
        if isinstance(self.transport, SharedMemory):
            self.transport.quick.quick = allowed

    def _run(self, job: Job, algorithm: Algorithm, out: Any, site: str | None = None) -> Any:
        def act() -> None:
            self._open(job, algorithm)
            algorithm.run(self.transport, self._kernels, job)

        self._perform(job, algorithm, act, site)
        self._count(job, algorithm)
        return returned(job.output, out)

    def _perform(
        self, job: Job, algorithm: Algorithm, act: Callable[[], Any], site: str | None
    ) -> Any:
        """Do a collective, and record it; call `fail` if it fails."""
        trace = self._trace
        self._flight.collective(*recorded(job, algorithm.name, site))
        try:
            with trace.span(job.kind, nbytes=job.nbytes) if trace else contextlib.nullcontext():
                result = act()
        except MismatchError:
            note = describe(job, algorithm.name, site or call_site())
            raise self.fail(self._mismatch(note)) from None
        except BaseException as error:
            self.fail(error)
            raise
        self._flight.end(True)
        return result

    def _count(self, job: Job, algorithm: Algorithm) -> None:
        self._stats.operations += 1
        self._stats.bytes_sent += int(algorithm.cost(self.transport, job.nbytes)[1])

    def _open(self, job: Job, algorithm: Algorithm) -> None:
        """Compare the calls before any memory changes; fused collectives do so themselves."""
        if algorithm.name != "direct" and self.transport.size > 1:
            compare(self.transport, self._kernels, job.fingerprint, algorithm.opens)

    def _mismatch(self, note: str) -> MismatchError:
        notes = exchange_notes(self.transport, self._kernels, note)
        return MismatchError.of_calls(self.transport.rank, notes)
