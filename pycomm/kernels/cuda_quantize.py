"""Block-scaled quantisation on a GPU, and sums of what was quantised; bits as on the CPU."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pycomm.errors import ArgumentError
from pycomm.kernels.block_scaled import (
    check_format,
    check_sizes,
    scale_count,
)
from pycomm.kernels.device import DeviceView
from pycomm.kernels.launcher import BLOCK_THREADS, Launcher
from pycomm.kernels.scratch import check_aligned, check_apart, grid_for, scratch
from pycomm.types import DTYPES, DType

INPUTS = 200
"""How many inputs one launch adds; `kQuantInputs` in csrc/cuda/quantize.cu."""

_BLOCKS_AT_ONCE = BLOCK_THREADS // 32
_FLOAT32 = DTYPES["float32"]


def quantize(
    launcher: Launcher,
    x: DeviceView,
    values: DeviceView,
    scales: DeviceView,
    dtype: DType,
    stored: DType,
) -> None:
    """Quantise `x` (dtype) into `values` (stored) and `scales`, as `cpu_quantize.quantize` does.

    Fastest where `x` starts at a 16-byte boundary, and `values` at one of 8.

    Raises:
        ArgumentError: an array has a wrong size or alignment, overlaps another one, or is on
            another device.
        UnsupportedError: there is no such quantisation.
    """
    check_format(dtype, stored)
    count = check_sizes(x.nbytes, dtype, [(values.nbytes, scales.nbytes)])
    check_apart([values, scales], [x])
    check_aligned(x, dtype.itemsize, "x")
    check_aligned(scales, 4, "scales")
    if count == 0:
        return
    args = struct.pack("<q3Q", count, x.address, values.address, scales.address)
    launcher.launch(f"quantize<{dtype.code},{stored.code}>", _grid(launcher, count), args)


def dequantize_reduce(
    launcher: Launcher,
    values: Sequence[DeviceView],
    scales: Sequence[DeviceView],
    output: DeviceView,
    dtype: DType,
    stored: DType,
    average: bool = False,
) -> None:
    """Add quantised inputs in their order in float32, and round the sum into `output` (dtype).

    One launch for every 200 inputs; sums are kept in float32 from one to the next.

    Args:
        launcher: where kernels run.
        values: of each input, as `quantize` writes them.
        scales: of each input.
        output: overlaps no input.
        dtype: of `output`.
        stored: of the values.
        average: divide the sum by the number of inputs.

    Raises:
        ArgumentError: there is no input; one lacks values or scales; an array has a wrong size or
            alignment, overlaps the output, or is on another device.
        UnsupportedError: there is no such quantisation.
    """
    check_format(dtype, stored)
    count = _check_inputs(values, scales, output, dtype)
    if count == 0:
        return
    several = len(values) > INPUTS
    sums = scratch(launcher, 4 * count) if several else output
    divisor = float(len(values) if average else 1)
    for first in range(0, len(values), INPUTS):
        last = first + INPUTS >= len(values)
        args = struct.pack(
            "<2qd2Q",
            count,
            min(INPUTS, len(values) - first),
            divisor if last else 1.0,
            sums.address if first else 0,
            (output if last else sums).address,
        )
        args += _table(values[first : first + INPUTS]) + _table(scales[first : first + INPUTS])
        code = (dtype if last else _FLOAT32).code
        launcher.launch(f"dequantize_reduce<{code},{stored.code}>", _grid(launcher, count), args)


def _check_inputs(
    values: Sequence[DeviceView], scales: Sequence[DeviceView], output: DeviceView, dtype: DType
) -> int:
    if not values or len(values) != len(scales):
        raise ArgumentError(f"{len(values)} arrays of values and {len(scales)} of scales to reduce")
    sizes = [(v.nbytes, s.nbytes) for v, s in zip(values, scales)]
    count = check_sizes(output.nbytes, dtype, sizes)
    check_apart([output], [*values, *scales])
    check_aligned(output, dtype.itemsize, "output")
    for k, s in enumerate(scales):
        check_aligned(s, 4, f"scales of input {k}")
    return count


def _table(views: Sequence[DeviceView]) -> bytes:
    return struct.pack(f"<{len(views)}Q", *(v.address for v in views)).ljust(8 * INPUTS, b"\0")


def _grid(launcher: Launcher, count: int) -> int:
    return grid_for(launcher, -(-scale_count(count) // _BLOCKS_AT_ONCE))
