"""Point-to-point messages of a Communicator: send and recv, now or by and by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pycomm._native import Flight
from pycomm.arrays import HOST, host_view, is_tensor, view
from pycomm.device_messages import AnyReceive, DeviceMessages, DeviceSend
from pycomm.dispatch import Dispatcher
from pycomm.errors import MismatchError, UnreachableError
from pycomm.guard import guard
from pycomm.links import Links
from pycomm.observe.flight import note_flight
from pycomm.observe.stats import Stats
from pycomm.shapes import checked_rank, checked_tag
from pycomm.transport.mailbox import ANY
from pycomm.transport.message import Sent, SentByWire, new_array
from pycomm.work import Transfer, Work
from pycomm.world import World


class Messages:
    """What a Communicator can do with one peer; messages are self-describing.

    An array may be on this rank's GPU on either side. It is then used in the order of streams: what
    is on the caller's current stream at the call comes before the message, what the current stream
    does after `send`, `recv` or `wait()` of a Work comes behind it, and no host waits for a GPU.
    """

    rank: int
    size: int
    _world: World
    _ranks: tuple[int, ...]
    _context: int
    _stats: Stats
    _flight: Flight
    _links: Links
    _collectives: Dispatcher
    _port: Any
    _on_device: DeviceMessages

    def send(self, x: Any, dst: int, tag: int = 0) -> None:
        """Send an array to rank `dst`; returns when `x` may be reused.

        Large messages to a rank on this host that has not come to receive them wait in shared
        memory, as far as there is room: up to 256 MiB for each pair of ranks.

        Of an array on the GPU a copy waits for the receiver, if it is at most 16 MiB (of symmetric
        ones 32 KiB), and up to 64 MiB for each pair. A larger one is waited for: until the receiver
        has taken it over, which reads a symmetric array where it is; the current stream waits until
        it has read it.
        """
        sent = self._port.send(x, dst, tag)
        if sent is True:
            return
        with self._stats.timed():
            if sent is False:
                self.isend(x, dst, tag).wait()
            else:
                request = self._world.mailbox.sent(sent, host_view(x))
                self._sent(request, sent.record, dst, tag).wait()

    def recv(self, src: int, tag: int = 0, out: Any = None, *, copy: bool = True) -> Any:
        """Receive an array from rank `src`, or from anyone (`pycomm.ANY`).

        Args:
            src: a rank, or `pycomm.ANY`.
            tag: only a message with this tag is taken.
            out: an array for the message, or None for a new one.
            copy: False allows, without `out`, an array on the memory where the sender left the
                message; it is the caller's alone until dropped, but keeps the sender from using
                that memory again, so drop it soon. A view of a symmetric array on a GPU is the
                sender's array itself: to be read only, by what is on the stream that was current at
                `recv` or `wait()` when it is dropped; until then the sender's `send` or `wait()`
                does not return.

        Returns:
            `out`, or if it is None a new array of the kind, dtype and shape that were sent; on this
            rank's GPU if the sender's was on one.

        Raises:
            ArgumentError: `out` is on another GPU than this rank's.
            MismatchError: `out` has not the dtype and shape that were sent, or is on the host and
                the sender's array on a GPU, or the other way round; the message is lost.
            MissingError: an array on a GPU was sent, and this rank has none.
        """
        received = self._port.recv(src, tag, out, not copy)
        if received is True:
            return out
        if received and out is None and received.done and not received.is_notice:
            return new_array(received)
        with self._stats.timed():
            if received is False:
                request, record = self._post(src, tag, out, copy)
            else:
                target = None if out is None else host_view(out, result=True)
                posted = self._world.mailbox.received(received, target)
                request = AnyReceive(self._on_device, posted, target, not copy, out)
                record = received.record
            try:
                return self._received(request, record, src, tag).wait()
            except BaseException:
                request.withdraw()
                raise

    def isend(self, x: Any, dst: int, tag: int = 0) -> Work:
        """Start to send; `x` must not change until `wait()` of the Work has returned.

        Of an array on the GPU, `wait()` returns once the receiver has taken it over or a copy waits
        for it, and lets the current stream wait until that is done: what is enqueued there may
        change `x`. With `wait(host=True)` the host waits for that, too. `done()` says whether it is
        done on the GPU.
        """
        self._collectives.check()
        peer, source = self._ranks[checked_rank(dst, "dst", self.rank, self.size)], view(x)
        tag = checked_tag(tag, self.rank)
        self._on_device.check(source)
        self._stats.bytes_sent += source.nbytes
        record = self._flight.message("send", source.dtype.name, source.nbytes, dst, tag)
        if source.device != HOST:
            return self._sent(self._on_device.send(source, dst, tag), record, dst, tag)
        mailbox = self._world.mailbox
        sent = mailbox.send(source, is_tensor(x), self._context, self.rank, tag, peer)
        return self._sent(sent, record, dst, tag)

    def irecv(self, src: int, tag: int = 0, out: Any = None, *, copy: bool = True) -> Work:
        """Start to receive, in any order of posting; the Work's result is the array.

        On a GPU, `out` may be written to from what is on the current stream at this call on.
        `wait()` returns once the message is being copied, and lets the current stream wait for
        that; `wait(host=True)` the host, too. `done()` says whether it is done on the GPU.
        """
        request, record = self._post(src, tag, out, copy)
        return self._received(request, record, src, tag)

    def _post(self, src: int, tag: int, out: Any, copy: bool) -> tuple[AnyReceive, int]:
        self._collectives.check()
        peer = src if src == ANY else checked_rank(src, "src", self.rank, self.size)
        target = None if out is None else view(out, result=True)
        expected = (target.dtype.name, target.nbytes) if target else ("", 0)
        number = checked_tag(tag, self.rank)
        record = self._flight.message("recv", *expected, src, number)
        on_host = target if target and target.device == HOST else None
        self._on_device.check(target)
        box = self._world.mailbox
        received = box.receive(self._context, peer, number, on_host, not copy)
        return AnyReceive(self._on_device, received, target, not copy, out), record

    def _sent(self, sent: Sent | SentByWire | DeviceSend, record: int, dst: int, tag: int) -> Work:
        what = f"rank {self.rank} sends to rank {dst} with tag {tag}"
        wait = self._waiter(dst, what, lambda: True)

        def until(ready: Callable[[], bool], timeout: float | None) -> None:
            sent.settle()
            wait(ready, timeout)

        def failed(error: BaseException) -> BaseException:
            if isinstance(sent, DeviceSend):
                sent.withdraw()
            return self._message_failed(record, dst, what, error)

        def finish() -> Any:
            result = sent.result() if isinstance(sent, DeviceSend) else None
            Flight.end_message(record, True)
            return result

        return Transfer(sent.test, until, finish, failed)

    def _received(self, received: AnyReceive, record: int, src: int, tag: int) -> Work:
        origin = "anyone" if src == ANY else f"rank {src}"
        what = f"rank {self.rank} receives from {origin} with tag {tag}"

        def finish() -> Any:
            arrival = received.arrival()
            Flight.end_message(record, True, arrival.array.dtype.name, arrival.array.nbytes)
            return received.result(arrival)

        def failed(error: BaseException) -> BaseException:
            received.withdraw()
            return self._message_failed(record, src, what, error)

        wait = self._waiter(src, what, received.unmatched)
        return Transfer(received.test, wait, finish, failed)

    def _waiter(
        self, peer: int, what: str, only_peer: Callable[[], bool]
    ) -> Callable[[Callable[[], bool], float | None], None]:
        doze = self._on_device.doze

        def until(ready: Callable[[], bool], timeout: float | None) -> None:
            guard.check()
            self._links.patience.until(ready, peer, what, timeout, only_peer, doze)

        return until

    def _message_failed(
        self, record: int, peer: int, what: str, error: BaseException
    ) -> BaseException:
        """Return the error of a message; after it the ranks may be at different points."""
        Flight.end_message(record, False)
        if isinstance(error, UnreachableError):
            error = self._links.patience.lost(peer, what, error)
        if isinstance(error, MismatchError):
            note_flight(error)
            return error
        return self._collectives.fail(error)
