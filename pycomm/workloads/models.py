"""The models to train, each a Sequential of layers so that it can be split between them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycomm.errors import ArgumentError
from pycomm.parallel.tensor import Plan, plan_for, qkv
from pycomm.workloads.task import Task


def build(name: str, task: Task) -> nn.Sequential:
    """Return a new model for a task, with weights from torch's global random generator.

    Raises:
        ArgumentError: there is no such model, or it cannot take the task's inputs.
    """
    if name not in MODELS:
        raise ArgumentError(f"model {name!r} is not one of {', '.join(MODELS)}")
    return MODELS[name](task)


def mlp(task: Task, width: int = 128, hidden: int = 3) -> nn.Sequential:
    """Return a perceptron with `hidden` layers of `width` neurons, and one for the classes."""
    _require(task, "mlp", task.kind == "values")
    sizes = [prod(task.input_shape)] + [width] * hidden
    layers = [nn.Sequential(nn.Linear(i, o), nn.ReLU()) for i, o in pairwise(sizes)]
    layers[0].insert(0, nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(width, task.classes))


def cnn(task: Task, width: int = 32) -> nn.Sequential:
    """Return a convolutional network of six layers for images (channels, h, w) or (h, w)."""
    channels, *size = task.input_shape if len(task.input_shape) == 3 else (1, *task.input_shape)
    _require(task, "cnn", task.kind == "values" and len(size) == 2 and min(size) >= 4)
    features = 2 * width * prod(s // 4 for s in size)
    first = _convolution(channels, width)
    if len(task.input_shape) == 2:
        first.insert(0, nn.Unflatten(1, (1, size[0])))
    return nn.Sequential(
        first,
        _convolution(width, width, nn.MaxPool2d(2)),
        _convolution(width, 2 * width),
        _convolution(2 * width, 2 * width, nn.MaxPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(features, 4 * width), nn.ReLU()),
        nn.Linear(4 * width, task.classes),
    )


def gpt(task: Task, width: int = 64, blocks: int = 4, heads: int = 4) -> nn.Sequential:
    """Return a character GPT: embedding, pre-norm blocks, final norm and head."""
    _require(task, "gpt", task.kind == "tokens")
    layers = [
        Embedding(task.classes, task.input_shape[0], width),
        *(Block(width, heads, blocks) for _ in range(blocks)),
        Head(nn.LayerNorm(width), nn.Linear(width, task.classes, bias=False)),
    ]
    return nn.Sequential(*layers)


MODELS: dict[str, Callable[[Task], nn.Sequential]] = {"mlp": mlp, "cnn": cnn, "gpt": gpt}
"""Every model by the name that `--model` knows it by."""


class Embedding(nn.Module):
    """Symbols and their positions as vectors: (batch, length) int64 → (batch, length, width)."""

    def __init__(self, classes: int, length: int, width: int):
        super().__init__()
        self.symbols = nn.Embedding(classes, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        nn.init.normal_(self.symbols.weight, std=0.02)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors of positions."""
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of each symbol's and its position's vector."""
        return self.symbols(x) + self.positions[: x.shape[1]]


class Block(nn.Module):
    """A transformer block: x + attention(norm(x)), then x + feedforward(norm(x))."""

    def __init__(self, width: int, heads: int, blocks: int):
        super().__init__()
        attention, last = Attention(width, heads), nn.Linear(4 * width, width)
        self.attention = nn.Sequential(nn.LayerNorm(width), attention)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), last
        )
        # Each of the 2·blocks additions to the residual stream starts small (GPT-2, section 2.3).
        for linear in (attention.project, last):
            nn.init.normal_(linear.weight, std=0.02 / (2 * blocks) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, length, width) for the same."""
        x = x + self.attention(x)
        return x + self.feedforward(x)


class Attention(nn.Module):
    """Causal self-attention: each position looks at itself and at those before it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.head_width = width // heads
        self.inward = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, length, width) for the same."""
        qkv = self.inward(x).unflatten(-1, (3, -1, self.head_width))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads of this rank, length, head_width)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.project(mixed.transpose(1, 2).flatten(2))


class Head(nn.Sequential):
    """The last norm, and a score for every symbol: (…, width) → (…, classes)."""


@plan_for(Embedding)
def _divided_embedding(_: Embedding) -> Plan:
    return {"symbols": "embedding"}


@plan_for(Block)
def _divided_block(block: Block) -> Plan:
    attention = cast(Attention, block.get_submodule("attention.1"))
    return {
        "": "sequence",
        "attention.0": "norm",
        "attention.1.inward": qkv(attention.heads),
        "attention.1.project": "row",
        "feedforward.0": "norm",
        "feedforward.1": "column",
        "feedforward.3": "row",
    }


@plan_for(Head)
def _divided_head(_: Head) -> Plan:
    return {"1": "output"}


def _convolution(inputs: int, outputs: int, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), *after)


_TAKES = {
    "mlp": "arrays of numbers",
    "cnn": "images (channels, height, width) or (height, width) of at least 4×4",
    "gpt": "text",
}


def _require(task: Task, model: str, fits: bool) -> None:
    if not fits:
        raise ArgumentError(
            f"model {model!r} takes {_TAKES[model]}, not {task}; "
            f"leave --model out for {task.defaults.model!r}"
        )
