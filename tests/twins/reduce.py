"""Twins of csrc/cuda/reduce.cu and convert.cu, from scalar functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from numba import cuda

from pycomm.kernels.numba_floats import loading, stored_type, storing
from pycomm.kernels.numba_kernels import reduce_kernel
from pycomm.types import DType, ReduceOp

Function = Callable[..., Any]
GRID, BLOCK = 2, 8


def add(a, b):
    return a + b


def multiply(a, b):
    return a * b


def smaller(a, b):
    return b if b < a else a


def larger(a, b):
    return b if a < b else a


def smaller_float(a, b):
    """NaN if one is; −0 comes before +0."""
    if a == b:
        return a if math.copysign(1.0, a) < 0 else b
    return a if a < b else b if b < a else np.nan


def larger_float(a, b):
    if a == b:
        return b if math.copysign(1.0, a) < 0 else a
    return b if a < b else a if b < a else np.nan


COMBINE: dict[str, Function] = {
    "sum": add,
    "avg": add,
    "premul_sum": add,
    "prod": multiply,
    "min": smaller,
    "max": larger,
    "band": lambda a, b: a & b,
    "bor": lambda a, b: a | b,
    "bxor": lambda a, b: a ^ b,
}
FLOATS: dict[str, Function] = {"min": smaller_float, "max": larger_float}


def scaled(dtype: DType, factor: float) -> Function:
    """Return the product with a factor that is first rounded to the accumulator, by component."""
    f = _real(dtype)(factor)
    return (lambda x: complex(x.real * f, x.imag * f)) if _complex(dtype) else lambda x: x * f


def divided(dtype: DType, divisor: int) -> Function:
    d = _real(dtype)(divisor)
    return (lambda x: complex(x.real / d, x.imag / d)) if _complex(dtype) else lambda x: x / d


def _real(dtype: DType) -> type[np.floating]:
    return np.float64 if dtype.name in ("float64", "complex128") else np.float32


def _complex(dtype: DType) -> bool:
    return dtype.family == "complex"


def reduction(dtype: DType, op: ReduceOp, inputs: int) -> Function:
    """Return the kernel (inputs, outputs, count) of a built-in operation on stored elements."""
    load, store = cuda.jit(device=True)(loading(dtype)), cuda.jit(device=True)(storing(dtype))
    combine = FLOATS.get(op.name) if dtype.family == "float" else None
    enter, leave = load, store
    if op.name == "premul_sum":
        scale = scaled(dtype, op.factor)
        enter = cuda.jit(device=True)(lambda raw: scale(load(raw)))
    if op.name == "avg":
        divide = divided(dtype, inputs)
        leave = cuda.jit(device=True)(lambda x: store(divide(x)))
    wide = numba.from_dtype(np.dtype(dtype.accumulator))
    combined = cuda.jit(device=True)(combine or COMBINE[op.name])
    return cuda.jit(reduce_kernel(wide, enter, combined, leave))


def reduce(parts: Sequence[np.ndarray], dtype: DType, op: ReduceOp) -> np.ndarray:
    """Reduce arrays of any bits in their order; returns bytes."""
    stored = [np.ascontiguousarray(p).view(stored_type(dtype)) for p in parts]
    out = np.zeros_like(stored[0])
    kernel = reduction(dtype, op, len(parts))
    kernel[GRID, BLOCK](tuple(stored), (out,), out.size)
    return out.view(np.uint8)


def conversion(source: DType, target: DType) -> Function:
    """Return the kernel out[i] = x[i] rounded to `target`."""
    load, store = cuda.jit(device=True)(loading(source)), cuda.jit(device=True)(storing(target))
    wide = numba.from_dtype(np.dtype(target.accumulator))

    def convert(x, out, count):
        value = cuda.local.array(1, wide)
        for i in range(cuda.grid(1), count, cuda.gridsize(1)):
            value[0] = load(x[i])
            out[i] = store(value[0])

    return cuda.jit(convert)


def convert(x: np.ndarray, source: DType, target: DType) -> np.ndarray:
    """Convert an array of any bits; returns bytes."""
    stored = np.ascontiguousarray(x).view(stored_type(source))
    out = np.zeros(stored.size, stored_type(target))
    conversion(source, target)[GRID, BLOCK](stored, out, out.size)
    return out.view(np.uint8)
