"""What is computed on bytes: the interface that algorithms see, nothing about ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pycomm.types import DType, ReduceOp


class Kernels(Protocol):
    """Reductions over flat uint8 arrays that hold elements of a DType.

    A reduction is: widen the first input into the accumulator type, accumulate the others in the
    order given, finish. Every step is exact or rounds once, so the same order gives the same bits.
    """

    def reduce(
        self, inputs: Sequence[np.ndarray], output: np.ndarray, dtype: DType, op: ReduceOp
    ) -> None:
        """Reduce `inputs`, in their order, into `output`, which may be one of them."""

    def widen(self, x: np.ndarray, partial: np.ndarray, dtype: DType, op: ReduceOp) -> None:
        """Convert `x` (dtype) into `partial` (dtype.partial), multiplied by op.factor if premul."""

    def accumulate(self, partial: np.ndarray, x: np.ndarray, dtype: DType, op: ReduceOp) -> None:
        """Set partial = partial op widened(x), element by element."""

    def finish(
        self, partial: np.ndarray, output: np.ndarray, dtype: DType, op: ReduceOp, inputs: int
    ) -> None:
        """Round `partial` (dtype.partial) into `output` (dtype); avg divides by `inputs` first."""
