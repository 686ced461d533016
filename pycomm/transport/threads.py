"""N ranks as the threads of one process: to test algorithms without MPI, with delays injected."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from pycomm.errors import ArgumentError, CommError, CommTimeoutError, DepartedError, MismatchError
from pycomm.transport.base import Request, Transport, counterparts, group

T = TypeVar("T")

POISON = 0xA5
"""What the memory of a receive is filled with until its message is taken."""


def run_threads(
    size: int,
    function: Callable[[ThreadTransport, int], T],
    *,
    delays: int | None = None,
    timeout: float = 30.0,
    hosts: Sequence[int] = (),
) -> list[T]:
    """Call `function(transport, rank)` on `size` threads; return their results in rank order.

    Args:
        size: how many ranks.
        function: what each rank does; it must wait for every transfer that it starts.
        delays: seed of random delays of up to a millisecond; None for no delays.
        timeout: seconds after which a `wait` without progress ends.
        hosts: by rank, the host that it shall pretend to be on; () for one host.

    Raises:
        Exception: the first that a rank raised; its cause names the rank.
    """
    world = _World(size, delays, timeout)
    results: list[T] = [None] * size  # type: ignore[list-item]

    def run(rank: int) -> None:
        try:
            transport = ThreadTransport(world, rank)
            transport.layer(hosts)
            results[rank] = function(transport, rank)
            transport.check_waited()
        except BaseException as error:
            world.fail(rank, error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    world.raise_failure()
    return results


class _World:
    """What the ranks share: one lock, a queue of messages for each pair, the first failure."""

    def __init__(self, size: int, delays: int | None, timeout: float):
        self.size, self.delays, self.timeout = size, delays, timeout
        self.lock = threading.Lock()
        self.wake = [threading.Condition(self.lock) for _ in range(size)]
        self.messages: list[list[deque[_Send]]] = [
            [deque() for _ in range(size)] for _ in range(size)
        ]
        self.failure: tuple[int, BaseException] | None = None

    def fail(self, rank: int, error: BaseException) -> None:
        """Record the first failure and wake every rank that waits."""
        with self.lock:
            self.failure = self.failure or (rank, error)
            for condition in self.wake:
                condition.notify_all()

    def raise_failure(self) -> None:
        """Raise the first failure, if there is one, in the calling thread."""
        if self.failure:
            rank, error = self.failure
            cause = error.__cause__ or CommError(f"rank {rank} of {self.size} failed first")
            raise error from cause


class _Transfer:
    """A transfer under way; `test` makes progress on all transfers of its rank."""

    def __init__(self, transport: ThreadTransport, data: np.ndarray, peer: int):
        self.transport, self.data, self.peer = transport, data, peer
        self.done = False

    def test(self) -> bool:
        """Make progress and say whether the transfer is complete."""
        return self.transport.test(self)


class _Send(_Transfer):
    """A message: its bytes stay the sender's memory until the receiver takes them."""

    def __init__(self, transport: ThreadTransport, data: np.ndarray, peer: int):
        super().__init__(transport, data, peer)
        self.promised = data.copy()

    def take(self, receive: _Receive) -> None:
        """Copy the bytes into the receiver's memory, which completes both transfers."""
        source, rank = self.transport.rank, receive.transport.rank
        if receive.data.size != self.data.size:
            raise MismatchError(
                f"rank {rank} receives {receive.data.size} bytes from rank {source}, which sent "
                f"{self.data.size}: both must pass the same count"
            )
        changed = np.count_nonzero(self.data != self.promised)
        if changed:
            raise CommError(
                f"rank {source} changed {changed} of the {self.data.size} bytes that it was still "
                f"sending to rank {rank}: it must wait first"
            )
        receive.data[:] = self.data
        self.done = receive.done = True

    def __str__(self) -> str:
        return f"the send of {self.data.size} bytes to rank {self.peer}"


class _Receive(_Transfer):
    """Memory that takes the next message of a peer."""

    def __str__(self) -> str:
        return f"the receive of {self.data.size} bytes from rank {self.peer}"


