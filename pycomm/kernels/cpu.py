"""Reductions on the CPU: the loops of csrc/cpu, for the instruction level of this processor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pycomm import _native
from pycomm.types import DType, ReduceOp

_address = _native.address


class CpuKernels:
    """The Kernels of NumPy memory; they release the interpreter lock."""

    def reduce(
        self, inputs: Sequence[np.ndarray], output: np.ndarray, dtype: DType, op: ReduceOp
    ) -> None:
        """Reduce `inputs`, in their order, into `output`, which may be one of them."""
        count = output.nbytes // dtype.itemsize
        addresses = [_address(x) for x in inputs]
        _native.reduce(addresses, _address(output), count, dtype.code, op.code, op.factor)

    def widen(self, x: np.ndarray, partial: np.ndarray, dtype: DType, op: ReduceOp) -> None:
        """Convert `x` (dtype) into `partial` (dtype.partial), multiplied by op.factor if premul."""
        count = x.nbytes // dtype.itemsize
        _native.widen(_address(x), _address(partial), count, dtype.code, op.code, op.factor)

    def accumulate(self, partial: np.ndarray, x: np.ndarray, dtype: DType, op: ReduceOp) -> None:
        """Set partial = partial op widened(x), element by element."""
        count = x.nbytes // dtype.itemsize
        _native.accumulate(_address(partial), _address(x), count, dtype.code, op.code, op.factor)

    def finish(
        self, partial: np.ndarray, output: np.ndarray, dtype: DType, op: ReduceOp, inputs: int
    ) -> None:
        """Round `partial` (dtype.partial) into `output` (dtype); avg divides by `inputs` first."""
        count = output.nbytes // dtype.itemsize
        _native.finish(_address(partial), _address(output), count, dtype.code, op.code, inputs)
