"""The k largest magnitudes: select.cu against NumPy's stable sort."""

from __future__ import annotations

import numpy as np
import pytest

from pycomm.arrays import numpy_dtype
from pycomm.kernels import cuda_select
from pycomm.kernels.launcher import SELECTABLE
from pycomm.types import DTYPES

F32, F64 = DTYPES["float32"], DTYPES["float64"]
dtypes = pytest.mark.parametrize("dtype", SELECTABLE, ids=lambda d: d.name)


def reference(x, k):
    """Return the indices that a stable sort by magnitude puts first, in rising order."""
    magnitude = np.abs(x.astype(np.float64))
    magnitude = np.where(np.isinf(magnitude), np.finfo(np.float64).max, magnitude)
    magnitude = np.where(np.isnan(magnitude), np.inf, magnitude)
    return np.sort(np.argsort(-magnitude, kind="stable")[:k])


def selected(place, x, k, dtype, residue=0):
    values = place.empty(k * dtype.itemsize, dtype.itemsize)
    indices = place.empty(8 * k, 8)
    place.kernels.top_k(place.put(x, residue), k, values, indices, dtype)
    found = place.get_all([values, indices])
    place.forget()
    return found[0].view(x.dtype), found[1].view(np.int64)


def assert_selects(place, x, k, dtype, residue=0):
    values, indices = selected(place, x, k, dtype, residue)
    expected = reference(x, k)
    assert np.array_equal(indices, expected)
    assert np.array_equal(values.view(np.uint8), x[expected].view(np.uint8))


def random(dtype, count, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(count) * 2.0 ** rng.integers(-6, 6, count)).astype(
        numpy_dtype(dtype)
    )


@dtypes
def test_every_k_of_few_elements(place, dtype):
    x = random(dtype, 37)
    for k in range(38):
        assert_selects(place, x, k, dtype)
    assert_selects(place, x[:0], 0, dtype)


@dtypes
@pytest.mark.parametrize("multiprocessors", [1, 3])
def test_neither_alignment_nor_grid_matters(place, dtype, multiprocessors):
    place.launcher.multiprocessors = multiprocessors
    x = random(dtype, 40_013)
    for residue, k in ((0, 1), (0, 400), (dtype.itemsize, 20_000), (8, 40_013)):
        assert_selects(place, x, k, dtype, residue)


@dtypes
def test_ties_go_to_the_lower_index(place, dtype):
    x = np.random.default_rng(1).integers(-2, 3, 20_000).astype(numpy_dtype(dtype))
    for k in (1, 5000, 9000, 19_999):
        assert_selects(place, x, k, dtype)
    assert_selects(place, np.zeros(9000, numpy_dtype(dtype)), 4500, dtype)


@dtypes
def test_nan_before_infinity_before_numbers(place, dtype):
    x = random(dtype, 5000)
    raw = x.view(f"u{dtype.itemsize}")
    x[[7, 4000]] = np.inf, -np.inf
    x[[3000, 4999]] = np.nan
    raw[100] = raw[3000] ^ 1
    raw[200] = raw[3000] | (1 << (8 * dtype.itemsize - 1))
    for k, expected in ((1, [100]), (3, [100, 200, 3000]), (5, [7, 100, 200, 3000, 4999])):
        values, indices = selected(place, x, k, dtype)
        assert indices.tolist() == expected
        assert np.array_equal(values.view(raw.dtype), raw[expected])
    assert_selects(place, x, 60, dtype)


def test_denormals_and_both_zeros(place):
    x = np.array([0.0, -0.0, 1e-45, -3e-45, 0.0, 1e-40], np.float32)
    for k in range(7):
        assert_selects(place, x, k, F32)


def test_many_tiles(place):
    x = random(F64, 4_300_001)  # more than one round of the scan
    assert_selects(place, x, 1000, F64)


def test_more_elements_than_a_launch_counts(place, monkeypatch):
    monkeypatch.setattr(cuda_select, "COUNTED", 1000)
    assert_selects(place, random(F32, 4500), 700, F32)
