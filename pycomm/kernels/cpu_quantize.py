"""Block-scaled quantisation on the CPU, with the bits of the CUDA kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pycomm import _native
from pycomm.errors import ArgumentError
from pycomm.kernels.block_scaled import check_format, check_sizes
from pycomm.types import DType

_address = _native.address


def quantize(
    x: np.ndarray, values: np.ndarray, scales: np.ndarray, dtype: DType, stored: DType
) -> None:
    """Quantise `x` (dtype) into `values` (stored) and `scales` (float32).

    A block of 256 elements has the scale amax / the largest value of `stored`; a value is
    x · (1 / scale), rounded to nearest even. A block of zeros has scale 0. A block with a NaN or an
    infinity has the scale NaN, and values that are NaN (in int8, 127). Any other
    scale is at least 2⁻¹²⁶.

    Args:
        x: flat bytes of any number of float16, bfloat16 or float32.
        values: flat bytes, one for each element: int8, float8_e4m3fn or float8_e5m2.
        scales: flat bytes, four for each 256 elements.
        dtype: of `x`.
        stored: of `values`.

    Raises:
        ArgumentError: an array has a wrong size.
        UnsupportedError: there is no such quantisation.
    """
    check_format(dtype, stored)
    count = check_sizes(x.nbytes, dtype, [(values.nbytes, scales.nbytes)])
    _native.quantize(
        _address(x), count, dtype.code, stored.code, _address(values), _address(scales)
    )


def dequantize_reduce(
    values: Sequence[np.ndarray],
    scales: Sequence[np.ndarray],
    output: np.ndarray,
    dtype: DType,
    stored: DType,
    average: bool = False,
) -> None:
    """Add quantised inputs in their order in float32, and round the sum into `output` (dtype).

    Args:
        values: of each input, as `quantize` writes them.
        scales: of each input.
        output: flat bytes; overlaps no input.
        dtype: of `output`.
        stored: of the values.
        average: divide the sum by the number of inputs.

    Raises:
        ArgumentError: there is no input; one lacks values or scales; an array has a wrong size.
        UnsupportedError: there is no such quantisation.
    """
    check_format(dtype, stored)
    if not values or len(values) != len(scales):
        raise ArgumentError(f"{len(values)} arrays of values and {len(scales)} of scales to reduce")
    sizes = [(v.nbytes, s.nbytes) for v, s in zip(values, scales)]
    count = check_sizes(output.nbytes, dtype, sizes)
    _native.dequantize_reduce(
        [_address(v) for v in values],
        [_address(s) for s in scales],
        count,
        dtype.code,
        stored.code,
        float(len(values) if average else 1),
        _address(output),
    )
