"""Casts between float types on a GPU."""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

from pycomm.errors import UnsupportedError
from pycomm.kernels.cuda_base import OnDevice
from pycomm.kernels.device import (
    DeviceView,
    Named,
    are_fit,
    check_apart,
    check_count,
    check_device,
    device_view,
)
from pycomm.types import DTYPES, DType

_ARGS = struct.Struct("<q2Q")


class CudaConvert(OnDevice):
    """Casts by the rules of csrc/elements.h."""

    def convert(self, source: Any, target: Any, source_dtype: DType, target_dtype: DType) -> None:
        """Round `source` to the elements of `target`, to nearest, ties to even.

        Float8 saturates, NaNs come out canonical; float64 becomes a narrow type by way of float32.
        The target may be the source itself where both types have the same size.

        Raises:
            ArgumentError: another number of elements, another device, or memory that overlaps.
            UnsupportedError: one of the dtypes is no float.
        """
        kernel = _kernel(source_dtype.name, target_dtype.name)
        x, y = device_view(source), device_view(target)
        units = source_dtype.itemsize, target_dtype.itemsize
        count = x.nbytes // units[0]
        sizes = count * units[0], count * units[1]
        if not are_fit((x, y), sizes, units, self._launcher.device):
            self._explain_cast(x, y, source_dtype, target_dtype)
        if count:
            args = _ARGS.pack(count, x.address, y.address)
            self._launcher.launch(kernel, self._grid(max(sizes)), args)

    def _explain_cast(
        self, source: DeviceView, target: DeviceView, source_dtype: DType, target_dtype: DType
    ) -> None:
        """Raise the error that says what is wrong with the arrays, if anything is."""
        x, y = Named("source", source), Named("target", target)
        check_device([x, y], self._launcher.device)
        count = check_count([x], source_dtype)
        check_count([y], target_dtype, count)
        check_apart([y], [x], same=source_dtype.itemsize == target_dtype.itemsize)


@cache
def _kernel(source: str, target: str) -> str:
    """Return the name of the kernel, or raise UnsupportedError where there is none."""
    for dtype in (source, target):
        if DTYPES[dtype].family != "float":
            floats = ", ".join(d.name for d in DTYPES.values() if d.family == "float")
            raise UnsupportedError(f"convert: {dtype} is not one of {floats}")
    return f"convert<{DTYPES[source].code},{DTYPES[target].code}>"
