"""Casts between float types against ml_dtypes and the CPU's loops: identical bytes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from pycomm.arrays import numpy_dtype
from pycomm.kernels.cpu import CpuKernels
from pycomm.types import DTYPES, SUM, DType
from tests.cuda.place import Place
from tests.cuda.test_reduce import specials

FLOATS = [d for d in DTYPES.values() if d.family == "float"]
cpu = CpuKernels()


def values(dtype: DType) -> np.ndarray:
    """Return all values of a type of 8 or 16 bits; of wider ones, random and special ones."""
    if dtype.itemsize <= 2:
        return np.arange(256**dtype.itemsize).astype(f"u{dtype.itemsize}").view(numpy_dtype(dtype))
    random = np.random.default_rng(dtype.code)
    x = random.standard_normal(20_000) * 10.0 ** random.integers(-12, 12, 20_000)
    return np.concatenate([x.astype(dtype.name), specials(dtype).view(dtype.name)])


def on_cpu(x: np.ndarray, source: DType, target: DType) -> np.ndarray:
    """Return the bytes of `x` as `target`: widened, by NumPy if need be, and rounded."""
    wide = np.empty(x.size, source.accumulator)
    cpu.widen(x.view(np.uint8), wide.view(np.uint8), source, SUM)
    out = np.empty(x.size * target.itemsize, np.uint8)
    with np.errstate(all="ignore"):
        between = np.ascontiguousarray(wide.astype(target.accumulator))
    cpu.finish(between.view(np.uint8), out, target, SUM, 1)
    return out


@pytest.mark.parametrize("target", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize("source", FLOATS, ids=lambda d: d.name)
def test_every_pair_of_types(place: Place, source: DType, target: DType):
    x = values(source)
    out = place.empty(x.size * target.itemsize)
    place.kernels.convert(place.put(x), out, source, target)
    assert np.array_equal(place.get(out), on_cpu(x, source, target))


@pytest.mark.parametrize("target", FLOATS, ids=lambda d: d.name)
def test_rounding_is_ml_dtypes_s(place: Place, target: DType):
    x = values(DTYPES["float32"])
    x = x[np.isfinite(x)]
    out = place.empty(x.size * target.itemsize)
    place.kernels.convert(place.put(x), out, DTYPES["float32"], target)
    with np.errstate(all="ignore"):
        if target.name.startswith("float8"):
            limit = float(ml_dtypes.finfo(numpy_dtype(target)).max)
            x = np.clip(x, -limit, limit)
        expected = x.astype(numpy_dtype(target))
    assert np.array_equal(place.get(out), expected.view(np.uint8))


@pytest.mark.parametrize("target", [d for d in FLOATS if d.itemsize <= 2], ids=lambda d: d.name)
def test_ties_and_their_neighbours(place: Place, target: DType):
    """Of every magnitude and sign: what lies half way between two values, and next to that."""
    low = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    x = (np.arange(1 << 16)[:, None] << 16 | low).astype(np.uint32).reshape(-1).view(np.float32)
    out = place.empty(x.size * target.itemsize)
    place.kernels.convert(place.put(x), out, DTYPES["float32"], target)
    assert np.array_equal(place.get(out), on_cpu(x, DTYPES["float32"], target))


@pytest.mark.parametrize(
    "names",
    [
        ("float32", "bfloat16"),
        ("bfloat16", "float32"),
        ("float8_e4m3fn", "float64"),
        ("float64", "float8_e5m2"),
        ("float16", "bfloat16"),
    ],
    ids="-".join,
)
def test_heads_and_tails_at_every_alignment(place: Place, names: tuple[str, str]):
    source, target = DTYPES[names[0]], DTYPES[names[1]]
    for skip in range(16):
        for other in (skip, 0):
            for count in (0, 1, 7, 16, 33, 500):
                x = np.resize(values(source), count)
                moved = place.put(x, skip * source.itemsize % 16)
                out = place.empty(count * target.itemsize, other * target.itemsize % 16)
                place.kernels.convert(moved, out, source, target)
                expected = on_cpu(x, source, target)
                assert np.array_equal(place.get(out), expected), (skip, other, count)
                place.forget()


def test_in_place(place: Place):
    x = values(DTYPES["float16"])
    array = place.put(x, 2)
    place.kernels.convert(array, array, DTYPES["float16"], DTYPES["bfloat16"])
    expected = on_cpu(x, DTYPES["float16"], DTYPES["bfloat16"])
    assert np.array_equal(place.get(array), expected)
