"""Messages of one communicator where an array is, or may be, on a GPU; as Requests and results."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pycomm.arrays import HOST, View, is_tensor, place_name, returned
from pycomm.devices import process
from pycomm.devices.process import Device, process_device
from pycomm.devices.work import StreamWork
from pycomm.errors import ArgumentError, MissingError
from pycomm.transport.courses import Course
from pycomm.transport.device_mail import DeviceMail, Line
from pycomm.transport.device_receiving import Arrival, Receiving
from pycomm.transport.device_sending import Sending
from pycomm.transport.message import Received
from pycomm.world import World


class Delivered(StreamWork):
    """What a GPU has still to do for a message; tells of the streams that wait for it."""

    def __init__(self, mail: DeviceMail, result: Any, of_torch: bool, arrival: Arrival):
        packed = arrival.array if arrival.array.packed else None
        super().__init__(mail.gpu.runtime, arrival.event, result, packed, of_torch)
        self._used = arrival.used

    def wait(self, timeout: float | None = None, *, host: bool = False) -> Any:
        """Let the current stream wait for the message, and return it; see StreamWork."""
        self._used(self._runtime.stream(self._of_torch))
        return super().wait(timeout, host=host)


class DeviceSend:
    """A device array that is sent: a Request, then `result`."""

    def __init__(self, mail: DeviceMail, sending: Sending, course: Course, of_torch: bool):
        self._mail = mail
        self._sending = sending
        self._course = course
        self._of_torch = of_torch

    def test(self) -> bool:
        """Make progress and say whether the array is free behind an event."""
        self._mail.advance()
        return self._course.finished or self._sending.free

    def settle(self) -> None:
        """Do nothing: what may wait for the receiver was copied at once."""

    def withdraw(self) -> None:
        """Expect no answer any more."""
        self._mail.leave(self._course)

    def result(self) -> StreamWork:
        """Return what lets a stream wait until the array is free."""
        if not self._sending.free:
            self._course.result()  # raises
        runtime, event = self._mail.gpu.runtime, self._sending.event
        return StreamWork(runtime, event, None, None, self._of_torch)


class AnyReceive:
    """A posted receive of an array that may be on a GPU: a Request, then `result`."""

    def __init__(
        self, of: DeviceMessages, received: Received, target: View | None, keep: bool, out: Any
    ):
        self._of = of
        self._received = received
        self._out = out
        self._keep = keep
        self._target = target
        self._before: Any = None
        self._course: Course | None = None
        self._mail: DeviceMail | None = None
        on_device = target is not None and target.device != HOST
        if target is not None and on_device:
            self._before = of.put_behind(target)
        if on_device or (target is None and gpu_in_use()):
            self._begin()

    def unmatched(self) -> bool:
        """Say whether no message has come for it yet."""
        return self._received.unmatched()

    def withdraw(self) -> None:
        """Take no message any more."""
        self._received.withdraw()
        if self._course and self._mail:
            self._mail.leave(self._course)

    def test(self) -> bool:
        """Make progress and say whether the message is there, or will be behind an event."""
        if self._course is None:
            if not self._received.test():
                return False
            if not self._received.handle.is_notice:
                return True
            self._begin()
        assert self._mail and self._course
        self._mail.advance()
        return self._course.finished

    def arrival(self) -> Arrival:
        """Return the message."""
        return self._course.result() if self._course else Arrival(self._received.result())

    def result(self, arrival: Arrival) -> Any:
        """Return what the user gets of it: the array, or a StreamWork."""
        if arrival.event is None:
            return returned(arrival.array, self._out)
        array = arrival.array.owner if self._out is None else self._out
        assert self._mail
        return Delivered(self._mail, array, is_tensor(array), arrival)

    def _begin(self) -> None:
        of, mail = self._of, self._of.mail
        posted = self._received, of.context, of.rank, of.ranks
        receiving = Receiving(mail, *posted, self._target, self._keep, self._before)
        self._mail, self._course = mail, mail.start(receiving.steps(), "receive", of.context)


class DeviceMessages:
    """What one communicator does with messages of device arrays."""

    def __init__(self, world: World, context: int, rank: int, ranks: Sequence[int]):
        self.context = context
        self.rank = rank
        self.ranks = ranks
        self._world = world

    @property
    def mail(self) -> DeviceMail:
        """That of the process, which it has from the first use on."""
        world, mail = self._world, self._world.device_mail
        if mail is None or mail.device is not process.known_device():
            mail = DeviceMail(world.mailbox, _device(), world.wire, _noting(world))
            atexit.register(mail.finish)
            world.device_mail = mail
        return mail

    def send(self, source: View, dst: int, tag: int) -> DeviceSend:
        """Start to send a device array, behind what is on the caller's stream now."""
        of_torch, device = is_tensor(source.owner), process_device()
        mail, peer = self.mail, self.ranks[dst]
        serial = next(mail.serials)
        line = Line(mail.mailbox, self.context, self.rank, dst, peer, serial)
        sending = Sending(mail, line, tag, source, device.runtime.stream(of_torch))
        course = mail.start(sending.steps(), "send", self.context)
        return DeviceSend(mail, sending, course, of_torch)

    def check(self, x: View | None) -> None:
        """Raise ArgumentError if an array is on another GPU than this rank's."""
        if x is None or x.device == HOST:
            return
        mine = process_device().runtime.device
        if x.device != mine:
            raise ArgumentError(
                f"rank {self.rank}: an array is on {place_name(x.device)}, but this rank uses "
                f"{place_name(mine)}: a rank has one GPU, the current one at the first use of "
                "pycomm with GPUs"
            )

    def put_behind(self, out: View) -> Any:
        """Return an event of the caller's stream, behind which `out` may be written to."""
        return self.mail.event_on(process_device().runtime.stream(is_tensor(out.owner)))

    def doze(self, ready: Callable[[], bool]) -> None:
        """Sleep for a short while, as Mailbox.doze does."""
        mail = self._world.device_mail
        (mail or self._world.mailbox).doze(ready)

    def close(self) -> None:
        """Wait a little for what is under way, then leave it."""
        if self._world.device_mail is not None:
            self._world.device_mail.close(self.context)


def gpu_in_use() -> bool:
    """Say whether this process uses a GPU, with pycomm or without."""
    if process.known_device() or "cupy" in sys.modules:
        return True
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _device() -> Device | None:
    try:
        return process_device()
    except MissingError:
        return None


def _noting(world: World) -> Callable[[int], None]:
    def note(more: int) -> None:
        if world.neighbours is not None and world.neighbours.waits is not None:
            world.neighbours.waits.asynchronous(more)

    return note
