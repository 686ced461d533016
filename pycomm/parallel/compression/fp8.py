"""fp8: gradients travel as 8-bit floats, with a scale for every 256 of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from pycomm.errors import ArgumentError
from pycomm.parallel.compression.base import compression
from pycomm.parallel.compression.block_scaled import BlockScaled
from pycomm.types import DTYPES

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

FORMATS = {"e4m3": DTYPES["float8_e4m3fn"], "e5m2": DTYPES["float8_e5m2"]}


@compression("fp8")
class Fp8(BlockScaled):
    """An exchange of float8: 1.016 bytes an element, errors in proportion to each element.

    Args:
        format: "e4m3", 4 bits of precision over 5 decades below a block's largest element; or
            "e5m2", 3 bits over 9 decades.
    """

    def __init__(
        self,
        comm: Communicator,
        flat: torch.Tensor,
        views: Sequence[torch.Tensor],
        op: str,
        format: str = "e4m3",
    ):
        self.stored = FORMATS[format]
        super().__init__(comm, flat, views, op)

    @classmethod
    def settings(cls, text: str) -> dict[str, Any]:
        """Return the format."""
        if text not in FORMATS:
            raise ArgumentError(f"compression=fp8:{text}: choose from {', '.join(FORMATS)}")
        return {"format": text}
