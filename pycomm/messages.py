"""Point-to-point messages of a Communicator: send and recv, now or by and by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pycomm.arrays import is_tensor, view
from pycomm.dispatch import Dispatcher, returned
from pycomm.links import Links
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
        mailbox = self._world.mailbox
        sent = mailbox.send(source, is_tensor(x), self._context, self.rank, tag, peer)
        what = f"rank {self.rank} sends to rank {dst} with tag {tag}"
        return Transfer(sent.test, self._waiter(dst, what), lambda: None)

    def irecv(self, src: int, tag: int = 0, out: Any = None) -> Work:
        """Start to receive, in any order of posting; the Work's result is the array."""
        self._collectives.check()
        peer = src if src == ANY else checked_rank(src, "src", self.rank, self.size)
        target = None if out is None else view(out, result=True)
        received = self._world.mailbox.receive(self._context, peer, tag, target)

        def finish() -> Any:
            if received.error:
                raise received.error
            return returned(received.data, out)

        origin = "anyone" if src == ANY else f"rank {src}"
        what = f"rank {self.rank} receives from {origin} with tag {tag}"
        return Transfer(received.test, self._waiter(peer, what, received.unmatched), finish)

    def _waiter(
        self, peer: int, what: str, only_peer: Callable[[], bool] = lambda: False
    ) -> Callable[[Callable[[], bool], float | None], None]:
        return lambda ready, timeout: self._links.patience.until(
            ready, peer, what, timeout, only_peer
        )
