"""What the benchmark wants of a way to train, and the table of all that there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from bench.training.jobs import Job

Parallel = Literal["data", "model"]


@dataclass(frozen=True)
class Training:
    """A job as one variant does it, ready for its first step.

    Attributes:
        step: makes one update from the job's share, or from the whole batch.
        module: the model that is updated, or this rank's part of it, with the names of the whole.
        wire_bytes: what a rank sends in a step, where that is known; None: as pycomm counted.
    """

    step: Callable[[], Any]
    module: nn.Module
    wire_bytes: int | None = None


Build = Callable[[Any], Training]
"""Sets up a Job, or a PipelineJob."""

Bubble = Callable[[int, int], float]
"""(ranks, microbatches) → in which part of a step ranks idle, if nothing else takes time."""


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: what `--impl` calls it.
        build: sets up a job; collective.
        summary: what it is, in a sentence.
        parallel: what the ranks share: the samples, or the model.
        competes: whether it is one of those that pycomm is to be faster than.
        learns_from: what its weights follow: the batch of all ranks, or its rank's own share.
        most_off: how far weights may be off, of the way that they have gone. A rank that keeps its
            gradients is off by a tenth or more; AdamW moves weights whose gradient is nearly zero
            by what was rounded.
        bubble: what its schedule leaves idle.
    """

    name: str
    build: Build
    summary: str
    parallel: Parallel
    competes: bool
    learns_from: Literal["whole", "share"]
    most_off: float
    bubble: Bubble


def no_bubble(ranks: int, microbatches: int) -> float:
    """Return in which part of the time ranks idle that wait for nobody."""
    return 0.0


VARIANTS: dict[str, Variant] = {}
"""Every variant by name, in the order in which they take turns."""


def variant(
    name: str,
    *,
    parallel: Parallel = "data",
    competes: bool = False,
    learns_from: Literal["whole", "share"] = "whole",
    most_off: float = 1e-3,
    bubble: Bubble = no_bubble,
) -> Callable[[Build], Build]:
    """Register the decorated function, which sets up a job; its docstring says what it is."""

    def register(build: Build) -> Build:
        summary = (build.__doc__ or "").strip().splitlines()[0]
        VARIANTS[name] = Variant(
            name, build, summary, parallel, competes, learns_from, most_off, bubble
        )
        return build

    return register


def variants_of(parallel: Parallel) -> dict[str, Variant]:
    """Return those that share the samples, or those that share the model."""
    return {name: v for name, v in VARIANTS.items() if v.parallel == parallel}


def loop_step(
    model: Callable[[Tensor], Any],
    module: nn.Module,
    job: Job,
    batch: tuple[Tensor, Tensor] | None = None,
) -> Callable[[], None]:
    """Return the step of a plain training loop.

    Args:
        model: what is called, such as a wrapper of the module.
        module: whose parameters are updated.
        job: its optimizer and its loss.
        batch: inputs and targets; the rank's share without them.
    """
    optimizer = job.optimizer(module.named_parameters())
    inputs, targets = batch or job.share

    def step() -> None:
        optimizer.zero_grad()
        job.loss(model(inputs), targets).backward()
        optimizer.step()

    return step
