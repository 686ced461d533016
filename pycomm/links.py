"""How the ranks of a communicator reach each other: shared memory on a host, else the wire."""

from __future__ import annotations

from collections.abc import Sequence

from pycomm import _native
from pycomm.neighbours import Neighbours, Peers
from pycomm.observe import flight
from pycomm.observe.stats import Stats
from pycomm.transport.base import Transport, counterparts, group
from pycomm.transport.sharing import Exchange
from pycomm.transport.shm import SharedMemory
from pycomm.transport.wire import Patience, WireTransport
from pycomm.world import World


class Links:
    """The transports of a communicator of the processes `processes`.

    Attributes:
        transport: what its algorithms run on.
        memory: the board of all ranks; None if they are not all on one host.
        shared: the board of this host's ranks: of all, or of several hosts' if each has as many.
        patience: waits for its messages.
    """

    def __init__(self, world: World, processes: Sequence[int], context: int, stats: Stats):
        self._world = world
        self._processes = processes
        self._tag = world.tag(context)
        self._stats = stats
        rank = processes.index(world.wire.rank)
        self._peers = Peers(lambda: world.neighbours, processes, rank, world.wire.failed)
        self.patience = Patience(world.timeout, stats, self._peers, world.mailbox.progress)
        self.memory: SharedMemory | None = None
        self.shared: SharedMemory | None = None
        self._messages = self._among(range(len(processes)))
        self.transport: Transport = self._messages

    def share_memory(self, exchange: Exchange) -> None:
        """Go over to shared memory where there is some; collective, by `exchange` over the wire."""
        world, rank = self._world, self._messages.rank
        if world.neighbours is None:
            world.neighbours = Neighbours(
                rank, exchange, world.config.shared_memory, world.wire.failed
            )
            known, direct = world.neighbours, world.config.peer_reads != "never"
            world.mailbox.connect(exchange, known.mates(), direct, known.crowded())
            if world.neighbours.machines(range(world.wire.size)) > 1:
                world.wire.abort_on_failure()
            known, size = world.neighbours, len(self._processes)
            flight.describe(rank, size, known.job, known.pids(), world.config.flight)
        self._messages.hosts = world.neighbours.machines(self._processes)
        hosts = [world.neighbours.hosts[process] for process in self._processes]
        everyone = range(len(hosts))
        if len(set(hosts)) == 1:
            self.shared = self._connect(world.neighbours, everyone, self._messages, exchange)
            self.memory = self._peers.memory = self.shared
            self.transport = self.memory or self._messages
        elif levels := counterparts(hosts, rank):
            local, self._messages.across = (self._among(ranks) for ranks in levels)
            self.shared = self._connect(world.neighbours, levels[0], local, exchange)
            self._messages.local = self.shared or local
            self._messages.ranks_by_host = group(hosts)

    def record(self, flight: _native.Flight) -> None:
        """Have the flight recorder note the quick calls, too."""
        if self.memory:
            self.memory.quick.record(flight)

    def port(self, context: int, flight: _native.Flight) -> _native.Port:
        """Return the short way of messages to the ranks on this host."""
        mailbox, known = self._world.mailbox, self._world.neighbours
        mates = [mailbox.mates.get(process, -1) for process in self._processes]
        rank = self._processes.index(self._world.wire.rank)
        port = _native.Port(mailbox.memory, context, rank, mates, flight)
        if known and known.watchdog:
            port.heed(known.watchdog, list(self._processes))
        return port

    def check(self) -> None:
        """Raise RankFailedError if a rank has died."""
        known = self._world.neighbours
        if known and known.fates():
            failure = self._peers.failure(f"rank {self._messages.rank} calls an operation")
            if failure:
                raise failure

    def leave(self) -> None:
        """Tell the ranks on this host that this one takes no part any more."""
        if known := self._world.neighbours:
            known.fates()  # the last look at who died, before the process exits
        if self.shared:
            self.shared.leave()

    def close(self) -> None:
        """Let go of the transports and their memory."""
        self.memory = self._peers.memory = self.shared = None
        del self.transport, self._messages

    def _among(self, ranks: Sequence[int]) -> WireTransport:
        """Return a transport of some ranks; one tag will do, as their operations have an order."""
        processes = [self._processes[rank] for rank in ranks]
        return WireTransport(self._world.wire, processes, self._tag, self.patience, ranks)

    def _connect(
        self, known: Neighbours, ranks: Sequence[int], messages: Transport, exchange: Exchange
    ) -> SharedMemory | None:
        """Share memory among `ranks`, all of one host; every host does so at once."""
        memory = SharedMemory.connect(
            messages,
            lambda o: [row for rank, row in enumerate(exchange(o)) if rank in ranks],
            known.crowded(),
            [known.sockets[self._processes[rank]] for rank in ranks],
            self._world.timeout,
            self._stats,
            self._peers,
            ranks,
            self._world.config.peer_reads,
            known.spare_cores(),
        )
        if memory:
            memory.serve(self._world.mailbox.memory)
        if memory and known.waits:
            memory.watch(known.waits, [self._processes[rank] for rank in ranks])
        if memory and known.watchdog:
            memory.heed(known.watchdog, self._processes)
        return memory
