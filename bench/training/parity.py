"""Whether a variant learns what one process learns that takes the same samples."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from bench.training.jobs import Job
from bench.training.variants.base import Training, Variant, loop_step

STEPS = 3
"""Updates before weights are compared."""

Weights = dict[str, torch.Tensor]


class OneProcess:
    """What one process learns from the global batch, and from this rank's share if any does."""

    def __init__(self, job: Job, variants: Iterable[Variant]):
        self._job = job
        self._start = weights_of(job.module())
        # At once, which also loads what any first step loads, before memory is measured.
        sources = sorted({variant.learns_from for variant in variants})
        self._expected = {source: self._learned(source) for source in sources}

    def off(self, variant: Variant, training: Training) -> float:
        """Return how far weights are from where they should be, over how far they should go.

        Both are norms over all parameters that `training` has; 0 if it has none.
        """
        expected = self._expected[variant.learns_from]
        names = [name for name, _ in training.module.named_parameters()]
        found = weights_of(training.module)
        missed = _norm({name: found[name] - expected[name] for name in names})
        way = _norm({name: expected[name] - self._start[name] for name in names})
        return missed / way if names else 0.0

    def _learned(self, source: str) -> Weights:
        job, module = self._job, self._job.module()
        step = loop_step(module, module, job, job.whole if source == "whole" else job.share)
        for _ in range(STEPS):
            step()
        return weights_of(module)


def weights_of(module: torch.nn.Module) -> Weights:
    """Return copies of all parameters, by name."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def falsify(training: Training) -> None:
    """Put a weight where it does not belong, for verification to find."""
    with torch.no_grad():
        next(training.module.parameters()).view(-1)[0] += 1.0


def _norm(weights: Weights) -> float:
    return float(sum(float(w.double().square().sum()) for w in weights.values()) ** 0.5)
