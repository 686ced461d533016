"""Sums of squares over many arrays: squares.cu against NumPy, in the order that is promised."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pycomm.arrays import numpy_dtype
from pycomm.kernels.cuda_squares import CHUNK_BYTES
from pycomm.types import DTYPES
from tests.cuda.test_check import FLOATS

F32, F64, BF16 = (DTYPES[n] for n in ("float32", "float64", "bfloat16"))
COLUMNS = 256


def tree(columns):
    """Add 256 columns: 32 each as a tree, then the 8 results in order."""
    warps = columns.reshape(8, 32)
    for half in (16, 8, 4, 2, 1):
        warps = warps[:, :half] + warps[:, half : 2 * half]
    total = warps[0, 0]
    for w in range(1, 8):
        total = total + warps[w, 0]
    return total


def in_columns(squares, width):
    """Add float64 values that go round the columns, `width` at a time."""
    rounds = -(-squares.size // (COLUMNS * width))
    padded = np.zeros(rounds * COLUMNS * width)
    padded[: squares.size] = squares
    columns = np.zeros(COLUMNS)
    for row in padded.reshape(rounds, COLUMNS, width):
        for e in range(width):
            columns = columns + row[:, e]
    return tree(columns)


def reference(arrays):
    """Return the sum in the promised order."""
    sums = []
    for x in arrays:
        parts = x.view(x.real.dtype) if x.dtype.kind == "c" else x
        squares = parts.astype(np.float64) ** 2
        chunk = CHUNK_BYTES // parts.itemsize
        for start in range(0, squares.size, chunk):
            sums.append(in_columns(squares[start : start + chunk], 16 // parts.itemsize))
    return in_columns(np.array(sums), 1)


def total(place, arrays, dtypes, residues=None):
    residues = residues or [0] * len(arrays)
    given = [place.put(x, r) for x, r in zip(arrays, residues)]
    out = place.empty(8)
    place.kernels.sum_of_squares(given, dtypes).into(out)
    got = place.get(out).view(np.float64)[0]
    place.forget()
    return got


def random(dtype, count, seed):
    kind = numpy_dtype(dtype)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(count) * 2.0 ** rng.integers(-8, 6, count)
    return (x + 1j * x[::-1]).astype(kind) if kind.kind == "c" else x.astype(kind)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
def test_every_dtype_in_the_promised_order(place, dtype):
    arrays = [random(dtype, n, n) for n in (0, 1, 3, 1000, 20_011, 0, 70_001)]
    assert total(place, arrays, dtype) == reference(arrays)


@pytest.mark.parametrize("multiprocessors", [1, 3, 132])
def test_neither_grid_nor_alignment_matters(place, multiprocessors):
    place.launcher.multiprocessors = multiprocessors
    arrays = [random(F32, n, n) for n in (5, 30_000, 17, 16_384, 16_385)]
    expected = reference(arrays)
    for residues in ([0] * 5, [4, 8, 12, 4, 8], [0, 4, 0, 12, 0]):
        assert total(place, arrays, F32, residues) == expected


def test_hundreds_of_arrays_in_two_launches(place):
    rng = np.random.default_rng(1)
    arrays = [random(BF16, int(n), k) for k, n in enumerate(rng.integers(0, 3000, 700))]
    got = total(place, arrays, BF16)
    assert got == reference(arrays)
    exact = math.fsum(float(v) ** 2 for x in arrays for v in x)
    assert abs(got - exact) <= 1e-14 * exact
    assert [name for name, _ in place.launcher.launches] == ["square_sums<10>", "total_of<>"]


def test_several_dtypes(place):
    dtypes = [F32, F32, BF16, F64]
    arrays = [random(d, 20_000 + k, k) for k, d in enumerate(dtypes)]
    assert total(place, arrays, dtypes) == reference(arrays)
    assert len(place.launcher.launches) == 4


def test_many_chunks(place):
    arrays = [random(F64, 300 * CHUNK_BYTES // 8 + 5, 3)]
    assert total(place, arrays, F64) == reference(arrays)


def test_nothing_and_what_is_not_finite(place):
    assert total(place, [], F32) == 0
    assert total(place, [np.empty(0, np.float32)], F32) == 0
    assert total(place, [np.array([3, np.inf], np.float32)], F32) == np.inf
    nan = total(place, [np.array([np.inf, -np.nan], np.float32)], F32)
    assert nan.view(np.uint64) == 0x7FF8000000000000
