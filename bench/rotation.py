"""Buffers of a kernel in so many sets that going round them leaves nothing in the caches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.device import Device, numpy_bytes
from pycomm.kernels.device import DeviceView, device_view

ROUND_BYTES = 192 << 20
"""What all sets hold together at least; more than three times the largest second-level cache."""

_ALIGNMENT = 256
_PERIOD = 65_537
"""Elements after which values repeat: a prime, so that what is misplaced is another value."""


class Sets:
    """Sets of buffers; set i has one flat uint8 array of each name, at multiples of 256 bytes.

    Args:
        device: where.
        layout: name → bytes of one buffer.
        moved_bytes: what one use of a set moves.
        most: sets at most.
    """

    def __init__(self, device: Device, layout: Mapping[str, int], moved_bytes: int, most: int):
        self.device = device
        self.count = max(2, min(most, -(-ROUND_BYTES // max(1, moved_bytes))))
        self._arrays = {name: self._slices(nbytes) for name, nbytes in layout.items()}

    def _slices(self, nbytes: int) -> list[Any]:
        stride = -(-max(1, nbytes) // _ALIGNMENT) * _ALIGNMENT
        arena = self.device.xp.zeros(self.count * stride, np.uint8)
        return [arena[k * stride : k * stride + nbytes] for k in range(self.count)]

    def arrays(self, name: str) -> list[Any]:
        """Return the buffer `name` of every set."""
        return self._arrays[name]

    def rows(self, *names: str) -> list[list[DeviceView]]:
        """Return, for each set, the memory of these buffers."""
        return [[device_view(a) for a in row] for row in zip(*map(self.arrays, names))]

    def tensors(self, name: str, dtype: str) -> list[Any]:
        """Return the same memory as torch tensors."""
        return [self.device.tensor(a, dtype) for a in self._arrays[name]]

    def views(self, name: str, dtype: str) -> list[Any]:
        """Return the same memory as arrays of CuPy, for dtypes that it has."""
        return [a.view(dtype) for a in self._arrays[name]]

    def fill(self, name: str, dtype: str, seed: int) -> None:
        """Lay normal values, the same in every set, into the buffer `name`."""
        values = np.random.default_rng(seed).standard_normal(_PERIOD)
        period = self.device.xp.asarray(numpy_bytes(values, dtype))
        for array in self._arrays[name]:
            first = min(array.size, period.size)
            array[:first] = period[:first]
            while first < array.size:
                more = min(first, array.size - first)
                array[first : first + more] = array[:more]
                first += more
