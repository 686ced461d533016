"""What the tests of pipelines share: models in parts, and how one process runs them."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from pycomm.parallel.parts import INPUT, OUTPUT, Part
from pycomm.parallel.schedules.registry import SCHEDULES
from tests.training import CLASSES


class Whole(nn.Module):
    """A model in parts, in one process."""

    def __init__(self, parts: list[Part]):
        super().__init__()
        self.parts = parts

    def forward(self, x):
        values = {INPUT: x}
        for part in self.parts:
            given = part.module(*(values[name] for name in part.takes))
            values.update(zip(part.gives, given))
        return values[OUTPUT]

    def named_parameters(self, *_):
        return [named for part in self.parts for named in part.module.named_parameters()]

    def parameters(self, *_):
        return [parameter for _, parameter in self.named_parameters()]


class Step(nn.Module):
    """A part of a model with skips: dicts go from each to the next, and values over some."""

    def __init__(self, number: int, count: int, width: int = 6):
        super().__init__()
        self.first, self.last = number == 0, number == count - 1
        out = CLASSES if self.last else width
        layers = {
            f"inward{number}": nn.Linear(width, width),
            f"outward{number}": nn.Linear(width, out),
        }
        self.layers = list(layers.values())
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, state, *skips):
        if self.first:
            state = {"x": state, "more": [state * 2, (1, None)], "rate": 0.5}
        assert (state["more"][1], state["rate"]) == ((1, None), 0.5)
        inward, outward = self.layers
        hidden = torch.tanh(inward(state["x"]))
        for skip in skips:
            hidden = hidden + state["rate"] * skip
        y = outward(hidden + state["more"][0])
        if self.last:
            return (y,)
        steps = torch.arange(3)
        return {**state, "x": y, "more": [hidden * y, (1, None)], "steps": steps}, hidden


def skipping(count: int, seed: int = 0) -> list[Part]:
    """Return parts of which each takes a dict of the one before, and something of all others."""
    torch.manual_seed(seed)
    parts = []
    for number in range(count):
        skips = [f"skip {k}" for k in range(max(number - 1, 0))]
        takes = (f"state {number - 1}" if number else INPUT, *skips)
        gives = (OUTPUT,) if number == count - 1 else (f"state {number}", f"skip {number}")
        parts.append(Part(Step(number, count).double(), takes, gives))
    return parts


def stages(schedule: str, ranks: int) -> int:
    return SCHEDULES[schedule].stages_per_rank * ranks


def flat(model: nn.Sequential) -> nn.Sequential:
    """Return the layers of a Sequential of Sequentials in one."""
    layers = [
        (f"{name}_{inner}", layer)
        for name, block in model.named_children()
        for inner, layer in (
            block.named_children() if isinstance(block, nn.Sequential) else [("", block)]
        )
    ]
    return nn.Sequential(OrderedDict(layers))
