"""Tagged bytes between processes, and the Transport that a communicator makes of them."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from pycomm.errors import CommError, CommTimeoutError, DepartedError
from pycomm.observe.stats import Stats
from pycomm.transport.base import Request, Transport

_logger = logging.getLogger("pycomm")


class WireRequest(Request, Protocol):
    """A transfer under way on a wire."""

    peer: int
    """The process that it is to, or from."""


class Wire(Protocol):
    """Moves bytes between all processes of a job; messages of one pair and tag stay in order."""

    rank: int
    size: int
    tags: int
    """Tags are 0…tags−1."""
    library: str
    """What it runs on, with its version."""
    outlives: bool
    """Whether the job goes on when a process dies."""
    takes_gpus: bool
    """Whether what it sends and receives may be memory of GPUs, too: found out from the library."""

    def isend(self, data: np.ndarray, peer: int, tag: int) -> WireRequest:
        """Start to send a flat uint8 array."""

    def irecv(self, out: np.ndarray, peer: int, tag: int) -> WireRequest:
        """Start to receive exactly `out.nbytes` bytes."""

    def failed(self) -> list[int]:
        """Return the processes that are known to be dead; a job must be able to outlive them."""

    def shrink(self) -> Wire:
        """Return a wire of the processes that are alive; collective over them."""

    def take(self, tag: int) -> tuple[np.ndarray, int] | None:
        """Return the next message with `tag`, of any size, and its sender; None if none came."""

    def abort(self, code: int) -> None:
        """End all processes of the job with this exit code."""


class Watch(Protocol):
    """Knows the ranks that are waited for."""

    def has_left(self, peer: int) -> bool:
        """Say whether a rank (ANYONE: all others) takes no part any more."""

    def begin(self) -> None:
        """Note that this process waits."""

    def look(self, peer: int) -> None:
        """Note that it still does, and who alone can end that; may raise DeadlockError."""

    def end(self) -> None:
        """Note that it no longer does."""

    def failure(self, what: object) -> CommError | None:
        """Return the error for `what`, an operation, if a rank has died."""

    def report(self) -> str:
        """Return where every rank is."""


Doze = Callable[[Callable[[], bool]], None]
"""Sleeps for a short while, unless the condition holds."""


def _sleep(ready: Callable[[], bool]) -> None:
    time.sleep(1e-4)


class Patience:
    """Waits for conditions: polls, then yields the processor, then sleeps; gives up at a timeout.

    Args:
        timeout: seconds.
        stats: where waiting is counted as idle.
        watch: knows the ranks that are waited for.
        meanwhile: makes progress with what others may wait for.
    """

    ANYONE = -1
    SPINS = 100
    YIELDING_S = 2e-3
    LAST_WORDS_S = 0.5
    """What a rank sent before it left may still be on its way for so long."""

    def __init__(self, timeout: float, stats: Stats, watch: Watch, meanwhile: Callable[[], None]):
        self.timeout = timeout
        self._meanwhile = meanwhile
        self._stats = stats
        self._watch = watch

    def until(
        self,
        ready: Callable[[], bool],
        peer: int,
        what: object,
        timeout: float | None = None,
        only_peer: Callable[[], bool] = lambda: False,
        doze: Doze = _sleep,
    ) -> None:
        """Return once `ready()` holds.

        Args:
            ready: makes progress and says whether to go on.
            peer: the rank that is waited for, or ANYONE.
            what: who waits for what, as str() says it for error messages.
            timeout: seconds after which the caller goes on without, instead of the communicator's.
            only_peer: says whether nothing but an operation of the peer can make it ready.
            doze: how to sleep.

        Raises:
            CommTimeoutError: not ready in time; unless `timeout` was given, says where every rank
                is.
            DepartedError: the peer has left.
            RankFailedError: a rank of the communicator died.
            DeadlockError: the peer waits for this rank.
        """
        for _ in range(self.SPINS if timeout is None or timeout > 0 else 1):
            if ready():
                return
        start = time.perf_counter()
        self._watch.begin()
        try:
            self._wait(ready, peer, what, timeout, only_peer, doze)
        finally:
            self._watch.end()
            self._stats.add_idle(time.perf_counter() - start)

    def _wait(
        self,
        ready: Callable[[], bool],
        peer: int,
        what: object,
        timeout: float | None,
        only_peer: Callable[[], bool],
        doze: Doze,
    ) -> None:
        start, left_s, warned = time.perf_counter(), math.inf, False
        while not ready():
            waited_s = time.perf_counter() - start
            if timeout is not None and waited_s >= timeout:
                raise CommTimeoutError(f"{what}: not complete after {timeout:g} s; it goes on")
            if waited_s < self.YIELDING_S:
                os.sched_yield()
                continue
            doze(ready)
            self._meanwhile()
            if timeout is None:
                warned = self._lose_patience(what, waited_s, warned)
            failure = self._watch.failure(what)
            if failure or self._watch.has_left(peer):
                left_s = min(left_s, waited_s)
            if waited_s > left_s + self.LAST_WORDS_S:
                raise failure or DepartedError(f"{what}, but {self._name(peer)} left")
            self._watch.look(peer if only_peer() else self.ANYONE)

    def lost(self, peer: int, what: str, error: Exception) -> Exception:
        """Return why a peer cannot be reached: it died, it left, or `error`."""
        end = time.perf_counter() + self.LAST_WORDS_S
        while time.perf_counter() < end:
            if failure := self._watch.failure(what):
                return failure
            if self._watch.has_left(peer):
                return DepartedError(f"{what}, but {self._name(peer)} left")
            time.sleep(1e-2)
        return CommError(f"{what}: {error}; PYCOMM_PEER_READS=never does without reading memory")

    def _lose_patience(self, what: object, waited_s: float, warned: bool) -> bool:
        """Warn once at half of the communicator's timeout, raise after it; say if warned."""
        if waited_s > self.timeout:
            where = self._watch.report()
            raise CommTimeoutError(f"{what}: no progress for {self.timeout:g} s\n{where}")
        if not warned and waited_s > self.timeout / 2:
            _logger.warning("%s, and has waited %.1f s", what, waited_s)
            return True
        return warned

    def _name(self, peer: int) -> str:
        return "all others have" if peer == self.ANYONE else f"rank {peer} has"


