"""Random numbers that are not keyed, and their report."""

from __future__ import annotations

import logging
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pycomm.parallel.dropout import KeyedDropout


class Noisy(nn.Module):
    """Draws by a function that is given."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return self.draw(x)


DRAWS = {
    "rand": lambda x: torch.rand(3),
    "randn_like": torch.randn_like,
    "bernoulli": lambda x: torch.bernoulli(x * 0.5),
    "normal_": lambda x: x.clone().normal_(),
    "multinomial": lambda x: torch.multinomial(x[0, 0], 2),
    "randperm": lambda x: torch.randperm(5),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "gumbel_softmax": F.gumbel_softmax,
    "fractional_max_pool2d": lambda x: F.fractional_max_pool2d(x[None], 2, output_size=2),
    "normal": lambda x: torch.distributions.Normal(0.0, 1.0).sample(),
    "lstm": nn.LSTM(6, 4, num_layers=2, dropout=0.2),
    "gru": nn.GRU(6, 4, num_layers=2, dropout=0.2),
}


@pytest.mark.parametrize(("name", "draw"), DRAWS.items(), ids=DRAWS)
def test_other_random_functions_are_reported_once(name, draw, caplog):
    model = nn.Sequential(OrderedDict(noise=Noisy(draw)))
    keyed = KeyedDropout(model, seed=0)
    for _ in range(3):
        with keyed(0), caplog.at_level(logging.WARNING, logger="pycomm"):
            model(torch.ones(4, 5, 6))
    (record,) = caplog.records
    where = "noise.draw" if isinstance(draw, nn.Module) else "noise"
    assert record.getMessage().startswith(f"{name} in module '{where}' draws from torch's random")
    assert (
        "nn.Dropout between them" if name in ("lstm", "gru") else "F.dropout of a tensor of"
    ) in record.getMessage()


QUIET = {
    "recurrent": nn.LSTM(6, 4, num_layers=2),
    "one layer": nn.GRU(6, 4),
    "evaluated": nn.LSTM(6, 4, num_layers=2, dropout=0.2).eval(),
    "rrelu": nn.RReLU().eval(),
    "dropout": nn.Dropout(),
    "arithmetic": lambda x: (x.exp() @ x.mT).softmax(-1).sum().item(),
}


@pytest.mark.parametrize("quiet", QUIET.values(), ids=QUIET)
def test_nothing_else_is_reported(quiet, caplog):
    model = Noisy(quiet)
    with KeyedDropout(model, seed=0)(0), caplog.at_level(logging.WARNING, logger="pycomm"):
        model(torch.ones(4, 5, 6))
    assert caplog.records == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_cannot_be_looked_into_is_reported(caplog):
    model = nn.Sequential(OrderedDict(compiled=torch.jit.script(nn.Dropout())))
    with caplog.at_level(logging.WARNING, logger="pycomm"):
        KeyedDropout(model, seed=0)
    (record,) = caplog.records
    assert "module 'compiled' is compiled by torch.jit: dropout in it" in record.getMessage()
