"""Block-scaled quantisation: the kernels of quantize.cu, and the CPU's way, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from pycomm.arrays import numpy_dtype
from pycomm.kernels import cpu_quantize, cuda_quantize
from pycomm.kernels.block_scaled import BLOCK, QUANTISED, STORED, scale_count
from pycomm.types import DTYPES

LARGEST = {"int8": 127, "float8_e4m3fn": 448, "float8_e5m2": 57344}
LEAST = np.float32(2.0**-126)
F32, I8 = DTYPES["float32"], DTYPES["int8"]
FORMATS = [(d, s) for d in QUANTISED for s in STORED]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def blocks_of(x: np.ndarray) -> np.ndarray:
    """Return x as rows of BLOCK elements; zeros fill the last one."""
    padded = np.zeros(scale_count(x.size) * BLOCK, np.float32)
    padded[: x.size] = x.astype(np.float32)
    return padded.reshape(-1, BLOCK)


def reference(x, stored):
    """Return values and scales as NumPy computes them in float32."""
    blocks, largest = blocks_of(x), np.float32(LARGEST[stored.name])
    amax = np.abs(blocks).max(axis=1)
    scales = np.maximum(amax / largest, LEAST)
    scales = np.where(np.isinf(scales * largest), np.nextafter(scales, np.float32(0)), scales)
    scales = np.where(amax == 0, np.float32(0), scales)
    scales[~np.isfinite(amax)] = np.nan
    inverse = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
    scaled = blocks * inverse[:, None]
    if stored is I8:
        values = np.where(np.isnan(scaled), 127, np.rint(scaled)).astype(np.int8)
    else:
        values = scaled.astype(numpy_dtype(stored))
    return values.reshape(-1)[: x.size], scales


def samples(dtype, count, seed=0):
    """Return blocks of very different sizes, with zeros among them."""
    rng = np.random.default_rng(seed)
    sizes = np.repeat(2.0 ** rng.integers(-20, 12, scale_count(count)), BLOCK)[:count]
    x = rng.standard_normal(count) * sizes
    x[rng.random(count) < 0.1] = 0
    return x.astype(np.float32).astype(numpy_dtype(dtype))


def quantised(place, x, dtype, stored, residues=(0, 0)):
    """Return values and scales of the GPU's way, after comparing the CPU's bytes with them."""
    values = place.empty(x.size, residues[1])
    scales = place.empty(4 * scale_count(x.size), 4)
    place.kernels.quantize(place.put(x, residues[0]), values, scales, dtype, stored)
    got, got_scales = place.get_all([values, scales])
    again, scales_again = np.empty_like(got), np.empty_like(got_scales)
    cpu_quantize.quantize(x.view(np.uint8), again, scales_again, dtype, stored)
    assert np.array_equal(got, again)
    assert np.array_equal(got_scales, scales_again)
    place.forget()
    return again.view(numpy_dtype(stored)), scales_again.view(np.float32)


def assert_same(a, b):
    """Compare, NaN like NaN, and zeros by their sign."""
    wide, other = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.array_equal(wide, other, equal_nan=True)
    numbers = ~np.isnan(wide)
    assert np.array_equal(np.signbit(wide[numbers]), np.signbit(other[numbers]))


@pytest.mark.parametrize(("dtype", "stored"), FORMATS, ids=lambda d: d.name)
def test_quantise_as_numpy_does(place, dtype, stored):
    for count in (0, 1, 3, 255, 256, 257, 512, 2048, 8191):
        x = samples(dtype, count, count)
        for got, expected in zip(quantised(place, x, dtype, stored), reference(x, stored)):
            assert_same(got, expected)


@pytest.mark.parametrize("multiprocessors", [1, 7])
@pytest.mark.parametrize("residues", [(0, 1), (0, 4), (0, 8), (4, 0), (8, 3)])
@pytest.mark.parametrize("dtype", QUANTISED, ids=lambda d: d.name)
def test_neither_alignment_nor_grid_matters(place, dtype, residues, multiprocessors):
    place.launcher.multiprocessors = multiprocessors
    x = samples(dtype, 20_000)
    values, scales = quantised(place, x, dtype, I8, residues)
    assert_same(values, reference(x, I8)[0])
    assert_same(scales, reference(x, I8)[1])


@pytest.mark.parametrize("stored", STORED, ids=lambda d: d.name)
def test_zeros_and_denormals_and_what_is_not_finite(place, stored):
    x = np.zeros((7, BLOCK), np.float32)
    x[1, 5] = np.nan
    x[2, 255] = -np.inf
    x[3] = 1e-45
    x[4, :2] = np.finfo(np.float32).max, -np.finfo(np.float32).max
    x[5, :2] = 2.0**-120, -(2.0**-126)
    x[6] = -0.0
    values, scales = quantised(place, x.ravel(), F32, stored)
    assert_same(values, reference(x.ravel(), stored)[0])
    assert scales[0] == scales[6] == 0
    assert np.isnan(scales[1:3]).all()
    assert scales[3] == LEAST
    assert np.isfinite(scales[4] * np.float32(LARGEST[stored.name]))
    canonical = {"int8": 127, "float8_e4m3fn": 0x7F, "float8_e5m2": 0x7E}[stored.name]
    assert (values.view(np.uint8)[BLOCK : 3 * BLOCK] == canonical).all()


def dequantised(place, inputs, dtype, stored, average, residue=0):
    values = [place.put(v, residue) for v, _ in inputs]
    scales = [place.put(s, 12) for _, s in inputs]
    output = place.empty(inputs[0][0].size * dtype.itemsize, residue * dtype.itemsize)
    place.kernels.dequantize_reduce(values, scales, output, dtype, stored, average)
    got = place.get(output)
    again = np.empty_like(got)
    on_host = place.get_all(values), place.get_all(scales)
    cpu_quantize.dequantize_reduce(*on_host, again, dtype, stored, average)
    assert np.array_equal(got, again)
    place.forget()
    return again.view(numpy_dtype(dtype))


def sum_of(inputs, average):
    """Return the sum in rank order in float32."""
    total = None
    for values, scales in inputs:
        x = values.astype(np.float32) * np.repeat(scales, BLOCK)[: values.size]
        total = x if total is None else total + x
    return total / np.float32(len(inputs)) if average else total


@pytest.mark.parametrize("average", [False, True], ids=["sum", "avg"])
@pytest.mark.parametrize(("dtype", "stored"), FORMATS, ids=lambda d: d.name)
def test_dequantise_and_reduce_as_numpy_does(place, dtype, stored, average):
    for ranks, count in ((1, 300), (2, 1), (3, 2048), (8, 5000)):
        inputs = [reference(samples(F32, count, r), stored) for r in range(ranks)]
        got = dequantised(place, inputs, dtype, stored, average)
        assert_same(got, sum_of(inputs, average).astype(numpy_dtype(dtype)))


@pytest.mark.parametrize("residue", [1, 4, 8])
def test_dequantise_at_any_alignment(place, residue):
    inputs = [reference(samples(F32, 3000, r), I8) for r in range(3)]
    assert_same(dequantised(place, inputs, F32, I8, False, residue), sum_of(inputs, False))


def test_more_inputs_than_a_launch_takes(place):
    inputs = [reference(samples(F32, 600, r), I8) for r in range(cuda_quantize.INPUTS + 1)]
    bf16 = DTYPES["bfloat16"]
    got = dequantised(place, inputs, bf16, I8, True)
    assert_same(got, sum_of(inputs, True).astype(numpy_dtype(bf16)))
    assert [name for name, _ in place.launcher.launches] == [
        "dequantize_reduce<11,1>",
        "dequantize_reduce<10,1>",
    ]


def test_nan_blocks_come_out_as_canonical_nan(place):
    x = np.full(BLOCK, np.inf, np.float32)
    for stored in STORED:
        got = dequantised(place, [reference(x, stored)], F32, stored, False)
        assert (got.view(np.uint32) == 0x7FC00000).all()
