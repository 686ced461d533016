"""LossScale: keeps the gradients of float16 activations within what float16 can hold."""

from __future__ import annotations

import math

from pycomm.trainers.progress import Progress

_FIRST = 2.0**16
_PATIENCE = 2000


class LossScale:
    """What a loss is multiplied by before backward, and its gradients are divided by after it.

    Halved, and the update left out, when a gradient overflows; doubled after 2 000 updates without
    one. Source: Micikevicius et al., Mixed Precision Training (2018), section 3.2.

    Args:
        precision: other than "fp16" the scale is 1, always.
        progress: where the scale is kept; so it is saved with it.
    """

    def __init__(self, precision: str, progress: Progress):
        self.on = precision == "fp16"
        if self.on and progress.loss_scale is None:
            progress.loss_scale = _FIRST

    @staticmethod
    def of(progress: Progress) -> float:
        """Return the scale."""
        return progress.loss_scale or 1.0

    def accepts(self, norm: float, progress: Progress) -> bool:
        """Say whether gradients of this norm, equal on all ranks, are good; adapt the scale."""
        if not self.on or progress.loss_scale is None:
            return True
        if not math.isfinite(norm):
            progress.loss_scale, progress.since_overflow = max(1.0, progress.loss_scale / 2), 0
            return False
        progress.since_overflow += 1
        if progress.since_overflow == _PATIENCE:
            progress.loss_scale, progress.since_overflow = progress.loss_scale * 2, 0
        return True
