"""Compression to one byte an element, with a scale for every 256 (block_scaled)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pycomm.devices.process import process_device
from pycomm.kernels.block_scaled import scale_count
from pycomm.kernels.cpu_quantize import dequantize_reduce, quantize
from pycomm.parallel.compression.exchange import ALIGNMENT, Exchange
from pycomm.types import DTYPES, DType

_FLOAT32 = DTYPES["float32"]
_SCALE_BYTES = 4


class BlockScaled(Exchange):
    """An exchange of chunks as values of `stored` and one float32 for every 256 of them.

    A chunk's row has the values of `length` elements, then the scales.
    """

    stored: DType

    def row_bytes(self, length: int) -> int:
        """Return the size of values and scales."""
        return length + -(-scale_count(length) * _SCALE_BYTES // ALIGNMENT) * ALIGNMENT

    def encode(self, x: torch.Tensor, row: torch.Tensor) -> None:
        """Quantise by blocks."""
        values, scales = self._parts(row, len(x))
        if x.is_cuda:
            runtime = process_device().runtime
            with runtime.on(runtime.stream(of_torch=True)):
                runtime.kernels.quantize(x, values, scales, _FLOAT32, self.stored)
        else:
            quantize(_bytes(x), _bytes(values), _bytes(scales), _FLOAT32, self.stored)

    def decode(self, rows: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Add in float32."""
        values, scales = zip(*(self._parts(row, len(out)) for row in rows))
        if out.is_cuda:
            runtime = process_device().runtime
            with runtime.on(runtime.stream(of_torch=True)):
                runtime.kernels.dequantize_reduce(values, scales, out, _FLOAT32, self.stored)
        else:
            codes, factors = [_bytes(v) for v in values], [_bytes(f) for f in scales]
            dequantize_reduce(codes, factors, _bytes(out), _FLOAT32, self.stored)

    def _parts(self, row: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the bytes of `count` values, and of their scales, in a row."""
        end = self.length + scale_count(count) * _SCALE_BYTES
        return row[:count], row[self.length : end]


def _bytes(x: torch.Tensor) -> np.ndarray:
    return x.view(torch.uint8).numpy()
