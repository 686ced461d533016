"""Arrays of the device's double: to be recognised as CuPy's are, used on the current stream."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np


class HostArray:
    """An array on the device; the host sees its contents by `get` only.

    As with CuPy, the constructor allocates, `copy` and assignments are enqueued on the caller's
    current stream, and `get` waits for that stream.

    Attributes:
        runtime: the double that all arrays of the process are on.
    """

    runtime: Any = None

    def __init__(self, shape: tuple[int, ...], dtype: Any, memory: np.ndarray | None = None):
        self._memory = np.full(shape, 0, dtype) if memory is None else memory
        if memory is None:
            self._memory.reshape(-1).view(np.uint8)[:] = 0xCD
        self.device = SimpleNamespace(id=self.runtime.device)
        self.dtype, self.shape, self.flags = memory_facts(self._memory)
        self.size, self.nbytes, self.ndim = self._memory.size, self._memory.nbytes, len(self.shape)
        self.data = SimpleNamespace(ptr=self._memory.__array_interface__["data"][0])

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """What marks an array as one of a GPU."""
        return dict(self._memory.__array_interface__, version=3)

    @classmethod
    def put(cls, x: np.ndarray) -> HostArray:
        """Return a copy of `x` that is complete."""
        return cls(x.shape, x.dtype, np.array(x, order="C"))

    def get(self) -> np.ndarray:
        """Return a copy on the host, once all on the current stream is done."""
        self.runtime.finish()
        return self._memory.copy()

    def copy(self) -> HostArray:
        """Return a contiguous copy, enqueued."""
        other = HostArray(self.shape, self.dtype)
        self._enqueue(lambda: np.copyto(other._memory, self._memory))
        return other

    def __getitem__(self, where: Any) -> HostArray:
        """Return a view."""
        view = self._memory[where]
        return HostArray(view.shape, view.dtype, view)

    def __setitem__(self, where: Any, value: Any) -> None:
        """Assign the elements of another array, or a number; enqueued."""
        source = value._memory if isinstance(value, HostArray) else np.array(value)
        self._enqueue(lambda: self._memory.__setitem__(where, source))

    def reshape(self, *shape: int) -> HostArray:
        """Return a view of another shape."""
        return HostArray(shape, self.dtype, self._memory.reshape(*shape))

    def _enqueue(self, work: Callable[[], None]) -> None:
        self.runtime.current.put(work)


def memory_facts(x: np.ndarray) -> tuple[np.dtype, tuple[int, ...], Any]:
    """Return dtype, shape and flags."""
    return x.dtype, x.shape, SimpleNamespace(c_contiguous=x.flags.c_contiguous)
