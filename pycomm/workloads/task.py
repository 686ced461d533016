"""What there is to learn: the data, the shape of one sample, the loss, and how success is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

Metric = Callable[[Any, Any], float]


def cross_entropy(output: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy in nats.

    Args:
        output: (…, classes) float scores.
        targets: (…) int64 class numbers; the leading dimensions are those of `output`.
    """
    return functional.cross_entropy(output.reshape(-1, output.shape[-1]), targets.reshape(-1))


def accuracy(output: Tensor, targets: Tensor) -> float:
    """Return the share of targets (…) that get the highest score in `output` (…, classes)."""
    return (output.argmax(-1) == targets).float().mean().item()


@dataclass(frozen=True)
class Defaults:
    """What a task is trained with where the user says nothing: enough to reach a good result."""

    model: str
    epochs: int | None
    steps: int | None
    batch_size: int
    lr: float


@dataclass(frozen=True)
class Task:
    """Data to learn from, and what a model for it must take and return.

    Attributes:
        name: what the data are called in messages.
        kind: "values": samples are float32 arrays, a model returns (batch, classes);
            "tokens": samples are int64 sequences, a model returns (batch, length, classes).
        train: a map-style dataset of (input, target).
        test: held-out samples, disjoint from `train`.
        input_shape: the shape of one input, without the batch.
        classes: how many classes, or symbols of the vocabulary.
        defaults: model, epochs or steps, batch size and learning rate.
        loss_fn: (output, targets) → the mean loss over the batch.
        metrics: by name, (output, targets) → a mean over the batch.
        bigram_entropy: for text, what a model must get below, in nats; see `text.bigram_entropy`.
    """

    name: str
    kind: Literal["values", "tokens"]
    train: Dataset[tuple[Tensor, ...]]
    test: Dataset[tuple[Tensor, ...]]
    input_shape: tuple[int, ...]
    classes: int
    defaults: Defaults
    loss_fn: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    metrics: dict[str, Metric] = field(default_factory=lambda: {"accuracy": accuracy})
    bigram_entropy: float | None = None

    def __str__(self) -> str:
        what = "symbols" if self.kind == "tokens" else "classes"
        return f"{self.name} (samples of shape {self.input_shape}, {self.classes} {what})"


def tensor_pair(x: object, y: object) -> tuple[Tensor, Tensor]:
    """Return inputs as float32 and targets as int64 tensors."""
    return torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y, dtype=torch.int64)
