"""Twins of csrc/cuda/quantize.cu and of the finite check: one thread a block of elements."""

from __future__ import annotations

import numpy as np
from numba import cuda

from pycomm.kernels.block_scaled import BLOCK as QUANT_BLOCK
from pycomm.kernels.block_scaled import scale_count
from pycomm.kernels.numba_floats import loading, stored_type, storing
from pycomm.types import DTYPES, DType

GRID, BLOCK = 2, 8
LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}
_LEAST = np.float32(2.0**-126)
_NAN, _ZERO, _ONE = np.float32(np.nan), np.float32(0), np.float32(1)


def scale_of(amax, largest):
    """Amax / largest, but normal, and largest × scale is finite; NaN for an amax that is none."""
    if amax == _ZERO:
        return _ZERO
    if not amax < np.float32(np.inf):
        return _NAN
    scale = max(amax / largest, _LEAST)
    if scale * largest < np.float32(np.inf):
        return scale
    return np.uint32(np.int64(scale.view(np.uint32)) - 1).view(np.float32)


def round_to_int8(x):
    """To nearest even, from −127 to 127; NaN becomes 127."""
    low = x if x < np.float32(127) else np.float32(127)
    return np.int8(round(low if low > np.float32(-127) else np.float32(-127)))


def quantizer(dtype: DType, stored: DType):
    """Return the kernel (x, values, scales, count)."""
    load = cuda.jit(device=True)(loading(dtype))
    encode = cuda.jit(device=True)(round_to_int8 if stored.name == "int8" else storing(stored))
    scale_from = cuda.jit(device=True)(scale_of)
    largest = np.float32(LARGEST[stored.name])

    def quantize(x, values, scales, count):
        for block in range(cuda.grid(1), scales.size, cuda.gridsize(1)):
            first, last = block * QUANT_BLOCK, min((block + 1) * QUANT_BLOCK, count)
            amax = _ZERO
            for i in range(first, last):
                size = abs(load(x[i]))
                amax = size if size > amax or size != size else amax
            scales[block] = scale_from(amax, largest)
            inverse = _ONE / scales[block] if scales[block] != _ZERO else _ZERO
            for i in range(first, last):
                values[i] = encode(load(x[i]) * inverse)

    return cuda.jit(quantize)


def dequantizing_sum(dtype: DType, stored: DType, divisor: int):
    """Return the kernel (values, scales, out, count): tuples of arrays added in their order."""
    decode, store = cuda.jit(device=True)(loading(stored)), cuda.jit(device=True)(storing(dtype))
    divide_by = np.float32(divisor)

    def dequantize_reduce(values, scales, out, count):
        for i in range(cuda.grid(1), count, cuda.gridsize(1)):
            total = np.float32(decode(values[0][i])) * scales[0][i // QUANT_BLOCK]
            for k in range(1, len(values)):
                total += np.float32(decode(values[k][i])) * scales[k][i // QUANT_BLOCK]
            out[i] = store(total / divide_by if divide_by != _ONE else total)

    return cuda.jit(dequantize_reduce)


def quantize(x: np.ndarray, dtype: DType, stored: DType) -> tuple[np.ndarray, np.ndarray]:
    """Return values, as bytes, and scales."""
    bits = np.ascontiguousarray(x).view(stored_type(dtype))
    values = np.zeros(bits.size, stored_type(stored))
    scales = np.zeros(scale_count(bits.size), np.float32)
    quantizer(dtype, stored)[GRID, BLOCK](bits, values, scales, bits.size)
    return values.view(np.uint8), scales


def dequantize_reduce(
    quantized: list[tuple[np.ndarray, np.ndarray]], dtype: DType, stored: DType, average: bool
) -> np.ndarray:
    """Return the sum of what `quantize` returned, as bytes."""
    values = tuple(v.view(stored_type(stored)) for v, _ in quantized)
    scales = tuple(s for _, s in quantized)
    out = np.zeros(values[0].size, stored_type(dtype))
    kernel = dequantizing_sum(dtype, stored, len(values) if average else 1)
    kernel[GRID, BLOCK](values, scales, out, out.size)
    return out.view(np.uint8)


def finite_check(dtype: DType):
    """Return the kernel (x, first, count): first[0] becomes the index of the first bad element."""
    load = cuda.jit(device=True)(loading(dtype))

    def check(x, first, count):
        for i in range(cuda.grid(1), count, cuda.gridsize(1)):
            if not abs(load(x[i])) < np.inf:
                cuda.atomic.min(first, 0, i)
                return  # this thread's later ones come later in the array, too

    return cuda.jit(check)


def first_bad(x: np.ndarray, dtype: DType) -> int:
    """Return the index of the first infinity or NaN, or −1."""
    bits = np.ascontiguousarray(x).view(stored_type(dtype))
    first = np.array([bits.size], np.int64)
    finite_check(dtype)[GRID, BLOCK](bits, first, bits.size)
    return int(first[0]) if first[0] < bits.size else -1


FLOATS = [d for d in DTYPES.values() if d.family == "float"]
