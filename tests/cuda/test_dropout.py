"""Keyed dropout: dropout.cu against the CPU's loops, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.kernels.dropout import DROPPABLE, MOST_ELEMENTS, Draw, Place, dropout
from pycomm.types import DTYPES
from tests.cuda.test_squares import random

DRAW = Draw(key=0x9E3779B97F4A7C15, step=(1 << 40) + 7, p=0.3, scale=1 / 0.7)
PLACES = {
    "whole": Place(first_sample=5, samples=3, runs=1, length=1001),
    "columns": Place(first_sample=0, samples=2, runs=7, length=6, first=6, stride=18),
    "single": Place(first_sample=9, samples=4, runs=5, length=1, first=3, stride=4),
    "odd start": Place(first_sample=2**32 - 2, samples=2, runs=3, length=9, first=5, stride=33),
    "far": Place(first_sample=0, samples=1, runs=1, length=40, first=MOST_ELEMENTS - 40),
}


def on_cpu(x, dtype, place):
    out = np.empty_like(x)
    dropout(x.ctypes.data, out.ctypes.data, dtype, place, DRAW)
    return out


@pytest.mark.parametrize("dtype", DROPPABLE, ids=lambda d: d.name)
@pytest.mark.parametrize("where", PLACES.values(), ids=PLACES)
def test_same_bits_as_on_the_cpu(place, dtype, where):
    x = random(dtype, where.count, 3)
    source, target = place.put(x), place.empty(x.nbytes)
    place.kernels.dropout(source, target, dtype, where, DRAW)
    expected = on_cpu(x, dtype, where)
    assert np.array_equal(place.get(target), expected.view(np.uint8))
    assert where.count < 100 or 0.5 < np.count_nonzero(expected) / where.count < 0.9


def test_in_place_and_nothing(place):
    dtype, where = DTYPES["float32"], PLACES["whole"]
    x = random(dtype, where.count, 4)
    source = place.put(x)
    place.kernels.dropout(source, source, dtype, where, DRAW)
    assert np.array_equal(place.get(source), on_cpu(x, dtype, where).view(np.uint8))
    empty = Place(first_sample=0, samples=0, runs=1, length=8)
    place.kernels.dropout(place.empty(0), place.empty(0), dtype, empty, DRAW)


def test_what_cannot_be(place):
    f32, i32 = DTYPES["float32"], DTYPES["int32"]
    x = place.empty(32)
    with pytest.raises(UnsupportedError, match="int32 is not one of float16"):
        place.kernels.dropout(x, x, i32, Place(0, 1, 1, 8), DRAW)
    with pytest.raises(ArgumentError, match="samples from 4294967295 on"):
        place.kernels.dropout(x, x, f32, Place(2**32 - 1, 2, 1, 4), DRAW)
    with pytest.raises(ArgumentError, match="at most 17179869184 have a number"):
        place.kernels.dropout(x, x, f32, Place(0, 1, 1, 8, first=MOST_ELEMENTS - 7), DRAW)
    with pytest.raises(ArgumentError, match="holds 8 elements of float32, but 9 are needed"):
        place.kernels.dropout(x, x, f32, Place(0, 1, 1, 9), DRAW)
