"""Point-to-point messages of a Communicator: send and recv, now or by and by."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pycomm._native import Flight
from pycomm.arrays import is_tensor, view
from pycomm.dispatch import Dispatcher, returned
from pycomm.errors import CommError, CommTimeoutError
from pycomm.links import Links
from pycomm.observe.flight import note_flight
from pycomm.observe.stats import Stats
from pycomm.shapes import checked_rank
from pycomm.transport.mailbox import ANY
from pycomm.work import Transfer, Work
from pycomm.world import World


class Messages:
    """What a Communicator can do with one peer; messages are self-describing."""

    rank: int
    size: int
    _world: World
    _ranks: tuple[int, ...]
    _context: int
    _stats: Stats
    _flight: Flight
    _links: Links
    _collectives: Dispatcher

    def send(self, x: Any, dst: int, tag: int = 0) -> None:
        """Send an array to rank `dst`; returns when `x` may be reused."""
        with self._stats.timed():
            self.isend(x, dst, tag).wait()

    def recv(self, src: int, tag: int = 0, out: Any = None) -> Any:
        """Receive an array from rank `src`, or from anyone (`pycomm.ANY`).

        Returns:
            `out`, or if it is None a new array of the kind, dtype and shape that were sent.

        Raises:
            MismatchError: `out` has not the dtype and shape that were sent; the message is lost.
        """
        with self._stats.timed():
            return self.irecv(src, tag, out).wait()

    def isend(self, x: Any, dst: int, tag: int = 0) -> Work:
        """Start to send; `x` must not change until `wait()` of the Work has returned."""
        self._collectives.check()
        peer, source = self._ranks[checked_rank(dst, "dst", self.rank, self.size)], view(x)
        self._stats.bytes_sent += source.nbytes
        number = self._flight.message("send", source.dtype.name, source.nbytes, dst, tag)
        mailbox = self._world.mailbox
        sent = mailbox.send(source, is_tensor(x), self._context, self.rank, tag, peer)
        what = f"rank {self.rank} sends to rank {dst} with tag {tag}"
        done = partial(Flight.end_message, number, True)
        return Transfer(sent.test, self._waiter(number, dst, what), done)

    def irecv(self, src: int, tag: int = 0, out: Any = None) -> Work:
        """Start to receive, in any order of posting; the Work's result is the array."""
        self._collectives.check()
        peer = src if src == ANY else checked_rank(src, "src", self.rank, self.size)
        target = None if out is None else view(out, result=True)
        expected = (target.dtype.name, target.nbytes) if target else ("", 0)
        number = self._flight.message("recv", *expected, src, tag)
        received = self._world.mailbox.receive(self._context, peer, tag, target)

        def finish() -> Any:
            data = received.data
            Flight.end_message(number, received.error is None, data.dtype.name, data.nbytes)
            if received.error:
                note_flight(received.error)
                raise received.error
            return returned(data, out)

        origin = "anyone" if src == ANY else f"rank {src}"
        what = f"rank {self.rank} receives from {origin} with tag {tag}"
        return Transfer(received.test, self._waiter(number, peer, what, received.unmatched), finish)

    def _waiter(
        self, number: int, peer: int, what: str, only_peer: Callable[[], bool] = lambda: False
    ) -> Callable[[Callable[[], bool], float | None], None]:
        def until(ready: Callable[[], bool], timeout: float | None) -> None:
            try:
                self._links.patience.until(ready, peer, what, timeout, only_peer)
            except CommError as error:
                goes_on = timeout is not None and isinstance(error, CommTimeoutError)
                if not goes_on:
                    Flight.end_message(number, False)
                    note_flight(error)
                raise

        return until
