"""A user's reduce operations on a GPU: which of Numba's kernels is launched with what."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pycomm.kernels.cuda_base import OnDevice
from pycomm.kernels.launcher import BLOCK_THREADS
from pycomm.kernels.numba_cuda import accumulate_program, reduce_program
from pycomm.kernels.numba_ops import UserOp
from pycomm.types import DType


class CudaUserOps(OnDevice):
    """Takes addresses of arrays that were checked; an element is one thread's."""

    def _reduce_by_user(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        count: int,
        dtype: DType,
        op: UserOp,
    ) -> None:
        """Launch the reduction of inputs in their order into every output."""
        if count:
            capability = self._launcher.capability
            program = reduce_program(op, dtype, len(inputs), len(outputs), capability)
            args = struct.pack(f"<{len(inputs) + len(outputs)}Qq", *inputs, *outputs, count)
            self._launcher.launch_program(program, self._grid_of(count), args)

    def _accumulate_by_user(
        self, partial: int, x: int, count: int, dtype: DType, op: UserOp
    ) -> None:
        """Launch partial = partial op widened(x)."""
        if count:
            program = accumulate_program(op, dtype, self._launcher.capability)
            args = struct.pack("<2Qq", partial, x, count)
            self._launcher.launch_program(program, self._grid_of(count), args)

    def _grid_of(self, count: int) -> int:
        """Return the number of blocks for an element a thread."""
        return min(-(-count // BLOCK_THREADS), self._grid(1 << 62))
