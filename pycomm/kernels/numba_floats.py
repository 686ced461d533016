"""Scalar twins of csrc/floats.h for Numba: stored bits to the accumulator and back.

Plain Python on NumPy scalars. All bits are handled as int64, so that Numba, whose integers grow,
and NumPy in Numba's simulator, whose integers wrap around, compute the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pycomm.types import DType

Scalar = Callable[[Any], Any]
"""A function of one scalar that calls no others."""


def stored_type(dtype: DType) -> np.dtype:
    """Return how elements of a dtype lie in memory: narrow floats and truths as integers."""
    if dtype.family == "bool" or dtype.accumulator != dtype.name:
        return np.dtype(f"uint{8 * dtype.itemsize}")
    return np.dtype(dtype.name)


def loading(dtype: DType) -> Scalar:
    """Return the function from a stored element to the accumulator; it is exact."""
    if dtype.family == "bool":
        return lambda raw: raw != 0
    return _WIDEN.get(dtype.name, _same)


def storing(dtype: DType) -> Scalar:
    """Return the function from the accumulator to a stored element.

    It rounds once, to nearest, ties to even; NaNs come out canonical and float8 saturates.
    """
    if dtype.family == "bool":
        return lambda truth: np.uint8(1) if truth else np.uint8(0)
    if dtype.family == "complex":
        return _canonical_complex(_scalar_of(dtype))
    if dtype.name in _NARROW:
        return _NARROW[dtype.name]
    return _canonical(_scalar_of(dtype)) if dtype.family == "float" else _same


def _scalar_of(dtype: DType) -> type[np.floating]:
    return np.float64 if dtype.name in ("float64", "complex128") else np.float32


def _same(x: Any) -> Any:
    return x


def _canonical(scalar: type[np.floating]) -> Scalar:
    nan = scalar(np.nan)
    return lambda x: x if x == x else nan


def _canonical_complex(scalar: type[np.floating]) -> Scalar:
    nan = scalar(np.nan)

    def store(x: Any) -> Any:
        real = x.real if x.real == x.real else nan
        imaginary = x.imag if x.imag == x.imag else nan
        return complex(real, imaginary)

    return store


# ---- narrow floats


def _widen_bfloat16(raw: Any) -> Any:
    return np.uint32(np.int64(raw) << 16).view(np.float32)


def _narrow_bfloat16(x: Any) -> Any:
    word = np.int64(np.float32(x).view(np.uint32))
    rounded = (word + 0x7FFF + ((word >> 16) & 1)) >> 16
    return np.uint16(rounded if x == x else 0x7FC0)


def _widen_ieee(exponents: int, mantissas: int) -> Scalar:
    """Return it for a format of so many bits each, with infinities and NaNs."""
    bias, top, field = (1 << (exponents - 1)) - 1, (1 << exponents) - 1, (1 << mantissas) - 1
    unit = np.float32(2.0 ** (1 - bias - mantissas))  # the smallest denormal
    sign_at, shift = exponents + mantissas, 23 - mantissas

    def widen(raw: Any) -> Any:
        word = np.int64(raw)
        exponent, mantissa = (word >> mantissas) & top, word & field
        magnitude = ((127 - bias + exponent) << 23) | (mantissa << shift)
        if exponent == top:
            magnitude = 0x7F800000 | (mantissa << shift)
        if exponent == 0:
            magnitude = np.int64((np.float32(mantissa) * unit).view(np.uint32))
        return np.uint32(magnitude | ((word >> sign_at) << 31)).view(np.float32)

    return widen


def _widen_e4m3(raw: Any) -> Any:
    """Widen a format without infinities, in which all ones is NaN."""
    word = np.int64(raw)
    exponent, mantissa = (word >> 3) & 15, word & 7
    magnitude = ((120 + exponent) << 23) | (mantissa << 20)
    if exponent == 0:
        magnitude = np.int64((np.float32(mantissa) * np.float32(1 / 512)).view(np.uint32))
    if word & 127 == 127:
        magnitude = np.int64(0x7FC00000)
    return np.uint32(magnitude | ((word >> 7) << 31)).view(np.float32)


def _narrow_ieee(exponents: int, mantissas: int, limit: int, beyond: int, nan: int) -> Scalar:
    """Return it for a format of so many bits each.

    Args:
        exponents: how many bits.
        mantissas: how many bits.
        limit: the bits of the smallest float32 that is no number of the format even when rounded.
        beyond: what magnitudes from `limit` on become.
        nan: the canonical NaN.
    """
    bias, drop = (1 << (exponents - 1)) - 1, 23 - mantissas
    smallest = (127 - bias + 1) << 23
    # Adding a float whose last bit weighs as much as the smallest denormal rounds in hardware.
    magic_bits = (127 - bias + 1 + drop) << 23
    magic = np.uint32(magic_bits).view(np.float32)
    sign_shift = 31 - exponents - mantissas
    stored = np.uint16 if exponents + mantissas > 7 else np.uint8

    def narrow(x: Any) -> Any:
        word = np.int64(np.float32(x).view(np.uint32))
        magnitude = word & 0x7FFFFFFF
        half = (1 << (drop - 1)) - 1 + ((magnitude >> drop) & 1)
        rounded = (magnitude + half - ((127 - bias) << 23)) >> drop
        if magnitude < smallest:
            total = np.uint32(magnitude).view(np.float32) + magic
            rounded = np.int64(total.view(np.uint32)) - magic_bits
        if magnitude >= limit:
            rounded = np.int64(beyond)
        sign = ((word >> 31) & 1) << (31 - sign_shift)
        return stored(rounded | sign if x == x else nan)

    return narrow


_WIDEN: dict[str, Scalar] = {
    "bfloat16": _widen_bfloat16,
    "float16": _widen_ieee(5, 10),
    "float8_e5m2": _widen_ieee(5, 2),
    "float8_e4m3fn": _widen_e4m3,
}

_NARROW: dict[str, Scalar] = {
    "bfloat16": _narrow_bfloat16,
    "float16": _narrow_ieee(5, 10, limit=0x47800000, beyond=0x7C00, nan=0x7E00),
    "float8_e5m2": _narrow_ieee(5, 2, limit=0x47600000, beyond=0x7B, nan=0x7E),
    "float8_e4m3fn": _narrow_ieee(4, 3, limit=0x43E00000, beyond=0x7E, nan=0x7F),
}
