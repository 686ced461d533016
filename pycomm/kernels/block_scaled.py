"""The format of block-scaled quantisation, and what must hold of its arguments."""

from __future__ import annotations

from collections.abc import Sequence

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.types import DTYPES, DType

BLOCK = 256
"""Elements that share a scale; `kQuantBlock` in csrc/block_scaled.h."""

STORED = tuple(DTYPES[name] for name in ("int8", "float8_e4m3fn", "float8_e5m2"))
"""What values may be stored as."""

QUANTISED = tuple(DTYPES[name] for name in ("float16", "bfloat16", "float32"))
"""What may be quantised, and what sums may be rounded to."""


def scale_count(count: int) -> int:
    """Return how many float32 scales `count` elements have: one a block, also a short one."""
    return -(-count // BLOCK)


def check_format(dtype: DType, stored: DType) -> None:
    """Raise UnsupportedError if `dtype` cannot be stored as `stored`; says what can."""
    for kind, given, known in (("elements", dtype, QUANTISED), ("values", stored, STORED)):
        if given not in known:
            names = ", ".join(d.name for d in known)
            raise UnsupportedError(f"{kind} of block-scaled quantisation are {names}: {given.name}")


def check_sizes(x_bytes: int, dtype: DType, sizes: Sequence[tuple[int, int]]) -> int:
    """Return the number of elements in an array.

    Args:
        x_bytes: the array's length in bytes.
        dtype: of its elements.
        sizes: for each input, the lengths of its values and its scales in bytes.

    Raises:
        ArgumentError: an array has not the size that the format prescribes.
    """
    count, rest = divmod(x_bytes, dtype.itemsize)
    if rest:
        raise ArgumentError(f"an array of {x_bytes} bytes does not hold whole {dtype.name}")
    for k, (values, scales) in enumerate(sizes):
        if (values, scales) != (count, 4 * scale_count(count)):
            raise ArgumentError(
                f"{count} elements need {count} bytes of values and {4 * scale_count(count)} of "
                f"scales, one float32 for every {BLOCK} elements: input {k} has {values} and "
                f"{scales}"
            )
    return count
