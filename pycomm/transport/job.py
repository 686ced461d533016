"""A collective as transports and algorithms see it: memory, element type, operation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from pycomm.arrays import NOTHING, View
from pycomm.types import SUM, DType, ReduceOp


@dataclass
class Job:
    """One rank's part in a collective.

    kind            input                       output
    all_reduce      count elements              the same memory as the input
    broadcast       NOTHING                     count elements; read on the root, written elsewhere
    all_gather      counts[rank] elements       sum(counts) elements, in rank order
    reduce_scatter  sum(counts) elements        counts[rank] elements
    barrier         NOTHING                     NOTHING
    """

    kind: str
    dtype: DType
    input: View = NOTHING
    output: View = NOTHING
    counts: tuple[int, ...] = ()
    op: ReduceOp = SUM
    root: int = 0
    fingerprint: int = 0

    @property
    def nbytes(self) -> int:
        """The size of the larger of input and output."""
        return max(self.input.nbytes, self.output.nbytes)

    @property
    def elements(self) -> int | tuple[int, ...]:
        """The number of elements: of every rank's chunk, or of the one array."""
        return self.counts or self.output.count

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each rank's chunk starts, in elements; one more entry for the end."""
        return (0, *accumulate(self.counts))
