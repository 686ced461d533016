"""Reductions on a GPU, with the same bits as kernels/cpu.py; and all other kernels of csrc/cuda."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.kernels.cuda_check import CudaCheck
from pycomm.kernels.cuda_convert import CudaConvert
from pycomm.kernels.cuda_dropout import CudaDropout
from pycomm.kernels.cuda_pack import CudaPack
from pycomm.kernels.cuda_quantize import CudaQuantize
from pycomm.kernels.cuda_select import CudaSelect
from pycomm.kernels.cuda_squares import CudaSquares
from pycomm.kernels.cuda_strided import CudaStrided
from pycomm.kernels.cuda_user_ops import CudaUserOps
from pycomm.kernels.device import (
    DeviceView,
    Named,
    are_alike,
    check_apart,
    check_count,
    check_device,
    device_view,
    named,
)
from pycomm.kernels.numba_ops import UserOp
from pycomm.types import DTYPES, OPS, SUM, DType, ReduceOp

MOST_ARRAYS = 128
"""Inputs, and outputs, of one launch; `kReduceArrays` in csrc/cuda/reduce.cu."""

_BYTES = DTYPES["uint8"]
_BOR = ReduceOp("bor")


class CudaKernels(
    CudaCheck,
    CudaConvert,
    CudaDropout,
    CudaPack,
    CudaQuantize,
    CudaSelect,
    CudaSquares,
    CudaStrided,
    CudaUserOps,
):
    """The Kernels of GPU memory: CuPy arrays, torch tensors, or DeviceViews, of any shape.

    They are launched on the caller's current stream and return at once. All arguments are checked
    before: ArgumentError for sizes that differ, memory on another device, or memory that overlaps
    without being the same; UnsupportedError for a dtype or an operation that does not exist.
    """

    def reduce(self, inputs: Sequence[Any], output: Any, dtype: DType, op: ReduceOp) -> None:
        """Reduce `inputs`, in their order, into `output`, which may be one of them."""
        self.reduce_into(inputs, [output], dtype, op)

    def reduce_into(
        self, inputs: Sequence[Any], outputs: Sequence[Any], dtype: DType, op: ReduceOp
    ) -> None:
        """Reduce `inputs`, in their order, into every one of `outputs`, which may be inputs."""
        kernel = _kernel(dtype, _plain(op, dtype))
        if not inputs or not outputs:
            raise ArgumentError(f"reduce of {len(inputs)} inputs into {len(outputs)} outputs")
        reads = [device_view(x) for x in inputs]
        writes = [device_view(x) for x in outputs]
        if not are_alike(reads, writes, dtype, self._launcher.device):
            self._explain(reads, writes, dtype)
        nbytes = reads[0].nbytes
        count = nbytes // dtype.itemsize
        if isinstance(op, UserOp):
            return self._fold(reads, writes, count, dtype, op)
        partial = self._partial_of_first(reads, count, dtype, op, kernel)
        first = (len(reads) - 1) // MOST_ARRAYS * MOST_ARRAYS
        self._launch(
            kernel,
            count,
            nbytes,
            inputs=[v.address for v in reads[first:]],
            outputs=[v.address for v in writes[:MOST_ARRAYS]],
            partial_in=partial.address if partial else 0,
            divisor=len(reads),
            factor=op.factor,
        )
        self._copy(writes[0], writes[MOST_ARRAYS:])

    def _explain(
        self, reads: Sequence[DeviceView], writes: Sequence[DeviceView], dtype: DType
    ) -> None:
        """Raise the error that says what is wrong with the arrays of a reduction."""
        sources, targets = named("inputs", reads), named("outputs", writes)
        check_device(sources + targets, self._launcher.device)
        check_count(sources + targets, dtype)
        check_apart(targets, sources + targets)

    def _fold(
        self,
        reads: Sequence[DeviceView],
        writes: Sequence[DeviceView],
        count: int,
        dtype: DType,
        op: UserOp,
    ) -> None:
        """Reduce by a user's operation, one input after another where one launch cannot."""
        if len(reads) <= MOST_ARRAYS:
            written = [v.address for v in writes[:MOST_ARRAYS]]
            self._reduce_by_user([v.address for v in reads], written, count, dtype, op)
        else:
            partial = device_view(self._launcher.empty(count * dtype.partial.itemsize))
            self.widen(reads[0], partial, dtype, op)
            for x in reads[1:]:
                self.accumulate(partial, x, dtype, op)
            for out in writes[:MOST_ARRAYS]:
                self.finish(partial, out, dtype, op, len(reads))
        self._copy(writes[0], writes[MOST_ARRAYS:])

    def _partial_of_first(
        self, reads: Sequence[DeviceView], count: int, dtype: DType, op: ReduceOp, kernel: str
    ) -> DeviceView | None:
        """Return the partial result of all inputs but those of the last launch."""
        if len(reads) <= MOST_ARRAYS or count == 0:
            return None
        partial = device_view(self._launcher.empty(count * dtype.partial.itemsize))
        for first in range(0, len(reads) - MOST_ARRAYS, MOST_ARRAYS):
            self._launch(
                kernel,
                count,
                partial.nbytes,
                inputs=[v.address for v in reads[first : first + MOST_ARRAYS]],
                partial_in=partial.address if first else 0,
                partial_out=partial.address,
                factor=op.factor,
            )
        return partial

    def _copy(self, source: DeviceView, targets: Sequence[DeviceView]) -> None:
        """Copy into those outputs that one launch has no room for."""
        if not targets:
            return
        kernel, nbytes = _kernel(_BYTES, SUM), source.nbytes
        for first in range(0, len(targets), MOST_ARRAYS):
            outputs = [v.address for v in targets[first : first + MOST_ARRAYS]]
            self._launch(kernel, nbytes, nbytes, [source.address], outputs)

    def widen(self, x: Any, partial: Any, dtype: DType, op: ReduceOp) -> None:
        """Convert `x` (dtype) into `partial` (dtype.partial), multiplied by op.factor if premul."""
        kernel = _kernel(dtype, _plain(op, dtype))
        read, wide, count = self._with_partial("x", x, partial, dtype)
        self._launch(
            kernel,
            count,
            wide.nbytes,
            inputs=[read.address],
            partial_out=wide.address,
            factor=op.factor,
        )

    def accumulate(self, partial: Any, x: Any, dtype: DType, op: ReduceOp) -> None:
        """Set partial = partial op widened(x), element by element."""
        kernel = _kernel(dtype, _plain(op, dtype))
        read, wide, count = self._with_partial("x", x, partial, dtype)
        if isinstance(op, UserOp):
            return self._accumulate_by_user(wide.address, read.address, count, dtype, op)
        self._launch(
            kernel,
            count,
            wide.nbytes,
            inputs=[read.address],
            partial_in=wide.address,
            partial_out=wide.address,
            factor=op.factor,
        )

    def finish(self, partial: Any, output: Any, dtype: DType, op: ReduceOp, inputs: int) -> None:
        """Round `partial` (dtype.partial) into `output` (dtype); avg divides by `inputs` first."""
        kernel = _kernel(dtype, _plain(op, dtype))
        written, wide, count = self._with_partial("output", output, partial, dtype)
        self._launch(
            kernel,
            count,
            wide.nbytes,
            outputs=[written.address],
            partial_in=wide.address,
            divisor=inputs,
        )

    def _with_partial(
        self, name: str, x: Any, partial: Any, dtype: DType
    ) -> tuple[DeviceView, DeviceView, int]:
        """Return an array and the partial result of as many elements, checked."""
        narrow, wide = Named(name, device_view(x)), Named("partial", device_view(partial))
        check_device((narrow, wide), self._launcher.device)
        count = check_count((narrow,), dtype)
        check_count((wide,), dtype.partial, count)
        check_apart((wide,), (narrow,), same=dtype.accumulator == dtype.name)
        return narrow.view, wide.view, count

    def _launch(
        self,
        kernel: str,
        count: int,
        nbytes: int,
        inputs: Sequence[int] = (),
        outputs: Sequence[int] = (),
        partial_in: int = 0,
        partial_out: int = 0,
        divisor: int = 1,
        factor: float = 1.0,
    ) -> None:
        """Launch a reduction of arrays at these addresses, the largest of which has `nbytes`."""
        if count == 0:
            return
        reads, writes = len(inputs), len(outputs)
        head = (count, reads, writes, divisor, factor, partial_in, partial_out)
        args = _layout(reads, writes).pack(*head, *inputs, *outputs)
        self._launcher.launch(kernel, self._grid(nbytes), args)


