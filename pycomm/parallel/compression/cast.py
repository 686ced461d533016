"""Compression by rounding every element to a shorter float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from pycomm.parallel.compression.base import without_overflow
from pycomm.parallel.compression.exchange import Exchange


class Cast(Exchange):
    """An exchange of chunks as `stored`; values beyond its range are cut to the largest one."""

    stored: ClassVar[torch.dtype]

    def row_bytes(self, length: int) -> int:
        """Return the size of `length` short floats."""
        return length * self.stored.itemsize

    def encode(self, x: torch.Tensor, row: torch.Tensor) -> None:
        """Round to nearest even."""
        row.view(self.stored)[: len(x)] = without_overflow(x, self.stored)

    def decode(self, rows: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Add in float32."""
        out.copy_(rows[0].view(self.stored)[: len(out)])
        for row in rows[1:]:
            out.add_(row.view(self.stored)[: len(out)])
