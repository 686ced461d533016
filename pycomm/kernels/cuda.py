"""Reductions on a GPU: the kernels of csrc/cuda, with the same bits as kernels/cpu.py."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.kernels.cuda_convert import CudaConvert
from pycomm.kernels.cuda_user_ops import CudaUserOps
from pycomm.kernels.device import (
    DeviceView,
    Named,
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

_HEAD = struct.Struct("<3q2d2Q")
_BYTES = DTYPES["uint8"]
_BOR = ReduceOp("bor")


class CudaKernels(CudaConvert, CudaUserOps):
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
        sources = named("inputs", [device_view(x) for x in inputs])
        targets = named("outputs", [device_view(x) for x in outputs])
        check_device(sources + targets, self._launcher.device)
        count = check_count(sources + targets, dtype)
        check_apart(targets, sources + targets)
        if isinstance(op, UserOp):
            return self._fold(sources, targets, count, dtype, op)
        partial = self._partial_of_first(sources, count, dtype, op, kernel)
        first = (len(sources) - 1) // MOST_ARRAYS * MOST_ARRAYS
        self._launch(
            kernel,
            count,
            inputs=[m.view.address for m in sources[first:]],
            outputs=[m.view.address for m in targets[:MOST_ARRAYS]],
            partial_in=partial.address if partial else 0,
            divisor=len(sources),
            factor=op.factor,
            nbytes=sources[0].view.nbytes,
        )
        self._copy(targets[0].view, targets[MOST_ARRAYS:])

    def _fold(
        self,
        inputs: Sequence[Named],
        outputs: Sequence[Named],
        count: int,
        dtype: DType,
        op: UserOp,
    ) -> None:
        """Reduce by a user's operation, one input after another where one launch cannot."""
        sources, targets = ([m.view for m in side] for side in (inputs, outputs))
        if len(sources) <= MOST_ARRAYS:
            written = [v.address for v in targets[:MOST_ARRAYS]]
            self._reduce_by_user([v.address for v in sources], written, count, dtype, op)
        else:
            partial = device_view(self._launcher.empty(count * dtype.partial.itemsize))
            self.widen(sources[0], partial, dtype, op)
            for x in sources[1:]:
                self.accumulate(partial, x, dtype, op)
            for out in targets[:MOST_ARRAYS]:
                self.finish(partial, out, dtype, op, len(sources))
        self._copy(targets[0], outputs[MOST_ARRAYS:])

    def _partial_of_first(
        self, inputs: Sequence[Named], count: int, dtype: DType, op: ReduceOp, kernel: str
    ) -> DeviceView | None:
        """Return the partial result of all inputs but those of the last launch."""
        if len(inputs) <= MOST_ARRAYS or count == 0:
            return None
        partial = device_view(self._launcher.empty(count * dtype.partial.itemsize))
        for first in range(0, len(inputs) - MOST_ARRAYS, MOST_ARRAYS):
            self._launch(
                kernel,
                count,
                inputs=[m.view.address for m in inputs[first : first + MOST_ARRAYS]],
                partial_in=partial.address if first else 0,
                partial_out=partial.address,
                factor=op.factor,
                nbytes=partial.nbytes,
            )
        return partial

    def _copy(self, source: DeviceView, targets: Sequence[Named]) -> None:
        """Copy into those outputs that one launch has no room for."""
        kernel = f"reduce<{_BYTES.code},{SUM.code}>"
        for first in range(0, len(targets), MOST_ARRAYS):
            outputs = [m.view.address for m in targets[first : first + MOST_ARRAYS]]
            self._launch(kernel, source.nbytes, [source.address], outputs, nbytes=source.nbytes)

    def widen(self, x: Any, partial: Any, dtype: DType, op: ReduceOp) -> None:
        """Convert `x` (dtype) into `partial` (dtype.partial), multiplied by op.factor if premul."""
        kernel = _kernel(dtype, _plain(op, dtype))
        read, wide, count = self._with_partial("x", x, partial, dtype)
        check_apart([wide], [read], same=dtype.partial is dtype)
        self._launch(
            kernel,
            count,
            inputs=[read.view.address],
            partial_out=wide.view.address,
            factor=op.factor,
            nbytes=wide.view.nbytes,
        )

    def accumulate(self, partial: Any, x: Any, dtype: DType, op: ReduceOp) -> None:
        """Set partial = partial op widened(x), element by element."""
        kernel = _kernel(dtype, _plain(op, dtype))
        read, wide, count = self._with_partial("x", x, partial, dtype)
        check_apart([wide], [read], same=dtype.partial is dtype)
        if isinstance(op, UserOp):
            return self._accumulate_by_user(wide.view.address, read.view.address, count, dtype, op)
        self._launch(
            kernel,
            count,
            inputs=[read.view.address],
            partial_in=wide.view.address,
            partial_out=wide.view.address,
            factor=op.factor,
            nbytes=wide.view.nbytes,
        )

    def finish(self, partial: Any, output: Any, dtype: DType, op: ReduceOp, inputs: int) -> None:
        """Round `partial` (dtype.partial) into `output` (dtype); avg divides by `inputs` first."""
        kernel = _kernel(dtype, _plain(op, dtype))
        written, wide, count = self._with_partial("output", output, partial, dtype)
        check_apart([written], [wide], same=dtype.partial is dtype)
        self._launch(
            kernel,
            count,
            outputs=[written.view.address],
            partial_in=wide.view.address,
            divisor=inputs,
            nbytes=wide.view.nbytes,
        )

    def _with_partial(
        self, name: str, x: Any, partial: Any, dtype: DType
    ) -> tuple[Named, Named, int]:
        """Return an array and the partial result of as many elements, checked."""
        narrow, wide = Named(name, device_view(x)), Named("partial", device_view(partial))
        check_device([narrow, wide], self._launcher.device)
        count = check_count([narrow], dtype)
        check_count([wide], dtype.partial, count)
        return narrow, wide, count

    def _launch(
        self,
        kernel: str,
        count: int,
        inputs: Sequence[int] = (),
        outputs: Sequence[int] = (),
        partial_in: int = 0,
        partial_out: int = 0,
        divisor: int = 1,
        factor: float = 1.0,
        nbytes: int = 0,
    ) -> None:
        """Launch a reduction of arrays at these addresses; `nbytes` is the size of the largest."""
        if count == 0:
            return
        head = _HEAD.pack(
            count, len(inputs), len(outputs), divisor, factor, partial_in, partial_out
        )
        self._launcher.launch(
            kernel, self._grid(nbytes), head + _addresses(inputs) + _addresses(outputs)
        )


def _addresses(addresses: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(addresses)}Q", *addresses).ljust(8 * MOST_ARRAYS, b"\0")


def _plain(op: ReduceOp, dtype: DType) -> ReduceOp:
    """Return, for a user's operation, one of ours that widens and finishes in the same way."""
    if not isinstance(op, UserOp):
        return op
    return _BOR if dtype.family == "bool" else SUM


def _kernel(dtype: DType, op: ReduceOp) -> str:
    """Return the name of the kernel, or raise UnsupportedError where there is none."""
    if getattr(dtype, "name", None) not in DTYPES:
        raise UnsupportedError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if op.name not in OPS:
        raise UnsupportedError(
            f"op={op.name!r} has no kernel here: those of pycomm.reduce_op are Numba's"
        )
    return _kernel_name(dtype.name, op.name)


@lru_cache(maxsize=1024)
def _kernel_name(dtype: str, op: str) -> str:
    found = ReduceOp(op).on(DTYPES[dtype])
    return f"reduce<{DTYPES[dtype].code},{found.code}>"
