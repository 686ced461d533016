"""Operations that a user might write, with the same in NumPy, and inputs for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np

from pycomm.arrays import numpy_dtype
from pycomm.types import DTYPES, DType

from .algorithms.reference import random_inputs

_NANS = {"float8_e4m3fn": 0x7F, "float8_e5m2": 0x7E}


def max_abs(a, b):
    """Return the larger magnitude."""
    return max(abs(a), abs(b))


def mixed(a, b):
    """Neither commutes nor associates, and is another number as one fused multiply-add."""
    return a * b + a


def log_add_exp(a, b):
    """Return log(exp(a) + exp(b))."""
    top = max(a, b)
    return top + math.log1p(math.exp(min(a, b) - top))


def saturating(a, b):
    """Return a + b, at most 100 and at least −100."""
    total = a + b
    return min(max(total, -100), 100)


def differ(a, b):
    """Return whether exactly one of two truths is true."""
    return a != b


Case = tuple[Callable, Callable, DType]
"""A function, the same over NumPy's arrays, and the dtype."""


def _cases() -> list[Case]:
    numbers = [d for d in DTYPES.values() if d.family != "bool"]
    found: list[Case] = [(differ, np.not_equal, DTYPES["bool"])]
    found += [(mixed, mixed, d) for d in numbers]
    found += [(max_abs, _max_abs, d) for d in numbers if d.family != "complex"]
    signed = [d for d in numbers if d.name.startswith("int")]
    return found + [(saturating, _saturating, d) for d in signed]


def _max_abs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum(abs(a), abs(b))


def _saturating(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.clip(a.astype(np.int64) + b.astype(np.int64), -100, 100)


CASES = _cases()


def inputs(fn: Callable, ranks: int, count: int, dtype: DType) -> list[np.ndarray]:
    """Return one array per rank: any bits, or numbers with which `fn` is well-behaved."""
    if fn is mixed and dtype.family == "float":
        return random_inputs(ranks, count, dtype)
    if dtype.family in ("bool", "integer"):
        return random_inputs(ranks, count, dtype)
    random = np.random.default_rng([ranks, count])
    whole = random.integers(-9, 10, (2, ranks, count))
    parts = whole[0] + 1j * whole[1] if dtype.family == "complex" else whole[0] / 4
    return list(parts.astype(numpy_dtype(dtype)))


def in_order(parts: Sequence[np.ndarray], dtype: DType, same: Callable) -> np.ndarray:
    """Apply NumPy's function to the parts in their order, in the accumulator; round once."""
    wide = numpy_dtype(dtype.partial)
    with np.errstate(all="ignore"):
        total = parts[0].astype(wide)
        for x in parts[1:]:
            total = same(total, x.astype(wide)).astype(wide)
        return _finished(total, dtype)


def _finished(total: np.ndarray, dtype: DType) -> np.ndarray:
    if dtype.family != "float":
        return total.astype(numpy_dtype(dtype))
    if not dtype.name.startswith("float8"):
        canonical = np.where(np.isnan(total), total.dtype.type(np.nan), total)
        return canonical.astype(numpy_dtype(dtype))
    limit = float(ml_dtypes.finfo(numpy_dtype(dtype)).max)
    out = np.clip(total, -limit, limit).astype(numpy_dtype(dtype))
    out.view(np.uint8)[np.isnan(total)] = _NANS[dtype.name]
    return out
