"""fp16: gradients travel as float16, 2 bytes an element; sums are formed in float32."""

from __future__ import annotations

import torch

from pycomm.parallel.compression.base import compression
from pycomm.parallel.compression.cast import Cast


@compression("fp16")
class Fp16(Cast):
    """An exchange of float16: 11 bits of precision from 6·10⁻⁵ to 65504, which is the largest."""

    stored = torch.float16
