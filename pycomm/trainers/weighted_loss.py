"""The loss of microbatches, each weighed by its part of the global batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pycomm.trainers.batches import moved
from pycomm.trainers.microbatches import Microbatches


class WeightedLoss:
    """What the last stage differentiates: (microbatch, output) → a scalar, or None for no weight.

    Args:
        loss_fn: (output, targets) → the mean loss over its inputs.
        batch: the microbatches.
        scale: what losses are multiplied by, for narrow gradients.
        device: where outputs are.
    """

    def __init__(
        self,
        loss_fn: Callable[[Any, Any], torch.Tensor],
        batch: Microbatches,
        scale: float,
        device: torch.device,
    ):
        self._loss_fn, self._batch = loss_fn, batch
        self._scale, self._device = scale, device
        self._losses: list[tuple[torch.Tensor, float]] = []

    def __call__(self, microbatch: int, output: Any) -> torch.Tensor | None:
        """Return the microbatch's loss times its weight over that of the global batch, scaled."""
        weight = self._batch.weights[microbatch]
        if weight == 0:
            return None
        mean = self._loss_fn(output, moved(self._batch.targets[microbatch], self._device))
        self._losses.append((mean.detach(), weight))
        return mean * (weight / self._batch.weight * self._scale)

    @property
    def total(self) -> float:
        """The sum of weight times mean loss over the microbatches so far."""
        return sum(mean.item() * weight for mean, weight in self._losses)
