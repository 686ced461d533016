"""Block-scaled quantisation: the kernels of quantize.cu, and the CPU's way, against NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.kernels import cpu_quantize, cuda_quantize
from pycomm.kernels.block_scaled import BLOCK, QUANTISED, STORED, scale_count
from pycomm.kernels.device import DeviceView
from pycomm.types import DTYPES
from tests.cuda.views import Host, view

NUMPY = {
    "int8": np.int8,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
}
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
        values = scaled.astype(NUMPY[stored.name])
    return values.reshape(-1)[: x.size], scales


def samples(dtype, count, seed=0):
    """Return blocks of very different sizes, with zeros among them."""
    rng = np.random.default_rng(seed)
    sizes = np.repeat(2.0 ** rng.integers(-20, 12, scale_count(count)), BLOCK)[:count]
    x = rng.standard_normal(count) * sizes
    x[rng.random(count) < 0.1] = 0
    return x.astype(np.float32).astype(NUMPY[dtype.name])


def quantised(place, x, dtype, stored, residues=(0, 0)):
    """Return values and scales of the GPU's way, after comparing the CPU's bytes with them."""
    values = place.empty(x.size, residues[1])
    scales = place.empty(4 * scale_count(x.size), 4)
    data = place.put(x, residues[0])
    cuda_quantize.quantize(place.launcher, view(data), view(values), view(scales), dtype, stored)
    again, scales_again = np.empty_like(values), np.empty_like(scales)
    cpu_quantize.quantize(data, again, scales_again, dtype, stored)
    assert np.array_equal(place.get(values), again)
    assert np.array_equal(place.get(scales), scales_again)
    return again.view(NUMPY[stored.name]), scales_again.view(np.float32)


def assert_same(a, b):
    """Compare, NaN like NaN, and zeros by their sign."""
    wide, other = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.array_equal(wide, other, equal_nan=True)
    numbers = ~np.isnan(wide)
    assert np.array_equal(np.signbit(wide[numbers]), np.signbit(other[numbers]))


@pytest.mark.parametrize(("dtype", "stored"), FORMATS, ids=lambda d: d.name)
def test_quantise_as_numpy_does(dtype, stored):
    for count in (0, 1, 3, 255, 256, 257, 512, 2048, 8191):
        x = samples(dtype, count, count)
        for got, expected in zip(quantised(Host(), x, dtype, stored), reference(x, stored)):
            assert_same(got, expected)


@pytest.mark.parametrize("multiprocessors", [1, 7])
@pytest.mark.parametrize("residues", [(0, 1), (0, 4), (0, 8), (4, 0), (8, 3)])
@pytest.mark.parametrize("dtype", QUANTISED, ids=lambda d: d.name)
def test_neither_alignment_nor_grid_matters(dtype, residues, multiprocessors):
    x = samples(dtype, 20_000)
    values, scales = quantised(Host(multiprocessors), x, dtype, I8, residues)
    assert_same(values, reference(x, I8)[0])
    assert_same(scales, reference(x, I8)[1])


@pytest.mark.parametrize("stored", STORED, ids=lambda d: d.name)
def test_zeros_and_denormals_and_what_is_not_finite(stored):
    x = np.zeros((7, BLOCK), np.float32)
    x[1, 5] = np.nan
    x[2, 255] = -np.inf
    x[3] = 1e-45
    x[4, :2] = np.finfo(np.float32).max, -np.finfo(np.float32).max
    x[5, :2] = 2.0**-120, -(2.0**-126)
    x[6] = -0.0
    values, scales = quantised(Host(), x.ravel(), F32, stored)
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
    again = np.empty_like(output)
    views = [view(v) for v in values], [view(s) for s in scales], view(output)
    cuda_quantize.dequantize_reduce(place.launcher, *views, dtype, stored, average)
    cpu_quantize.dequantize_reduce(values, scales, again, dtype, stored, average)
    assert np.array_equal(place.get(output), again)
    return again.view(NUMPY[dtype.name])


def sum_of(inputs, average):
    """Return the sum in rank order in float32."""
    total = None
    for values, scales in inputs:
        x = values.astype(np.float32) * np.repeat(scales, BLOCK)[: values.size]
        total = x if total is None else total + x
    return total / np.float32(len(inputs)) if average else total


@pytest.mark.parametrize("average", [False, True], ids=["sum", "avg"])
@pytest.mark.parametrize(("dtype", "stored"), FORMATS, ids=lambda d: d.name)
def test_dequantise_and_reduce_as_numpy_does(dtype, stored, average):
    for ranks, count in ((1, 300), (2, 1), (3, 2048), (8, 5000)):
        inputs = [reference(samples(F32, count, r), stored) for r in range(ranks)]
        got = dequantised(Host(), inputs, dtype, stored, average)
        assert_same(got, sum_of(inputs, average).astype(NUMPY[dtype.name]))


@pytest.mark.parametrize("residue", [1, 4, 8])
def test_dequantise_at_any_alignment(residue):
    inputs = [reference(samples(F32, 3000, r), I8) for r in range(3)]
    assert_same(dequantised(Host(), inputs, F32, I8, False, residue), sum_of(inputs, False))


def test_more_inputs_than_a_launch_takes():
    inputs = [reference(samples(F32, 600, r), I8) for r in range(cuda_quantize.INPUTS + 1)]
    place = Host()
    bf16 = DTYPES["bfloat16"]
    got = dequantised(place, inputs, bf16, I8, True)
    assert_same(got, sum_of(inputs, True).astype(NUMPY["bfloat16"]))
    assert [name for name, _ in place.launcher.launches] == [
        "dequantize_reduce<11,1>",
        "dequantize_reduce<10,1>",
    ]


def test_nan_blocks_come_out_as_canonical_nan():
    x = np.full(BLOCK, np.inf, np.float32)
    for stored in STORED:
        got = dequantised(Host(), [reference(x, stored)], F32, stored, False)
        assert (got.view(np.uint32) == 0x7FC00000).all()


def test_bad_arguments_are_named_before_a_launch():
    place = Host()
    x, values, scales = (view(place.empty(n)) for n in (4 * 300, 300, 8))
    quantize, launcher = cuda_quantize.quantize, place.launcher
    with pytest.raises(ArgumentError, match="300 bytes of values and 8 of scales"):
        quantize(launcher, x, values, DeviceView(scales.address, 4), F32, I8)
    with pytest.raises(ArgumentError, match="does not hold whole float32"):
        quantize(launcher, DeviceView(x.address, 1199), values, scales, F32, I8)
    with pytest.raises(ArgumentError, match="not aligned to elements of 4 bytes"):
        quantize(launcher, DeviceView(x.address + 2, 1200), values, scales, F32, I8)
    with pytest.raises(ArgumentError, match=r"devices \[0, 1\]"):
        quantize(launcher, x, values, DeviceView(scales.address, 8, 1), F32, I8)
    with pytest.raises(ArgumentError, match="overlaps"):
        quantize(launcher, x, DeviceView(x.address, 300), scales, F32, I8)
    with pytest.raises(UnsupportedError, match="int8, float8_e4m3fn, float8_e5m2: float16"):
        quantize(launcher, x, values, scales, F32, DTYPES["float16"])
    with pytest.raises(ArgumentError, match="0 arrays of values"):
        cuda_quantize.dequantize_reduce(launcher, [], [], x, F32, I8)
    assert launcher.launches == []
