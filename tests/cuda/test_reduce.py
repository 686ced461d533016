"""The reduce kernel against the CPU's loops: identical bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pycomm.arrays import numpy_dtype
from pycomm.kernels.cpu import CpuKernels
from pycomm.types import DTYPES, SUM, DType, ReduceOp
from tests.algorithms.reference import operations, random_inputs
from tests.cuda.place import Place

cpu = CpuKernels()
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda d: d.name)


def on_cpu(parts: Sequence[np.ndarray], dtype: DType, op: ReduceOp) -> np.ndarray:
    """Return the bytes of the reduction by the CPU."""
    flat = [np.ascontiguousarray(p).view(np.uint8) for p in parts]
    out = np.empty_like(flat[0])
    cpu.reduce(flat, out, dtype, op)
    return out


def without_nan_bits(partial: np.ndarray, dtype: DType) -> np.ndarray:
    """Return partial results in which all NaNs are alike: only those of results are canonical."""
    if dtype.family not in ("float", "complex"):
        return partial
    wide = dtype.partial
    real = f"f{wide.itemsize // 2 if wide.family == 'complex' else wide.itemsize}"
    values = partial.view(real)
    return np.where(np.isnan(values), np.array(np.nan, real), values).view(np.uint8)


def alignment(dtype: DType) -> int:
    """Return what an address of elements is a multiple of."""
    return dtype.itemsize // 2 if dtype.family == "complex" else dtype.itemsize


@every_dtype
@pytest.mark.parametrize("inputs", [1, 2, 3, 5, 9, 130])
def test_every_operation_has_the_bits_of_the_cpu(place: Place, dtype: DType, inputs: int):
    random = np.random.default_rng([dtype.code, inputs])
    for op in operations(dtype):
        for count in (0, 1, 13, 1021) if inputs == 130 else (0, 1, 2, 13, 255, 1021, 4096, 20011):
            parts = random_inputs(inputs, count, dtype)
            common = int(random.integers(16)) // alignment(dtype) * alignment(dtype)
            arrays = [place.put(part, common) for part in parts]
            out = place.empty(parts[0].nbytes, common)
            place.kernels.reduce(arrays, out, dtype, op)
            expected = on_cpu(parts, dtype, op)
            assert np.array_equal(place.get(out), expected), (op, count, common)
            place.forget()


@every_dtype
def test_heads_and_tails_at_every_alignment(place: Place, dtype: DType):
    op, step = operations(dtype)[0], alignment(dtype)
    for residue in range(0, 16, step):
        for other in (residue, (residue + step) % 16):
            for count in (1, 15, 16, 17, 47, 700):
                parts = random_inputs(2, count, dtype)
                arrays = [place.put(parts[0], residue), place.put(parts[1], other)]
                out = place.empty(parts[0].nbytes, residue)
                place.kernels.reduce(arrays, out, dtype, op)
                expected = on_cpu(parts, dtype, op)
                assert np.array_equal(place.get(out), expected), (residue, other, count)
                place.forget()


def specials(dtype: DType) -> np.ndarray:
    """Return every value of a float8; of other floats zeros, denormals, extremes and NaNs."""
    bits = 8 * dtype.partial.itemsize if dtype.itemsize > 2 else 8 * dtype.itemsize
    if bits == 8:
        return np.arange(256, dtype=np.uint8)
    info = {
        "float16": (10, 5),
        "bfloat16": (7, 8),
        "float32": (23, 8),
        "float64": (52, 11),
    }[dtype.name]
    mantissa, exponent = info
    top = ((1 << exponent) - 1) << mantissa
    one = ((1 << (exponent - 1)) - 1) << mantissa
    magnitudes = [0, 1, 2, (1 << mantissa) - 1, 1 << mantissa, one, one + 1, top - 1, top]
    magnitudes += [top + 1, top + (1 << (mantissa - 1)), top + (1 << mantissa) - 1]
    unsigned = np.dtype(f"uint{bits}")
    positive = np.array(magnitudes, unsigned)
    return np.concatenate([positive, positive | unsigned.type(1 << (bits - 1))])


@pytest.mark.parametrize(
    "dtype", [d for d in DTYPES.values() if d.family == "float"], ids=lambda d: d.name
)
def test_every_pair_of_special_values(place: Place, dtype: DType):
    """NaNs of every kind, infinities, zeros of both signs, denormals: each with each."""
    values = specials(dtype)
    pair = [np.repeat(values, len(values)), np.tile(values, len(values))]
    with np.errstate(all="ignore"):
        for op in operations(dtype):
            arrays = [place.put(x) for x in pair]
            out = place.empty(pair[0].nbytes)
            place.kernels.reduce(arrays, out, dtype, op)
            assert np.array_equal(place.get(out), on_cpu(pair, dtype, op)), op


@pytest.mark.parametrize("outputs", [1, 2, 7, 130])
def test_many_outputs_which_may_be_inputs(place: Place, outputs: int):
    dtype, op = DTYPES["bfloat16"], ReduceOp("avg")
    parts = random_inputs(5, 3001, dtype)
    arrays = [place.put(part, 6) for part in parts]
    more = [place.empty(parts[0].nbytes, 6) for _ in range(outputs)]
    into = [*arrays[3:1:-1], *more][:outputs]
    place.kernels.reduce_into(arrays, into, dtype, op)
    expected = on_cpu(parts, dtype, op)
    for k, array in enumerate(into):
        assert np.array_equal(place.get(array), expected), k


@every_dtype
def test_widen_accumulate_finish_are_the_cpu_s(place: Place, dtype: DType):
    step, wide = alignment(dtype), alignment(dtype.partial)
    for op in operations(dtype):
        for residue, other in ((0, 0), (3 * step % 16, 3 * wide % 16), (0, wide % 16)):
            parts = [np.ascontiguousarray(p) for p in random_inputs(3, 1501, dtype)]
            arrays = [place.put(part, residue) for part in parts]
            partial = place.empty(1501 * dtype.partial.itemsize, other)
            out = place.empty(parts[0].nbytes, residue)
            place.kernels.widen(arrays[0], partial, dtype, op)
            place.kernels.accumulate(partial, arrays[1], dtype, op)
            place.kernels.accumulate(partial, arrays[2], dtype, op)
            expected = np.empty(1501, numpy_dtype(dtype.partial)).view(np.uint8)
            cpu.widen(parts[0].view(np.uint8), expected, dtype, op)
            cpu.accumulate(expected, parts[1].view(np.uint8), dtype, op)
            cpu.accumulate(expected, parts[2].view(np.uint8), dtype, op)
            got = without_nan_bits(place.get(partial), dtype)
            assert np.array_equal(got, without_nan_bits(expected, dtype)), (op, residue, other)
            place.kernels.finish(partial, out, dtype, op, 3)
            assert np.array_equal(place.get(out), on_cpu(parts, dtype, op)), (op, residue, other)
            place.forget()


@pytest.mark.parametrize("multiprocessors", [0, 1, 7, 200])
def test_the_number_of_blocks_does_not_matter(place: Place, multiprocessors: int):
    place.launcher.multiprocessors = multiprocessors  # 0: one block
    dtype = DTYPES["float32"]
    parts = random_inputs(3, 50_021, dtype)
    arrays = [place.put(part, 4) for part in parts]
    place.kernels.reduce(arrays, arrays[1], dtype, SUM)
    assert np.array_equal(place.get(arrays[1]), on_cpu(parts, dtype, SUM))
