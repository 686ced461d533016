"""The twins of block-scaled quantisation and of the finite check."""

from __future__ import annotations

import numpy as np
import pytest

from pycomm.arrays import numpy_dtype
from pycomm.kernels import cpu_quantize
from pycomm.kernels.block_scaled import QUANTISED
from pycomm.types import DTYPES
from tests.twins import blocks

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def values(dtype, count, seed):
    random = np.random.default_rng([seed, count])
    x = random.standard_normal(count) * 10.0 ** random.integers(-4, 4, count)
    return x.astype(numpy_dtype(dtype))


@pytest.mark.parametrize("name", [d.name for d in blocks.FLOATS])
def test_the_first_infinity_or_nan(name):
    dtype = DTYPES[name]
    x = np.ones(500, numpy_dtype(dtype))
    assert blocks.first_bad(x, dtype) == blocks.first_bad(x[:0], dtype) == -1
    for places, bad in (((499,), np.nan), ((130, 7, 300), -np.nan), ((64, 65), np.inf)):
        y = x.copy()
        y[list(places)] = bad
        found = blocks.first_bad(y, dtype)
        assert found == (
            -1
            if name == "float8_e4m3fn" and bad == np.inf and np.isfinite(y.astype(float)).all()
            else min(places)
        )


@pytest.mark.parametrize("stored", list(blocks.LARGEST))
def test_quantised_values_are_near_and_the_largest_is_exact(stored):
    dtype = DTYPES["float32"]
    x = values(dtype, 700, 1)
    _, scales = blocks.quantize(x, dtype, DTYPES[stored])
    back = blocks.dequantize_reduce(
        [blocks.quantize(x, dtype, DTYPES[stored])], dtype, DTYPES[stored], False
    )
    for k in range(3):
        part, got = x[256 * k : 256 * (k + 1)], back.view(np.float32)[256 * k : 256 * (k + 1)]
        assert scales[k] == np.abs(part).max() / np.float32(blocks.LARGEST[stored])
        step = {"int8": 0.5 / 127, "float8_e4m3fn": 1 / 16, "float8_e5m2": 1 / 8}[stored]
        assert np.abs(got - part).max() <= step * np.abs(part).max() * 1.001


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_block_with_what_is_no_number_becomes_nan(bad):
    dtype, stored = DTYPES["float32"], DTYPES["float8_e4m3fn"]
    x = values(dtype, 512, 2)
    x[300] = bad
    back = blocks.dequantize_reduce([blocks.quantize(x, dtype, stored)], dtype, stored, False)
    assert (
        np.isfinite(back.view(np.float32)[:256]).all()
        and np.isnan(back.view(np.float32)[256:]).all()
    )


@pytest.mark.parametrize("dtype", QUANTISED, ids=lambda d: d.name)
@pytest.mark.parametrize("stored", list(blocks.LARGEST))
def test_the_bits_of_the_cpu(dtype, stored):
    kind, given = DTYPES[stored], [values(dtype, 700, seed) for seed in range(3)]
    given[0][:256], given[1][300], given[2][600:] = 0, np.inf, 1e-30
    inputs = [blocks.quantize(x, dtype, kind) for x in given]
    for x, (codes, scales) in zip(given, inputs):
        expected = np.empty(700, np.uint8), np.empty(12, np.uint8)
        cpu_quantize.quantize(x.view(np.uint8), *expected, dtype, kind)
        assert np.array_equal(codes, expected[0])
        assert np.array_equal(scales.view(np.uint8), expected[1])
    for average in (False, True):
        out = np.empty(700 * dtype.itemsize, np.uint8)
        codes, scales = ([part.view(np.uint8) for part in side] for side in zip(*inputs))
        cpu_quantize.dequantize_reduce(codes, scales, out, dtype, kind, average)
        assert np.array_equal(blocks.dequantize_reduce(inputs, dtype, kind, average), out)
