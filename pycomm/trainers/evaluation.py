"""Evaluating a model: sums over batches, in evaluation mode, that become means over a dataset."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from pycomm.errors import ArgumentError
from pycomm.trainers.batches import count_samples
from pycomm.trainers.returned import scalar

Metrics = dict[str, Callable[[Any, Any], Any]]
"""Name → function(output, targets) that returns a mean over its inputs."""


def no_sums(metrics: Metrics) -> np.ndarray:
    """Return the sums over no samples: Σ weight·loss, Σ weight, samples, Σ samples·metric each."""
    return np.zeros(3 + len(metrics))


def batch_sums(
    output: Any, targets: Any, loss_fn: Callable, weight: float, metrics: Metrics, rank: int
) -> np.ndarray:
    """Return the sums over one batch, in float64; a weight of zero leaves its loss out."""
    count = count_samples(targets)
    loss = weight and weight * float(scalar(loss_fn(output, targets), rank))
    values = [count * _mean(name, of(output, targets), rank) for name, of in metrics.items()]
    return np.array([loss, weight, count, *values], np.float64)


def _mean(name: str, value: Any, rank: int) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(
            f"metric {name!r} returned {value!r} on rank {rank}: it must return a number"
        ) from None


def means(sums: np.ndarray, metrics: Metrics) -> dict[str, Any]:
    """Return {"loss", "count", "metrics"} from sums over a dataset."""
    loss, weight, count, *values = sums.tolist()
    return {
        "loss": loss / weight if weight else math.nan,
        "count": round(count),
        "metrics": {name: value / count for name, value in zip(metrics, values)},
    }


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every submodule into evaluation mode without gradients, and back as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