@cache
def _layout(inputs: int, outputs: int) -> struct.Struct:
    """Return the layout of ReduceArgs in csrc/cuda/reduce.cu, with that many addresses."""
    free = [8 * (MOST_ARRAYS - used) for used in (inputs, outputs)]
    return struct.Struct(f"<3q2d2Q{inputs}Q{free[0]}x{outputs}Q{free[1]}x")


def _plain(op: ReduceOp, dtype: DType) -> ReduceOp:
    """Return, for a user's operation, one of ours that widens and finishes in the same way."""
    if not isinstance(op, UserOp):
        return op
    return _BOR if dtype.family == "bool" else SUM


def _kernel(dtype: DType, op: ReduceOp) -> str:
    """Return the name of the kernel, or raise UnsupportedError where there is none."""
    return _kernel_name(dtype.name if isinstance(dtype, DType) else dtype, op.name)


@lru_cache(maxsize=1024)
def _kernel_name(dtype: str, op: str) -> str:
    if dtype not in DTYPES:
        raise UnsupportedError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if op not in OPS:
        raise UnsupportedError(
            f"op={op!r} has no kernel here: those of pycomm.reduce_op are Numba's"
        )
    return f"reduce<{DTYPES[dtype].code},{ReduceOp(op).on(DTYPES[dtype]).code}>"
