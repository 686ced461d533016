"""The processes of a job, for those who wait: who has left, who waits, where each is."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from pycomm import _native
from pycomm._native import Waits
from pycomm.errors import DeadlockError
from pycomm.observe import stacks
from pycomm.transport.sharing import Exchange, host_identity, share
from pycomm.transport.shm import SharedMemory
from pycomm.transport.wire import Patience


class Neighbours:
    """What the processes of a job know of each other, by their number on the wire.

    Attributes:
        hosts: equal for two processes that can share memory.
        waits: the table of who waits for whom on this host; None if memory cannot be shared.
    """

    def __init__(self, process: int, exchange: Exchange, shared_memory: bool):
        """Meet all processes of the job; collective."""
        name, boot, space = host_identity()
        host = (name, boot, space if shared_memory else process)
        rows = exchange((host, os.getpid(), stacks.write_on_signal()))
        self.hosts = [row[0] for row in rows]
        self._where = [row[1:] for row in rows]
        self.process = process
        self.waits = self._meet(exchange)

    def _meet(self, exchange: Exchange) -> Waits | None:
        count, first = len(self.hosts), self.hosts.index(self.hosts[self.process])
        return share(
            lambda: Waits.create(self.process, count),
            lambda pid, fd, nonce: Waits.open(pid, fd, nonce, self.process, count),
            exchange,
            first if first != self.process else None,
        )

    def on_this_host(self, process: int) -> bool:
        """Say whether a process runs on the host of this one."""
        return self.hosts[process] == self.hosts[self.process]

    def crowded(self) -> bool:
        """Say whether this host has more ranks than this process may use cores."""
        return self._ranks_here() > len(os.sched_getaffinity(0))

    def _ranks_here(self) -> int:
        return sum(map(self.on_this_host, range(len(self.hosts))))

    def spare_cores(self) -> list[int]:
        """Return the cores that the launcher may use, if they are more than the ranks on this host.

        A rank that is bound to a core computes there; what it does besides can be done elsewhere.
        """
        try:
            cores = os.sched_getaffinity(os.getppid())
        except OSError:
            return []
        return sorted(cores) if len(cores) > self._ranks_here() else []

    def look_at(self, process: int) -> str:
        """Return state and stacks of a process, if it runs on this host."""
        if not self.on_this_host(process):
            return f"out of sight, on host {self.hosts[process][0]}"
        return stacks.look_at(*self._where[process])


class Peers:
    """The ranks of one communicator, for those who wait for them.

    Args:
        neighbours: returns what is known of the processes; None while nothing is.
        ranks: the communicator's ranks as processes.
    """

    def __init__(
        self, neighbours: Callable[[], Neighbours | None], ranks: Sequence[int], rank: int
    ):
        self.memory: SharedMemory | None = None
        self._neighbours = neighbours
        self._ranks = ranks
        self._rank = rank

    def has_left(self, peer: int) -> bool:
        """Say whether a rank (ANYONE: all others) takes no part any more, as far as is known."""
        if self.memory is None:
            return False
        others = [r for r in range(len(self._ranks)) if r != self._rank]
        return all(map(self.memory.has_left, others if peer == Patience.ANYONE else [peer]))

    def begin(self) -> None:
        """Note that this process waits."""
        if waits := self._waits():
            waits.begin()

    def end(self) -> None:
        """Note that it no longer does."""
        if waits := self._waits():
            waits.end()

    def look(self, peer: int) -> None:
        """Note that it still does, and that only `peer` (ANYONE: not only one) can end that.

        Raises:
            DeadlockError: the peer waits for this rank, itself or through others.
        """
        if waits := self._waits():
            try:
                waits.look(-1 if peer == Patience.ANYONE else self._ranks[peer])
            except _native.Deadlock as deadlock:
                raise self.deadlock(deadlock.args[0]) from None

    def deadlock(self, cycle: list[int]) -> DeadlockError:
        """Return the error for a cycle of processes that wait for each other."""
        chain = " → ".join(map(str, [*cycle, *cycle[:1]])) or "one that this rank is part of"
        head = f"rank {self._rank}: processes wait for each other in a cycle: {chain}"
        return DeadlockError(f"{head}\n{self.report()}")

    def report(self) -> str:
        """Return where every rank is: its state and the Python stacks of its threads."""
        neighbours = self._neighbours()
        if neighbours is None:
            return "nothing is known of the other ranks yet"
        lines = [f"rank {r}: {neighbours.look_at(p)}" for r, p in enumerate(self._ranks)]
        return "\n".join(lines).replace("\n", "\n  ")

    def _waits(self) -> Waits | None:
        neighbours = self._neighbours()
        return neighbours.waits if neighbours else None
