"""The public Communicator: every operation is checked, traced, given an algorithm, and run."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from pycomm import _native, arrays
from pycomm.arrays import is_tensor, view
from pycomm.collectives import Collectives
from pycomm.config import Config, checked_timeout
from pycomm.dispatch import Dispatcher
from pycomm.guard import guard
from pycomm.kernels.cpu import CpuKernels
from pycomm.links import Links
from pycomm.messages import Messages
from pycomm.observe.stats import Stats
from pycomm.shapes import checked_bytes, checked_rank, checked_shape, gathered, scattered
from pycomm.transport.base import Transport
from pycomm.transport.job import Job
from pycomm.transport.mpi import MpiWire, import_mpi
from pycomm.transport.shm import NeverQuick
from pycomm.types import DTYPES, ReduceOp, resolve_op
from pycomm.world import World


class Communicator(Collectives, Messages):
    """A group of ranks that communicate; made by `pycomm.init`, `from_mpi` and `split`.

    Collectives must be called by all ranks in the same order; they take NumPy arrays and torch CPU
    tensors of any supported dtype, strided ones too. An array belongs to the operation until it
    returns, or with `async_op=True`, until `wait()` of the Work has returned. Reductions give the
    same bits on every rank and every run; on one host they add in rank order.

    Attributes:
        rank: this process's number, 0…size−1.
        size: how many ranks there are.
    """

    def __init__(self, world: World, ranks: Sequence[int], context: int):
        """Connect the processes `ranks` of the world; collective over them."""
        self._world = world
        self._ranks = tuple(ranks)
        self._context = context
        self._local: Communicator | None = None
        self._stats = Stats()
        self._flight = _native.Flight(world.number, context, self._ranks[0])
        self._links = links = Links(world, self._ranks, context, self._stats)
        self.rank, self.size = links.transport.rank, links.transport.size
        self._collectives = Dispatcher(
            world,
            links.transport,
            CpuKernels(),
            self._stats,
            self._flight,
            f"pycomm-{context}",
            links.check,
        )
        first = world.neighbours is None
        self._quick: Any = NeverQuick()
        links.share_memory(self.all_gather_object)
        self._collectives.transport = links.transport
        self._port = links.port(context, self._flight)
        self._collectives.when_failed = self._stop_quick_messages
        if first:
            world.tune(self.broadcast_object)
        self._quick = self._quick_calls()
        links.record(self._flight)
        guard.watch(self)

    @classmethod
    def from_mpi(cls, mpi_comm: Any, timeout: float | None = None) -> Communicator:
        """Return a Communicator of the ranks of an mpi4py communicator; collective over it.

        MPI stays the caller's: pycomm duplicates the communicator and does not finalize MPI.

        Raises:
            ArgumentError: `timeout` is no positive number of seconds.
        """
        config = Config.from_environment()
        seconds = config.timeout if timeout is None else checked_timeout(timeout)
        wire = MpiWire(import_mpi()[0], mpi_comm, config)
        world = World(wire, config, seconds)
        return cls(world, range(wire.size), world.new_context())

    def _quick_calls(self) -> Any:
        """Return what does simple calls at once; nothing does if each needs more than that."""
        memory, world = self._links.memory, self._world
        simple = world.trace is None and world.tuning.wish.keeps_direct
        return memory.quick if memory and simple else NeverQuick()

    # ---- collectives

    def all_reduce(
        self,
        x: Any,
        op: str | ReduceOp = "sum",
        *,
        async_op: bool = False,
        algorithm: str | None = None,
        order: str | None = None,
    ) -> Any:
        """Reduce `x` element by element over all ranks, in place.

        Args:
            x: an array of the same dtype and number of elements on every rank.
            op: "sum", "avg", "prod", "min", "max", "band", "bor", "bxor",
                premul_sum(factor), or reduce_op(function).
            async_op: return a Work at once.
            algorithm: for instance "ring"; None chooses, see `explain`.
            order: "rank" adds in rank order between hosts, too.

        Returns:
            `x`, or a Work whose result it is.

        Raises:
            MismatchError: ranks disagree on the call; nothing was changed.
            ArgumentError, UnsupportedError: the arguments cannot be used.
        """
        simple = algorithm is None and order is None
        if simple and not async_op and self._quick.quick_all_reduce(x, op):
            return x
        if simple and async_op and (work := self._collectives.start_all_reduce(x, op)):
            return work
        target = view(x, result=True)
        job = Job("all_reduce", target.dtype, target, target, op=resolve_op(op, target.dtype))
        return self._collectives.start(job, x, async_op, algorithm, order)

    def broadcast(
        self, x: Any, root: int = 0, *, async_op: bool = False, algorithm: str | None = None
    ) -> Any:
        """Copy `x` of rank `root` into `x` of every other rank; return `x`, or a Work."""
        if not async_op and algorithm is None and self._quick.quick_broadcast(x, root):
            return x
        root = checked_rank(root, "root", self.rank, self.size)
        target = view(x, result=self.rank != root)
        job = Job("broadcast", target.dtype, output=target, root=root)
        return self._collectives.start(job, x, async_op, algorithm)

    def all_gather(
        self,
        x: Any,
        out: Any = None,
        counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
        algorithm: str | None = None,
    ) -> Any:
        """Gather `x` of every rank.

        Args:
            x: an array of the same dtype and number of elements on every rank; shapes are not
                compared, the result goes by this rank's. With `counts`, rank r has counts[r] rows.
            out: an array for the result, or None to allocate one.
            counts: the number of rows (axis 0) of every rank, the same list on all.

        Returns:
            (size, *x.shape) in rank order; with `counts`, (sum(counts), *x.shape[1:]).
        """
        simple = out is not None and counts is None and not async_op and algorithm is None
        if simple and self._quick.quick_all_gather(x, out):
            return out
        source = view(x)
        shape, elements = gathered(tuple(x.shape), self.rank, self.size, counts)
        target = self._output(out, shape, source, is_tensor(x))
        job = Job("all_gather", source.dtype, source, target, elements)
        return self._collectives.start(job, out, async_op, algorithm)

    def reduce_scatter(
        self,
        x: Any,
        op: str | ReduceOp = "sum",
        out: Any = None,
        counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
        algorithm: str | None = None,
        order: str | None = None,
    ) -> Any:
        """Reduce over all ranks and leave each rank its chunk of rows.

        Args:
            x: (size·k, …) on every rank; with `counts`, (sum(counts), …).
            op: as for `all_reduce`.
            out: an array for the result, or None to allocate one.
            counts: the number of rows that each rank gets, the same list on all.

        Returns:
            (k, …), or (counts[rank], …): rank r has the r-th rows.
        """
        simple = out is not None and counts is None and not async_op and algorithm is None
        if simple and order is None and self._quick.quick_reduce_scatter(x, op, out):
            return out
        source = view(x)
        shape, elements = scattered(tuple(x.shape), self.rank, self.size, counts)
        target = self._output(out, shape, source, is_tensor(x))
        operation = resolve_op(op, source.dtype)
        job = Job("reduce_scatter", source.dtype, source, target, elements, operation)
        return self._collectives.start(job, out, async_op, algorithm, order)

    def barrier(self, *, async_op: bool = False) -> Any:
        """Return when every rank has called it."""
        if not async_op and self._quick.quick_barrier():
            return None
        return self._collectives.start(Job("barrier", DTYPES["uint8"]), None, async_op)

    def broadcast_object(self, o: Any, root: int = 0) -> Any:
        """Return rank `root`'s small picklable object on every rank."""
        data = np.frombuffer(pickle.dumps(o if self.rank == root else None), np.uint8).copy()
        length = self.broadcast(np.array([data.size]), root)[0]
        payload = self.broadcast(data if self.rank == root else np.empty(length, np.uint8), root)
        return o if self.rank == root else pickle.loads(payload)

    def all_gather_object(self, o: Any) -> list[Any]:
        """Return every rank's small picklable object, in rank order."""
        data = np.frombuffer(pickle.dumps(o), np.uint8)
        counts = self.all_gather(np.array([data.size]))[:, 0].tolist()
        payload = self.all_gather(data, counts=counts)
        return [pickle.loads(part) for part in np.split(payload, np.cumsum(counts)[:-1])]

    # ---- memory, groups, life

    def empty(self, shape: int | Sequence[int], dtype: Any = "float32") -> Any:
        """Return a new array of undefined contents in memory that the ranks of this host share.

        Collectives on such symmetric buffers need no copies. The call is local: ranks may allocate
        different buffers in any order, and free them (by dropping all arrays on them) at any time.

        Args:
            shape: an int or a sequence of ints.
            dtype: a name, a NumPy dtype, or a torch dtype, which makes the result a torch tensor.
        """
        self._collectives.check_open()
        shape = checked_shape(shape, self.rank)
        resolved = arrays.resolve_dtype(dtype)
        nbytes = math.prod(shape) * resolved.itemsize
        memory = _native.SharedMemory(nbytes) if self._links.shared else None
        return arrays.empty(shape, resolved, arrays.is_torch_dtype(dtype), memory).owner

    @property
    def local(self) -> Communicator:
        """The Communicator of the ranks on this host; the first use is collective."""
        self._collectives.check_open()
        if self._local is None:
            known = self._world.neighbours
            hosts = [known.hosts[r] for r in self._ranks] if known else [0]
            alone = len(set(hosts)) == 1
            self._local = self if alone else self.split(hosts.index(hosts[self.rank]))
        return self._local

    def split(self, color: int | None, key: int = 0) -> Any:
        """Return a Communicator of the ranks that pass the same color; collective.

        Args:
            color: any integer; None takes part in no group and returns None.
            key: ranks are numbered by key, then by their rank here.
        """
        calls = self.all_gather_object((color, key, self._world.next_context))
        context = self._world.new_context(max(c for _, _, c in calls))
        members = sorted((k, r) for r, (c, k, _) in enumerate(calls) if c == color)
        if color is None:
            return None
        return Communicator(self._world, [self._ranks[r] for _, r in members], context)

    def explain(self, kind: str, nbytes: int) -> str:
        """Say which algorithm a collective would use and why, the predicted time, and from what.

        Args:
            kind: for instance "all_reduce".
            nbytes: the larger of input and output.

        Returns:
            Lines: the choice; every algorithm of the kind, with what it would take or why it is not
            used; what the predictions come from.
        """
        return self._collectives.explain(kind, checked_bytes(nbytes, self.rank))

    def close(self) -> None:
        """Finish asynchronous operations and leave; ranks that wait for this one get an error."""
        if not self._collectives.closed:
            self._collectives.close()
            self.depart()
            self._links.close()
            self._quick = NeverQuick()
            self._stop_quick_messages()
            self._world.mailbox.forget(self._context)

    @property
    def closed(self) -> bool:
        """Whether it was closed: then `stats` keeps the last counts, and operations raise."""
        return self._collectives.closed

    def _stop_quick_messages(self) -> None:
        self._port.open = False

    def depart(self) -> None:
        """Let the other ranks know that this one takes no part any more."""
        self._links.leave()

    def hush(self) -> None:
        """The user has been told why the job ends: name nobody who dies of it."""
        if (known := self._world.neighbours) and known.watchdog:
            known.watchdog.hush()

    def abort(self, code: int) -> None:
        """End all processes of the job with this exit code."""
        self._world.wire.abort(code)

    @property
    def world(self) -> World:
        """The job it is part of: its wire, settings and costs; for tools, not to be changed."""
        return self._world

    @property
    def transport(self) -> Transport:
        """What its algorithms run on; for measurements, between collectives."""
        self._collectives.check_open()
        return self._collectives.transport

    @property
    def stats(self) -> Stats:
        """What communication cost this rank so far, as a copy."""
        stats, (nbytes, busy_s, idle_s) = self._collectives.stats(), self._port.counts
        stats.bytes_sent += nbytes
        stats.busy_s += busy_s
        stats.idle_s += idle_s
        return stats

    @property
    def timeout(self) -> float:
        """Seconds that an operation may go without progress."""
        return self._world.timeout

    @property
    def config(self) -> Config:
        """The settings of the environment, as they were when the job was joined."""
        return self._world.config

    def __repr__(self) -> str:
        return f"<Communicator: rank {self.rank} of {self.size}>"
