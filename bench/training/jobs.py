"""What is trained: named models, optimizers, and a batch that ranks share or pass on in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.ranks import Ranks
from pycomm.trainers import batches
from pycomm.workloads import data, models
from pycomm.workloads.task import Defaults, Task

Named = Iterable[tuple[str, nn.Parameter]]

_SYMBOLS, _WORDS, _CONTEXT = 96, 8192, 64
_SAMPLES = 4096


@dataclass(frozen=True)
class Model:
    """A model with a name.

    Attributes:
        task: returns what it learns.
        build: makes it.
        batch: samples a rank takes in a step, or in a microbatch.
    """

    task: Callable[[], Task]
    build: Callable[[Task], nn.Module]
    batch: int


def tokens(classes: int = _SYMBOLS) -> Task:
    """Return random symbols in windows as those of a text; what they say takes no time."""
    random = torch.Generator().manual_seed(0)
    symbols = torch.randint(classes, (_SAMPLES, _CONTEXT + 1), generator=random)
    windows = torch.utils.data.TensorDataset(symbols[:, :-1], symbols[:, 1:])
    defaults = Defaults(model="gpt", epochs=None, steps=1, batch_size=1, lr=1e-3)
    return Task("tokens", "tokens", windows, windows, (_CONTEXT,), classes, defaults)


def _gpt(width: int, heads: int, batch: int, blocks: int = 4, classes: int = _SYMBOLS) -> Model:
    build = partial(models.gpt, width=width, blocks=blocks, heads=heads)
    return Model(partial(tokens, classes), build, batch)


MODELS = {
    "cnn": Model(data.digits, models.cnn, 32),
    "gpt-13": _gpt(256, 4, 3),
    "gpt-51": _gpt(512, 8, 2),
    "gpt-115": _gpt(768, 12, 1),
    "gpt8-6": _gpt(128, 4, 4, blocks=8),
    "gpt8-14": _gpt(192, 6, 2, blocks=8),
    "gpt8-words-15": _gpt(128, 4, 2, blocks=8, classes=_WORDS),
}
"""The CNN of the digits, and GPTs of 4 or 8 blocks by the megabytes of their gradients.

More than half the parameters of `gpt8-words-15` are vectors of words: where they come in they take
memory and no time, where they go out both.
"""

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=1e-3, fused=True),
    "momentum": partial(torch.optim.SGD, lr=1e-3, momentum=0.9, fused=True),
    # With torch's eps of 1e-8 gradients that are zero but for rounding move weights, too.
    "adamw": partial(torch.optim.AdamW, lr=1e-3, eps=1e-6, fused=True),
}
"""torch's own fused ones."""


@dataclass(frozen=True)
class Job:
    """A model, an optimizer and a batch, the same for every variant.

    Attributes:
        model: a name in MODELS.
        rule: a name in OPTIMIZERS.
        ranks: who trains.
        device: "cpu" or "cuda".
        batch: samples in each rank's share.
    """

    model: str
    rule: str
    ranks: Ranks
    device: str
    batch: int

    def module(self) -> nn.Module:
        """Return a new model, with the same weights every time and on every rank."""
        torch.manual_seed(0)
        return MODELS[self.model].build(self._task).to(self.device)

    def optimizer(self, named: Named) -> torch.optim.Optimizer:
        """Return a new optimizer of these parameters."""
        return OPTIMIZERS[self.rule]([p for _, p in named])

    def loss(self, output: Any, targets: Any) -> Tensor:
        """Return the mean loss."""
        return self._task.loss_fn(output, targets)

    @cached_property
    def whole(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the global batch."""
        order = np.arange(self.batch * self.batches) % _length(self._task)
        inputs, targets = batches.fetch(self._task.train, order)
        return inputs.to(self.device), targets.to(self.device)

    @property
    def batches(self) -> int:
        """How many times `batch` samples make the global batch."""
        return self.ranks.size

    @cached_property
    def share(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of this rank's share."""
        own = slice(self.ranks.rank * self.batch, (self.ranks.rank + 1) * self.batch)
        inputs, targets = self.whole
        return inputs[own], targets[own]

    @cached_property
    def gradient_bytes(self) -> int:
        """The size of all gradients."""
        return sum(p.numel() * p.element_size() for p in self.module().parameters())

    @cached_property
    def _task(self) -> Task:
        return MODELS[self.model].task()


@dataclass(frozen=True)
class PipelineJob(Job):
    """A job whose global batch goes through one model, cut into `microbatches` of `batch` samples.

    Attributes:
        microbatches: how many.
    """

    microbatches: int

    @property
    def batches(self) -> int:
        """How many times `batch` samples make the global batch."""
        return self.microbatches

    @property
    def pieces(self) -> list[tuple[Tensor, Tensor]]:
        """Inputs and targets of each microbatch."""
        return list(zip(*(tensor.split(self.batch) for tensor in self.whole)))

    def mean_of_pieces(self, output: Any, targets: Any) -> Tensor:
        """Return what a microbatch adds to the mean loss of the global batch."""
        return self.loss(output, targets) / self.microbatches


def _length(task: Task) -> int:
    return len(task.train)  # type: ignore[arg-type]
