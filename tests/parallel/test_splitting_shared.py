"""What parts share: tied weights, and changes in place that a cut would hide."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pycomm.errors import ArgumentError
from pycomm.parallel.splitting.split import split
from tests.parallel.parts_runner import run


def test_a_hidden_change_in_place() -> None:
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            x = self.a(x)
            y = self.b(x)
            x.add_(1)
            return self.c(x + y) + x

    model = Hidden()
    with pytest.raises(ArgumentError, match="'a' of part 0 is changed in place by 'add_.*part 2"):
        split(model, 3)
    made = split(model, 2, cuts=["c"])
    x = torch.randn(3, 4)
    assert torch.equal(run(made.parts, x), model(x))


def test_operators_in_place_stay_in_place() -> None:
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            x = self.a(x)
            same = x[:, 1:]
            x += 1
            x[:, 0] = 0
            return self.c(self.b(x)) + same.sum()

    model = Inside()
    x = torch.randn(3, 4)
    for cuts in (["b"], ["c"]):
        assert torch.equal(run(split(model, 2, cuts=cuts).parts, x), model(x))


def test_ties_that_cannot_be_resolved() -> None:
    words, head = nn.Embedding(6, 4), nn.Linear(6, 4, bias=False)
    head.weight = nn.Parameter(words.weight.detach().t())
    with pytest.raises(
        ArgumentError, match=r"'0.weight' of shape \(6, 4\) in part 0 and '1.weight"
    ):
        split([words, head], 2)
    norm = nn.BatchNorm1d(4)
    with pytest.raises(ArgumentError, match="'2', a BatchNorm1d with running.* parts 0 and 1"):
        split([norm, nn.Linear(4, 4), norm], 2, cuts=["1"])


def test_slices_of_one_buffer_are_no_tie() -> None:
    flat = torch.randn(32)
    layers = [nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)]
    for layer, piece in zip(layers, flat.split(16)):
        layer.weight = nn.Parameter(piece.view(4, 4))
    assert split(layers, 2).ties == ()


def test_a_layer_of_two_parts() -> None:
    shared = nn.Linear(4, 4).double()
    layers = [shared, nn.Tanh(), shared, nn.Tanh(), shared]
    made = split(layers, 3, cuts=["2", "4"])
    (tie, bias) = made.ties
    assert tie.names == ("0.weight", "2.weight", "4.weight") and tie.stages == (0, 1, 2)
    assert bias.name == "0.bias"
    assert all(next(iter(p.module.named_parameters()))[0] == "0.weight" for p in made.parts)
