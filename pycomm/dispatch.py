"""The way of every collective: choose an algorithm, wait for its turn, do it or hand it over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pycomm import _native
from pycomm.algorithms.registry import Algorithm
from pycomm.arrays import HOST, array_of, returned
from pycomm.engine import Engine
from pycomm.errors import CommError
from pycomm.guard import call_site, describe, detail, fingerprint, guard, recorded
from pycomm.host_meeting import HostMeeting
from pycomm.kernels.base import Kernels
from pycomm.observe.stats import Stats
from pycomm.on_device import OnDevice, device_algorithm
from pycomm.performing import Performer
from pycomm.transport.base import Transport
from pycomm.transport.job import Job
from pycomm.transport.shm import SharedMemory
from pycomm.tuning import Choice
from pycomm.work import Handed, Work
from pycomm.world import World

Part = Callable[..., Any]
"""Part(job, out, algorithm=None) runs one collective of several, and returns its result: on a GPU,
its Work, for it may run on a thread that has not the caller's stream."""


class Dispatcher(Performer):
    """Runs the collectives of one communicator in the order of their calls.

    After an error that leaves ranks at different points, all later calls raise.
    """

    def __init__(
        self,
        world: World,
        transport: Transport,
        kernels: Kernels,
        stats: Stats,
        flight: _native.Flight,
        name: str,
        check_ranks: Callable[[], None],
    ):
        super().__init__(transport, kernels, stats, flight, world.trace)
        self._world = world
        self._check_ranks = check_ranks
        self._engine = Engine(name, self._asynchronous)
        self.on_device = OnDevice(transport.rank, transport.size, world.timeout)

    def start(
        self,
        job: Job,
        out: Any,
        async_op: bool = False,
        algorithm: str | None = None,
        order: str | None = None,
    ) -> Any:
        """Run a collective, or with `async_op` return its Work; behind all earlier ones.

        Args:
            out: the caller's array for the result, None for job.output's own.
        """
        self.check()
        if job.device != HOST:
            return self._start_on_device(job, out, async_op, algorithm, order)
        chosen = self._prepare(job, algorithm, order)
        native = async_op and chosen.name == "direct" and job.allocate is None
        memory = self._memory if native else None
        if memory and not self._engine.busy():
            return self._submit(memory, job, chosen, out)
        return self._in_turn(lambda site: self._run(job, chosen, out, site), async_op)

    def start_all_reduce(self, x: Any, op: Any) -> Work | None:
        """Start an all_reduce by a short way, or return None; the long way also says what is wrong.

        Args:
            x, op: as the caller passed them.
        """
        memory = None if self.closed else self._memory
        operation = memory.submit_all_reduce(x, op) if memory else None
        return Handed(memory, operation, x) if memory and operation else None

    def start_parts(self, parts: Callable[[Part], Any], async_op: bool = False) -> Any:
        """Run an operation that consists of several collectives; behind all earlier ones.

        Args:
            parts: does the operation; given a Part, it calls that for each of its collectives, and
                returns the result. What it raises must be raised by it on every rank.
        """
        self.check()

        def run(site: str | None) -> Any:
            try:
                return parts(lambda *call: self._run_part(site, *call))
            except BaseException as error:
                self.fail(self._failure or error)
                raise

        return self._in_turn(run, async_op)

    def choose(self, kind: str, nbytes: int, name: str | None, order: str | None) -> Choice:
        """Choose the algorithm for a call, as Tuning.choose does."""
        self.check_open()
        return self._world.tuning.choose(kind, self.transport, nbytes, name, order)

    def explain(self, kind: str, nbytes: int) -> str:
        """Say what would be chosen, why, and instead of what."""
        self.check_open()
        return self._world.tuning.explain(kind, self.transport, nbytes)

    def check_open(self) -> None:
        """Raise if the communicator was closed."""
        if self.closed:
            raise CommError("this communicator was closed")

    def check(self) -> None:
        """Raise if the communicator cannot be used.

        It was closed, failed before, a rank of it died, or this is a forked child.
        """
        guard.check()
        self.check_open()
        self._check_ranks()
        if self._failure is None and self._memory and (failure := self._memory.failure()):
            self.fail(failure)
        if self._failure is not None:
            raise CommError(
                f"rank {self.transport.rank}: this communicator failed before and cannot be used "
                f"any more: {self._failure}"
            ) from self._failure

    def close(self) -> None:
        """Finish the operations under way and let go of the transport; later calls raise."""
        self._engine.close()
        if self._memory and not guard.in_child:
            self._memory.drain()
        if not guard.in_child:
            self.on_device.close()
        self._stats = self.stats()
        self.closed = True
        del self.transport

    @property
    def _memory(self) -> SharedMemory | None:
        """What does asynchronous collectives without a thread of Python, which a trace needs."""
        transport = self.transport
        return transport if isinstance(transport, SharedMemory) and not self._trace else None

    def _submit(self, memory: SharedMemory, job: Job, algorithm: Algorithm, out: Any) -> Work:
        self._allow_quick(True)
        site = call_site()
        record = self._flight.begin(*recorded(job, algorithm.name, site))
        operation = memory.submit(job, describe(job, algorithm.name, site), record)
        self._count(job, algorithm)
        packed = job.output if out is not None and job.output.packed else None
        return Handed(memory, operation, array_of(job.output, out), packed)

    def _asynchronous(self, more: int) -> None:
        neighbours = self._world.neighbours
        if neighbours is not None and neighbours.waits is not None:
            neighbours.waits.asynchronous(more)

    def _prepare(self, job: Job, name: str | None, order: str | None) -> Algorithm:
        chosen = self.choose(job.kind, job.nbytes, name, order).algorithm
        job.fingerprint, job.detail = fingerprint(job, chosen.name), detail(job)
        return chosen

    def _in_turn(self, run: Callable[[str | None], Any], async_op: bool) -> Any:
        """Call `run` behind all earlier operations; with the call site, if that is not now."""
        behind = self._engine.busy()
        self._allow_quick(not async_op and not behind)
        if async_op or behind:
            site = call_site()
            work = self._engine.submit(lambda: self._behind_all(run, site))
            return work if async_op else work.wait()
        with self._stats.timed():
            return self._behind_all(run, None)

    def _behind_all(self, run: Callable[[str | None], Any], site: str | None) -> Any:
        """Call `run` once shared memory has done what was submitted to it before."""
        if self._memory and self._memory.drain():
            self.check()
        return run(site)

    def _run_part(self, site: str | None, job: Job, out: Any, name: str | None = None) -> Any:
        if job.device == HOST:
            return self._run(job, self._prepare(job, name, None), out, site)
        self.on_device.check(job)
        if not self.on_device.is_connected:
            self._connect_devices(job, site)
        return self.on_device.work(job, self._enqueuing(job, True, name)(site), out)

    def _start_on_device(self, job: Job, out: Any, async_op: bool, name: Any, order: Any) -> Any:
        """Start a collective of device arrays: it is enqueued, once all hosts are there."""
        on_device = self.on_device
        on_device.check(job)
        if not on_device.is_connected:
            self._in_turn(lambda site: self._connect_devices(job, site), False)
        enqueue = self._enqueuing(job, async_op, name, order)
        if async_op and on_device.is_staged:
            return self._in_turn(lambda site: on_device.work(job, enqueue(site), out), True)
        event = self._in_turn(enqueue, False)
        return on_device.work(job, event, out) if async_op else returned(job.output, out)

    def _enqueuing(
        self, job: Job, async_op: bool, name: str | None, order: str | None = None
    ) -> Callable[[str | None], Any]:
        """Return what enqueues a collective behind what the caller's stream has now."""
        on_device = self.on_device
        chosen = on_device.algorithm(job, name, partial(self.choose, job.kind, order=order))
        label = on_device.label(chosen)
        job.fingerprint = fingerprint(job, label.name)
        start = on_device.prepared(job, async_op)

        def run(site: str | None) -> Any:
            meeting = HostMeeting(self.transport, self._kernels, job, chosen)
            event = self._perform(job, label, lambda: start(meeting), site)
            self._count(job, label)
            return event

        return run

    def _connect_devices(self, job: Job, site: str | None) -> None:
        """Find out how ranks reach each other's GPUs, as a part of their first collective."""
        job.fingerprint = fingerprint(job, (label := device_algorithm(job.kind)).name)
        meeting = HostMeeting(self.transport, self._kernels, job)
        self._perform(job, label, lambda: self.on_device.connect(meeting), site)
