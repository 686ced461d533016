"""The order in which samples are trained on, and how a batch is taken from a dataset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from pycomm.errors import ArgumentError
from pycomm.parallel.sampler import epoch_order


def check_whole(least: int = 1, **given: Any) -> None:
    """Return if these are integers ≥ `least`.

    Raises:
        ArgumentError: names the first one that is not.
    """
    for name, value in given.items():
        if type(value) is not int or value < least:
            raise ArgumentError(f"{name}={value!r} must be an integer ≥ {least}")


@dataclass(frozen=True)
class Plan:
    """What `fit` does: which global batches in which order, and when it ends.

    Every epoch is a permutation of all samples that depends on (seed, epoch) only, cut into global
    batches; the last may be smaller. `accumulate` batches make a step; an epoch's last step may
    have fewer.

    Args:
        samples: in the dataset.
        batch_size: samples in a global batch, over all ranks.
        accumulate: batches in a step.
        seed: of the permutations, ≥ 0.
        epochs: how many in all; None for no limit.
        steps: how many in all; None for no limit.

    Raises:
        ArgumentError: a value is out of range, or there is neither epochs nor steps.
    """

    samples: int
    batch_size: int
    accumulate: int
    seed: int
    epochs: int | None
    steps: int | None

    def __post_init__(self) -> None:
        check_whole(samples=self.samples, batch_size=self.batch_size)
        ends = {"epochs": self.epochs, "steps": self.steps}
        given = {name: end for name, end in ends.items() if end is not None}
        check_whole(least=0, seed=self.seed, **given)
        if self.epochs is None and self.steps is None:
            raise ArgumentError("fit has no end: pass epochs= or steps=")

    @property
    def order(self) -> dict[str, int]:
        """What the order of samples depends on."""
        return {name: asdict(self)[name] for name in ("samples", "batch_size", "seed")}

    @property
    def batches(self) -> int:
        """Global batches in an epoch."""
        return -(-self.samples // self.batch_size)

    def done(self, epoch: int, step: int) -> bool:
        """Say whether training ends before `step` (counted from 0) of `epoch`."""
        enough = self.steps is not None and step >= self.steps
        return enough or (self.epochs is not None and epoch >= self.epochs)

    def last_step(self, epoch: int, batch: int, step: int) -> int:
        """Return what the step count will be at the end, from a position in an epoch."""
        ends = [] if self.steps is None else [self.steps]
        if self.epochs is not None:
            full = -(-self.batches // self.accumulate)
            done = -(-batch // self.accumulate)
            ends.append(step + (self.epochs - epoch) * full - done)
        return max(step, min(ends))

    def groups(self, epoch: int, start: int = 0) -> Iterator[list[np.ndarray]]:
        """Yield the batches of each step of `epoch`, from batch `start` on, as sample indices."""
        order = epoch_order(self.samples, self.seed, epoch)
        for first in range(start, self.batches, self.accumulate):
            last = min(first + self.accumulate, self.batches)
            cuts = range(first * self.batch_size, last * self.batch_size, self.batch_size)
            yield [order[cut : cut + self.batch_size] for cut in cuts]


def in_order(samples: int, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the indices 0…samples−1 in batches of at most `batch_size`."""
    for start in range(0, samples, batch_size):
        yield np.arange(start, min(start + batch_size, samples))


def fetch(dataset: Any, indices: np.ndarray) -> tuple[Any, Any]:
    """Return (inputs, targets) of the samples at `indices`; (None, None) of none.

    A dataset with `tensors` is indexed at once; any other sample by sample, then collated.

    Raises:
        ArgumentError: samples are not pairs.
    """
    if len(indices) == 0:
        return None, None
    if hasattr(dataset, "tensors"):
        index = torch.from_numpy(indices)
        pair = [tensor[index] for tensor in dataset.tensors]
    else:
        pair = default_collate([dataset[int(index)] for index in indices])
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise ArgumentError(
            f"a sample of {type(dataset).__name__} is not a pair (input, target): "
            f"wrap the dataset so that it returns one"
        )
    return pair[0], pair[1]


def moved(batch: Any, device: torch.device) -> Any:
    """Return a tensor, or a list, tuple or dict of tensors, on `device`; anything else as it is.

    What was on the host has been read when this returns; the host waits for the GPU only if it is
    page-locked.
    """
    if isinstance(batch, torch.Tensor):
        read_first = batch.device.type == device.type or batch.is_pinned()
        return batch.to(device, non_blocking=not read_first)
    if isinstance(batch, dict):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(part, device) for part in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(moved(part, device) for part in batch)
    return batch


def count_samples(batch: Any) -> int:
    """Return how many samples a tensor, or a list, tuple or dict of tensors, holds; None: 0.

    Raises:
        ArgumentError: it is none of these.
    """
    if batch is None:
        return 0
    if isinstance(batch, dict):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        return count_samples(batch[0]) if batch else 0
    try:
        return len(batch)
    except TypeError:
        raise ArgumentError(
            f"a batch has a tensor of samples, or several, not {batch!r} ({type(batch).__name__})"
        ) from None
