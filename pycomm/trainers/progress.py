"""How far training has come, and the loss of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """How far training has come.

    Attributes:
        step: updates made, in all.
        epoch: epochs completed by `fit`.
        batch: global batches of the current epoch that `fit` has completed.
        loss: the mean loss of the last step, None before the first.
        order: what the order of samples in the current epoch depends on.
        loss_scale: what losses are multiplied by, with precision="fp16".
        since_overflow: updates since `loss_scale` was last changed.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    loss: float | None = None
    order: dict[str, int] = field(default_factory=dict)
    loss_scale: float | None = None
    since_overflow: int = 0

    @property
    def far(self) -> tuple[int, int, int]:
        """Compares how far it is: step, epoch, batch."""
        return self.step, self.epoch, self.batch


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a global batch as Σ weight·loss and Σ weight, equal on all ranks."""

    total: float
    weight: float
    samples: int

    @property
    def mean(self) -> float:
        """The global mean loss."""
        return self.total / self.weight
