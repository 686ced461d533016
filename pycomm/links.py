"""How the ranks of a communicator reach each other: shared memory on a host, else the wire."""

from __future__ import annotations

from collections.abc import Sequence

from pycomm.neighbours import Neighbours, Peers
from pycomm.observe.stats import Stats
from pycomm.transport.base import Transport, counterparts
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
        self._peers = Peers(lambda: world.neighbours, processes, rank)
        self.patience = Patience(world.timeout, stats, self._peers)
        self.memory: SharedMemory | None = None
        self.shared: SharedMemory | None = None
        self._messages = self._among(range(len(processes)))
        self.transport: Transport = self._messages

    def share_memory(self, exchange: Exchange) -> None:
        """Go over to shared memory where there is some; collective, by `exchange` over the wire."""
        world, rank = self._world, self._messages.rank
        if world.neighbours is None:
            world.neighbours = Neighbours(rank, exchange, world.config.shared_memory)
            if len({name for name, *_ in world.neighbours.hosts}) > 1:
                world.wire.abort_on_failure()
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

    def leave(self) -> None:
        """Tell the ranks on this host that this one takes no part any more."""
        if self.shared:
            self.shared.leave()

    def close(self) -> None:
        """Let go of the transports and their memory."""
        self.memory = self._peers.memory = self.shared = None
        del self.transport, self._messages

    def _among(self, ranks: Sequence[int]) -> WireTransport:
        """Return a transport of some ranks; one tag will do, as their operations have an order."""
        processes = [self._processes[rank] for rank in ranks]
        return WireTransport(self._world.wire, processes, self._tag, self.patience)

    def _connect(
        self, known: Neighbours, ranks: Sequence[int], messages: Transport, exchange: Exchange
    ) -> SharedMemory | None:
        """Share memory among `ranks`, all of one host; every host does so at once."""
        memory = SharedMemory.connect(
            messages,
            lambda o: [row for rank, row in enumerate(exchange(o)) if rank in ranks],
            known.crowded(),
            self._world.timeout,
            self._stats,
            self._peers,
            ranks,
            known.spare_cores(),
        )
        if memory and known.waits:
            memory.watch(known.waits, [self._processes[rank] for rank in ranks])
        return memory
