"""Handles of what was enqueued on a stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

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

    Attributes:
        check: raises, once the event is done, if the operation failed on the GPU.
    """

    def __init__(
        self, runtime: Runtime, event: Any, result: Any, packed: View | None, of_torch: bool
    ):
        self._runtime = runtime
        self._event = event
        self._result = result
        self._packed = packed
        self._of_torch = of_torch
        self.check: Callable[[], None] = lambda: None
        self._error: BaseException | None = None

    def wait(self, timeout: float | None = None, *, host: bool = False) -> Any:
        """Let the current stream wait for the operation, and return its result.

        Args:
            timeout: seconds that the host waits, if it does; None waits as long as it takes.
            host: let the host wait, too.

        Raises:
            CommTimeoutError: not complete in time, and the operation goes on; or, with `host`,
                another rank's GPU did not come to it.
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
        if not self.done():
            return None
        try:
            self.check()
        except CommError as error:
            self._error = self._error or error
        return self._error

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
