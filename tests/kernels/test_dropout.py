"""Philox's known answers, masks at every instruction level, and their statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pycomm import _native
from pycomm.errors import ArgumentError
from pycomm.kernels.dropout import DROPPABLE, MOST_ELEMENTS, Draw, Place, dropout
from pycomm.types import DTYPES
from tests.cuda.test_squares import random

F32 = DTYPES["float32"]
DRAW = Draw(key=7, step=3, p=0.25, scale=4 / 3)
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
ONES = 2**32 - 1


@pytest.fixture(params=["avx512", "avx2", "plain"])
def level(request):
    best = _native.level()
    try:
        _native.use_level(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield
    _native.use_level(best)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ONES,) * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (PI, 0x299F31D0A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(counter, key, expected):
    """Those of philox4x32 with 10 rounds in Random123's kat_vectors."""
    assert " ".join(f"{w:08x}" for w in _native.philox(counter, key)) == expected


def words(place, draw):
    """Return the words of all elements, one after the other."""
    out = []
    for sample in range(place.first_sample, place.first_sample + place.samples):
        for run in range(place.runs):
            for e in range(place.length):
                at = place.first + run * place.stride + e
                counter = (at // 4, sample, draw.step % 2**32, draw.step >> 32)
                out.append(_native.philox(counter, draw.key)[at % 4])
    return np.array(out, np.uint64)


def dropped(x, place, draw, dtype=F32):
    out = np.empty_like(x)
    dropout(x.ctypes.data, out.ctypes.data, dtype, place, draw)
    return out


@pytest.mark.parametrize("dtype", DROPPABLE, ids=lambda d: d.name)
def test_every_element_by_its_number(level, dtype):
    place = Place(first_sample=5, samples=2, runs=3, length=421, first=6, stride=1002)
    draw = replace(DRAW, step=(9 << 32) + 1)
    x = random(dtype, place.count, 1)
    wide = x.astype(np.float64 if dtype.itemsize == 8 else np.float32)
    kept = (wide * wide.dtype.type(draw.scale)).astype(x.dtype)
    expected = np.where(words(place, draw) < draw.threshold, x.dtype.type(0), kept)
    assert dropped(x, place, draw, dtype).tobytes() == expected.tobytes()


@pytest.mark.parametrize("length", [1, 3, 4, 1021, 1024, 1029, 5000])
def test_parts_of_a_sample(level, length):
    whole = dropped(np.ones(8000, np.float32), Place(0, 1, 1, 8000), DRAW)
    for first in (0, 1, 2, 3, 1023):
        part = dropped(np.ones(length, np.float32), Place(0, 1, 1, length, first), DRAW)
        assert np.array_equal(part, whole[first : first + length])


def mask(**changed):
    place = Place(changed.pop("sample", 0), 1, 1, 1 << 20)
    return dropped(np.ones(1 << 20, np.float32), place, replace(DRAW, scale=1.0, **changed))


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_as_many_as_promised(p):
    count = 1 << 20
    assert abs(count - mask(p=p).sum() - p * count) < 5 * (p * (1 - p) * count) ** 0.5


def test_no_correlation():
    """Between neighbours, samples, steps and keys, each within 5 standard deviations."""
    first = mask() - 0.75
    others = [mask(sample=1), mask(step=4), mask(step=3 + (1 << 32)), mask(key=8), mask(key=7 << 8)]
    shifted = [np.roll(first, k) + 0.75 for k in (1, 2, 3, 4, 16, 64, 1024)]
    for other in others + shifted:
        correlation = np.mean(first * (other - 0.75)) / (0.25 * 0.75)
        assert abs(correlation) < 5 / 1024


def test_the_bytes_of_words_are_uniform():
    drawn = words(Place(0, 1, 1, 40_000), DRAW).astype("<u4").view(np.uint8).reshape(-1, 4)
    for column in drawn.T:
        counts = np.bincount(column, minlength=256)
        chi = ((counts - 40_000 / 256) ** 2).sum() / (40_000 / 256)
        assert 150 < chi < 370  # 255 degrees of freedom: 5 standard deviations are 113


def test_what_has_no_number():
    x = np.ones(8, np.float32)
    with pytest.raises(ArgumentError, match=r"8 samples from -1 on: their numbers must be from 0"):
        dropped(x, Place(-1, 8, 1, 1), DRAW)
    with pytest.raises(ArgumentError, match="a sample of 17179869185 elements"):
        dropped(x, Place(0, 1, 1, 8, first=MOST_ELEMENTS - 7), DRAW)
