"""int8: gradients travel as integers from −127 to 127, with a scale for every 256 of them."""

from __future__ import annotations

from pycomm.parallel.compression.base import compression
from pycomm.parallel.compression.block_scaled import BlockScaled
from pycomm.types import DTYPES


@compression("int8")
class Int8(BlockScaled):
    """An exchange of int8: 1.016 bytes an element, errors of at most 1/254 of a block's largest."""

    stored = DTYPES["int8"]
