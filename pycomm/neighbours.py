"""The processes of a job, for those who wait: who has left, who waits, where each is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence

from pycomm import _native
from pycomm._native import Waits, Watchdog
from pycomm.cores import are_crowded, socket_of
from pycomm.errors import DeadlockError, RankFailedError
from pycomm.observe import stacks
from pycomm.transport.sharing import Exchange, host_identity, share
from pycomm.transport.shm import SharedMemory
from pycomm.transport.wire import Patience


class Neighbours:
    """What the processes of a job know of each other, by their number on the wire.

    Attributes:
        job: its name: start, host and system number of its first process.
        hosts: equal for two processes that can share memory.
        sockets: the socket of each on its host, as socket_of says.
        waits: the table of who waits for whom on this host; None if memory cannot be shared.
        watchdog: the table of who died, and the thread that fills it; None likewise.

    Args:
        process: this one's number.
        exchange: gathers one object of every process.
        shared_memory: whether to use it.
        failed: returns the processes that the wire knows to be dead.
    """

    LOOK_S = 0.01
    """How often the wire is asked for the dead."""

    def __init__(
        self,
        process: int,
        exchange: Exchange,
        shared_memory: bool,
        failed: Callable[[], Iterable[int]],
    ):
        """Meet all processes of the job; collective."""
        name, boot, space = host_identity()
        host = (name, boot, space if shared_memory else process)
        now = time.strftime("%Y%m%d-%H%M%S")
        cores = os.sched_getaffinity(0)
        rows = exchange(
            (host, os.getpid(), stacks.write_on_signal(), now, sorted(cores), socket_of(cores))
        )
        self.hosts = [row[0] for row in rows]
        self._where = [row[1:3] for row in rows]
        self._cores = [row[4] for row in rows]
        self.sockets = [row[5] for row in rows]
        self.job = f"{rows[0][3]}-{self.hosts[0][0]}-{rows[0][1]}"
        self.process = process
        self._failed = failed
        self._looked = 0.0
        self._fates: dict[int, str] = {}
        count, first = len(self.hosts), self.hosts.index(self.hosts[process])
        creator = first if first != process else None
        self.waits = share(
            lambda: Waits.create(process, count),
            lambda pid, fd, nonce: Waits.open(pid, fd, nonce, process, count),
            exchange,
            creator,
        )
        self.watchdog = self._watch(exchange, creator, name) if count > 1 else None

    def _watch(self, exchange: Exchange, creator: int | None, host: str) -> Watchdog | None:
        process, count = self.process, len(self.hosts)
        watchdog = share(
            lambda: Watchdog.create(process, count, host),
            lambda pid, fd, nonce: Watchdog.open(pid, fd, nonce, process, count, host),
            exchange,
            creator,
        )
        if watchdog:
            watchdog.watch()
        return watchdog

    def fates(self) -> dict[int, str]:
        """Return the processes that died, in that order, with how they did, in words."""
        if time.monotonic() > self._looked + self.LOOK_S:
            self._looked = time.monotonic()
            for process in self._failed():
                self._learn(process)
        if self.watchdog and self.watchdog.deaths() != len(self._fates):
            self._fates = {p: self.watchdog.fate(p) for p in self.watchdog.dead()}
        if self._fates:
            _native.never_finalize()
        return self._fates

    def _learn(self, process: int) -> None:
        """Let this host know of a death that the wire knows of."""
        if self.watchdog is None:
            self._fates[process] = "died"
        elif not self.on_this_host(process):  # of these the watchdog knows more
            self.watchdog.mark(process)

    def pids(self) -> dict[int, int]:
        """Return the system's numbers of the other processes on this host, by their own."""
        others = filter(self.on_this_host, range(len(self.hosts)))
        return {other: self._where[other][0] for other in others if other != self.process}

    def on_this_host(self, process: int) -> bool:
        """Say whether a process runs on the host of this one."""
        return self.hosts[process] == self.hosts[self.process]

    def mates(self) -> list[int]:
        """Return the processes of this host."""
        return [process for process in range(len(self.hosts)) if self.on_this_host(process)]

    def machines(self, processes: Iterable[int]) -> int:
        """Return on how many hosts the processes are, whether they can share memory or not."""
        return len({self.hosts[process][0] for process in processes})

    def crowded(self) -> bool:
        """Say whether ranks of this host share cores; all of them get the same answer."""
        return are_crowded([self._cores[process] for process in self.mates()])

    def spare_cores(self) -> list[int]:
        """Return the cores that the launcher may use, if they are more than the ranks on this host.

        A rank that is bound to a core computes there; what it does besides can be done elsewhere.
        """
        try:
            cores = os.sched_getaffinity(os.getppid())
        except OSError:
            return []
        return sorted(cores) if len(cores) > len(self.mates()) else []

    def look_at(self, process: int) -> str:
        """Return state and stacks of a process, if it runs on this host."""
        if not self.on_this_host(process):
            return f"out of sight, on host {self.hosts[process][0]}"
        return stacks.look_at(*self._where[process])


def _fates(dead: Iterable[int]) -> dict[int, str]:
    """Return what is known while nobody has looked at how they died."""
    fates = dict.fromkeys(dead, "died")
    if fates:
        _native.never_finalize()
    return fates


class Peers:
    """The ranks of one communicator, for those who wait for them.

    Args:
        neighbours: returns what is known of the processes; None while nothing is.
        ranks: the communicator's ranks as processes.
        rank: this one.
        failed: returns the processes that the wire knows to be dead.
    """

    def __init__(
        self,
        neighbours: Callable[[], Neighbours | None],
        ranks: Sequence[int],
        rank: int,
        failed: Callable[[], Iterable[int]],
    ):
        self.memory: SharedMemory | None = None
        self._neighbours, self._failed = neighbours, failed
        self._ranks = ranks
        self._rank = rank

    def has_left(self, peer: int) -> bool:
        """Say whether a rank (ANYONE: all others) takes no part any more, as far as is known."""
        if self.memory is None:
            return False
        others = [r for r in range(len(self._ranks)) if r != self._rank]
        return all(map(self.memory.has_left, others if peer == Patience.ANYONE else [peer]))

    def failure(self, what: object) -> RankFailedError | None:
        """Return the error for `what`, an operation, if a rank has died."""
        neighbours = self._neighbours()
        fates = neighbours.fates() if neighbours else _fates(self._failed())
        if not fates:
            return None
        dead = {self._ranks.index(p): fates[p] for p in fates if p in self._ranks}
        if not dead:
            return None
        told = ", ".join(f"rank {rank} {fate}" for rank, fate in dead.items())
        return RankFailedError(f"{what}, but {told}", tuple(dead))

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
