"""Casts between float types on a GPU."""

from __future__ import annotations

import struct
from typing import Any

from pycomm.errors import UnsupportedError
from pycomm.kernels.cuda_base import OnDevice
from pycomm.kernels.device import Named, check_apart, check_count, check_device, device_view
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
        for dtype in (source_dtype, target_dtype):
            if dtype.family != "float":
                floats = ", ".join(d.name for d in DTYPES.values() if d.family == "float")
                raise UnsupportedError(f"convert: {dtype.name} is not one of {floats}")
        x, y = Named("source", device_view(source)), Named("target", device_view(target))
        check_device([x, y], self._launcher.device)
        count = check_count([x], source_dtype)
        check_count([y], target_dtype, count)
        check_apart([y], [x], same=source_dtype.itemsize == target_dtype.itemsize)
        if count:
            args = _ARGS.pack(count, x.view.address, y.view.address)
            name = f"convert<{source_dtype.code},{target_dtype.code}>"
            self._launcher.launch(name, self._grid(max(x.view.nbytes, y.view.nbytes)), args)
