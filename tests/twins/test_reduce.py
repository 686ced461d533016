"""The twins of reductions and casts: the bits of the CPU's loops."""

from __future__ import annotations

import numpy as np
import pytest
from numba import cuda, from_dtype

from pycomm.arrays import numpy_dtype
from pycomm.kernels.cpu import CpuKernels
from pycomm.kernels.numba_floats import loading, stored_type, storing
from pycomm.kernels.numba_kernels import accumulate_kernel, reduce_kernel
from pycomm.types import DTYPES, SUM, DType, ReduceOp
from tests.algorithms.reference import operations, random_inputs
from tests.twins import reduce as twins
from tests.user_ops import differ, in_order, inputs, max_abs, mixed

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
EVERY = pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda d: d.name)
NARROW = [d for d in DTYPES.values() if d.accumulator != d.name]
cpu = CpuKernels()


def on_cpu(parts: list[np.ndarray], dtype: DType, op: ReduceOp) -> np.ndarray:
    flat = [np.ascontiguousarray(p).view(np.uint8) for p in parts]
    out = np.empty_like(flat[0])
    cpu.reduce(flat, out, dtype, op)
    return out


def test_this_is_the_simulator():
    assert not hasattr(cuda, "compile") or type(cuda.jit(lambda: None)).__name__ == "FakeCUDAKernel"


@EVERY
def test_every_operation(dtype):
    for op in operations(dtype):
        for ranks, count in ((1, 1), (2, 77), (3, 45), (2, 0)):
            parts = random_inputs(ranks, count, dtype)
            expected = on_cpu(parts, dtype, op)
            assert np.array_equal(twins.reduce(parts, dtype, op), expected), (op, ranks, count)


def bit_patterns(dtype: DType) -> np.ndarray:
    """Return every value of a float8, and those of a 16-bit type that are 7 apart."""
    every = np.arange(0, 256**dtype.itemsize, 1 if dtype.itemsize == 1 else 7)
    return every.astype(stored_type(dtype)).view(numpy_dtype(dtype))


@pytest.mark.parametrize("dtype", NARROW, ids=lambda d: d.name)
def test_widening(dtype):
    x, wide = bit_patterns(dtype), DTYPES["float32"]
    load = loading(dtype)
    expected = np.empty(4 * x.size, np.uint8)
    cpu.widen(x.view(np.uint8), expected, dtype, SUM)
    got = np.array([load(raw) for raw in x.view(stored_type(dtype))], np.float32)
    assert np.array_equal(got.view(np.uint8), expected)
    assert np.array_equal(twins.convert(x[:300], dtype, wide), on_cpu([got[:300]], wide, SUM)), (
        "a cast makes NaNs canonical"
    )


@pytest.mark.parametrize("dtype", NARROW, ids=lambda d: d.name)
def test_rounding(dtype):
    """All values, the midpoints between neighbours, the floats beside both, and what overflows."""
    values = bit_patterns(dtype).astype(np.float32)
    values = np.unique(values[np.isfinite(values)])
    middle = (values[1:].astype(np.float64) + values[:-1]) / 2
    exact = np.concatenate([values, middle.astype(np.float32)])[:: max(1, values.size // 500)]
    up, down = np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, -np.float32(np.inf))
    special = np.float32([0.0, -0.0, 1e38, -1e38, np.inf, -np.inf, np.nan, 1e-45, 448, 464, 465])
    x = np.concatenate([exact, up, down, special, -special])
    expected = np.empty(x.size * dtype.itemsize, np.uint8)
    cpu.finish(x.view(np.uint8), expected, dtype, SUM, 1)
    store = storing(dtype)
    got = np.array([store(value) for value in x], stored_type(dtype))
    assert np.array_equal(got.view(np.uint8), expected)
    assert np.array_equal(
        twins.convert(x[-400:], DTYPES["float32"], dtype), expected[-400 * dtype.itemsize :]
    )


# ---- the kernels that pycomm.reduce_op compiles for a GPU


@EVERY
def test_a_users_function(dtype):
    fn = differ if dtype.family == "bool" else mixed
    same = np.not_equal if dtype.family == "bool" else mixed
    load, store, combine = (cuda.jit(device=True)(f) for f in (loading(dtype), storing(dtype), fn))
    wide = from_dtype(np.dtype(dtype.accumulator))
    for ranks, count in ((1, 5), (2, 70), (4, 33)):
        parts = inputs(fn, ranks, count, dtype)
        stored = tuple(np.ascontiguousarray(p).view(stored_type(dtype)).copy() for p in parts)
        other = np.zeros_like(stored[0])
        kernel = cuda.jit(reduce_kernel(wide, load, combine, store))
        kernel[twins.GRID, twins.BLOCK](stored, (stored[0], other), count)
        expected = in_order(parts, dtype, same).tobytes()
        assert stored[0].tobytes() == other.tobytes() == expected, (ranks, count)


@pytest.mark.parametrize(
    ("name", "fn"),
    [("bfloat16", max_abs), ("bool", differ), ("int64", mixed), ("complex64", mixed)],
)
def test_a_users_function_accumulates(name, fn):
    dtype = DTYPES[name]
    parts = inputs(fn, 2, 70, dtype)
    partial = np.zeros(70 * dtype.partial.itemsize, np.uint8)
    cpu.widen(
        np.ascontiguousarray(parts[0]).view(np.uint8),
        partial,
        dtype,
        ReduceOp("bor" if name == "bool" else "sum"),
    )
    wide = from_dtype(np.dtype(dtype.accumulator))
    load, combine = cuda.jit(device=True)(loading(dtype)), cuda.jit(device=True)(fn)
    kernel = cuda.jit(accumulate_kernel(wide, name == "bool", load, combine))
    x = np.ascontiguousarray(parts[1]).view(stored_type(dtype)).copy()
    total = partial.view(stored_type(dtype.partial))
    kernel[twins.GRID, twins.BLOCK](total, x, 70)
    same = {max_abs: lambda a, b: np.maximum(abs(a), abs(b)), differ: np.not_equal}.get(fn, mixed)
    wide_parts = [p.astype(numpy_dtype(dtype.partial)) for p in parts]
    assert total.tobytes() == same(*wide_parts).astype(numpy_dtype(dtype.partial)).tobytes()
