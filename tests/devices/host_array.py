"""Arrays of the device's double: to be recognised as CuPy's are, used on the current stream."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.devices.host_streams import HostStream

FRESH, FREED = 0xCD, 0xDD
"""What every byte of new memory is, and of memory that was freed."""


class _Owner:
    """Memory of the pool: in use by others, as a pool has it, once its stream has got there."""

    def __init__(self, memory: np.ndarray, stream: HostStream):
        self._memory, self._stream = memory.reshape(-1).view(np.uint8), stream

    def __del__(self) -> None:
        memory = self._memory
        self._stream.put(lambda: memory.fill(FREED))


class HostArray:
    """An array on the device; the host sees its contents by `get` only.

    As with CuPy, the constructor allocates, `copy` and assignments are enqueued on the caller's
    current stream and keep nothing alive, and `get` waits for that stream.

    Attributes:
        runtime: the double that all arrays of the process are on.
    """

    runtime: Any = None

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        memory: np.ndarray | None = None,
        owner: Any = None,
    ):
        if memory is None:
            memory = np.empty(shape, dtype)
            memory.reshape(-1).view(np.uint8)[:] = FRESH
        self._memory = memory
        self._owner = owner or _Owner(memory, self.runtime.current)
        self.device = SimpleNamespace(id=self.runtime.device)
        self.dtype, self.shape, self.ndim = memory.dtype, memory.shape, memory.ndim
        self.size, self.nbytes = memory.size, memory.nbytes
        self.flags = SimpleNamespace(c_contiguous=memory.flags.c_contiguous)
        self.data = SimpleNamespace(ptr=memory.__array_interface__["data"][0])

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """What marks an array as one of a GPU."""
        return dict(self._memory.__array_interface__, version=3)

    @classmethod
    def put(cls, x: Any) -> HostArray:
        """Return a copy of `x` that is complete."""
        return cls(np.shape(x), np.asarray(x).dtype, np.array(x, order="C"))

    def get(self) -> np.ndarray:
        """Return a copy on the host, once all on the current stream is done."""
        self.runtime.finish()
        return self._memory.copy()

    def copy(self) -> HostArray:
        """Return a contiguous copy, enqueued."""
        other = HostArray(self.shape, self.dtype)
        other[...] = self
        return other

    def __len__(self) -> int:
        """Return the length of axis 0."""
        return self.shape[0]

    def __getitem__(self, where: Any) -> HostArray:
        """Return a view."""
        view = self._memory[where]
        return HostArray(view.shape, view.dtype, view, self._owner)

    def __setitem__(self, where: Any, value: Any) -> None:
        """Assign the elements of another array, or a number; enqueued."""
        target = self._memory[where] if where is not ... else self._memory
        source = value._memory if isinstance(value, HostArray) else np.array(value)
        self._enqueue(lambda: np.copyto(target, source, casting="unsafe"))

    def reshape(self, *shape: int) -> HostArray:
        """Return a view of another shape."""
        return HostArray(shape, self.dtype, self._memory.reshape(*shape), self._owner)

    def _enqueue(self, work: Callable[[], None]) -> None:
        self.runtime.current.put(work)
