"""Keyed dropout in memory: which elements are dropped is a function of where they are.

An element's word is word e % 4 of Philox4x32-10 (csrc/philox.h) at the counter
(e // 4, sample, step) under the key of its layer; it is dropped if the word is below p · 2³².
"""

from __future__ import annotations

from dataclasses import dataclass

from pycomm import _native
from pycomm.errors import ArgumentError
from pycomm.types import DTYPES, DType

DROPPABLE = tuple(DTYPES[name] for name in ("float16", "bfloat16", "float32", "float64"))
"""The dtypes that have kernels."""

MOST_SAMPLES, MOST_ELEMENTS = 1 << 32, 1 << 34
"""What the counter has room for: samples of a batch, and elements of a sample."""


@dataclass(frozen=True)
class Draw:
    """What decides, beside its place, whether an element is dropped.

    Attributes:
        key: of seed and layer, 64 bits.
        step: 0 ≤ step < 2⁶⁴.
        p: the probability of being dropped, 0 < p < 1; exact to 2⁻³².
        scale: what elements that are kept are multiplied by.
    """

    key: int
    step: int
    p: float
    scale: float

    @property
    def threshold(self) -> int:
        """The words below it drop their element."""
        return min(round(self.p * 2**32), 2**32 - 1)


@dataclass(frozen=True)
class Place:
    """Where the elements of an array lie in whole samples.

    A sample's elements are `runs` runs of `length` consecutive ones, the first at element `first`
    of the whole sample, the others `stride` elements after the one before.

    Attributes:
        first_sample: the number of the array's first sample in the global batch.
        samples: how many samples it holds.
    """

    first_sample: int
    samples: int
    runs: int
    length: int
    first: int = 0
    stride: int = 0

    @property
    def count(self) -> int:
        """How many elements the array has."""
        return self.samples * self.runs * self.length

    def check(self) -> None:
        """Raise ArgumentError where the counter has no room for a sample or an element."""
        last = self.first + max(0, self.runs - 1) * self.stride + self.length
        if self.first_sample < 0 or self.first_sample + self.samples > MOST_SAMPLES:
            raise ArgumentError(
                f"dropout on {self.samples} samples from {self.first_sample} on: their numbers "
                f"must be from 0 to {MOST_SAMPLES - 1}"
            )
        if last > MOST_ELEMENTS:
            raise ArgumentError(
                f"dropout on a sample of {last} elements: at most {MOST_ELEMENTS} have a number"
            )


def dropout(source: int, target: int, dtype: DType, place: Place, draw: Draw) -> None:
    """Write the kept elements, scaled and rounded once, and zeros for the others.

    Args:
        source: the address of `place.count` elements in host memory.
        target: the same for the result; may be `source`.
        dtype: one of DROPPABLE.

    Raises:
        ArgumentError: a sample or an element is beyond what has a number.
    """
    place.check()
    _native.dropout(
        source,
        target,
        dtype.code,
        first_sample=place.first_sample,
        samples=place.samples,
        runs=place.runs,
        length=place.length,
        first=place.first,
        stride=place.stride,
        key=draw.key,
        step=draw.step,
        threshold=draw.threshold,
        scale=draw.scale,
    )
