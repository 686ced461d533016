"""bf16: gradients travel as bfloat16, 2 bytes an element; sums are formed in float32."""

from __future__ import annotations

import torch

from pycomm.parallel.compression.base import compression
from pycomm.parallel.compression.cast import Cast


@compression("bf16")
class Bf16(Cast):
    """An exchange of bfloat16: the range of float32, 8 bits of precision."""

    stored = torch.bfloat16
