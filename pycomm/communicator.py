"""The public Communicator: every operation is checked, traced, given an algorithm, and run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pycomm import _native, arrays
from pycomm.collectives import Collectives
from pycomm.config import Config, checked_timeout
from pycomm.device_messages import DeviceMessages
from pycomm.devices.process import is_host
from pycomm.dispatch import Dispatcher
from pycomm.errors import UnsupportedError
from pycomm.guard import guard
from pycomm.kernels.cpu import CpuKernels
from pycomm.links import Links
from pycomm.messages import Messages
from pycomm.observe.stats import Stats
from pycomm.shapes import checked_bytes, checked_shape
from pycomm.transport.base import Transport
from pycomm.transport.mpi import MpiWire, import_mpi
from pycomm.transport.shm import NeverQuick
from pycomm.transport.views import mates_views
from pycomm.world import World


class Communicator(Collectives, Messages):
    """A group of ranks that communicate; made by `pycomm.init`, `from_mpi` and `split`.

    Collectives must be called by all ranks in the same order; they take NumPy arrays and torch
    tensors of any supported dtype, strided ones too. An array belongs to the operation until it
    returns, or with `async_op=True`, until `wait()` of the Work has returned. Reductions give the
    same bits on every rank and every run; on one host they add in rank order.

    CuPy arrays and CUDA tensors, all on this rank's GPU, are used on the caller's current stream: a
    collective returns once it is enqueued there on all ranks, or with `async_op=True`, on a stream
    of its own, for which `wait()` makes the current stream wait. Where ranks do not reach each
    other's GPUs it returns once all but the last copies is done, and `wait()` waits until then.

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
        self._on_device = DeviceMessages(world, context, self.rank, self._ranks)
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
        world = World(MpiWire(import_mpi()[0], mpi_comm.Dup(), config), config, seconds)
        return cls(world, range(world.wire.size), world.new_context())

    def _quick_calls(self) -> Any:
        """Return what does simple calls at once; nothing does if each needs more than that."""
        memory, world = self._links.memory, self._world
        simple = world.trace is None and world.tuning.wish.keeps_direct
        return memory.quick if memory and simple else NeverQuick()

    # ---- memory, groups, life

    def empty(self, shape: int | Sequence[int], dtype: Any = "float32", device: Any = None) -> Any:
        """Return a new array of undefined contents in memory that the ranks of this host share.

        Collectives on such symmetric buffers need no copies. The call is local: ranks may allocate
        different buffers in any order, and free them (by dropping all arrays on them) at any time.

        Args:
            shape: an int or a sequence of ints.
            dtype: a name, a NumPy dtype, or a torch dtype, which makes the result a torch tensor.
            device: "cuda" for memory of this rank's GPU: a CuPy array, or a torch tensor, for the
                current stream; what is freed is used again in the order of streams.

        Raises:
            ArgumentError: `device` is none, or another GPU than this rank's.
            DeviceError: the GPU has not that much memory left.
            MissingError: there is no GPU, or CuPy is missing.
        """
        self._collectives.check_open()
        shape = checked_shape(shape, self.rank)
        if not is_host(device):
            return self._collectives.on_device.empty(shape, dtype, device)
        resolved = arrays.resolve_dtype(dtype)
        nbytes = math.prod(shape) * resolved.itemsize
        memory = _native.SharedMemory(nbytes) if self._links.shared else None
        return arrays.empty(shape, resolved, arrays.is_torch_dtype(dtype), memory).owner

    @property
    def shares_memory(self) -> bool:
        """Whether all ranks are on one host and see each other's symmetric buffers."""
        return self._links.memory is not None

    def views(self, x: Any) -> list[Any]:
        """Return the symmetric buffers that all ranks pass, as arrays here; collective.

        What one rank writes, others read after the next collective of both. A buffer belongs to its
        rank: when that drops it, what views of it hold is undefined.

        Args:
            x: from `empty`, in host memory, or a contiguous part of one; of any shape and dtype.

        Returns:
            One array a rank, as that passed it, `x` itself for this one; NumPy's or torch's as `x`.

        Raises:
            ArgumentError: a rank's is no symmetric buffer; raised on every rank.
            UnsupportedError: the ranks share no memory: they are on several hosts, or it is off.
        """
        self._collectives.check_open()
        return mates_views(x, self.rank, self._links.memory is not None, self.all_gather_object)

    @property
    def hosts(self) -> list[str]:
        """The name of the host that each rank runs on."""
        known = self._world.neighbours
        return [known.hosts[process][0] for process in self._ranks] if known else []

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

    @property
    def can_shrink(self) -> bool:
        """Whether the job goes on when a rank dies, and `shrink` has all ranks to choose from."""
        return 1 < self.size == self._world.wire.size and self._world.wire.outlives

    def shrink(self) -> Communicator:
        """Return a Communicator of the ranks that are alive, in their order, after one has died.

        Collective over them: each must call it once it has got RankFailedError. This communicator,
        and those split from it, cannot be used any more.

        Raises:
            RankFailedError: another one died meanwhile: call it once more.
            UnsupportedError: the job ends when a rank dies: it was not started by mpirun --with-ft
                ulfm; or this communicator has not all ranks of the job.
        """
        wire = self._world.wire
        if self.size != wire.size or wire.size == 1:
            raise UnsupportedError(
                f"rank {self.rank}: this communicator has {self.size} of {wire.size} ranks: only "
                "one of all ranks, of which others are left, can shrink"
            )
        world = World(wire.shrink(), self.config, self.timeout)
        return Communicator(world, range(world.wire.size), world.new_context())

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
            if not guard.in_child:
                self._on_device.close()
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

    def count_sent(self, nbytes: int) -> None:
        """Count, in `stats`, bytes that this rank gave others through `views`."""
        self._stats.bytes_sent += nbytes

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
