"""Handles of what was enqueued on a stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from pycomm.arrays import View, unpack
from pycomm.devices.base import Runtime
from pycomm.errors import CommError, CommTimeoutError

_LOOK_S = 20e-6


class StreamWork:
    """Work that a GPU does; its arrays belong to pycomm until a stream has waited for it.

    Args:
        event: is done when the operation is.
        result: what `wait` returns.
        packed: the result's contiguous copy, if it is strided: copied back by the first `wait`.
        of_torch: whether it is torch's current stream that waits, instead of CuPy's.
    """

    def __init__(
        self, runtime: Runtime, event: Any, result: Any, packed: View | None, of_torch: bool
    ):
        self._runtime = runtime
        self._event = event
        self._result = result
        self._packed = packed
        self._of_torch = of_torch
        self._error: BaseException | None = None

    def wait(self, timeout: float | None = None, *, host: bool = False) -> Any:
        """Let the current stream wait for the operation, and return its result.

        Args:
            timeout: seconds that the host waits, if it does; None waits as long as it takes.
            host: let the host wait, too.

        Raises:
            CommTimeoutError: not complete in time; the operation goes on.
        """
        self._runtime.wait(self._runtime.stream(self._of_torch), self._event)
        if self._packed is not None:
            packed, self._packed = self._packed, None
            unpack(packed, self._result)
        if host:
            self._wait_on_host(timeout)
        return self._result

    def done(self) -> bool:
        """Say whether the operation is complete, also if it failed."""
        try:
            return self._error is not None or self._runtime.query(self._event)
        except CommError as error:
            self._error = error
            return True

    def exception(self) -> BaseException | None:
        """Return what the operation failed with; None if it has not."""
        return self._error if self.done() else None

    def _wait_on_host(self, timeout: float | None) -> None:
        if timeout is None:
            self._runtime.synchronize(self._event)
        else:
            end = time.monotonic() + timeout
            while not self.done():
                if time.monotonic() > end:
                    late = f"the operation is not complete after {timeout:g} s; it goes on"
                    raise CommTimeoutError(late)
                time.sleep(_LOOK_S)
        if error := self.exception():
            raise error


class Enqueuing(Protocol):
    """What a thread of the host does until the last part of an operation is enqueued."""

    def wait(self, timeout: float | None = None) -> Any:
        """Return what it returned, or raise what it raised."""

    def done(self) -> bool:
        """Say whether it is complete, also if it failed."""

    def exception(self) -> BaseException | None:
        """Return what it failed with; None if it has not."""


class StagedWork:
    """Work of the hosts that a GPU completes; its arrays belong to pycomm as those of StreamWork.

    Args:
        hosts: the hosts' part, which returns an event.
        last: makes the GPU's part from that.
    """

    def __init__(self, hosts: Enqueuing, last: Callable[[Any], StreamWork]):
        self._hosts = hosts
        self._make = last
        self._last: StreamWork | None = None

    def wait(self, timeout: float | None = None, *, host: bool = False) -> Any:
        """Wait for the hosts' part; then let the current stream wait, and return the result.

        Args:
            timeout: seconds that the host waits; None as long as the communicator's timeout allows.
            host: let the host wait for the GPU, too.

        Raises:
            CommError: the hosts' part failed.
            CommTimeoutError: not complete in time; the operation goes on.
        """
        end = None if timeout is None else time.monotonic() + timeout
        self._hosts.wait(timeout)
        left = None if end is None else max(0.0, end - time.monotonic())
        return self._of_gpu().wait(left, host=host)

    def done(self) -> bool:
        """Say whether the operation is complete, also if it failed."""
        if not self._hosts.done():
            return False
        return self._hosts.exception() is not None or self._of_gpu().done()

    def exception(self) -> BaseException | None:
        """Return what the operation failed with; None if it has not."""
        if not self._hosts.done():
            return None
        return self._hosts.exception() or self._of_gpu().exception()

    def _of_gpu(self) -> StreamWork:
        if self._last is None:
            self._last = self._make(self._hosts.wait())
        return self._last
