"""Handles of operations under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from pycomm._native import Operation
from pycomm.arrays import View, unpack
from pycomm.devices.work import StreamWork
from pycomm.errors import CommError, CommTimeoutError
from pycomm.observe.flight import note_flight


class Work(Protocol):
    """An operation under way; its arrays belong to pycomm until `wait` has returned."""

    def wait(self, timeout: float | None = None, *, host: bool = False) -> Any:
        """Return the operation's result once it is complete, or raise its exception.

        Of arrays on a GPU the result is complete for the caller's current stream, which waits.

        Args:
            timeout: seconds; None waits as long as the communicator's timeout allows.
            host: wait on the host until it is complete, also if it is on a GPU.

        Raises:
            CommTimeoutError: not complete in time; the operation goes on.
        """

    def done(self) -> bool:
        """Say whether the operation is complete, also if it failed."""

    def exception(self) -> BaseException | None:
        """Return what the operation failed with; None if it has not."""


class Task:
    """Work that an engine runs on its thread.

    Args:
        function: returns the result; a StreamWork, if a GPU has something to do yet.
    """

    def __init__(self, function: Callable[[], Any]):
        self._function = function
        self._finished = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Run the operation; what it raises is kept for `wait`."""
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error
        del self._function  # and with it the arrays
        self._finished.set()

    def wait(self, timeout: float | None = None, *, host: bool = False) -> Any:
        """Return the operation's result once it is complete, or raise its exception."""
        end = None if timeout is None else time.monotonic() + timeout
        if not self._finished.wait(timeout):
            raise CommTimeoutError(f"the operation is not complete after {timeout:g} s; it goes on")
        if self._error is not None:
            raise self._error
        if isinstance(self._result, StreamWork):
            left = None if end is None else max(0.0, end - time.monotonic())
            return self._result.wait(left, host=host)
        return self._result

    @property
    def has_run(self) -> bool:
        """Whether the thread is done with it; a GPU may not be."""
        return self._finished.is_set()

    def done(self) -> bool:
        """Say whether the operation is complete, also if it failed."""
        of_gpu = self._result if self.has_run else None
        return self.has_run and (not isinstance(of_gpu, StreamWork) or of_gpu.done())

    def exception(self) -> BaseException | None:
        """Return what the operation failed with; None if it has not."""
        if isinstance(self._result, StreamWork):
            return self._result.exception()
        return self._error


class Finisher(Protocol):
    """Who does operations on a thread of the extension."""

    def wait_for(self, operation: Operation, timeout: float | None) -> bool:
        """Wait at most `timeout` seconds, and say whether the operation is finished."""

    def failure(self, operation: Operation) -> BaseException | None:
        """Return what the operation failed with; None if it has not."""


class Handed:
    """Work that was handed to the extension.

    Args:
        finisher: does it.
        operation: what it does.
        result: what `wait` returns.
        packed: the result's contiguous copy, if it is strided: copied back by the first `wait`.
    """

    __slots__ = ("_finisher", "_operation", "_result", "_packed", "_error")

    def __init__(
        self, finisher: Finisher, operation: Operation, result: Any, packed: View | None = None
    ):
        self._finisher = finisher
        self._operation = operation
        self._result = result
        self._packed = packed
        self._error: BaseException | None = None

    def wait(self, timeout: float | None = None, *, host: bool = False) -> Any:
        """Return the operation's result once it is complete, or raise its exception."""
        if not self._finisher.wait_for(self._operation, timeout):
            raise CommTimeoutError(f"the operation is not complete after {timeout:g} s; it goes on")
        if (error := self.exception()) is not None:
            raise error
        if self._packed is not None:
            packed, self._packed = self._packed, None
            unpack(packed, self._result)
        return self._result

    def done(self) -> bool:
        """Say whether the operation is complete, also if it failed."""
        return self._operation.finished

    def exception(self) -> BaseException | None:
        """Return what the operation failed with; None if it has not."""
        if self._error is None and self._operation.failed:
            self._error = self._finisher.failure(self._operation)
            if self._error is not None:
                note_flight(self._error)
        return self._error


class Transfer:
    """Work that makes progress when it is asked: a message, sent or received.

    Args:
        test: makes progress and says whether the transfer is complete.
        until: waits for `test`, with the timeout given in seconds or the communicator's.
        finish: returns the result, or raises, once the transfer is complete; a StreamWork, if a
            GPU has something to do yet.
        failed: is told of an error that ends the transfer, and returns the one to raise.
    """

    def __init__(
        self,
        test: Callable[[], bool],
        until: Callable[[Callable[[], bool], float | None], None],
        finish: Callable[[], Any],
        failed: Callable[[BaseException], BaseException],
    ):
        self._test = test
        self._until = until
        self._finish: Callable[[], Any] | None = finish
        self._failed = failed
        self._result: Any = None
        self._error: BaseException | None = None

    def wait(self, timeout: float | None = None, *, host: bool = False) -> Any:
        """Return the operation's result once it is complete, or raise its exception."""
        end = None if timeout is None else time.monotonic() + timeout
        try:
            self._until(self._transferred, timeout)
        except CommTimeoutError as error:
            if timeout is not None:
                raise
            self._fail(error)
        except CommError as error:
            self._fail(error)
        if self._error is not None:
            raise self._error
        if isinstance(self._result, StreamWork):
            left = None if end is None else max(0.0, end - time.monotonic())
            return self._result.wait(left, host=host)
        return self._result

    def done(self) -> bool:
        """Make progress and say whether the operation is complete, also if it failed."""
        done = self._transferred()
        return self._result.done() if isinstance(self._result, StreamWork) else done

    def exception(self) -> BaseException | None:
        """Return what the operation failed with; None if it has not."""
        if isinstance(self._result, StreamWork):
            return self._result.exception()
        return self._error

    def _transferred(self) -> bool:
        try:
            if self._finish is not None and self._test():
                self._result = self._finish()
                self._finish = None
        except Exception as error:
            self._fail(error)
        return self._finish is None

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._finish = None
            self._error = self._failed(error)
