"""Block-scaled quantisation on a GPU, and sums of what was quantised; bits as on the CPU."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

from pycomm.errors import ArgumentError
from pycomm.kernels.block_scaled import check_format, check_sizes, scale_count
from pycomm.kernels.cuda_base import OnDevice, grid_of
from pycomm.kernels.device import (
    DeviceView,
    Named,
    are_fit,
    check_apart,
    check_count,
    check_device,
    device_view,
    named,
)
from pycomm.kernels.launcher import BLOCK_THREADS
from pycomm.types import DTYPES, DType

INPUTS = 200
"""How many inputs one launch adds; `kQuantInputs` in csrc/cuda/quantize.cu."""

_BLOCKS_AT_ONCE = BLOCK_THREADS // 32
_FLOAT32 = DTYPES["float32"]
_QUANTIZE = struct.Struct("<q3Q")
_DEQUANTIZE = struct.Struct("<2qd2Q")


class CudaQuantize(OnDevice):
    """Quantisation in the format of csrc/block_scaled.h."""

    def quantize(self, x: Any, values: Any, scales: Any, dtype: DType, stored: DType) -> None:
        """Quantise `x` (dtype) into `values` (stored) and `scales`, as `cpu_quantize.quantize`.

        Fastest where `x` starts at a 16-byte boundary, and `values` at one of 8.

        Raises:
            ArgumentError: an array has a wrong size or alignment, overlaps another one, or is on
                another device.
            UnsupportedError: there is no such quantisation.
        """
        kernel = _quantizer(dtype.name, stored.name)
        views = device_view(x), device_view(values), device_view(scales)
        count = views[0].nbytes // dtype.itemsize
        sizes = count * dtype.itemsize, count, 4 * scale_count(count)
        if not are_fit(views, sizes, (dtype.itemsize, 1, 4), self._launcher.device):
            self._explain_quantisation(*views, dtype)
        if count:
            args = _QUANTIZE.pack(count, *(v.address for v in views))
            self._launcher.launch(kernel, self._grid_of_blocks(count), args)

    def _explain_quantisation(
        self, x: DeviceView, values: DeviceView, scales: DeviceView, dtype: DType
    ) -> None:
        """Raise the error that says what is wrong with the arrays of a quantisation."""
        source, codes, factors = Named("x", x), Named("values", values), Named("scales", scales)
        check_device([source, codes, factors], self._launcher.device)
        check_sizes(x.nbytes, dtype, [(values.nbytes, scales.nbytes)])
        check_count([source], dtype)
        check_count([factors], _FLOAT32)
        check_apart([codes, factors], [source, codes, factors], same=False)

    def dequantize_reduce(
        self,
        values: Sequence[Any],
        scales: Sequence[Any],
        output: Any,
        dtype: DType,
        stored: DType,
        average: bool = False,
    ) -> None:
        """Add quantised inputs in their order in float32, and round the sum into `output` (dtype).

        One launch for every 200 inputs; sums are kept in float32 from one to the next.

        Args:
            values: of each input, as `quantize` writes them.
            scales: of each input.
            output: overlaps no input.
            dtype: of `output`.
            stored: of the values.
            average: divide the sum by the number of inputs.

        Raises:
            ArgumentError: there is no input; one lacks values or scales; an array has a wrong size
                or alignment, overlaps the output, or is on another device.
            UnsupportedError: there is no such quantisation.
        """
        check_format(dtype, stored)
        codes, factors = [device_view(v) for v in values], [device_view(s) for s in scales]
        out = device_view(output)
        count = self._check_inputs(codes, factors, out, dtype)
        if count == 0:
            return
        several = len(codes) > INPUTS
        sums = device_view(self._launcher.empty(4 * count)) if several else out
        divisor = float(len(codes) if average else 1)
        for first in range(0, len(codes), INPUTS):
            last = first + INPUTS >= len(codes)
            some = slice(first, first + INPUTS)
            args = _DEQUANTIZE.pack(
                count,
                len(codes[some]),
                divisor if last else 1.0,
                sums.address if first else 0,
                (out if last else sums).address,
            )
            name = f"dequantize_reduce<{(dtype if last else _FLOAT32).code},{stored.code}>"
            tables = _table(codes[some]) + _table(factors[some])
            self._launcher.launch(name, self._grid_of_blocks(count), args + tables)

    def _check_inputs(
        self,
        values: Sequence[DeviceView],
        scales: Sequence[DeviceView],
        output: DeviceView,
        dtype: DType,
    ) -> int:
        """Return the number of elements."""
        if not values or len(values) != len(scales):
            raise ArgumentError(
                f"{len(values)} arrays of values and {len(scales)} of scales to reduce"
            )
        codes, factors = named("values", values), named("scales", scales)
        out = Named("output", output)
        check_device([*codes, *factors, out], self._launcher.device)
        sizes = [(v.nbytes, s.nbytes) for v, s in zip(values, scales)]
        count = check_sizes(output.nbytes, dtype, sizes)
        check_count([out], dtype)
        check_count(factors, _FLOAT32)
        check_apart([out], [*codes, *factors], same=False)
        return count

    def _grid_of_blocks(self, count: int) -> int:
        return grid_of(self._launcher, -(-scale_count(count) // _BLOCKS_AT_ONCE))


@cache
def _quantizer(dtype: str, stored: str) -> str:
    """Return the name of the kernel, or raise UnsupportedError where there is none."""
    check_format(DTYPES[dtype], DTYPES[stored])
    return f"quantize<{DTYPES[dtype].code},{DTYPES[stored].code}>"


def _table(views: Sequence[DeviceView]) -> bytes:
    return struct.pack(f"<{len(views)}Q", *(v.address for v in views)).ljust(8 * INPUTS, b"\0")
