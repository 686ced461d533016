"""Which dtypes are converted into which while they are packed."""

from __future__ import annotations

from collections.abc import Iterator

from pycomm.types import DTYPES, DType

BYTES = DTYPES["uint8"]


def convertible(source: DType, target: DType) -> bool:
    """Say whether elements are converted and scaled in one pass: with the same accumulator.

    That is: among float32 and the narrower floats; and float64 and each complex type by itself.
    """
    families = {source.family, target.family}
    return families <= {"float", "complex"} and source.accumulator == target.accumulator


def packed_pairs() -> Iterator[tuple[int, int]]:
    """Yield the codes of source and target of each kernel; (uint8, uint8) copies any bytes."""
    yield BYTES.code, BYTES.code
    for source in DTYPES.values():
        for target in DTYPES.values():
            if convertible(source, target):
                yield source.code, target.code