class ThreadTransport(Transport):
    """One rank that is a thread; strict about memory, so that misuse in an algorithm shows.

    A message is taken from the sender's memory as late as the receiver's progress, and the memory
    of a receive is poisoned until then. `messages` and `sent_bytes` count what this rank sent.
    """

    def __init__(self, world: _World, rank: int):
        self.world, self.rank, self.size = world, rank, world.size
        self.messages = 0
        self.sent_bytes = 0
        self._receives: list[deque[_Receive]] = [deque() for _ in range(self.size)]
        self._unwaited: dict[int, _Transfer] = {}
        seeded = world.delays is not None
        self._random = random.Random(f"{world.delays}/{rank}") if seeded else None

    def layer(self, hosts: Sequence[int]) -> None:
        """Pretend that rank r is on hosts[r]."""
        if levels := counterparts(hosts, self.rank) if hosts else None:
            self.local, self.across = (Group(self, ranks) for ranks in levels)
            self.ranks_by_host = group(hosts)

    def isend(self, data: np.ndarray, peer: int) -> Request:
        """Start to send `data` to `peer`, which takes the bytes from it as late as it can."""
        self._check(peer)
        self._delay()
        send = _Send(self, data, peer)
        self._unwaited[id(send)] = send
        self.messages += 1
        self.sent_bytes += data.size
        with self.world.lock:
            self.world.messages[self.rank][peer].append(send)
            self.world.wake[peer].notify()
        return send

    def irecv(self, out: np.ndarray, peer: int) -> Request:
        """Start to receive exactly `out.nbytes` bytes from `peer`."""
        self._check(peer)
        self._delay()
        out.fill(POISON)
        receive = _Receive(self, out, peer)
        self._unwaited[id(receive)] = receive
        self._receives[peer].append(receive)
        return receive

    def wait(self, *requests: Request) -> None:
        """Return when all of the requests are complete.

        Raises:
            CommTimeoutError: one of them is not complete after the timeout.
            DepartedError: another rank failed meanwhile.
            MismatchError: a message has another size than its receive.
            CommError: a rank changed memory that it was still sending.
        """
        self._delay()
        deadline = time.monotonic() + self.world.timeout
        with self.world.lock:
            while pending := self._pending(requests):
                self._give_up(pending, deadline)
                self.world.wake[self.rank].wait(max(0.0, deadline - time.monotonic()))
        for request in requests:
            self._unwaited.pop(id(request), None)

    def test(self, request: _Transfer) -> bool:
        """Make progress and say whether `request` is complete."""
        with self.world.lock:
            self._progress()
        if request.done:
            self._unwaited.pop(id(request), None)
        return request.done

    def check_waited(self) -> None:
        """Raise CommError if this rank started a transfer that it never waited for."""
        if self._unwaited:
            first = next(iter(self._unwaited.values()))
            raise CommError(
                f"rank {self.rank} returned without waiting for {len(self._unwaited)} transfers, "
                f"of which the first is {first}"
            )

    def _check(self, peer: int) -> None:
        if not 0 <= peer < self.size or peer == self.rank:
            raise ArgumentError(
                f"rank {self.rank} of {self.size} cannot exchange messages with rank {peer}"
            )

    def _delay(self) -> None:
        if self._random and self._random.random() < 0.25:
            time.sleep(self._random.random() * 1e-3)

    def _pending(self, requests: tuple[Request, ...]) -> list[Request]:
        self._progress()
        return [request for request in requests if not request.done]  # type: ignore[attr-defined]

    def _progress(self) -> None:
        """Take every message that a receive waits for; in order for each pair."""
        for peer, receives in enumerate(self._receives):
            messages = self.world.messages[peer][self.rank]
            while receives and messages:
                messages.popleft().take(receives.popleft())
                self.world.wake[peer].notify()

    def _give_up(self, pending: list[Request], deadline: float) -> None:
        if self.world.failure:
            failed, error = self.world.failure
            raise DepartedError(f"rank {self.rank} waits, but rank {failed} failed: {error}")
        if time.monotonic() >= deadline:
            raise CommTimeoutError(
                f"rank {self.rank} of {self.size} made no progress for {self.world.timeout} s: it "
                f"waits for {pending[0]}"
            )


class Group(Transport):
    """Some of the ranks of a transport, numbered anew; messages stay in the order of all calls."""

    def __init__(self, everyone: Transport, ranks: Sequence[int]):
        self._everyone = everyone
        self._ranks = ranks
        self.rank = ranks.index(everyone.rank)
        self.size = len(ranks)

    def isend(self, data: np.ndarray, peer: int) -> Request:
        """Start to send `data` to `peer`."""
        return self._everyone.isend(data, self._ranks[peer])

    def irecv(self, out: np.ndarray, peer: int) -> Request:
        """Start to receive exactly `out.nbytes` bytes from `peer`."""
        return self._everyone.irecv(out, self._ranks[peer])

    def wait(self, *requests: Request) -> None:
        """Return when all of the requests are complete."""
        self._everyone.wait(*requests)
