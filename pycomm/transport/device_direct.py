"""Device arrays that MPI sends and receives itself, where its libraries take memory of GPUs.

MPI knows no streams: the host waits for what comes before, and whoever waits asks MPI for the end.
The receiver answers when MPI has its receive: so no library has to put data of a GPU aside.
"""

from __future__ import annotations

from typing import Any

from pycomm.arrays import View
from pycomm.transport.courses import Steps
from pycomm.transport.device_mail import ANSWER, DeviceMail, Line
from pycomm.transport.mailbox import memory_at
from pycomm.transport.wire import WireRequest


def receive(mail: DeviceMail, line: Line, target: View) -> Steps:
    """Let MPI write to `target`, once all is done that is on the incoming stream now."""
    ready, tag = mail.event_on(mail.incoming), mail.wire_tag()
    yield from mail.until(ready)
    request = mail.wire.irecv(memory_at(target.address, target.nbytes), line.process, tag)
    line.say(ANSWER, ("direct", tag))
    yield from _complete(mail, request, ready)


def send(mail: DeviceMail, line: Line, address: int, nbytes: int, ready: Any, tag: int) -> Steps:
    """Let MPI read what lies at an address of the GPU, once the event `ready` is done.

    Args:
        tag: the receiver's answer.
    """
    yield from mail.until(ready)
    request = mail.wire.isend(memory_at(address, nbytes), line.process, tag)
    yield from _complete(mail, request, ready)


def _complete(mail: DeviceMail, request: WireRequest, ready: Any) -> Steps:
    """Go on once MPI is done.

    The event is asked for again as that makes the GPU current on whatever thread goes on with this,
    and there MPI may copy.
    """
    query = mail.gpu.runtime.query
    yield from mail.looking(lambda: query(ready) and request.test())
