"""The first element that is not finite: check.cu against NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.kernels.cuda_check import first_non_finite
from pycomm.kernels.device import DeviceView
from pycomm.types import DTYPES
from tests.cuda.views import Host, view

NUMPY = {
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
FLOATS = [d for d in DTYPES.values() if d.family in ("float", "complex")]
ids = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)


def numpy_of(dtype):
    return np.dtype(NUMPY.get(dtype.name, dtype.name))


def largest(dtype, count):
    """Return elements of the largest magnitude there is, of both signs."""
    kind = numpy_of(dtype)
    part = kind.type(0).real.dtype if dtype.family == "complex" else kind
    most = ml_dtypes.finfo(part).max
    x = np.full(count * kind.itemsize // part.itemsize, most, part)
    x[::3] = -most
    x[1::3] = 0
    return x.view(kind)


def found(place, x, dtype, residue=0):
    first = place.empty(8)
    first_non_finite(place.launcher, view(place.put(x, residue)), view(first), dtype)
    return int(place.get(first).view(np.int64)[0])


@ids
def test_finite_arrays(dtype):
    for count in (0, 1, 2, 7, 33, 5000):
        assert found(Host(), largest(dtype, count), dtype) == -1


@ids
@pytest.mark.parametrize("step", [0, 1, 3])
def test_the_first_at_any_place_and_alignment(dtype, step):
    part = dtype.itemsize // (2 if dtype.family == "complex" else 1)
    residue = step * part % 16
    for count, places in ((1, [0]), (40, range(40)), (9001, [0, 15, 4100, 8999, 9000])):
        for i in places:
            x = largest(dtype, count)
            x[i] = np.nan
            x[i + 1 :: 97] = -np.nan
            assert found(Host(), x, dtype, residue) == i


@ids
def test_infinities_count(dtype):
    if dtype.name == "float8_e4m3fn":
        pytest.skip("has no infinities")
    x = largest(dtype, 3000)
    x[2500] = -np.inf
    x[2600] = np.inf
    assert found(Host(), x, dtype) == 2500


def test_the_imaginary_part_counts():
    x = np.ones(100, np.complex64)
    x[41] = complex(1, np.inf)
    assert found(Host(), x, DTYPES["complex64"]) == 41


@pytest.mark.parametrize("multiprocessors", [1, 5, 132])
def test_the_grid_does_not_matter(multiprocessors):
    x = largest(DTYPES["bfloat16"], 300_000)
    x[[123_456, 123_457, 299_999]] = np.inf
    assert found(Host(multiprocessors), x, DTYPES["bfloat16"]) == 123_456


def test_every_bit_pattern_of_the_short_floats():
    for name in ("float8_e4m3fn", "float8_e5m2", "float16", "bfloat16"):
        kind = numpy_of(DTYPES[name])
        patterns = np.arange(1 << (8 * kind.itemsize), dtype=f"u{kind.itemsize}").view(kind)
        finite = np.isfinite(patterns.astype(np.float32))
        assert found(Host(), patterns[finite], DTYPES[name]) == -1
        for pattern in patterns[~finite][:: max(1, (~finite).sum() // 50)]:
            assert found(Host(), np.array([0, pattern], kind), DTYPES[name]) == 1


def test_bad_arguments_are_named_before_a_launch():
    place = Host()
    x, first = view(place.empty(64)), view(place.empty(8))
    with pytest.raises(UnsupportedError, match="int32 is neither float nor complex"):
        first_non_finite(place.launcher, x, first, DTYPES["int32"])
    with pytest.raises(ArgumentError, match="64 bytes, not the 8"):
        first_non_finite(place.launcher, first, x, DTYPES["float32"])
    with pytest.raises(ArgumentError, match="12 bytes: they do not hold whole complex64"):
        first_non_finite(place.launcher, DeviceView(x.address, 12), first, DTYPES["complex64"])
    with pytest.raises(ArgumentError, match="not aligned"):
        first_non_finite(place.launcher, DeviceView(x.address + 1, 8), first, DTYPES["float16"])
    assert place.launcher.launches == []
