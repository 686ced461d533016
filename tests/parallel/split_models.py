"""Models to split: with skips, ties, several inputs and outputs, modes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

WORDS, WIDTH = 13, 8


class Block(nn.Module):
    """A residual block with a dropout of both kinds."""

    def __init__(self, width: int = WIDTH, p: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU())
        self.outer = nn.Linear(2 * width, width)
        self.p = p

    def forward(self, x, mask=None):
        y = self.outer(self.inner(self.norm(x)))
        if mask is not None:
            y = y * mask
        return x + F.dropout(y, self.p, self.training)


class TiedLanguageModel(nn.Module):
    """Embedding and head share a weight; positions are a parameter of the model itself."""

    def __init__(self, blocks: int = 3, p: float = 0.0):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(torch.randn(16, WIDTH) * 0.1)
        self.blocks = nn.ModuleList(Block(p=p) for _ in range(blocks))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("ramp", torch.linspace(0.5, 1.5, 16), persistent=False)

    def forward(self, tokens):
        length = tokens.size(1)
        x = self.words(tokens) + self.places[:length]
        for block in self.blocks:
            x = block(x)
        x = x * self.ramp[:length].unsqueeze(1)
        return self.head(self.norm(x))


class Skips(nn.Module):
    """Several inputs and outputs; values that cross several stages, and sizes and dtypes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, WIDTH)
        self.down = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.last = nn.Linear(WIDTH, 4)

    def forward(self, x, mask, scale=2.0):
        assert x.dim() == 2, "two dimensions"
        rows = x.size(0)
        kept = [F.relu(self.first(x))]
        for layer in self.down:
            kept.append(torch.tanh(layer(kept[-1])))
        y = kept.pop()
        for layer in self.up:
            y = torch.tanh(layer(y)) + kept.pop() * mask.to(y.dtype)
        count = torch.arange(rows, device=x.device, dtype=x.dtype)
        out = self.last(y) * scale + count.unsqueeze(1) / rows
        return {"logits": out, "hidden": (y, kept)}


class Branches(nn.Module):
    """Its forward depends on values."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)

    def forward(self, x):
        if x.sum() > 0:
            return self.one(x)
        return self.two(x)


class AroundBranches(nn.Module):
    """A submodule of it depends on values, and another draws what it is scaled by."""

    def __init__(self):
        super().__init__()
        self.start = nn.Linear(4, 4)
        self.branches = Branches()
        self.end = nn.Linear(4, 2)

    def forward(self, batch):
        return self.end(self.branches(self.start(batch["x"])))
