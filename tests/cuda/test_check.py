"""The first element that is not finite: check.cu against NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from pycomm.arrays import numpy_dtype
from pycomm.types import DTYPES

FLOATS = [d for d in DTYPES.values() if d.family in ("float", "complex")]
ids = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)


def largest(dtype, count):
    """Return elements of the largest magnitude there is, of both signs."""
    kind = numpy_dtype(dtype)
    part = kind.type(0).real.dtype if dtype.family == "complex" else kind
    most = ml_dtypes.finfo(part).max
    x = np.full(count * kind.itemsize // part.itemsize, most, part)
    x[::3] = -most
    x[1::3] = 0
    return x.view(kind)


def found(place, x, dtype, residue=0):
    first = place.empty(8)
    place.kernels.first_non_finite(place.put(x, residue), first, dtype)
    index = int(place.get(first).view(np.int64)[0])
    place.forget()
    return index


@ids
def test_finite_arrays(place, dtype):
    for count in (0, 1, 2, 7, 33, 5000):
        assert found(place, largest(dtype, count), dtype) == -1


@ids
@pytest.mark.parametrize("step", [0, 1, 3])
def test_the_first_at_any_place_and_alignment(place, dtype, step):
    part = dtype.itemsize // (2 if dtype.family == "complex" else 1)
    residue = step * part % 16
    for count, places in ((1, [0]), (40, range(40)), (9001, [0, 15, 4100, 8999, 9000])):
        for i in places:
            x = largest(dtype, count)
            x[i] = np.nan
            x[i + 1 :: 97] = -np.nan
            assert found(place, x, dtype, residue) == i


@ids
def test_infinities_count(place, dtype):
    if dtype.name == "float8_e4m3fn":
        pytest.skip("has no infinities")
    x = largest(dtype, 3000)
    x[2500] = -np.inf
    x[2600] = np.inf
    assert found(place, x, dtype) == 2500


def test_the_imaginary_part_counts(place):
    x = np.ones(100, np.complex64)
    x[41] = complex(1, np.inf)
    assert found(place, x, DTYPES["complex64"]) == 41


@pytest.mark.parametrize("multiprocessors", [1, 5, 132])
def test_the_grid_does_not_matter(place, multiprocessors):
    x = largest(DTYPES["bfloat16"], 300_000)
    x[[123_456, 123_457, 299_999]] = np.inf
    place.launcher.multiprocessors = multiprocessors
    assert found(place, x, DTYPES["bfloat16"]) == 123_456


def test_every_bit_pattern_of_the_short_floats(place):
    for name in ("float8_e4m3fn", "float8_e5m2", "float16", "bfloat16"):
        kind = numpy_dtype(DTYPES[name])
        patterns = np.arange(1 << (8 * kind.itemsize), dtype=f"u{kind.itemsize}").view(kind)
        finite = np.isfinite(patterns.astype(np.float32))
        assert found(place, patterns[finite], DTYPES[name]) == -1
        for pattern in patterns[~finite][:: max(1, (~finite).sum() // 50)]:
            assert found(place, np.array([0, pattern], kind), DTYPES[name]) == 1
