"""What a step draws: choices that all ranks share, or a rank's own; sizes, dtypes, contents."""

from __future__ import annotations

import random
import time
from functools import cache
from zlib import crc32

import numpy as np

from pycomm.arrays import numpy_dtype
from pycomm.types import DTYPES, DType, ReduceOp
from tests.algorithms.reference import operations, random_inputs

LIMITS = (0, 1, 80, 4096, 8192, 32 << 10, 128 << 10)
"""Bytes around which paths change: a line, in place, copied whole, whole messages, pieces."""

LONGEST = 4 << 20
_SHIFTS = 4096
_PERIOD = 65_537
"""Contents repeat after so many elements, a prime number."""

SMALL_VALUES = ("float8_e4m3fn", "float8_e5m2", "complex64", "complex128")
"""NumPy computes these as pycomm does as long as nothing overflows or rounds on the way."""


class Draw(random.Random):
    """Random choices from words: the same for the same words, in every process."""

    def __init__(self, *words: object):
        super().__init__(".".join(map(str, words)))

    def chance(self, probability: float) -> bool:
        """Return True so often."""
        return self.random() < probability

    def nbytes(self, most: int = LONGEST) -> int:
        """Return a size: near a limit, or anything; small ones as often as large ones."""
        if self.chance(0.4):
            return max(0, self.choice(LIMITS) + self.randint(-16, 16))
        return int(most ** self.random())

    def dtype(self) -> DType:
        """Return any dtype."""
        return self.choice(list(DTYPES.values()))

    def shape(self, dtype: DType, nbytes: int) -> tuple[int, ...]:
        """Return a shape of about `nbytes`."""
        count = nbytes // dtype.itemsize
        kind = self.randrange(4)
        if kind == 0 and count == 1:
            return ()
        if kind == 1 and count:
            columns = self.randint(1, min(count, 50))
            return (count // columns, columns)
        return (count,)

    def op(self, dtype: DType) -> ReduceOp:
        """Return an operation that exists on the dtype, and that NumPy does alike."""
        return ReduceOp("sum") if dtype.family == "complex" else self.choice(operations(dtype))

    def parts(self, whole: int, size: int) -> list[int]:
        """Cut `whole` into `size` parts, some of them empty."""
        cuts = sorted(self.randint(0, whole) for _ in range(size - 1))
        return [b - a for a, b in zip([0, *cuts], [*cuts, whole])]

    def dawdle(self) -> None:
        """Now and then, wait for up to 20 ms."""
        if self.chance(0.05):
            time.sleep(2e-2 * self.random() ** 3)


def contents(dtype: DType, shape: tuple[int, ...], *words: object) -> np.ndarray:
    """Return a read-only array of values that depend on the words."""
    count, shift = int(np.prod(shape)), crc32(repr(words).encode()) % _SHIFTS
    return _values(dtype)[shift : shift + count].reshape(shape)


@cache
def _values(dtype: DType) -> np.ndarray:
    if dtype.name in SMALL_VALUES:
        some = np.random.default_rng(1).integers(-3, 4, _PERIOD).astype(numpy_dtype(dtype))
    else:
        some = random_inputs(1, _PERIOD, dtype)[0]
    values = np.resize(some, LONGEST // dtype.itemsize + _SHIFTS)
    values.flags.writeable = False
    return values
