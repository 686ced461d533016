"""The first NaN or infinity of an array on a GPU."""

from __future__ import annotations

import struct

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.kernels.device import DeviceView
from pycomm.kernels.launcher import Launcher
from pycomm.kernels.scratch import check_aligned, check_apart, grid_for, scratch
from pycomm.types import DTYPES, DType

_TILE_BYTES = 256 * 16 * 4


def parts_of(dtype: DType) -> tuple[DType, int]:
    """Return the float dtype that an element consists of, and of how many: 2 if it is complex.

    Raises:
        UnsupportedError: the dtype is neither float nor complex.
    """
    if dtype.family == "complex":
        return DTYPES["float32" if dtype.itemsize == 8 else "float64"], 2
    if dtype.family != "float":
        raise UnsupportedError(f"{dtype.name} is neither float nor complex")
    return dtype, 1


def count_of(x: DeviceView, dtype: DType, what: str) -> int:
    """Return how many elements of a float dtype an array holds.

    Raises:
        ArgumentError: it holds no whole number of them, or is not aligned to them.
    """
    count, rest = divmod(x.nbytes, dtype.itemsize)
    if rest:
        raise ArgumentError(f"{what} has {x.nbytes} bytes: they do not hold whole {dtype.name}")
    check_aligned(x, dtype.itemsize, what)
    return count


def first_non_finite(launcher: Launcher, x: DeviceView, first: DeviceView, dtype: DType) -> None:
    """Write the index of the first element of `x` that is NaN or infinite into `first`.

    A complex element is finite if both parts are. Two launches; `x` is read at most once.

    Args:
        launcher: where kernels run.
        x: any number of floats or complex numbers.
        first: one int64, on the same device; −1 if all elements are finite.
        dtype: of `x`.

    Raises:
        ArgumentError: an array has a wrong size or alignment, or is on another device.
        UnsupportedError: the dtype is neither float nor complex.
    """
    part, components = parts_of(dtype)
    if x.nbytes % dtype.itemsize:
        raise ArgumentError(f"x has {x.nbytes} bytes: they do not hold whole {dtype.name}")
    count = count_of(x, part, "x")
    if count_of(first, DTYPES["int64"], "first") != 1:
        raise ArgumentError(f"first has {first.nbytes} bytes, not the 8 of one int64")
    check_apart([first], [x])
    grid = grid_for(launcher, -(-x.nbytes // _TILE_BYTES))
    found = scratch(launcher, 8 * grid)
    args = struct.pack("<q2Q", count, x.address, found.address)
    launcher.launch(f"find_non_finite<{part.code}>", grid, args)
    args = struct.pack("<qQqQ", grid, found.address, components, first.address)
    launcher.launch("first_of<>", 1, args)
