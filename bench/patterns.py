"""Inputs whose results are exact in any order: integers that depend on rank and index."""

from __future__ import annotations

from functools import reduce

import numpy as np

from pycomm.arrays import numpy_dtype
from pycomm.errors import UnsupportedError
from pycomm.types import DTYPES

PERIOD = 65_537
"""A prime: what lands a chunk, segment, page or vector away from its place is another value."""

POISON = 0xA5
"""Every byte of a buffer that is yet to be written; no expected element is made of it."""

_EXACT = {"float8_e5m2": 8, "float8_e4m3fn": 16, "bfloat16": 256, "float16": 2048}
"""All integers to here are exact."""

_COMBINE = {
    "sum": np.add,
    "avg": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}


def largest_exact(dtype: str) -> int:
    """Return an integer to which all from 0 are exact in the dtype, and none looks like poison."""
    if dtype == "bool":
        return 1
    eight_bits = {"int8": 127, "uint8": 127}
    return _EXACT.get(dtype) or eight_bits.get(dtype) or 32_000


class Pattern:
    """The inputs of all ranks, and what a reduce operation makes of them.

    Args:
        dtype: of the elements.
        redop: what `reduced` is to be exact for; "none" if nothing is reduced.
        ranks: how many there are.

    Raises:
        UnsupportedError: no average over so many ranks is exact in the dtype.
    """

    def __init__(self, dtype: str, redop: str, ranks: int):
        if redop == "avg" and ranks > largest_exact(dtype):
            raise UnsupportedError(f"avg over {ranks} ranks is not exact in {dtype}: use sum")
        integers = _inputs(redop, ranks, largest_exact(dtype))
        self._inputs = _converted(integers, dtype, redop)
        self._result = self._inputs[0]
        if redop != "none":
            result = reduce(_COMBINE[redop], integers)
            self._result = _converted(result // ranks if redop == "avg" else result, dtype, redop)

    def of(self, rank: int, start: int, count: int) -> np.ndarray:
        """Return elements start…start+count−1 of a rank's input."""
        return _repeated(self._inputs[rank], start, count)

    def reduced(self, start: int, count: int) -> np.ndarray:
        """Return elements start…start+count−1 of the result."""
        return _repeated(self._result, start, count)


def _converted(integers: np.ndarray, dtype: str, redop: str) -> np.ndarray:
    """Return the integers in the dtype; those of a complex one have an imaginary part, too."""
    if DTYPES[dtype].family == "complex" and redop != "prod":
        integers = integers + 1j * np.roll(integers, 1, axis=-1)
    return integers.astype(numpy_dtype(DTYPES[dtype]))


def _repeated(period: np.ndarray, start: int, count: int) -> np.ndarray:
    return np.resize(np.roll(period, -(start % PERIOD)), count)


def _inputs(redop: str, ranks: int, limit: int) -> np.ndarray:
    """Return (ranks, PERIOD) integers, so small that every partial result is at most `limit`."""
    index, rank = np.arange(PERIOD), np.arange(ranks)[:, None]
    mixed = ((index + rank * 7919) * 2_654_435_761 % 2**32) >> 12
    if redop == "prod":
        return np.where(index % (ranks + 1) == rank, 2, 1)
    if redop not in ("sum", "avg"):
        return mixed % (limit + 1)
    unit = ranks if redop == "avg" else 1
    values = mixed % max(2, limit // (ranks * unit) + 1) * unit
    return np.where((index + rank) % ranks < max(1, limit // unit), values, 0)