class WireTransport(Transport):
    """Some ranks of a communicator on a wire.

    Args:
        wire: carries the bytes.
        ranks: as processes of the wire.
        tag: the communicator's own.
        patience: waits.
        names: what error messages call the ranks.
    """

    def __init__(
        self, wire: Wire, ranks: Sequence[int], tag: int, patience: Patience, names: Sequence[int]
    ):
        self._wire = wire
        self._names = dict(zip(ranks, names))
        self._ranks = ranks
        self._tag = tag
        self._patience = patience
        self.rank = list(ranks).index(wire.rank)
        self.size = len(ranks)

    def isend(self, data: np.ndarray, peer: int) -> Request:
        """Start to send `data` to `peer`."""
        return self._wire.isend(data, self._ranks[peer], self._tag)

    def irecv(self, out: np.ndarray, peer: int) -> Request:
        """Start to receive exactly `out.nbytes` bytes from `peer`."""
        return self._wire.irecv(out, self._ranks[peer], self._tag)

    def wait(self, *requests: Request) -> None:
        """Return when all of the requests are complete."""
        what = _Waiting(self._names[self._wire.rank], requests, self._names)
        self._patience.until(lambda: all([r.test() for r in requests]), Patience.ANYONE, what)


class _Waiting:
    """Says who waits for whom, which only an error message wants to know."""

    def __init__(self, rank: int, requests: Sequence[Request], names: Mapping[int, int]):
        self._rank, self._requests, self._names = rank, requests, names

    def __str__(self) -> str:
        peers = {getattr(request, "peer", -1) for request in self._requests if not request.test()}
        late = ", ".join(str(name) for peer, name in self._names.items() if peer in peers)
        return f"rank {self._rank} waits for messages from or to rank {late}"
