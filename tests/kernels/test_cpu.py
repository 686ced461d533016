"""The CPU's loops against ml_dtypes and NumPy, at every instruction level."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest

from pycomm import _native
from pycomm.arrays import numpy_dtype
from pycomm.kernels.cpu import CpuKernels
from pycomm.types import DTYPES, SUM, DType, ReduceOp
from tests.algorithms.reference import in_order, operations, random_inputs

NARROW = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
kernels = CpuKernels()


@pytest.fixture(params=["plain", "avx2", "avx512"], autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run each test at every level that this processor has."""
    best = _native.level()
    try:
        _native.use_level(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    _native.use_level(best)


def widened(x: np.ndarray, dtype: DType) -> np.ndarray:
    """Return `x` in the accumulator, by the kernel."""
    partial = np.empty(x.size, numpy_dtype(dtype.partial))
    kernels.widen(x.view(np.uint8), partial.view(np.uint8), dtype, SUM)
    return partial


def finished(partial: np.ndarray, dtype: DType) -> np.ndarray:
    """Return the accumulator's values rounded to `dtype`, by the kernel."""
    out = np.empty(partial.size, numpy_dtype(dtype))
    kernels.finish(partial.view(np.uint8), out.view(np.uint8), dtype, SUM, 1)
    return out


@pytest.mark.parametrize("name", NARROW)
def test_every_narrow_float_widens_exactly(name):
    dtype = DTYPES[name]
    every = (
        np.arange(256**dtype.itemsize).astype(f"uint{8 * dtype.itemsize}").view(numpy_dtype(dtype))
    )
    expected = every.astype(np.float32)
    got = widened(every, dtype)
    numbers = ~np.isnan(expected)
    assert np.array_equal(np.isnan(got), ~numbers)
    assert np.array_equal(got[numbers].view(np.uint32), expected[numbers].view(np.uint32))


@pytest.mark.parametrize("name", NARROW)
def test_rounding_is_to_nearest_even_at_every_boundary(name):
    """All values of the type, the midpoints between neighbours, and the floats just beside both."""
    dtype = DTYPES[name]
    every = (
        np.arange(256**dtype.itemsize).astype(f"uint{8 * dtype.itemsize}").view(numpy_dtype(dtype))
    )
    values = np.unique(
        every.astype(np.float32).astype(np.float64)[np.isfinite(every.astype(np.float32))]
    )
    exact = np.concatenate([values, (values[1:] + values[:-1]) / 2]).astype(np.float32)
    x = np.concatenate(
        [exact, np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, -np.float32(np.inf))]
    )
    limit = values.max()
    expected = (
        np.clip(x, -limit, limit).astype(every.dtype) if "float8" in name else x.astype(every.dtype)
    )
    assert np.array_equal(finished(x, dtype).view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize("name", NARROW)
def test_overflow_infinity_and_nan(name):
    big = np.array([1e38, -1e38, np.inf, -np.inf, np.nan, -np.nan], np.float32)
    got = finished(big, DTYPES[name]).astype(np.float32)
    if "float8" in name:
        limit = float(ml_dtypes.finfo(numpy_dtype(DTYPES[name])).max)
        assert got[:4].tolist() == [limit, -limit, limit, -limit]
    else:
        assert got[2:4].tolist() == [np.inf, -np.inf]
    assert np.isnan(got[4:]).all()
    raw = finished(big, DTYPES[name])[4:].tobytes()
    assert raw[: len(raw) // 2] == raw[len(raw) // 2 :], "NaNs come out canonical"


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda d: d.name)
def test_reductions_of_any_number_of_inputs_at_odd_addresses(dtype):
    narrow = np.random.default_rng(5)
    for op in operations(dtype):
        for inputs in (1, 2, 3, 5):
            for count in (0, 1, 13, 2049, 5000):
                parts = random_inputs(inputs, count, dtype)
                shifted = []
                for part in parts:
                    room = np.zeros(part.nbytes + 64, np.uint8)
                    start = int(narrow.integers(0, 33))
                    shifted.append(room[start : start + part.nbytes])
                    shifted[-1][:] = part.view(np.uint8)
                expected = reference(parts, dtype, op)
                kernels.reduce(shifted, shifted[0], dtype, op)
                assert shifted[0].tobytes() == expected.tobytes(), (op, inputs, count)


def reference(parts: list[np.ndarray], dtype: DType, op: ReduceOp) -> np.ndarray:
    """Return the NumPy reference, with float8 saturating and complex numbers by component."""
    if dtype.family == "complex":
        real = DTYPES["float32" if dtype.itemsize == 8 else "float64"]
        if op.name != "prod":
            return in_order([p.view(real.name) for p in parts], real, op)
        total = in_order(parts, dtype, op).view(real.name)
        return np.where(np.isnan(total), np.array(np.nan, real.name), total)
    if not dtype.name.startswith("float8"):
        return in_order(parts, dtype, op)
    wide = in_order([p.astype(np.float32) for p in parts], DTYPES["float32"], op)
    limit = float(ml_dtypes.finfo(numpy_dtype(dtype)).max)
    clipped = np.clip(wide, -limit, limit).astype(numpy_dtype(dtype))
    nan = {"float8_e4m3fn": 0x7F, "float8_e5m2": 0x7E}[dtype.name]
    clipped.view(np.uint8)[np.isnan(wide)] = nan
    return clipped


def test_widen_accumulate_finish_is_reduce():
    dtype, op = DTYPES["bfloat16"], ReduceOp("avg")
    parts = [np.ascontiguousarray(p) for p in random_inputs(4, 1000, dtype)]
    partial = np.empty(4000, np.uint8)
    kernels.widen(parts[0].view(np.uint8), partial, dtype, op)
    for part in parts[1:]:
        kernels.accumulate(partial, part.view(np.uint8), dtype, op)
    out, whole = np.empty(2000, np.uint8), np.empty(2000, np.uint8)
    kernels.finish(partial, out, dtype, op, 4)
    kernels.reduce([p.view(np.uint8) for p in parts], whole, dtype, op)
    assert np.array_equal(out, whole)


def test_an_operation_that_does_not_exist_is_refused_before_memory_is_touched():
    with pytest.raises(ValueError, match="does not exist on the dtype"):
        kernels.reduce(
            [np.zeros(8, np.uint8)], np.zeros(8, np.uint8), DTYPES["int64"], ReduceOp("avg")
        )
