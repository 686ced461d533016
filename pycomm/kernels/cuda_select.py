"""The k elements of largest magnitude of an array on a GPU, as compression needs them."""

from __future__ import annotations

import struct
from typing import Any

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.kernels.cuda_base import OnDevice, grid_of
from pycomm.kernels.device import (
    DeviceView,
    Named,
    check_apart,
    check_count,
    check_device,
    device_view,
)
from pycomm.kernels.launcher import SELECTABLE
from pycomm.types import DTYPES, DType

COUNTED = 1 << 31
"""How many elements one launch counts, since blocks count in 32 bits."""

_DIGIT_BITS = 11
_STATE_BYTES = 8 * (2 + (1 << _DIGIT_BITS))
_TILE_BYTES = 4 * 256 * 16


class CudaSelect(OnDevice):
    """Selections by magnitude."""

    def top_k(self, x: Any, k: int, values: Any, indices: Any, dtype: DType) -> None:
        """Select the `k` elements of `x` with the largest magnitudes.

        Of equal magnitudes the lower index is taken first; NaN counts as larger than infinity. The
        result is in the order of the indices, and the same on every run and GPU. Reads `x` once for
        every 11 bits of the magnitude, and twice more.

        Args:
            x: any number of floats.
            k: from 0 to the number of elements.
            values: `k` elements, bit for bit as in `x`.
            indices: `k` int64.
            dtype: of `x` and `values`: float16, bfloat16, float32 or float64.

        Raises:
            ArgumentError: k is out of range; an array has a wrong size or alignment, overlaps
                another one, or is on another device.
            UnsupportedError: the dtype is none of these.
        """
        source, to_values, to_indices = (device_view(a) for a in (x, values, indices))
        count = self._check_selection(k, source, to_values, to_indices, dtype)
        if k == 0:
            return
        state = self._threshold(source, k, dtype)
        tiles = -(-source.nbytes // _TILE_BYTES)
        counts = device_view(self._launcher.empty(16 * (tiles + 1)))
        args = struct.pack("<q3Q", count, source.address, state.address, counts.address)
        args += struct.pack("<2Q", to_values.address, to_indices.address)
        grid = grid_of(self._launcher, tiles)
        self._launcher.launch(f"select_count<{dtype.code}>", grid, args)
        self._launcher.launch("select_scan<>", 1, struct.pack("<qQ", tiles, counts.address))
        self._launcher.launch(f"select_gather<{dtype.code}>", grid, args)

    def _threshold(self, x: DeviceView, k: int, dtype: DType) -> DeviceView:
        """Return the state that holds the k-th largest magnitude, found digit after digit."""
        state = device_view(self._launcher.empty(_STATE_BYTES))
        self._launcher.launch("select_begin<>", 1, struct.pack("<2Q", k, state.address))
        bits = 8 * dtype.itemsize - 1
        for shift in reversed(range(0, bits, _DIGIT_BITS)):
            for first in range(0, x.nbytes, COUNTED * dtype.itemsize):
                nbytes = min(COUNTED * dtype.itemsize, x.nbytes - first)
                count = nbytes // dtype.itemsize
                args = struct.pack("<qQqQ", count, x.address + first, shift, state.address)
                grid = grid_of(self._launcher, -(-nbytes // _TILE_BYTES))
                self._launcher.launch(f"select_histogram<{dtype.code}>", grid, args)
            self._launcher.launch("select_digit<>", 1, struct.pack("<qQ", shift, state.address))
        return state

    def _check_selection(
        self, k: int, x: DeviceView, values: DeviceView, indices: DeviceView, dtype: DType
    ) -> int:
        """Return the number of elements of `x`."""
        if dtype not in SELECTABLE:
            names = ", ".join(d.name for d in SELECTABLE)
            raise UnsupportedError(f"{dtype.name} is none of {names}: convert it first")
        source = Named("x", x)
        results = [Named("values", values), Named("indices", indices)]
        check_device([source, *results], self._launcher.device)
        count = check_count([source], dtype)
        if not 0 <= k <= count:
            raise ArgumentError(f"k={k} of {count} elements: k must be from 0 to {count}")
        check_count(results[:1], dtype, k)
        check_count(results[1:], DTYPES["int64"], k)
        check_apart(results, [source, *results], same=False)
        return count
