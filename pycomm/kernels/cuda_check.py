"""The first NaN or infinity of an array on a GPU."""

from __future__ import annotations

import struct
from typing import Any

from pycomm.errors import UnsupportedError
from pycomm.kernels.cuda_base import OnDevice, grid_of
from pycomm.kernels.device import Named, check_apart, check_count, check_device, device_view
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


class CudaCheck(OnDevice):
    """The search for what is not finite."""

    def first_non_finite(self, x: Any, first: Any, dtype: DType) -> None:
        """Write the index of the first element of `x` that is NaN or infinite into `first`.

        A complex element is finite if both parts are. Two launches; `x` is read at most once.

        Args:
            x: any number of floats or complex numbers.
            first: one int64; −1 if all elements are finite.
            dtype: of `x`.

        Raises:
            ArgumentError: an array has a wrong size or alignment, is on another device, or they
                overlap.
            UnsupportedError: the dtype is neither float nor complex.
        """
        part, components = parts_of(dtype)
        source, target = Named("x", device_view(x)), Named("first", device_view(first))
        check_device([source, target], self._launcher.device)
        count = check_count([source], dtype) * components
        check_count([target], DTYPES["int64"], 1)
        check_apart([target], [source], same=False)
        grid = grid_of(self._launcher, -(-source.view.nbytes // _TILE_BYTES))
        found = device_view(self._launcher.empty(8 * grid))
        args = struct.pack("<q2Q", count, source.view.address, found.address)
        self._launcher.launch(f"find_non_finite<{part.code}>", grid, args)
        args = struct.pack("<qQqQ", grid, found.address, components, target.view.address)
        self._launcher.launch("first_of<>", 1, args)
