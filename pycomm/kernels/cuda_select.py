"""The k elements of largest magnitude of an array on a GPU, as compression needs them."""

from __future__ import annotations

import struct

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.kernels.cuda_check import count_of
from pycomm.kernels.device import DeviceView
from pycomm.kernels.launcher import SELECTABLE, Launcher
from pycomm.kernels.scratch import check_apart, grid_for, scratch
from pycomm.types import DTYPES, DType

COUNTED = 1 << 31
"""How many elements one launch counts, since blocks count in 32 bits."""

_DIGIT_BITS = 11
_STATE_BYTES = 8 * (2 + (1 << _DIGIT_BITS))
_TILE_BYTES = 4 * 256 * 16


def top_k(
    launcher: Launcher,
    x: DeviceView,
    k: int,
    values: DeviceView,
    indices: DeviceView,
    dtype: DType,
) -> None:
    """Select the `k` elements of `x` with the largest magnitudes.

    Of equal magnitudes the lower index is taken first; NaN counts as larger than infinity. The
    result is in the order of the indices, and the same on every run and GPU. Reads `x` once for
    every 11 bits of the magnitude, and twice more.

    Args:
        launcher: where kernels run.
        x: any number of floats.
        k: from 0 to the number of elements.
        values: `k` elements, bit for bit as in `x`.
        indices: `k` int64.
        dtype: of `x` and `values`: float16, bfloat16, float32 or float64.

    Raises:
        ArgumentError: k is out of range; an array has a wrong size or alignment, overlaps another
            one, or is on another device.
        UnsupportedError: the dtype is none of these.
    """
    count = _check(x, k, values, indices, dtype)
    if k == 0:
        return
    state = scratch(launcher, _STATE_BYTES)
    _find_threshold(launcher, x, k, state, dtype)
    tiles = -(-x.nbytes // _TILE_BYTES)
    counts = scratch(launcher, 16 * (tiles + 1))
    grid = grid_for(launcher, tiles)
    args = struct.pack("<q3Q", count, x.address, state.address, counts.address)
    args += struct.pack("<2Q", values.address, indices.address)
    launcher.launch(f"select_count<{dtype.code}>", grid, args)
    launcher.launch("select_scan<>", 1, struct.pack("<qQ", tiles, counts.address))
    launcher.launch(f"select_gather<{dtype.code}>", grid, args)


def _find_threshold(
    launcher: Launcher, x: DeviceView, k: int, state: DeviceView, dtype: DType
) -> None:
    """Leave the k-th largest magnitude in `state`, digit after digit."""
    launcher.launch("select_begin<>", 1, struct.pack("<2Q", k, state.address))
    bits = 8 * dtype.itemsize - 1
    for shift in reversed(range(0, bits, _DIGIT_BITS)):
        for first in range(0, x.nbytes, COUNTED * dtype.itemsize):
            nbytes = min(COUNTED * dtype.itemsize, x.nbytes - first)
            count = nbytes // dtype.itemsize
            args = struct.pack("<qQqQ", count, x.address + first, shift, state.address)
            grid = grid_for(launcher, -(-nbytes // _TILE_BYTES))
            launcher.launch(f"select_histogram<{dtype.code}>", grid, args)
        launcher.launch("select_digit<>", 1, struct.pack("<qQ", shift, state.address))


def _check(x: DeviceView, k: int, values: DeviceView, indices: DeviceView, dtype: DType) -> int:
    """Return the number of elements of `x`."""
    if dtype not in SELECTABLE:
        names = ", ".join(d.name for d in SELECTABLE)
        raise UnsupportedError(f"{dtype.name} is none of {names}: convert it first")
    count = count_of(x, dtype, "x")
    if not 0 <= k <= count:
        raise ArgumentError(f"k={k} of {count} elements: k must be from 0 to {count}")
    room = (count_of(values, dtype, "values"), count_of(indices, DTYPES["int64"], "indices"))
    if room != (k, k):
        raise ArgumentError(f"values and indices hold {room[0]} and {room[1]} elements, not k={k}")
    check_apart([values, indices], [x])
    return count
